"""The parent's end of its worker processes: starting, writing to, hearing from and ending them.

Workers are started by our own `Popen([sys.executable, "-c", ...])`. Unlike multiprocessing's spawn
and forkserver it does not import the user's `__main__` again, so a script needs no `if __name__ ==
"__main__"`, and worlds may come from a notebook. Unlike fork it copies no threads and no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rlgym.errors import WorldError
from rlgym.vector.workers import wire
from rlgym.vector.workers.slab import Slab, anonymous_file

# Takes the pipes out of reach before anything is imported: what a world, or a library that it
# imports, prints or reads must not end up among the commands.
_BOOTSTRAP = """\
import json, os, sys
config = json.loads(sys.argv[1])
config["commands"], config["replies"] = os.dup(0), os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
try:
    os.dup2(2, 1)
except OSError:
    os.dup2(null, 1)
sys.path[:] = config["path"]
import importlib
importlib.import_module(config["module"]).main(config)
"""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""One thread per worker unless the user said otherwise: there is a worker per core already."""
_READ = 1 << 12
"""Bytes to ask for at once; more would have the allocator return to the system each time."""
_SPIN = 200_000
"""Nanoseconds that parent and workers look for news before they sleep, if each has its own core."""

# Linux sends a worker its death signal when the THREAD that started it ends, so a worker that is
# started outside the main thread is started by one that lives as long as the process.
_launcher = ThreadPoolExecutor(1, thread_name_prefix="rlgym-launcher")


