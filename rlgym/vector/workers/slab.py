"""One anonymous block of shared memory that holds every array of a vector env.

The block has no name in any file system: on Linux it is a memfd, elsewhere on POSIX a temporary
file that is unlinked at once, on Windows a tagged mapping backed by the page file. Each lives as
long as someone maps it, so nothing is left behind, not even after a SIGKILL of the parent, and
Docker's small /dev/shm is not used. Torch-free: workers import it.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping

import numpy as np

CACHE_LINE = 64
"""Arrays begin on such a boundary, so that no two of them share a line."""

Plan = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Name -> (shape, dtype) of each array."""


def anonymous_file() -> int:
    """A descriptor of an empty file that has no name; the caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rlgym", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def lay_out(plan: Plan) -> tuple[dict[str, int], int]:
    """Offset of each array, and the size of the block, in bytes."""
    offsets, end = {}, 0
    for name, (shape, dtype) in plan.items():
        offsets[name] = end
        size = math.prod(shape) * np.dtype(dtype).itemsize
        end += -(-size // CACHE_LINE) * CACHE_LINE
    return offsets, max(end, mmap.PAGESIZE)


class Slab:
    """The parent's end of the block.

    It is created empty, because workers inherit its descriptor when they start, before anyone
    knows the shapes of their observations; `allocate` gives it its size.

    Attributes:
        handle: what a worker needs to find the block: "fd:N" or "tag:NAME".
        pass_fds: descriptors that a worker must inherit.
    """

    def __init__(self) -> None:
        """Create the empty block."""
        if sys.platform == "win32":
            self._fd = -1
            self.handle = f"tag:rlgym-{os.getpid()}-{secrets.token_hex(8)}"
            self.pass_fds: tuple[int, ...] = ()
        else:
            self._fd = anonymous_file()
            self.handle = f"fd:{self._fd}"
            self.pass_fds = (self._fd,)

    def allocate(self, plan: Plan) -> dict[str, np.ndarray]:
        """Size the block and map it: arrays of zeros by name.

        The arrays keep the memory alive by themselves; `close` does not invalidate them.
        """
        if self._fd >= 0:
            _, size = lay_out(plan)
            os.ftruncate(self._fd, size)
            if not hasattr(os, "memfd_create") and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, 0, size)  # a full disk is an error now, not SIGBUS
        return attach(self.handle, plan)

    def close(self) -> None:
        """Give up the descriptor; the memory goes with the last array that shows it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def attach(handle: str, plan: Plan) -> dict[str, np.ndarray]:
    """Map the block that `handle` names: its arrays by name."""
    offsets, size = lay_out(plan)
    kind, _, value = handle.partition(":")
    if kind == "fd":
        memory = mmap.mmap(int(value), size)
    else:
        memory = mmap.mmap(-1, size, tagname=value)  # type: ignore[call-arg]  # Windows only
    return {
        name: np.frombuffer(memory, dtype, math.prod(shape), offsets[name]).reshape(shape)
        for name, (shape, dtype) in plan.items()
    }
