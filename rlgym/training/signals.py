"""Ctrl-C and SIGTERM: stop at the last iteration boundary, within ten seconds, whatever is stuck.

The first signal ends the run: a rollout or an evaluation in progress is dropped by an exception,
anything else finishes first. A second signal exits at once. Where the main thread hangs inside a
world's C code, no exception can reach it; a watching thread, woken by the interpreter's wake-up
descriptor, then saves in its place and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESCUE_AFTER = 2.5
"""Seconds after a signal at which the watcher saves, when the main thread does not react. It saves
the same boundary as the main thread would, so haste costs nothing, and leaves time for a replay
buffer."""
EXIT_AFTER = 9.0
"""Seconds after a signal at which the process ends, whatever is still going on."""


class Interrupted(BaseException):
    """Raised inside `Signals.interruptible`; not an Exception, so that no world swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Handlers for as long as the `with` block lasts; elsewhere than in the main thread it is idle.

    Args:
        rescue: saves the last boundary; called by the watcher when the main thread is stuck where
            it may be interrupted.

    Attributes:
        received: number of the signal that asked for the end; None as long as none did.
    """

    def __init__(self, rescue: Callable[[], None]) -> None:
        self.received: int | None = None
        self._rescue = rescue
        self._interruptible = False
        self._exiting = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = reader, writer
        self._wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._interruptible = False
        if self._sockets is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._exiting.set()
        reader, writer = self._sockets
        self._sockets = None
        writer.close()  # the watcher reads the end of the stream and leaves
        if self.received is None:
            return
        with contextlib.suppress(OSError):
            reader.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def interruptible(self, allowed: bool = True) -> Iterator[None]:
        """Mark work that may be dropped at any instruction.

        Raises:
            Interrupted: at once when a signal has come already, else when it comes, and at the end
                where a world has swallowed it: the watcher may be saving what comes next changes.
        """
        if not allowed:
            yield
            return
        self._interruptible = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
            if self.received is not None:
                raise Interrupted(self.received)
        finally:
            self._interruptible = False

    @property
    def exit_code(self) -> int | None:
        """128 + the signal's number, as shells count; None without a signal."""
        return None if self.received is None else 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        name = signal.Signals(number).name
        _say(f"rlgym: {name}: saving the last finished iteration; once more exits at once\n")
        if self._interruptible:
            raise Interrupted(number)

    def _watch(self, reader: socket.socket) -> None:
        """Wait for the first signal, then see to it that the process ends."""
        first = self._next_signal(reader, None)
        if first is None:
            reader.close()
            return
        came = time.monotonic()
        deadlines = [came + RESCUE_AFTER, came + EXIT_AFTER]
        while deadlines:
            second = self._next_signal(reader, deadlines[0] - time.monotonic())
            if second is not None:
                os._exit(128 + second)
            if self._exiting.is_set():
                # leaving the block: what follows (the interpreter's end) has its own time
                break
            if time.monotonic() < deadlines[0]:
                continue
            deadlines.pop(0)
            if deadlines and self._interruptible:
                self._save_and_exit(first, deadlines[0])
        else:
            _say("rlgym: could not save in time; the last checkpoint on disk is what remains\n")
            os._exit(128 + first)
        reader.close()

    def _save_and_exit(self, number: int, deadline: float) -> None:
        """Save from this thread; the main thread hangs in code that no exception can leave."""
        _say("rlgym: a world does not return; saving without it\n")
        saver = threading.Thread(target=self._rescue, name="rescue", daemon=True)
        saver.start()
        saver.join(max(deadline - time.monotonic(), 0.0))
        os._exit(128 + number)

    @staticmethod
    def _next_signal(reader: socket.socket, seconds: float | None) -> int | None:
        """Number of the next of our signals; None at the end of the stream or of `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return None
            reader.settimeout(left)
            try:
                received = reader.recv(1)
            except OSError:  # a timeout is one
                return None
            if not received:
                return None
            if received[0] in SIGNALS:
                return received[0]


def _say(text: str) -> None:
    """Write without buffers and locks, which the interrupted code may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
