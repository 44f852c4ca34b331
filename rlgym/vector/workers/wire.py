"""What parent and workers write into each other's pipes; torch-free, workers import it.

A step is one byte each way: the group's number, there to begin it, back when its rows are written.
All else is a frame: the byte `FRAME`, its length, a JSON document, and raw arrays.

Frames from a worker hold JSON and arrays only. Frames to a worker may also carry a callable or
reset options as cloudpickle bytes: they go from a parent to the processes that it started itself,
never to or from a file or a socket. This is the one place in rlgym that uses pickle.
"""

from __future__ import annotations

import json
import math
import select
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from rlgym.errors import WorldError

MARK = 254
"""Byte that lets a worker's slots remember this moment; nothing comes back."""
FRAME = 255
"""Byte that a frame begins with."""
MAX_GROUPS = 250
"""Bytes below are group numbers."""

_HEAD = struct.Struct("<QI")  # length of what follows the length, length of the document
HEAD_SIZE = 1 + _HEAD.size
"""Bytes of a frame before its document."""


class Spinner:
    """Looks at a pipe for a moment before its reader sleeps on it, as long as that pays.

    After a sleep a core runs Python at about half its speed for a while, and waking takes some 40
    us. Looking costs a core, so a look in vain is followed by ever longer spells without any.

    Args:
        pipe: descriptor of the pipe or socket.
        nanoseconds: length of a look.
    """

    def __init__(self, pipe: int, nanoseconds: int) -> None:
        """Begin by looking."""
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        self._poll = poller.poll
        self._length = nanoseconds
        self._skip = self._spell = 0

    def look(self) -> None:
        """Return when there is something to read, or when looking does not pay."""
        if self._skip:
            self._skip -= 1
            return
        poll, clock = self._poll, time.perf_counter_ns
        end = clock() + self._length
        while not poll(0):
            if clock() > end:
                self._skip = self._spell = min(2 * self._spell + 1, 127)
                return
        self._spell >>= 1


def pack(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Write a frame."""
    arrays = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    head = dict(document)
    head["arrays"] = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps(head).encode()
    body = b"".join([text, *(array.tobytes() for array in arrays.values())])
    return bytes([FRAME]) + _HEAD.pack(len(body) + 4, len(text)) + body


def frame_size(start: bytes | bytearray) -> int:
    """Bytes of the whole frame whose first `HEAD_SIZE` bytes are given."""
    return HEAD_SIZE - 4 + _HEAD.unpack_from(start, 1)[0]


def unpack(frame: bytes | bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a whole frame: its document and (writable) arrays."""
    _, length = _HEAD.unpack_from(frame, 1)
    at = HEAD_SIZE + length
    document = json.loads(frame[HEAD_SIZE:at].decode())
    arrays = {}
    for name, code, shape in document.pop("arrays"):
        dtype = np.dtype(code)
        count = math.prod(shape)
        arrays[name] = np.frombuffer(frame, dtype, count, at).reshape(shape).copy()
        at += count * dtype.itemsize
    return document, arrays


# ---------------------------------------------------------------------- callables and options
def to_bytes(value: Any, what: str) -> np.ndarray:
    """Write a callable, or reset options, for a worker of this process.

    Raises:
        WorldError: when it cannot leave this process; the message says what to do.
    """
    try:
        with _by_value(value):
            return np.frombuffer(cloudpickle.dumps(value), np.uint8)
    except Exception as error:  # whatever a user's __reduce__ or __getstate__ raises
        raise WorldError(
            f"{what} cannot be sent to worker processes ({type(error).__name__}: {error}): "
            'create what it needs inside the function, or use backend="sync"'
        ) from error


def from_bytes(data: np.ndarray) -> Any:
    """Read what the parent of this worker wrote with `to_bytes`."""
    return cloudpickle.loads(data.tobytes())


def own_registration(factory: Any) -> Any:
    """The registry's entry of a world that only the user's `__main__` may have registered."""
    world = getattr(factory, "world", None)
    return gymnasium.registry.get(world) if isinstance(world, str) else None


@contextmanager
def _by_value(value: Any) -> Iterator[None]:
    """Send code by value where a worker could not import its module (loaded from a path, say)."""
    parts = [getattr(part, "world", part) for part in (value if isinstance(value, tuple) else ())]
    codes = [getattr(part, "entry_point", getattr(part, "func", part)) for part in parts]
    names = {str(getattr(code, "__module__", None)) for code in codes if callable(code)}
    modules = [
        sys.modules[name]
        for name in names - {"__main__"}
        if name in sys.modules and not _importable(name)
    ]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _importable(name: str) -> bool:
    """Whether a fresh interpreter with our `sys.path` would import the module that we have."""
    package = name.rpartition(".")[0]
    path = list(sys.modules[package].__path__) if package in sys.modules else None
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec.origin == getattr(sys.modules[name], "__file__", spec.origin)
    return False
