"""Side channels: what travels beside observations and actions, as bytes of named channels.

One message carries any number of parts, each a channel's 16 bytes of GUID (little-endian), an
int32 length and that many bytes of payload. They go with the next step or reset.

    class Goals(Channel):                       # a channel of your own
        def receive(self, payload): self.last = payload
    goals = Goals("0b5a3d8c-...")               # the id that the C# side was given
    env = rlgym.make_vec("unity:Build.x86_64", side_channels=[goals])
    goals.send(b"...")

Channels written for Unity's own package (`mlagents_envs.side_channel.SideChannel`) work as well.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from typing import Any

from rlgym.envs.unity.parameters import Sampler
from rlgym.errors import ConfigError, WorldError

ENGINE = uuid.UUID("e951342c-4f7e-11ea-b238-784f4387d1f7")
PARAMETERS = uuid.UUID("534c891e-810f-11ea-a9d0-822485860400")
STATS = uuid.UUID("a1d8f7b7-cec8-50f9-b78b-d3e165a78520")
ANALYTICS = uuid.UUID("b664a4a9-d86f-5a5f-95cb-e8353a7e8356")
"""Unity's own statistics of trainers, which nobody here collects."""

MAX_STATS = 1000
"""Names of statistics that are kept; a scene that makes up a name per episode must not fill the
memory."""


class Channel:
    """A channel of the user's own; subclass it and override `receive`.

    Args:
        channel_id: the GUID that the channel has on the C# side.
    """

    def __init__(self, channel_id: str | uuid.UUID) -> None:
        try:
            self.channel_id = uuid.UUID(str(channel_id))
        except ValueError:
            raise ConfigError(
                f"side channel id {channel_id!r} is no GUID: copy the one of the C# channel"
            ) from None
        self.message_queue: list[bytes] = []

    def receive(self, payload: bytes) -> None:
        """Take what a player has sent."""

    def send(self, payload: bytes) -> None:
        """Send bytes to every player, with its next step."""
        self.message_queue.append(bytes(payload))


class Stats:
    """Statistics that C# scripts record (`Academy.Instance.StatsRecorder`), until they are logged.

    A value is averaged over the time between two logs, or summed up, or the newest is kept, as the
    script asks for; of histograms the mean is kept.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._kinds: dict[str, int] = {}

    def receive(self, payload: bytes) -> None:
        """Take one value."""
        (size,) = struct.unpack_from("<i", payload)
        name = payload[4 : 4 + size].decode("ascii", "replace")
        value, kind = struct.unpack_from("<fi", payload, 4 + size)
        if name not in self._kinds and len(self._kinds) >= MAX_STATS:
            return
        self._kinds[name] = kind
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (value, 1) if kind == 1 else (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """The statistics since the last call, by name."""
        found = {
            name: total if self._kinds[name] == 2 else total / count
            for name, (total, count) in self._sums.items()
        }
        self._sums = {}
        return found


class SideChannels:
    """What one player is told and tells beside its steps.

    Args:
        stats: takes statistics; the players of a world share one.
        channels: the user's own; each hears every player and speaks to all.

    Raises:
        ConfigError: an object that is no channel, or an id that stands for two.
    """

    def __init__(self, stats: Stats, channels: Iterable[Any] = ()) -> None:
        self._stats = stats
        self._own: dict[uuid.UUID, Any] = {}
        self._queue: list[bytes] = []
        for channel in channels:
            number = getattr(channel, "channel_id", None)
            if not isinstance(number, uuid.UUID) or not hasattr(channel, "message_queue"):
                raise ConfigError(
                    f"{channel!r} is no side channel: subclass rlgym.envs.unity.side_channels."
                    "Channel"
                )
            if number in (*self._own, ENGINE, PARAMETERS, STATS, ANALYTICS):
                raise ConfigError(f"two side channels have the id {number}: give each its own")
            self._own[number] = channel

    def queue(self, parts: Iterable[bytes]) -> None:
        """Send these parts (made by `part`) with the next message."""
        self._queue += parts

    def outgoing(self) -> bytes:
        """What goes with the next message; it is sent once."""
        if not self._queue:
            return b""
        content = b"".join(self._queue)
        self._queue.clear()
        return content

    def incoming(self, content: bytes) -> None:
        """Hand each part of a player's message to its channel; parts of unknown ones are dropped.

        Raises:
            WorldError: bytes that are no side channel message.
        """
        at = 0
        while at < len(content):
            if at + 20 > len(content):
                raise _torn()
            number = uuid.UUID(bytes_le=content[at : at + 16])
            (size,) = struct.unpack_from("<i", content, at + 16)
            payload = content[at + 20 : at + 20 + size]
            if size < 0 or len(payload) != size:
                raise _torn()
            at += 20 + size
            self._deliver(number, payload)

    def _deliver(self, number: uuid.UUID, payload: bytes) -> None:
        if number == STATS:
            try:
                self._stats.receive(payload)
            except struct.error:
                raise _torn() from None
            return
        channel = self._own.get(number)
        if channel is None:
            return
        if hasattr(channel, "receive"):
            channel.receive(payload)
        else:
            channel.on_message_received(_unity_message(payload))


def drain(channels: Iterable[Any]) -> list[bytes]:
    """Take what the user's channels want to send, as parts."""
    parts = []
    for channel in channels:
        parts += [part(channel.channel_id, bytes(message)) for message in channel.message_queue]
        channel.message_queue = []
    return parts


