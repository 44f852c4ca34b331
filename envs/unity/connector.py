"""One player and the line to it: raw messages in, raw messages out.

    player = Player(find_player("builds/3DBall"), seed=3)
    player.start()                  # returns at once: start several, then connect them
    player.connect()                # waits for the handshake
    player.send(codec.encode_reset())
    data = player.recv()            # the other half: send to several, then receive from each

The player is the client of Unity's protocol and calls; this side answers. It answers from threads
that never keep the interpreter alive, so a script that dies ends at once, and its players with it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from rlgym.envs.unity import messages
from rlgym.envs.unity.launch import Launch, PlayerProcess
from rlgym.errors import StateError, WorldError

API_VERSION = "1.5.0"
"""Of the protocol that is spoken here; a player's must have the same major number."""

POLL = 0.1
"""Seconds between looks at whether the player's process still lives."""

STATUS_OK = 200
STATUS_QUIT = 400
_HEADER_OK = b"\x0a\x03\x08\xc8\x01"  # how every message of a living player begins


class PlayerLost(WorldError):  # noqa: N818 - what happened, in the field's word
    """A player's process has ended, or it has hung up.

    Args:
        message: one line.
        exit_code: negative for a signal; None where it is not known.
        log: the end of its log.
    """

    def __init__(self, message: str, exit_code: int | None = None, log: str = "") -> None:
        tail = f"\nthe end of its log:\n{log}" if log else ""
        super().__init__(message + tail)
        self.exit_code = exit_code
        self.log = log


class PlayerFrozen(WorldError):  # noqa: N818
    """A player whose process lives and says nothing.

    Args:
        message: one line.
        log: the end of its log.
    """

    def __init__(self, message: str, log: str = "") -> None:
        tail = f"\nthe end of its log:\n{log}" if log else ""
        super().__init__(message + tail)
        self.log = log


