"""A controller at the other end of UDP: a little protocol that fits on one page (docs/deploy.md).

All numbers are little-endian. A datagram is a header of 20 bytes, `HEADER`, then either JSON
(HELLO, READY) or float32 (SENSORS, COMMAND). We say HELLO until the controller says READY; then it
sends SENSORS at its own rate, and gets one COMMAND per cycle. Angles on the wire are the model
file's. The controller must stop by itself when commands cease.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DeployError
from ..observation import JOINT_ANGLE, JOINT_VELOCITY, Joints, sensors_of
from .robot import Clock, Command, LinkError, Reading, Settings

HEADER = struct.Struct("<4sBBHId")
"""Magic, kind, mode, number of floats (or bytes of JSON), sequence number, sender's time in s."""
MAGIC = b"RLD1"
HELLO, READY, SENSORS, COMMAND = 1, 2, 3, 4
MODES = {"damp": 0, "hold": 1, "run": 2}
PROTOCOL = 1
LARGEST = 60_000
"""Bytes of a datagram."""
AGAIN = 0.1
"""Seconds between two HELLOs."""


class UdpRobot:
    """See `Robot`; READY brings the names of joints and sensors, in the controller's order."""

    name = "udp"

    def __init__(self, manifest: Mapping[str, Any], clock: Clock, settings: Settings) -> None:
        self._clock = clock
        host, _, port = settings.address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise DeployError(f"--address must be HOST:PORT, not '{settings.address}'")
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect((host, int(port)))  # hear this peer only
        except OSError as error:
            raise DeployError(f"no way to {settings.address} ({error})") from None
        self._sent = 0
        self._newest: int | None = None
        self._reading: Reading | None = None
        robot = manifest.get("robot")
        self._shapes = None if robot is None else Joints(robot)
        hello = {
            "protocol": PROTOCOL,
            "joints": [] if robot is None else robot["joint_names"],
            "sensors": sensors_of(manifest),
            "control_hz": (manifest.get("timing") or {}).get("control_hz"),
        }
        try:
            answer = self._shake_hands(hello, settings)
        except BaseException:
            self._socket.close()
            raise
        self.joints: tuple[str, ...] = tuple(answer["joints"])
        self.sensors: Mapping[str, int] = answer["sensors"]
        self._socket.setblocking(False)

    # ------------------------------------------------------------------ the first words
    def _shake_hands(self, hello: dict[str, Any], settings: Settings) -> dict[str, Any]:
        """Say HELLO until there is a READY, then wait for a first reading."""
        text = json.dumps(hello).encode()
        until = self._clock.now() + settings.timeout
        self._socket.settimeout(AGAIN)
        answer: dict[str, Any] | None = None
        while self._clock.now() < until:
            try:
                if answer is None:
                    self._send(HELLO, 0, text, len(text))
                data = self._socket.recv(LARGEST)
            except (TimeoutError, socket.timeout):  # noqa: UP041  (two classes before Python 3.11)
                continue
            except ConnectionError:  # nobody listens there yet
                self._clock.wait_until(self._clock.now() + AGAIN)
                continue
            except OSError as error:
                raise DeployError(f"no way to {settings.address} ({error})") from None
            kind = _kind(data)
            if kind == READY:
                answer = _parse_ready(data[HEADER.size :])
                self.sensors = answer["sensors"]
            elif kind == SENSORS and answer is not None:
                self._take(data)
                return answer
        said = "no READY" if answer is None else "READY, and no SENSORS"
        raise DeployError(
            f"the controller at {settings.address} gave {said} within {settings.timeout:g} s: "
            "start it first, and see docs/deploy.md for what it must say"
        )

    # ------------------------------------------------------------------ the loop
    def read(self) -> Reading:
        """See `Robot`: the newest reading; an old one if nothing came since."""
        while True:
            try:
                data = self._socket.recv(LARGEST)
            except BlockingIOError:
                break
            except OSError as error:
                raise LinkError(f"the controller is gone ({error})") from None
            if _kind(data) == SENSORS:
                self._take(data)
        assert self._reading is not None
        return self._reading

    def _take(self, data: bytes) -> None:
        """Keep a reading, unless it is older than the last one."""
        _, _, _, count, sequence, _ = HEADER.unpack_from(data)
        newest = self._newest
        if newest is not None and (sequence - newest) & 0xFFFFFFFF >= 0x80000000:
            return
        if sequence == newest:
            return
        body = data[HEADER.size :]
        floats = np.frombuffer(body[: len(body) // 4 * 4], "<f4").astype(np.float64)
        values, at = {}, 0
        for name, size in self.sensors.items():
            values[name] = floats[at : at + size]
            at += size
        if count != at or len(floats) != at:  # the guards see that it has another shape
            values = {name: floats for name in values}
        elif self._shapes is not None:
            self._shapes.from_model(values, JOINT_ANGLE, JOINT_VELOCITY)
        self._newest, self._reading = sequence, Reading(self._clock.now(), values)

    def write(self, command: Command) -> None:
        """See `Robot`."""
        if self._shapes is not None:
            parts = [self._shapes.to_model(command.target), command.stiffness, command.damping]
        else:
            said = command.action
            leaves = said.values() if isinstance(said, dict) else [said]
            parts = [np.ravel(leaf) for leaf in leaves if leaf is not None]
        floats = np.concatenate([*parts, np.zeros(0)]).astype("<f4")
        self._send(COMMAND, MODES[command.mode], floats.tobytes(), len(floats))

    def _send(self, kind: int, mode: int, body: bytes, count: int) -> None:
        self._sent = (self._sent + 1) & 0xFFFFFFFF
        head = HEADER.pack(MAGIC, kind, mode, count, self._sent, self._clock.now())
        try:
            self._socket.send(head + body)
        except BlockingIOError:  # the way out is full: the controller's watchdog must see to it
            pass
        except ConnectionError:
            if kind == COMMAND:
                raise LinkError("the controller does not listen any more") from None
        except OSError as error:
            raise LinkError(f"the controller cannot be reached ({error})") from None

    def close(self) -> None:
        """See `Robot`."""
        self._socket.close()


def _kind(data: bytes) -> int:
    """The kind of a datagram; 0 for one that is none of ours."""
    if len(data) < HEADER.size or data[:4] != MAGIC:
        return 0
    return data[4]


def _parse_ready(body: bytes) -> dict[str, Any]:
    """Check what a controller says of itself.

    Raises:
        DeployError: it is not what the protocol asks for.
    """
    try:
        said = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        said = None
    sound = (
        isinstance(said, dict)
        and said.get("protocol") == PROTOCOL
        and isinstance(said.get("joints"), list)
        and all(isinstance(name, str) for name in said["joints"])
        and isinstance(said.get("sensors"), dict)
        and all(type(size) is int and 0 < size <= 4096 for size in said["sensors"].values())
    )
    if not sound:
        raise DeployError(
            f"the controller's READY must be JSON with protocol {PROTOCOL}, joints (names) and "
            "sensors (name: number of values): see docs/deploy.md"
        )
    assert isinstance(said, dict)
    return said