class Link:
    """One worker process, and the next one in its place when it is lost.

    Attributes:
        number: of the worker, from 0.
        slots: numbers of its slots, in order.
        groups: (start, stop) of its rows in each group.
        module: name of the module whose `main(config)` the process runs.
        pending: per group, steps begun and not yet reported as done.
        answers: request -> (document, arrays) of its answer.
        events: what the worker reported unasked: losses and errors.
        fresh: groups in which the loss of the process before this one is still to be delivered.
        ended: True when the process closed its pipe, which only its end does.
        silent: True when it did not say in time what it was asked: closing does not wait for it.
        replies: socket that the process writes to; None where there are none (Windows).
        spinner: looks at that socket, when parent and workers have a core each.
    """

    def __init__(
        self,
        number: int,
        groups: list[tuple[int, int]],
        module: str = "rlgym.vector.workers.worker",
    ) -> None:
        """Plan a worker; `launch` starts it."""
        self.number = number
        self.groups = groups
        self.module = module
        self.slots = [row for start, stop in groups for row in range(start, stop)]
        self.pending = [0] * len(groups)
        self.answers: dict[int, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
        self.events: list[dict[str, Any]] = []
        self.fresh: set[int] = set()
        self.ended = False
        self.silent = False
        self.replies: socket.socket | None = None
        self.spinner: wire.Spinner | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._trace = -1
        self._partial = bytearray()

    @property
    def reply_descriptor(self) -> int:
        """What the process's replies are read from."""
        assert self._process is not None
        source = self.replies or self._process.stdout
        assert source is not None
        return source.fileno()

    @property
    def pid(self) -> int:
        """Process id of the present process."""
        assert self._process is not None
        return self._process.pid

    # ------------------------------------------------------------------ start and end
    def launch(self, slab: Slab, inbox: Inbox | ThreadInbox) -> None:
        """Start a process."""
        windows = sys.platform == "win32"
        self._trace = -1 if windows else anonymous_file()
        config = {
            "path": [os.path.abspath(p) if not p or os.path.exists(p) else p for p in sys.path],
            "parent": os.getpid(),
            "number": self.number,
            "module": self.module,
            "trace": self._trace,
            "spin": inbox.spin,
        }
        options: Any = (
            {"creationflags": 0x08000000}  # CREATE_NO_WINDOW
            if windows
            # a group of its own: Ctrl-C does not reach it, and it ends with all that it started
            else {"process_group": 0, "pass_fds": (*slab.pass_fds, self._trace)}
        )
        if not sys.executable:
            raise WorldError(
                'this Python does not know its own program (sys.executable): use backend="sync"'
            )
        command = [sys.executable, "-c", _BOOTSTRAP, json.dumps(config), "rlgym-worker"]

        # Replies come through a socket where there are such: unlike a pipe's, its read can time out
        # by itself, and so takes one system call instead of a poll and a read.
        ours, theirs = (None, None) if windows else socket.socketpair()

        def start() -> subprocess.Popen[Any]:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if theirs is None else theirs.fileno(),
                bufsize=0,
                env={**dict.fromkeys(_THREADS, "1"), **os.environ},
                **options,
            )

        main = threading.current_thread() is threading.main_thread()
        try:
            self._process = start() if main else _launcher.submit(start).result()
        finally:
            if theirs is not None:
                theirs.close()
        assert self._process.stdin is not None
        self._commands = self._process.stdin.fileno()
        if ours is not None:
            os.set_blocking(self._commands, False)
        self.replies = ours
        self.pending = [0] * len(self.groups)
        self.answers.clear()
        self.events.clear()
        self._partial.clear()
        self.ended = False
        inbox.add(self)

    def evidence(self, frozen: bool) -> tuple[str, str]:
        """How the process ended or hangs: one phrase, and the Python traceback if it left one."""
        process = self._process
        assert process is not None
        phrase = "does not answer"
        if frozen and hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGUSR1)  # faulthandler writes where it hangs
                time.sleep(0.05)
        if not frozen:
            with contextlib.suppress(subprocess.TimeoutExpired):
                phrase = _ending(process.wait(timeout=1.0))
        text = b""
        if self._trace >= 0:
            with contextlib.suppress(OSError):
                text = os.pread(self._trace, 1 << 16, 0)
        return phrase, text.decode(errors="replace")

    def kill(self, inbox: Inbox | ThreadInbox) -> None:
        """End the process, and whatever it started, at once."""
        process = self._process
        if process is None:
            return
        self._process = None
        inbox.remove(self)
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self.replies):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._trace >= 0:
            os.close(self._trace)
            self._trace = -1

    # ------------------------------------------------------------------ writing
    def post(self, byte: bytes) -> None:
        """Write one byte; a worker that is gone is noticed by whoever waits for it."""
        try:  # noqa: SIM105  # suppress() would cost as much as the write
            os.write(self._commands, byte)
        except OSError:
            pass

    def write(self, frame: bytes, inbox: Inbox | ThreadInbox, deadline: float) -> None:
        """Write a frame, reading meanwhile: the worker may be writing as well."""
        data = memoryview(frame)
        while data and not self.ended and time.monotonic() < deadline:
            try:
                data = data[os.write(self._commands, data[:_READ]) :]
            except BlockingIOError:
                inbox.pump(0.005)
            except OSError:
                return

    # ------------------------------------------------------------------ reading
    def feed(self, data: bytes) -> None:
        """Take what the worker wrote; nothing means that it ended."""
        if len(data) == 1 and data[0] < wire.MAX_GROUPS and not self._partial:
            self.pending[data[0]] -= 1
            return
        if not data:
            self.ended = True
            return
        buffer = self._partial
        buffer += data
        at = 0
        while at < len(buffer):
            if buffer[at] != wire.FRAME:
                self.pending[buffer[at]] -= 1
                at += 1
                continue
            head = buffer[at : at + wire.HEAD_SIZE]
            if len(head) < wire.HEAD_SIZE or len(buffer) - at < wire.frame_size(head):
                break
            end = at + wire.frame_size(head)
            document, arrays = wire.unpack(buffer[at:end])
            self.silent = False
            at = end
            if "id" in document:
                self.answers[document["id"]] = (document, arrays)
            else:
                self.events.append(document)
        del buffer[:at]


class Inbox:
    """Hears all workers, or one of them.

    Args:
        spin: nanoseconds to look before sleeping.
        timeout: seconds that `wait_for` waits.
    """

    def __init__(self, spin: int, timeout: float) -> None:
        """Begin with none."""
        self.spin, self.timeout = spin, timeout
        self._links: dict[int, Link] = {}
        self._poll = select.poll()

    def add(self, link: Link) -> None:
        """Hear what `link` writes."""
        assert link.replies is not None
        whole, rest = divmod(self.timeout, 1.0)
        timeval = struct.pack("ll", int(whole), int(rest * 1e6) or int(not whole))
        link.replies.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        link.spinner = wire.Spinner(link.replies.fileno(), self.spin) if self.spin else None
        self._links[link.replies.fileno()] = link
        self._poll.register(link.replies, select.POLLIN)

    def remove(self, link: Link) -> None:
        """Hear no more of `link`."""
        assert link.replies is not None
        if self._links.pop(link.replies.fileno(), None) is not None:
            self._poll.unregister(link.replies)

    def pump(self, seconds: float) -> None:
        """Wait until some worker writes, at most `seconds`, and hand over what there is."""
        for number, _ in self._poll.poll(seconds * 1000.0):
            self.wait_for(self._links[number])

    def wait_for(self, link: Link) -> bool:
        """Wait until this worker writes (others may, and wake nobody); False when it does not."""
        assert link.replies is not None
        if link.spinner is not None:
            link.spinner.look()
        try:
            data = link.replies.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:  # it ended with commands unread
            data = b""
        link.feed(data)
        if not data:
            self.remove(link)
        return True


