"""From what a person names to a running player process, and to its certain end.

    launch = find_player("builds/3DBall")       # or "editor", or "standin"
    process = PlayerProcess(launch, port=50123, no_graphics=True)

A player never outlives this process: it is ended on request, at exit, and, where this process is
killed, by a guard that holds the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlgym import errors
from rlgym.errors import WorldError

EDITOR_PORT = 5004
"""Where the Unity editor looks for a trainer when a person presses Play."""

TAIL_LINES = 20
"""Lines of a player's log that an error shows."""

_SUFFIXES = {"Linux": (".x86_64", ".x86"), "Windows": (".exe",), "Darwin": (".app",)}
_MACHINES = {"AMD64": "x86-64", "x86_64": "x86-64", "arm64": "ARM64", "aarch64": "ARM64"}
_ELF = {0x03: "x86", 0x3E: "x86-64", 0xB7: "ARM64"}
_PE = {0x014C: "x86", 0x8664: "x86-64", 0xAA64: "ARM64"}
_MACH_O = {0x01000007: "x86-64", 0x0100000C: "ARM64"}


@dataclass(frozen=True)
class Launch:
    """How a player is started."""

    name: str
    """How errors name it: `unity:editor`, `unity:standin`, or the path."""
    command: tuple[str, ...] = ()
    """The program and its own arguments; empty where a person starts it, in the editor."""
    port: int = 0
    """The port it insists on; 0 = it takes any."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the process has beside ours."""


def find_player(target: str, **options: Any) -> Launch:
    """Find what `target` names and see that this machine can run it.

    Args:
        target: path of a build, with or without its suffix, or of its folder; "editor" for the
            scene that is open in the Unity editor; "standin" for the player that comes with rlgym.
        options: of the stand-in only: `scene="3dball", frame_ms=5` become `--scene 3dball
            --frame-ms 5`; None and False are left out, True is the bare flag.

    Raises:
        WorldError: there is nothing at the path, or nothing that this machine can run.
    """
    if target == "standin":
        return _standin(options)
    if options:
        raise WorldError(
            f"only unity:standin takes {', '.join(sorted(options))}: give a build its own "
            "arguments with --env.args"
        )
    if target == "editor":
        return Launch("unity:editor", port=EDITOR_PORT)
    program = _program_in(Path(target).expanduser())
    _check_program(program)
    return Launch(target, (str(program.resolve()),))


