"""Side channels, as the player sees them: settings and parameters come in, statistics go out.

A message is a GUID (16 bytes, little-endian), a length (int32) and a payload; several are joined.
"""

from __future__ import annotations

import struct
import uuid

import numpy as np

ENGINE = uuid.UUID("e951342c-4f7e-11ea-b238-784f4387d1f7")
PARAMETERS = uuid.UUID("534c891e-810f-11ea-a9d0-822485860400")
STATS = uuid.UUID("a1d8f7b7-cec8-50f9-b78b-d3e165a78520")
ANALYTICS = uuid.UUID("b664a4a9-d86f-5a5f-95cb-e8353a7e8356")

AVERAGE, LATEST, SUM = 0, 1, 2
SETTINGS = ("resolution", "quality_level", "time_scale", "target_frame_rate", "capture_frame_rate")


class Channels:
    """What Python has set, and what waits to be told to Python.

    Attributes:
        settings: engine settings by name, as last received.
    """

    def __init__(self) -> None:
        """Begin with Unity's own values: nothing set."""
        self.settings: dict[str, float] = {}
        self._values: dict[str, float] = {}
        self._samplers: dict[str, _Sampler] = {}
        self._counts: dict[str, int] = {}
        self._out = bytearray()

    def receive(self, data: bytes) -> None:
        """Take in what came with a message.

        Raises:
            ValueError: when the bytes end in the middle of a message.
        """
        at = 0
        while at < len(data):
            if len(data) < at + 20:
                raise ValueError("a side channel's message is cut short")
            channel = uuid.UUID(bytes_le=data[at : at + 16])
            (length,) = struct.unpack_from("<i", data, at + 16)
            payload = data[at + 20 : at + 20 + length]
            at += 20 + length
            if len(payload) != length:
                raise ValueError("a side channel's message is cut short")
            if channel == ENGINE:
                self._configure(payload)
            elif channel == PARAMETERS:
                self._set_parameter(payload)
            elif channel not in (STATS, ANALYTICS):
                self._send(channel, payload)  # a person's own channel is answered with an echo

    def parameter(self, name: str, default: float) -> float:
        """The parameter's value now; one that has a sampler is drawn anew at each call."""
        if name in self._samplers:
            return self._samplers[name].draw()
        return self._values.get(name, default)

    def count(self, name: str, number: int) -> None:
        """Add to what is reported as a sum with the next message."""
        if number:
            self._counts[name] = self._counts.get(name, 0) + number

    def report(self, name: str, value: float, aggregation: int = AVERAGE) -> None:
        """Report a statistic with the next message."""
        text = name.encode("ascii")
        self._send(
            STATS, struct.pack("<i", len(text)) + text + struct.pack("<fi", value, aggregation)
        )

    def take(self) -> bytes:
        """What goes out with the next message; it is then forgotten."""
        for name, number in self._counts.items():
            self.report(name, number, SUM)
        data = bytes(self._out)
        self._counts.clear()
        self._out.clear()
        return data

    def _send(self, channel: uuid.UUID, payload: bytes) -> None:
        self._out += channel.bytes_le + struct.pack("<i", len(payload)) + payload

    def _configure(self, payload: bytes) -> None:
        (kind,) = struct.unpack_from("<i", payload)
        name = SETTINGS[kind]
        if name == "resolution":
            self.settings["width"], self.settings["height"] = struct.unpack_from("<ii", payload, 4)
        else:
            (self.settings[name],) = struct.unpack_from("<f" if kind == 2 else "<i", payload, 4)
        if name in self.settings:  # reported back, so that a person sees in TensorBoard what is on
            self.report(f"Engine/{name}", self.settings[name], LATEST)

    def _set_parameter(self, payload: bytes) -> None:
        (length,) = struct.unpack_from("<i", payload)
        name = payload[4 : 4 + length].decode("ascii")
        (kind,) = struct.unpack_from("<i", payload, 4 + length)
        self._samplers.pop(name, None)
        if kind == 0:
            (self._values[name],) = struct.unpack_from("<f", payload, 8 + length)
            self.report(f"Parameter/{name}", self._values[name], LATEST)
        else:
            self._samplers[name] = _Sampler(payload[8 + length :])


class _Sampler:
    """Unity's samplers: uniform, Gaussian, uniform over several ranges."""

    def __init__(self, payload: bytes) -> None:
        seed, self._kind = struct.unpack_from("<ii", payload)
        self._rng = np.random.default_rng(seed & 0xFFFFFFFF)
        if self._kind == 2:
            (n,) = struct.unpack_from("<i", payload, 8)
            self._numbers = np.array(struct.unpack_from(f"<{n}f", payload, 12)).reshape(-1, 2)
        else:
            self._numbers = np.array([struct.unpack_from("<ff", payload, 8)])

    def draw(self) -> float:
        if self._kind == 1:
            return float(self._rng.normal(*self._numbers[0]))
        widths = self._numbers[:, 1] - self._numbers[:, 0]
        shares = widths / widths.sum() if widths.sum() > 0 else None
        low, high = self._numbers[self._rng.choice(len(self._numbers), p=shares)]
        return float(self._rng.uniform(low, high))
