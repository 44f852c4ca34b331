"""A controller at the other end of UDP, on loopback, in a thread: what a real one would do."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

HEADER = struct.Struct("<4sBBHId")
HELLO, READY, SENSORS, COMMAND = 1, 2, 3, 4


class FakeController:
    """Answers HELLO, then sends sensors after each datagram that it hears.

    Attributes:
        ready: what it says of itself.
        values: what its sensors show, in the order of `ready["sensors"]`.
        hello: what it was told first.
        commands: (mode, floats) of each command.
    """

    def __init__(self, ready: dict[str, Any], values: list[np.ndarray]) -> None:
        self.ready, self.values = ready, values
        self.hello: dict[str, Any] = {}
        self.commands: list[tuple[int, np.ndarray]] = []
        self.mute = False
        self.sequence = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._peer: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def send(self, kind: int, body: bytes, count: int, sequence: int | None = None) -> None:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        self._socket.sendto(HEADER.pack(b"RLD1", kind, 0, count, sequence, 0.0) + body, self._peer)

    def send_sensors(self, sequence: int | None = None) -> None:
        floats = np.concatenate([np.ravel(value) for value in self.values]).astype("<f4")
        self.send(SENSORS, floats.tobytes(), len(floats), sequence)

    def send_raw(self, data: bytes) -> None:
        self._socket.sendto(data, self._peer)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                data, self._peer = self._socket.recvfrom(65536)
            except OSError:
                continue
            magic, kind, mode, count, _, _ = HEADER.unpack_from(data)
            body = data[HEADER.size :]
            assert magic == b"RLD1"
            if kind == HELLO:
                assert count == len(body)
                self.hello = json.loads(body)
                text = json.dumps(self.ready).encode()
                self.send(READY, text, len(text))
            elif kind == COMMAND:
                assert len(body) == 4 * count
                self.commands.append((mode, np.frombuffer(body, "<f4")))
            if not self.mute:
                self.send_sensors()

    def __enter__(self) -> FakeController:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def standing(joints: list[str], pose: np.ndarray) -> Iterator[FakeController]:
    """A robot that stands in a pose (the model file's angles), whatever it is told."""
    sensors = {"orientation": 4, "angular_velocity": 3}
    sensors |= {"joint_angle": len(pose), "joint_velocity": len(pose)}
    ready = {"protocol": 1, "joints": joints, "sensors": sensors}
    values = [np.array([0.0, 0.0, 0.0, 1.0]), np.zeros(3), pose, np.zeros_like(pose)]
    with FakeController(ready, values) as controller:
        yield controller
