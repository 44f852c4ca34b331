"""The server that a player calls, by the official library: slower, and no surprises.

`server` is what is used; this one is for a player that does not get along with it
(`--env.transport grpc`), and to compare with.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from rlgym.envs.unity.messages import METHOD
from rlgym.errors import WorldError

NUM_THREADS = 2
"""A player makes one call at a time; the second thread is for one that comes after a cut line."""


class GrpcServer:
    """Answers one player on 127.0.0.1; the messages stay bytes.

    Args:
        port: 0 = any that is free.

    Attributes:
        port: the one that it listens on.

    Raises:
        WorldError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self._requests: SimpleQueue[bytes] = SimpleQueue()
        self._replies: SimpleQueue[bytes] = SimpleQueue()
        self._threads = _DaemonThreads()
        self._server = grpc.server(
            self._threads,  # type: ignore[arg-type]
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # else another trainer could take the player away
            ),
        )
        service, method = METHOD.strip("/").split("/")
        unary = grpc.unary_unary_rpc_method_handler(self._exchange)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: unary}),)
        )
        self.port = 0
        with contextlib.suppress(RuntimeError):
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        if not self.port:
            self._threads.shutdown()
            raise WorldError(
                f"port {port} is taken: another trainer waits for the editor there; end it"
            )
        self._server.start()

    def _exchange(self, request: bytes, _context: Any) -> bytes:
        """One call of the player, in a thread of the server."""
        self._requests.put(request)
        return self._replies.get()

    def poll(self, seconds: float) -> bytes | None:
        """The player's next message; None if there is none for so long."""
        try:
            return self._requests.get(timeout=seconds)
        except Empty:
            return None

    def ready(self) -> bool:
        """Whether `poll` would return a message at once."""
        return not self._requests.empty()

    def reply(self, data: bytes, seconds: float) -> None:
        """Answer the last message; the library takes it at once, whatever `seconds` says."""
        self._replies.put(data)

    def close(self) -> None:
        """Hang up and free the port."""
        self._server.stop(None).wait(2.0)
        self._threads.shutdown()
        for _ in range(NUM_THREADS):  # free the threads that wait for a reply that is not coming
            self._replies.put(b"")


class _DaemonThreads(Executor):
    """The executor that gRPC asks for, of threads that the interpreter does not wait for.

    The library's own joins its threads at exit, and one of them always waits for a reply.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for _ in range(NUM_THREADS):
            threading.Thread(target=self._run, daemon=True, name="unity-player").start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self._work.put(work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in range(NUM_THREADS):
            self._work.put(None)
