"""PyBullet without the lines `argv[0]=...` that it prints each time a world connects to it."""

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

_lock = threading.Lock()  # descriptor 1 belongs to the whole process


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
def without_noise(*noise: bytes) -> Iterator[None]:
    """Hold back what reaches descriptor 1, then pass on all lines but those that begin with noise.

    A file holds it, not a pipe: nobody would read the pipe while C prints and waits for room.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_lock)
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            _flush()
            kept = os.dup(1)
        except OSError:  # no such descriptor (a program without a console), or no room
            yield
            return
        try:
            os.dup2(held.fileno(), 1)
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)
            held.seek(0)
            lines = [line for line in held.readlines() if not line.lstrip().startswith(noise)]
            if lines:
                with open(1, "wb", closefd=False) as out:
                    out.writelines(lines)


def _flush() -> None:
    """Empty the buffers of Python's and of C's standard output."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        library.fflush(None)
