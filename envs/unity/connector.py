"""One player and the line to it: raw messages in, raw messages out.

    player = Player(find_player("builds/3DBall"), seed=3)
    player.start()                  # returns at once: start several, then connect them
    player.connect()                # waits for the handshake
    player.send(codec.encode_reset())
    data = player.recv()            # the other half: send to several, then receive from each

The player is the client of Unity's protocol and calls; this side answers. Nothing here keeps the
interpreter alive, so a script that dies ends at once, and its players with it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from google.protobuf.message import DecodeError

from rlgym.envs.unity import messages
from rlgym.envs.unity.launch import Launch, PlayerProcess
from rlgym.envs.unity.server import DirectServer
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


class Server(Protocol):
    """What a player calls; see `server.DirectServer`."""

    port: int

    def poll(self, seconds: float) -> bytes | None: ...
    def ready(self) -> bool: ...
    def reply(self, data: bytes, seconds: float) -> None: ...
    def close(self) -> None: ...


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
        transport: "direct", or "grpc" for the official library's server, which is slower.

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
        transport: Literal["direct", "grpc"] = "direct",
    ) -> None:
        if transport not in ("direct", "grpc"):
            raise WorldError(f"there is no transport '{transport}': choose direct or grpc")
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
        self._transport = transport
        self._server: Server | None = None
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
        self._server = _serve(self._transport, self.launch.port)
        self.port = self._server.port
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
            data = self.recv()
            try:
                message = messages.message("UnityMessageProto").FromString(data)
            except DecodeError as error:
                raise WorldError(f"{self.name} does not speak Unity's protocol") from error
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
        _living.discard(self)
        deadline = time.monotonic() + (grace if self._connected or self._waiting else 0.0)
        with contextlib.suppress(ConnectionError):
            while not self._waiting and time.monotonic() < deadline and self._exit_code() is None:
                self._waiting = server.poll(POLL) is not None
            if self._waiting:
                server.reply(_status(STATUS_QUIT), 1.0)
            if self._process is None:  # an editor reads it before the line is cut
                server.poll(max(0.0, min(deadline - time.monotonic(), 0.3)))
        self._waiting = False
        if self._process is not None:
            self._process.wait(deadline - time.monotonic())
            self._process.end()
            self._process = None
        server.close()

    # ------------------------------------------------------------------ the two halves
    def send(self, reply: bytes) -> None:
        """Answer the player's last message; it goes on at once.

        Args:
            reply: a serialized UnityMessageProto, as `Codec.encode` makes it.

        Raises:
            StateError: the player is not waiting for an answer.
        """
        if not self._waiting or self._server is None:
            raise StateError(f"{self.name} waits for no reply: call recv() before send()")
        self._waiting = False
        with contextlib.suppress(ConnectionError):  # recv says what became of it
            self._server.reply(reply, self.timeout)

    def ready(self) -> bool:
        """Whether `recv` would return, or raise, at once."""
        return self._server is not None and self._server.ready()

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
                data = self._server.poll(max(0.0, min(POLL, left)))
            except ConnectionError as error:
                raise self._lost(str(error)) from None
            if data is not None:
                break
            if self._exit_code() is not None and not self._server.ready():
                raise self._lost()
            if left <= 0:
                raise PlayerFrozen(self._silence(seconds), self._tail())
        self._waiting = True
        if not data.startswith(_HEADER_OK) and _status_of(data) != STATUS_OK:
            raise PlayerLost(f"{self.name} has ended the session", self._exit_code(), self._tail())
        if self._connected:
            self._heard += 1
        return data

    def _lost(self, reason: str = "") -> PlayerLost:
        """What there is to say about a player that is gone."""
        if self._process is not None:
            self._process.wait(2.0)  # it has hung up; its exit follows
        code = self._exit_code()
        what = _spoken(code) if code is not None else f"has hung up ({reason})"
        when = "before it connected" if not self._connected else f"after {self._heard} messages"
        return PlayerLost(f"{self.name} {what} {when}", code, self._tail())

    def _silence(self, seconds: float) -> str:
        if self._connected and self._heard == 0:
            return (
                f"{self.name} asked for no decision within {seconds:g} s: does the scene have an "
                "Agent with a Decision Requester and Behavior Type 'Default'?"
            )
        if self._connected:
            return f"{self.name} froze: no message within {seconds:g} s"
        if not self.launch.command:
            return f"no editor connected within {seconds:g} s: press Play, or raise timeout"
        return (
            f"{self.name} did not connect within {seconds:g} s: does the scene contain ML-Agents' "
            "Agents, and does the program start without a click? (a larger timeout waits longer)"
        )

    def _exit_code(self) -> int | None:
        return self._process.exit_code() if self._process is not None else None

    def _tail(self) -> str:
        return self._process.tail() if self._process is not None else ""


def _serve(transport: str, port: int) -> Server:
    if transport == "direct":
        return DirectServer(port)
    from rlgym.envs.unity.grpc_server import GrpcServer

    return GrpcServer(port)


# ------------------------------------------------------------------ words of the protocol
def _status(status: int) -> bytes:
    message = messages.message("UnityMessageProto")()
    message.header.status = status
    return message.SerializeToString()


def _status_of(data: bytes) -> int:
    try:
        return messages.fast_message("UnityMessageProto").FromString(data).header.status
    except DecodeError:
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


_living: set[Player] = set()


@atexit.register
def _end_all() -> None:
    for player in list(_living):
        player.quit(grace=0.5)
