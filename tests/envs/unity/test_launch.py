"""What a person names leads to a program that runs here, or to one line that says why not."""

import os
import re
import socket
from pathlib import Path

import pytest

from rlgym.envs.unity import launch as launching
from rlgym.envs.unity.connector import Player, PlayerLost
from rlgym.envs.unity.launch import find_player
from rlgym.errors import WorldError

posix = pytest.mark.skipif(os.name != "posix", reason="a script is no program on Windows")


def program(path: Path, text: str = "exit 5") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + machine.to_bytes(2, "little")


def pe(machine: int) -> bytes:
    head = bytearray(b"MZ" + bytes(0x40))
    head[0x3C:0x40] = (0x40).to_bytes(4, "little")
    return bytes(head[:0x40]) + b"PE\0\0" + machine.to_bytes(2, "little")


def fat(*machines: int) -> bytes:
    arches = b"".join(m.to_bytes(4, "big") + bytes(16) for m in machines)
    return b"\xca\xfe\xba\xbe" + len(machines).to_bytes(4, "big") + arches


@posix
def test_a_path_may_lack_its_suffix_or_be_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching.platform, "system", lambda: "Linux")
    build = program(tmp_path / "builds.x86_64.d" / "Ball.v2.x86_64")
    for given in (build, build.with_suffix(""), build.parent):
        assert find_player(str(given)).command == (str(build),)
    other = program(build.parent / "Other.x86_64")
    with pytest.raises(WorldError, match=r"several players: name one of Ball\.v2"):
        find_player(str(build.parent))
    other.unlink()
    with pytest.raises(WorldError, match=r"there is Ball\.v2\.x86_64"):
        find_player(str(build.parent / "Ball.v3"))
    with pytest.raises(WorldError, match="there is no folder"):
        find_player(str(tmp_path / "nowhere" / "Ball"))


@posix
def test_an_app_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.platform, "system", lambda: "Darwin")
    inside = program(tmp_path / "Ball.app" / "Contents" / "MacOS" / "Ball")
    program(inside.with_name("Another"))
    for given in (tmp_path / "Ball.app", tmp_path / "Ball", tmp_path):
        assert find_player(str(given)).command == (str(inside),)


@posix
def test_what_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.platform, "system", lambda: "Linux")
    monkeypatch.setattr(launching.platform, "machine", lambda: "x86_64")
    cases = {
        "notes.txt": (b"how to build", "is not a program"),
        "nothing": (b"", "is not a program"),
        "dos": (b"MZ" + bytes(100), "is not a program"),
        "arm": (elf(0xB7), "built for ARM64 processors and this is x86-64"),
        "odd": (elf(0x1234), "processor 0x1234"),
        "Ball.exe": (pe(0x8664), "built for Windows and this is Linux"),
        "Ball": (fat(0x01000007, 0x0100000C), "built for macOS and this is Linux"),
        "thin": (b"\xcf\xfa\xed\xfe\x0c\0\0\x01", "built for macOS and this is Linux"),
        "plain": (elf(0x3E), f"chmod \\+x {re.escape(str(tmp_path))}/plain"),
    }
    for name, (head, text) in cases.items():
        (tmp_path / name).write_bytes(head)
        with pytest.raises(WorldError, match=text) as caught:
            find_player(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    (tmp_path / "plain").chmod(0o755)
    assert find_player(str(tmp_path / "plain")).command


@posix
def test_what_the_system_refuses_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"#!/no/such/interpreter\n")
    broken.chmod(0o755)
    player = Player(find_player(str(broken)))
    with pytest.raises(WorldError, match="does not start"):
        player.start()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", player.port)) != 0


@posix
def test_a_build_gets_unitys_arguments_and_its_log_is_shown(tmp_path: Path) -> None:
    build = program(tmp_path / "Ball", 'echo "$@"; echo "no display" >&2; exit 5')
    player = Player(find_player(str(build)), args=["--level", "3"], log_folder=tmp_path / "logs")
    player.start()
    with pytest.raises(PlayerLost, match="exit code 5") as caught:
        player.connect()
    expected = f"-nographics -batchmode --mlagents-port {player.port} -logFile"
    assert expected in caught.value.log
    assert "--level 3" in caught.value.log and "no display" in caught.value.log
    assert (tmp_path / "logs" / "player-0.out").exists()


def test_only_the_standin_takes_options() -> None:
    with pytest.raises(WorldError, match="only unity:standin takes scene"):
        find_player("editor", scene="3dball")
    command = find_player("standin", scene="grid", branches=[3, 2], replay=True, agents=None)
    assert command.command[3:] == ("--scene", "grid", "--branches", "3,2", "--replay")


@posix
def test_a_relative_path_runs_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "Ball")
    monkeypatch.chdir(tmp_path)
    player = Player(find_player("Ball"))
    player.start()
    with pytest.raises(PlayerLost, match="exit code 5"):
        player.connect()