class ThreadInbox:
    """The same where pipes cannot be polled (Windows): one reading thread per worker.

    Args:
        timeout: seconds that `wait_for` waits.
    """

    spin = 0

    def __init__(self, timeout: float) -> None:
        """Begin with none."""
        self.timeout = timeout
        self._links: dict[int, Link] = {}
        self._queue: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._count = 0

    def add(self, link: Link) -> None:
        """Hear what `link` writes."""
        self._count += 1  # descriptors are used again, so a late message needs another name
        self._links[self._count] = link
        own = os.dup(link.reply_descriptor)  # the thread ends at its own pace, when the worker has
        threading.Thread(target=self._listen, args=(self._count, own), daemon=True).start()

    def _listen(self, key: int, pipe: int) -> None:
        data = b"."
        while data:
            try:
                data = os.read(pipe, _READ)
            except OSError:
                data = b""
            self._queue.put((key, data))
        os.close(pipe)

    def remove(self, link: Link) -> None:
        """Hear no more of `link`."""
        for key in [key for key, other in self._links.items() if other is link]:
            del self._links[key]

    def pump(self, seconds: float) -> None:
        """Wait until some worker writes, at most `seconds`, and hand over what there is."""
        with contextlib.suppress(queue.Empty):  # until there is no more
            key, data = self._queue.get(timeout=max(seconds, 0.0))
            while True:
                if key in self._links:
                    self._links[key].feed(data)
                key, data = self._queue.get_nowait()

    def wait_for(self, link: Link) -> bool:
        """Wait until this worker writes; False when it does not."""
        before = list(link.pending), len(link.answers), link.ended
        deadline = time.monotonic() + self.timeout
        while (list(link.pending), len(link.answers), link.ended) == before:
            left = deadline - time.monotonic()
            if left <= 0.0:
                return False
            self.pump(left)
        return True


class Crew:
    """All worker processes of one vector env, their inbox and their slab.

    It knows nothing of the env, so that the env's finalizer can end it.
    """

    def __init__(self, links: list[Link], timeout: float) -> None:
        """Start every worker; a step that takes longer than `timeout` seconds is given up."""
        self.links = links
        self.slab = Slab()
        spin = _SPIN if usable_cores() > len(links) else 0
        has_sockets = hasattr(select, "poll")
        self.inbox = Inbox(spin, timeout) if has_sockets else ThreadInbox(timeout)
        self._owner = os.getpid()
        try:
            for link in links:
                link.launch(self.slab, self.inbox)
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, grace: float = 1.0) -> None:
        """End every worker: let its worlds close for at most `grace` seconds, then kill it."""
        if os.getpid() != self._owner:
            return  # a fork of the parent; the workers are not its own
        links = [link for link in self.links if link._process is not None]
        deadline = time.monotonic() + grace
        if grace > 0.0:
            close = wire.pack({"op": "close", "id": -1})
            for link in links:
                link.write(close, self.inbox, deadline)
        while time.monotonic() < deadline and not all(link.ended or link.silent for link in links):
            self.inbox.pump(min(0.05, max(0.0, deadline - time.monotonic())))
        for link in links:
            link.kill(self.inbox)
        self.slab.close()


def shares(num_envs: int, num_groups: int, num_workers: int) -> list[list[tuple[int, int]]]:
    """Rows (start, stop) of each worker in each group.

    Each worker has a part of every group, so that a group's step uses all of them; where there are
    more workers than rows in a group, each worker serves one group only.
    """
    size = num_envs // num_groups
    num_workers = max(1, min(num_workers, num_envs))
    parts = [[(group * size, group * size)] * num_workers for group in range(num_groups)]
    for group in range(num_groups):
        workers = list(range(num_workers))
        if num_workers > size:
            workers = workers[group % num_workers :: num_groups][:size] or [group % num_workers]
        if group % 2:
            workers.reverse()  # so that an uneven rest does not always fall to the same ones
        for i, worker in enumerate(workers):
            start, stop = (size * k // len(workers) for k in (i, i + 1))
            parts[group][worker] = (group * size + start, group * size + stop)
    by_worker = [[part[worker] for part in parts] for worker in range(num_workers)]
    return [rows for rows in by_worker if any(stop > start for start, stop in rows)]


def default_workers() -> int:
    """Workers to start unless told otherwise."""
    cores = usable_cores()
    return cores if cores < 4 else cores - 1


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