class Player:
    """A player process (or a person's editor) behind a gRPC server of its own.

    Args:
        launch: what to start; see `find_player`.
        seed: of the scene's random numbers; Unity takes it at the handshake and never again.
        timeout: seconds to wait for the handshake, and for each message unless `recv` is told
            otherwise.
        no_graphics: run without a window and without drawing anything; cameras then see nothing.
        args: further arguments of the program.
        num_areas: copies of the training area, for scenes that multiply it.
        log_folder: where its log stays; None: removed with the player.
        number: of this player among several.

    Attributes:
        capabilities: names of what the player's package can do, such as "hybridActions".
        package_version: of com.unity.ml-agents in the player.
        port: of the server; 0 while there is none.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        seed: int = 0,
        timeout: float = 60.0,
        no_graphics: bool = True,
        args: Sequence[str] = (),
        num_areas: int = 1,
        log_folder: str | Path | None = None,
        number: int = 0,
    ) -> None:
        self.launch = launch
        self.name = launch.name if number == 0 else f"{launch.name} (player {number})"
        self.seed = seed
        self.timeout = timeout
        self.num_areas = num_areas
        self.capabilities: frozenset[str] = frozenset()
        self.package_version = ""
        self.port = 0
        self._process_settings: dict[str, Any] = {
            "no_graphics": no_graphics,
            "args": tuple(args),
            "log_folder": log_folder,
            "number": number,
        }
        self._requests: SimpleQueue[bytes] = SimpleQueue()
        self._replies: SimpleQueue[bytes] = SimpleQueue()
        self._server: list[Any] | None = None  # gRPC's server and its threads
        self._process: PlayerProcess | None = None
        self._connected = False
        self._waiting = False  # whether the player waits for a reply
        self._heard = 0  # messages since the handshake

    # ------------------------------------------------------------------ the life of a player
    @property
    def pid(self) -> int | None:
        """Of the process; None before `start`, after `quit`, and for the editor."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Open the port and start the program; does not wait for it.

        Raises:
            WorldError: the port is taken, or the system does not start the program.
            StateError: it was started before.
        """
        if self._server is not None:
            raise StateError(f"{self.name} was started before: make a new Player")
        *self._server, self.port = _serve(self._exchange, self.launch.port)
        _living.add(self)
        if not self.launch.command:
            print(f"press Play in the Unity editor (waiting on port {self.port})", flush=True)
            return
        try:
            self._process = PlayerProcess(self.launch, port=self.port, **self._process_settings)
        except BaseException:
            self.quit()
            raise

    def connect(self) -> None:
        """Wait for the player's first words and agree on the protocol.

        From then on the player waits for its first reply, which must be a reset.

        Raises:
            PlayerLost: it ended instead.
            PlayerFrozen: it did not connect within `timeout` seconds.
            WorldError: it speaks another major version of the protocol.
        """
        if self._server is None:
            raise StateError(f"{self.name} is not started: call start() before connect()")
        try:
            message = messages.message("UnityMessageProto").FromString(self.recv())
            hello = message.unity_output.rl_initialization_output
            self.package_version = hello.package_version
            _check_version(self.name, hello.communication_version, hello.package_version)
            self.capabilities = frozenset(
                field.name for field, value in hello.capabilities.ListFields() if value
            )
            if "baseRLCapabilities" not in self.capabilities:
                warnings.warn(
                    f"{self.name} names no base capabilities; update its ML-Agents package "
                    f"({hello.package_version or 'version unknown'}) if it behaves oddly",
                    stacklevel=2,
                )
            self.send(self._welcome())
            self.recv()
        except BaseException:
            self.quit(grace=1.0)
            raise
        self._connected = True

    def _welcome(self) -> bytes:
        reply = messages.message("UnityMessageProto")()
        reply.header.status = STATUS_OK
        welcome = reply.unity_input.rl_initialization_input
        welcome.seed = self.seed & 0x7FFFFFFF
        welcome.communication_version = API_VERSION
        welcome.package_version = importlib.metadata.version("mlagents-envs")
        welcome.num_areas = self.num_areas
        for field in welcome.capabilities.DESCRIPTOR.fields:
            setattr(welcome.capabilities, field.name, True)
        return reply.SerializeToString()

    def quit(self, grace: float = 5.0) -> None:
        """Ask the player to end, end it after `grace` seconds, and close the port.

        May be called at any time and more than once; never raises because of the player.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server, threads = server
        _living.discard(self)
        self._replies.put(_status(STATUS_QUIT))  # taken by the call that waits, or by the next one
        if self._process is not None:
            self._process.wait(grace if self._connected else 0.0)
            self._process.end()
            self._process = None
        elif self._waiting:
            time.sleep(min(grace, 0.2))  # for the reply to reach the editor before the line is cut
        server.stop(None).wait(2.0)
        threads.shutdown()
        for _ in range(NUM_THREADS):  # free the threads that wait for a reply that is not coming
            self._replies.put(_status(STATUS_QUIT))

    # ------------------------------------------------------------------ the two halves
    def send(self, reply: bytes) -> None:
        """Answer the player's last message; it goes on at once.

        Args:
            reply: a serialized UnityMessageProto, as `Codec.encode` makes it.

        Raises:
            StateError: the player is not waiting for an answer.
        """
        if not self._waiting:
            raise StateError(f"{self.name} waits for no reply: call recv() before send()")
        self._waiting = False
        self._replies.put(reply)

    def ready(self) -> bool:
        """Whether `recv` would return at once."""
        return not self._requests.empty()

    def recv(self, timeout: float | None = None) -> bytes:
        """The player's next message, a serialized UnityMessageProto.

        Args:
            timeout: seconds; None: the player's own.

        Raises:
            PlayerLost: its process ended, or the person stopped playing.
            PlayerFrozen: nothing came within `timeout` seconds.
            StateError: it waits for a reply, or was never started.
        """
        if self._server is None:
            raise StateError(f"{self.name} is not running: call start() before recv()")
        if self._waiting:
            raise StateError(f"{self.name} waits for a reply: call send() before recv()")
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                data = self._requests.get(timeout=max(0.0, min(POLL, left)))
                break
            except Empty:
                self._require_alive()
                if left <= 0:
                    raise PlayerFrozen(self._silence(seconds), self._tail()) from None
        self._waiting = True
        if not data.startswith(_HEADER_OK) and _status_of(data) != STATUS_OK:
            self._replies.put(_status(STATUS_QUIT))
            self._waiting = False
            raise PlayerLost(f"{self.name} has ended the session", self._exit_code(), self._tail())
        if self._connected:
            self._heard += 1
        return data

    def _require_alive(self) -> None:
        code = self._exit_code()
        if code is None or not self._requests.empty():
            return
        when = "before it connected" if not self._connected else f"after {self._heard} messages"
        raise PlayerLost(f"{self.name} {_spoken(code)} {when}", code, self._tail())

    def _silence(self, seconds: float) -> str:
        if self._connected and self._heard == 0:
            return (
                f"{self.name} asked for no decision within {seconds:g} s: does the scene have an "
                "Agent with a Decision Requester and Behavior Type 'Default'?"
            )
        if self._connected:
            return f"{self.name} froze: no message within {seconds:g} s"
        if not self.launch.command:
            return f"no editor connected within {seconds:g} s: press Play, or raise --env.timeout"
        return (
            f"{self.name} did not connect within {seconds:g} s: does the scene contain ML-Agents' "
            "Agents, and does the program start without a click? (--env.timeout waits longer)"
        )

    def _exit_code(self) -> int | None:
        return self._process.exit_code() if self._process is not None else None

    def _tail(self) -> str:
        return self._process.tail() if self._process is not None else ""

    def _exchange(self, request: bytes, _context: Any) -> bytes:
        """One call of the player, in a thread of the server."""
        self._requests.put(request)
        return self._replies.get()