def part(number: uuid.UUID, payload: bytes) -> bytes:
    """One channel's payload as it is put on the wire."""
    return number.bytes_le + struct.pack("<i", len(payload)) + payload


def engine_parts(
    *,
    time_scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    quality_level: int | None = None,
    target_frame_rate: int | None = None,
    capture_frame_rate: int | None = None,
) -> list[bytes]:
    """The engine's settings as parts; None leaves what the build has.

    Raises:
        ConfigError: only one of width and height.
    """
    if (width is None) != (height is None):
        raise ConfigError("width and height go together: give both, or neither")
    payloads = []
    if width is not None and height is not None:
        payloads.append(struct.pack("<iii", 0, width, height))
    if quality_level is not None:
        payloads.append(struct.pack("<ii", 1, quality_level))
    if time_scale is not None:
        payloads.append(struct.pack("<if", 2, time_scale))
    if target_frame_rate is not None:
        payloads.append(struct.pack("<ii", 3, target_frame_rate))
    if capture_frame_rate is not None:
        payloads.append(struct.pack("<ii", 4, capture_frame_rate))
    return [part(ENGINE, payload) for payload in payloads]


def parameter_part(name: str, value: float | Sampler, seed: int) -> bytes:
    """An environment parameter as a part: a number, or a distribution that the player draws from.

    Args:
        name: as the C# script asks for it.
        value: what it is.
        seed: of the player's generator for this parameter.
    """
    encoded = name.encode("ascii")
    head = struct.pack("<i", len(encoded)) + encoded
    if isinstance(value, Sampler):
        numbers = struct.pack(f"<{len(value.numbers)}f", *value.numbers)
        if value.kind == "multirangeuniform":
            numbers = struct.pack("<i", len(value.numbers)) + numbers
        payload = head + struct.pack("<iii", 1, seed, value.number) + numbers
    else:
        payload = head + struct.pack("<if", 0, value)
    return part(PARAMETERS, payload)


def _torn() -> WorldError:
    return WorldError(
        "the player sent a side channel message that breaks off: use the ML-Agents package 2.x to "
        "4.x in Unity, and write whole messages in channels of your own"
    )


def _unity_message(payload: bytes) -> Any:
    """A payload as Unity's own channels take it."""
    from rlgym.envs.unity import compat

    compat.load()
    from mlagents_envs.side_channel import IncomingMessage

    return IncomingMessage(payload)