def _standin(options: Mapping[str, Any]) -> Launch:
    command = [sys.executable, "-m", "rlgym.envs.unity.standin"]
    for name, value in options.items():
        if value is None or value is False:
            continue
        command.append(f"--{name.replace('_', '-')}")
        if isinstance(value, (list, tuple)):
            command.append(",".join(map(str, value)))
        elif value is not True:
            command.append(str(value))
    # the child finds this very rlgym, also where it runs from a checkout that is not installed
    home = str(Path(errors.__file__).resolve().parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return Launch(
        "unity:standin", tuple(command), environment={"PYTHONPATH": os.pathsep.join(paths)}
    )


# ------------------------------------------------------------------ what a path leads to
def _program_in(path: Path) -> Path:
    """The file to run for a path as people give it."""
    system = platform.system()
    suffixes = _SUFFIXES.get(system, ())
    if not path.exists():
        for suffix in suffixes:
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                return _program_in(beside)
        raise WorldError(_nothing_at(path))
    if path.is_file():
        return path
    bundle = path / "Contents" / "MacOS"
    if bundle.is_dir():
        programs = sorted(file for file in bundle.iterdir() if file.is_file())
        named = [file for file in programs if file.name == path.stem]
        if named or programs:
            return (named or programs)[0]
        raise WorldError(f"{path} has no program in Contents/MacOS: build the scene again")
    programs = sorted(
        file
        for suffix in suffixes
        for file in path.glob(f"*{suffix}")
        if not file.name.startswith("UnityCrashHandler")
    )
    if len(programs) == 1:
        return _program_in(programs[0])
    if programs:
        names = ", ".join(file.name for file in programs)
        raise WorldError(f"{path} holds several players: name one of {names}")
    raise WorldError(f"{path} is a folder without a player for {system}: name the executable in it")


def _nothing_at(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no player at {path}: there is no folder {parent}"
    stem = path.name.split(".")[0].lower()
    near = [file.name for file in sorted(parent.iterdir()) if file.name.lower().startswith(stem)]
    if stem and near:
        return f"there is no player at {path}: there is {', '.join(near[:4])}"
    return f"there is no player at {path}: give the path of the built executable"


def _check_program(program: Path) -> None:
    """Say in one line what would keep the system from running this file.

    Raises:
        WorldError: it is for another system or another processor, or no program, or not marked as
            executable.
    """
    try:
        with open(program, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise WorldError(f"{program} cannot be read: {error.strerror or error}") from error
    ours = (platform.system(), _MACHINES.get(platform.machine(), platform.machine()))
    built = _built_for(head)
    if built is None and not (head.startswith(b"#!") and os.name == "posix"):
        raise WorldError(f"{program} is not a program: give the path of the built executable")
    if built is not None:
        system, machines = built
        if system != ours[0]:
            raise WorldError(
                f"{program} is built for {_spoken(system)} and this is {_spoken(ours[0])}: "
                f"build the scene for {_spoken(ours[0])}"
            )
        if not any(_runs(machine, ours) for machine in machines):
            raise WorldError(
                f"{program} is built for {' and '.join(machines)} processors and this is "
                f"{ours[1]}: build the scene for {ours[1]}"
            )
    if not os.access(program, os.X_OK):
        raise WorldError(f"{program} is not executable: chmod +x {program}")


def _spoken(system: str) -> str:
    return {"Darwin": "macOS"}.get(system, system)


def _built_for(head: bytes) -> tuple[str, list[str]] | None:
    """System and processors that a program's header names; None: this is no program."""

    def number(start: int, size: int, order: Any = "little") -> int:
        return int.from_bytes(head[start : start + size], order)

    if head.startswith(b"\x7fELF"):
        order = "big" if head[5:6] == b"\x02" else "little"
        code = number(18, 2, order)
        return "Linux", [_ELF.get(code, f"processor {code:#x}")]
    if head.startswith(b"MZ"):
        start = number(0x3C, 4)
        if head[start : start + 4] == b"PE\0\0":
            code = number(start + 4, 2)
            return "Windows", [_PE.get(code, f"processor {code:#x}")]
        return None
    if head.startswith(b"\xcf\xfa\xed\xfe"):
        code = number(4, 4)
        return "Darwin", [_MACH_O.get(code, f"processor {code:#x}")]
    if head.startswith(b"\xca\xfe\xba\xbe") and 0 < (count := number(4, 4, "big")) < 20:
        codes = [number(8 + 20 * i, 4, "big") for i in range(count)]
        return "Darwin", [_MACH_O.get(code, f"processor {code:#x}") for code in codes]
    return None


def _runs(machine: str, ours: tuple[str, str]) -> bool:
    """Whether a program for `machine` runs here, emulation by the system included."""
    system, processor = ours
    if machine == processor or (machine, processor) == ("x86", "x86-64"):
        return True
    return processor == "ARM64" and system in ("Darwin", "Windows") and machine.startswith("x86")


# ------------------------------------------------------------------ the process
_GUARD = 'read -r _; kill -s KILL -- "-$0"; [ -z "$1" ] || rm -rf -- "$1"'


class PlayerProcess:
    """A running player, with the files that it writes its log to.

    Args:
        launch: what to run; not the editor's.
        port: of the server that it is to connect to, on this machine.
        no_graphics: run without a window and without drawing anything.
        args: further arguments, as Unity's or the scene's.
        log_folder: where its log stays; None: in a temporary folder, gone with the player.
        number: of this player among several; names its log.

    Raises:
        WorldError: the system does not start it.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        port: int,
        no_graphics: bool = True,
        args: Sequence[str] = (),
        log_folder: str | Path | None = None,
        number: int = 0,
    ) -> None:
        self.name = launch.name
        self._temporary = None if log_folder else tempfile.mkdtemp(prefix="rlgym-unity-")
        folder = Path(log_folder or self._temporary or ".").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"player-{number}.log"
        self.output = folder / f"player-{number}.out"
        command = [*launch.command, *(("-nographics", "-batchmode") if no_graphics else ())]
        command += ["--mlagents-port", str(port)]
        if "-logfile" not in (arg.lower() for arg in args):
            command += ["-logFile", str(self.log)]
        command += args
        environment = {**os.environ, **launch.environment}
        # a proxy for the web is not on the way to this machine; gRPC would ask it
        environment["no_grpc_proxy"] = "localhost,127.0.0.1"
        self.log.unlink(missing_ok=True)  # an old one is not this player's tail
        try:
            with open(self.output, "wb") as out:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # a group of its own: a Ctrl-C is ours to answer, and its children end with it
                    start_new_session=os.name == "posix",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
        except OSError as error:
            self._remove_files()
            raise WorldError(
                f"{self.name} does not start: {error.strerror or error}; try to run it by itself"
            ) from error
        self.pid = self._process.pid
        self._guard = _guard(self.pid, self._temporary)

    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; False if it still runs after `seconds`."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def tail(self) -> str:
        """The last lines of its log and of what it printed; "" when there are none."""
        lines: list[str] = []
        for file in (self.log, self.output):
            with contextlib.suppress(OSError):
                size = file.stat().st_size
                with open(file, "rb") as stream:
                    stream.seek(max(0, size - 16384))
                    text = stream.read().decode("utf-8", "replace")
                lines += [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
        return "\n".join(lines[-2 * TAIL_LINES :])

    def end(self) -> None:
        """Kill it and every process that it started, and remove what is temporary."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.pid)], capture_output=True)
        self._process.wait()
        if self._guard is not None:  # after the player: until here it has someone to guard
            self._guard.kill()
            self._guard.wait()
            if self._guard.stdin is not None:
                self._guard.stdin.close()
            self._guard = None
        self._remove_files()

    def _remove_files(self) -> None:
        if self._temporary is not None:
            for _ in range(3):  # Windows holds a file of a process for a moment longer
                shutil.rmtree(self._temporary, ignore_errors=True)
                if not os.path.exists(self._temporary):
                    break
                time.sleep(0.1)


def _guard(pid: int, temporary: str | None) -> subprocess.Popen[bytes] | None:
    """A process that ends the group of `pid` when this process is gone, however it went.

    Then it removes the folder `temporary`, too.

    It reads a pipe that nobody writes to; its end is ours. That works for SIGKILL too, and unlike
    PR_SET_PDEATHSIG it does not depend on the thread that started the player.
    """
    if os.name != "posix":
        return None
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(pid), temporary or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return None