# ------------------------------------------------------------------ words of the protocol
def _status(status: int) -> bytes:
    message = messages.message("UnityMessageProto")()
    message.header.status = status
    return message.SerializeToString()


def _status_of(data: bytes) -> int:
    try:
        return messages.fast_message("UnityMessageProto").FromString(data).header.status
    except Exception:  # protobuf's own class is not public in every release
        return 0


def _check_version(name: str, theirs: str, package: str) -> None:
    """Compare versions as both of Unity's sides do: the major must agree; before 1.0, the minor.

    Raises:
        WorldError: they do not go together.
    """
    try:
        major, minor = (int(part) for part in theirs.split(".")[:2])
    except ValueError:
        raise WorldError(
            f"{name} names no version of the protocol ('{theirs}'): is it an ML-Agents scene?"
        ) from None
    ours = [int(part) for part in API_VERSION.split(".")]
    if major != ours[0] or (major == 0 and minor != ours[1]):
        raise WorldError(
            f"{name} speaks version {theirs} of Unity's protocol (package {package or 'unknown'}) "
            f"and rlgym {API_VERSION}: build it with com.unity.ml-agents 1.0 or later"
        )


def _spoken(code: int) -> str:
    """What an exit status says, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


# ------------------------------------------------------------------ the server
NUM_THREADS = 2
"""A player makes one call at a time; the second thread is for one that comes after a cut line."""


class _DaemonThreads(Executor):
    """The executor that gRPC asks for, of threads that the interpreter does not wait for.

    The library's own joins its threads at exit, and one of them always waits for a reply.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for _ in range(NUM_THREADS):
            threading.Thread(target=self._run, daemon=True, name="unity-player").start()

    def _run(self) -> None:
        while (work := self._work.get()) is not _stop:
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
            self._work.put(_stop)


def _stop() -> None:
    """Ends a thread of `_DaemonThreads`; never called."""


def _serve(handler: Callable[[bytes, Any], bytes], port: int) -> tuple[Any, _DaemonThreads, int]:
    """A server of the protocol's one method, its threads and its port; the messages stay bytes.

    Raises:
        WorldError: the port is taken.
    """
    threads = _DaemonThreads()
    server = grpc.server(
        threads,  # type: ignore[arg-type]
        options=(
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else another trainer could take the player away
        ),
    )
    service, method = messages.METHOD.strip("/").split("/")
    unary = grpc.unary_unary_rpc_method_handler(handler)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: unary}),)
    )
    bound = 0
    with contextlib.suppress(RuntimeError):
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    if not bound:
        threads.shutdown()
        raise WorldError(
            f"port {port} is taken: another trainer waits for the editor there; end it"
        )
    server.start()
    return server, threads, bound


_living: set[Player] = set()


@atexit.register
def _end_all() -> None:
    for player in _living:
        player._replies.put(_status(STATUS_QUIT))  # all at once, so that they end side by side
    for player in list(_living):
        player.quit(grace=0.5)
