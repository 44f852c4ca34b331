"""Unity players that die, freeze or stay, and the end of the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import rlgym
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import PlayerFrozen, PlayerLost
from tests.envs.unity.players import connected, is_gone, is_open, soon, standin, zeros

posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
CHECKOUT = Path(rlgym.__file__).resolve().parent.parent


# ----- Players that fail -------------------------------------------------------------------------


def test_a_player_that_dies_at_start_shows_its_code_and_log() -> None:
    player = standin(fault="crash@start")
    player.start()
    began = time.monotonic()
    with pytest.raises(PlayerLost, match="exit code 3 before it connected") as caught:
        player.connect()
    assert time.monotonic() - began < 10  # seen at once, not at the timeout
    assert caught.value.exit_code == 3
    assert "Planned fault 'crash'" in caught.value.log
    assert "Planned fault 'crash'" in str(caught.value)
    assert not is_open(player.port)


@pytest.mark.parametrize("moment", ["reset", "3"])
def test_a_player_that_dies_later_is_lost(moment: str) -> None:
    player = standin(fault=f"crash@{moment}")
    player.start()
    player.connect()
    codec = Codec()
    with pytest.raises(PlayerLost, match="exit code 3 after") as caught:
        player.send(codec.encode_reset())
        for _ in range(5):
            player.send(zeros(codec, codec.decode(player.recv())))
    assert caught.value.exit_code == 3
    player.quit()


@posix
def test_a_signal_is_named() -> None:
    player, codec, frame = connected()
    player.send(zeros(codec, frame))
    assert player.pid is not None
    os.kill(player.pid, signal.SIGKILL)
    with pytest.raises(PlayerLost, match="ended by SIGKILL") as caught:
        for _ in range(3):
            player.send(zeros(codec, codec.decode(player.recv())))
    assert caught.value.exit_code == -9
    player.quit()


def test_a_player_that_freezes_at_start_is_given_up() -> None:
    player = standin(fault="hang@start", timeout=1.0)
    player.start()
    pid = player.pid
    with pytest.raises(PlayerFrozen, match="did not connect within 1 s"):
        player.connect()
    assert pid is not None and is_gone(pid)


def test_a_player_that_freezes_later_is_given_up() -> None:
    player, codec, frame = connected(fault="hang@3")
    with pytest.raises(PlayerFrozen, match=r"no message within 0\.5 s"):
        for _ in range(5):
            player.send(zeros(codec, frame))
            frame = codec.decode(player.recv(timeout=0.5))
    pid = player.pid
    player.quit(grace=0.1)
    assert pid is not None and is_gone(pid)


def test_a_scene_that_asks_for_nothing_is_explained() -> None:
    player = standin(scene="empty")
    player.start()
    player.connect()
    player.send(Codec().encode_reset())
    with pytest.raises(PlayerFrozen, match="Decision Requester"):
        player.recv(timeout=0.5)
    player.quit(grace=0.1)


def test_a_player_that_stays_when_told_to_quit_is_killed_with_its_children() -> None:
    player = standin(fault="deaf", with_child=True)
    player.start()
    player.connect()
    assert player.pid is not None
    process = psutil.Process(player.pid)
    assert soon(lambda: process.children())
    family = [process.pid, *(child.pid for child in process.children(recursive=True))]
    began = time.monotonic()
    player.quit(grace=0.3)
    assert time.monotonic() - began < 5
    assert soon(lambda: all(is_gone(pid) for pid in family))


# ----- Our own end -------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from rlgym.envs.unity.connector import Player
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.launch import find_player
player = Player(find_player("standin", scene="3dball", fault={fault!r}))
player.start()
player.connect()
player.send(Codec().encode_reset())
if {receive}:
    player.recv()
print(player.pid, player.port, flush=True)
{end}
"""


@posix
@pytest.mark.parametrize(
    ("end", "fault", "receive", "code"),
    [
        ("raise RuntimeError('while the player waits')", None, True, 1),
        ("raise RuntimeError('while the player hangs')", "hang@1", False, 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", "hang@1", False, -9),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", "deaf", True, -15),
    ],
)
def test_a_script_that_dies_ends_at_once_and_leaves_nothing(
    tmp_path: Path, end: str, fault: str | None, receive: bool, code: int
) -> None:
    script = SCRIPT.format(end=end, fault=fault, receive=receive)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    took = time.monotonic() - began
    assert done.returncode == code, done.stderr
    assert took < 30, "a thread kept the interpreter alive"
    pid, port = map(int, done.stdout.split())
    assert soon(lambda: is_gone(pid))
    assert not is_open(port)
    assert soon(lambda: not list(tmp_path.iterdir()))
