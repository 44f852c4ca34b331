"""What every worker process is: it ends with its parent, and answers through its pipes.

Torch-free. The parent starts it with its own bootstrap (see `link.py`), never through the user's
`__main__`. It ends when the parent does: its command pipe closes, and on Linux the kernel kills
it even while a world hangs in C.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlgym.vector.workers import wire

Arrays = dict[str, np.ndarray]


class Pipe:
    """A worker's end of the two pipes.

    Args:
        commands: descriptor to read from.
        replies: descriptor to write to.
        spin: nanoseconds to look for a command before sleeping; 0 sleeps at once.
    """

    def __init__(self, commands: int, replies: int, spin: int) -> None:
        """Begin to look."""
        self._commands, self._replies = commands, replies
        self._spinner = wire.Spinner(commands, spin) if spin else None

    def next(self) -> bytes:
        """Wait for a command's first byte; empty when the parent is gone."""
        if self._spinner is not None:
            self._spinner.look()
        return os.read(self._commands, 1)

    def done(self, byte: bytes) -> None:
        """Tell the parent that the command of this byte is done."""
        os.write(self._replies, byte)

    def read_frame(self) -> tuple[dict[str, Any], Arrays]:
        """Read the rest of a frame, whose first byte was read."""
        frame = bytearray([wire.FRAME])
        self._read_until(frame, wire.HEAD_SIZE)
        self._read_until(frame, wire.frame_size(frame))
        return wire.unpack(frame)

    def _read_until(self, frame: bytearray, size: int) -> None:
        while len(frame) < size:
            data = os.read(self._commands, min(size - len(frame), 1 << 20))
            if not data:
                os._exit(1)
            frame += data

    def write(self, document: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        """Write a frame."""
        data = memoryview(wire.pack(document, arrays))
        while data:
            data = data[os.write(self._replies, data) :]

    def obey(self, worker: Any) -> bool:
        """Read a frame and call the method `do_<op>` that it names; False when it says close."""
        document, arrays = self.read_frame()
        operation, identity = document.pop("op"), document.pop("id")
        if operation == "close":
            return False
        try:
            answer, out = getattr(worker, f"do_{operation}")(arrays, **document)
        except Exception as error:
            answer, out = {"error": describe(error)}, {}
        self.write({**answer, "id": identity}, out)
        return True


def describe(error: Exception) -> dict[str, str]:
    """Return what a parent must know of an error."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def live(config: dict[str, Any], serve: Callable[[Pipe], None]) -> None:
    """Be a worker: call `serve`, and end with it or with the parent.

    Args:
        config: "commands" and "replies" (descriptors), "trace" (descriptor for tracebacks, or -1),
            "parent" (its pid), "number" (of this worker), "spin" (nanoseconds to look for a command
            before sleeping).
        serve: takes the pipes, returns when told to close or when the parent has hung up.
    """
    for name in ("SIGINT", "SIGTERM"):  # a Ctrl-C or a cluster's warning is the parent's to answer
        # a function that does nothing, not SIG_IGN: programs that a world starts would inherit that
        signal.signal(getattr(signal, name), lambda *_: None)
    _end_with_parent(config["parent"], config["commands"])
    if hasattr(sys.stdout, "reconfigure"):
        # what a world says is not lost with it
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    trace = config["trace"]
    if trace >= 0:
        faulthandler.enable(trace)
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, trace)  # the parent asks what a frozen one does
    try:
        serve(Pipe(config["commands"], config["replies"], config["spin"]))
        status = 0
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) and error.code else 1
        text = traceback.format_exc()
        if trace >= 0:
            os.write(trace, text.encode())
        else:
            sys.stderr.write(text)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)  # not for the threads that a world left


def _end_with_parent(parent: int, commands: int) -> None:
    """See to it that this process does not outlive its parent."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            # sent when the parent's launching THREAD ends, hence always one that lives on
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)  # it went before the line above
    watch = _watch_windows if sys.platform == "win32" else _watch_posix
    threading.Thread(target=watch, args=(parent, commands), daemon=True).start()


def _watch_posix(parent: int, commands: int) -> None:
    poller = select.poll()
    poller.register(commands, 0)  # only the hang-up, which needs no asking for
    while not poller.poll(1000):
        if os.getppid() != parent:
            break  # its end of the pipe lives on in a process that it forked
    os._exit(1)


def _watch_windows(parent: int, _commands: int) -> None:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(0x00100000, False, parent)  # SYNCHRONIZE
    kernel.WaitForSingleObject(handle, -1)
    os._exit(1)
