"""PyBullet without the lines that it prints when it is imported and when a world connects."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

NOISE = b"argv["
"""What a line that says nothing begins with."""

GREETING = b"pybullet build time"
"""What it prints on standard error when it is imported first."""

_lock = threading.RLock()  # descriptors belong to the whole process


def hush() -> None:
    """Let `pybullet.connect` print nothing but what matters, from now on; idempotent.

    Nothing to do while pybullet has not been imported: worlds call this before they are built.
    """
    pybullet: Any = sys.modules.get("pybullet")
    connect = getattr(pybullet, "connect", None)
    if connect is None or hasattr(connect, "__wrapped__"):
        return

    @functools.wraps(connect)
    def quiet_connect(*args: Any, **kwargs: Any) -> Any:
        with without_noise(NOISE):
            return connect(*args, **kwargs)

    pybullet.connect = quiet_connect


@contextlib.contextmanager
def without_noise(*noise: bytes, descriptor: int = 1) -> Iterator[None]:
    """Hold back what reaches a descriptor, then pass on all lines but those that begin with noise.

    A file holds it, not a pipe: nobody would read the pipe while C prints and waits for room.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_lock)
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            _flush()
            kept = os.dup(descriptor)
        except OSError:  # no such descriptor (a program without a console), or no room
            yield
            return
        try:
            os.dup2(held.fileno(), descriptor)
            yield
        finally:
            _flush()
            os.dup2(kept, descriptor)
            os.close(kept)
            held.seek(0)
            lines = [line for line in held.readlines() if not line.lstrip().startswith(noise)]
            if lines:
                with open(descriptor, "wb", closefd=False) as out:
                    out.writelines(lines)


def _flush() -> None:
    """Empty the buffers of Python's and of C's standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        library.fflush(None)
