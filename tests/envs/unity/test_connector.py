"""Players are started, spoken to, and gone when they must be."""

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import rlgym
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import Player, PlayerFrozen, PlayerLost
from rlgym.envs.unity.launch import EDITOR_PORT, Launch, find_player
from rlgym.errors import StateError, WorldError
from tests.envs.unity.players import connected, is_gone, is_open, standin, zeros

posix = pytest.mark.skipif(os.name != "posix", reason="scripts and groups are POSIX's")
CHECKOUT = Path(rlgym.__file__).resolve().parent.parent


# ----- A session ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_a_session_from_start_to_quit(transport: Any) -> None:
    player, codec, frame = connected(transport, scene="3dball", agents=5)
    assert "hybridActions" in player.capabilities
    assert player.package_version
    pid, port = player.pid, player.port
    assert pid is not None and psutil.Process(pid).is_running()
    (name,) = frame.batches
    assert frame.num_deciding == 5
    assert codec.specs[name].observations[0].shape == (8,)
    for _ in range(20):
        player.send(zeros(codec, frame))
        frame = codec.decode(player.recv())
    player.quit()
    player.quit()
    assert is_gone(pid)
    assert not is_open(port)
    assert player.pid is None


def test_the_seed_reaches_the_scene() -> None:
    first = []
    for seed in (3, 3, 4):
        player = standin(scene="3dball", agents=2, seed=seed)
        player.start()
        player.connect()
        codec = Codec()
        player.send(codec.encode_reset())
        first.append(next(iter(codec.decode(player.recv()).batches.values())).obs[0].copy())
        player.quit()
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()


def test_several_players_work_side_by_side() -> None:
    """One after another, their frames would take four times as long."""
    players = [standin(scene="3dball", agents=2, frame_ms=50, seed=i) for i in range(4)]
    codecs = [Codec(player.name) for player in players]
    for player in players:
        player.start()
    for player, codec in zip(players, codecs, strict=True):
        player.connect()
        player.send(codec.encode_reset())
    frames = [c.decode(p.recv()) for p, c in zip(players, codecs, strict=True)]
    assert len({player.port for player in players}) == 4
    began = time.perf_counter()
    for _ in range(5):
        for player, codec, frame in zip(players, codecs, frames, strict=True):
            player.send(zeros(codec, frame))
        frames = [c.decode(p.recv()) for p, c in zip(players, codecs, strict=True)]
    took = time.perf_counter() - began
    for player in players:
        player.quit()
    assert took < 0.6 * 4 * 5 * 0.05


def test_messages_of_any_size_pass() -> None:
    """gRPC's own limit is 4 MiB."""
    player, codec, frame = connected(scene="huge", agents=12, obs=100_000)
    batch = next(iter(frame.batches.values()))
    assert batch.obs[0].nbytes > 4 * 2**20
    player.send(zeros(codec, frame))
    codec.decode(player.recv())
    player.quit()


def test_there_are_two_transports() -> None:
    with pytest.raises(WorldError, match="choose direct or grpc"):
        Player(find_player("standin"), transport="carrier pigeon")


def test_the_halves_are_called_in_turn() -> None:
    player = standin()
    with pytest.raises(StateError, match=r"call start\(\)"):
        player.connect()
    with pytest.raises(StateError, match=r"call start\(\)"):
        player.recv()
    with pytest.raises(StateError, match=r"call recv\(\)"):
        player.send(b"")
    player.start()
    with pytest.raises(StateError, match="started before"):
        player.start()
    player.connect()
    with pytest.raises(StateError, match=r"call send\(\)"):
        player.recv()
    player.quit()


@pytest.mark.parametrize(
    ("version", "text"),
    [("2.0.0", "speaks version 2.0.0"), ("0.15.0", "speaks version 0.15.0"), ("", "no version")],
)
def test_another_major_version_is_refused(version: str, text: str) -> None:
    player = standin(protocol=version)
    player.start()
    pid = player.pid
    with pytest.raises(WorldError, match=re.escape(text)) as caught:
        player.connect()
    assert not isinstance(caught.value, (PlayerLost, PlayerFrozen))
    assert pid is not None and is_gone(pid)


def test_a_newer_minor_version_is_fine() -> None:
    player = standin(protocol="1.99.0")
    player.start()
    player.connect()
    player.quit()


def test_missing_base_capabilities_are_mentioned() -> None:
    player = standin(without="baseRLCapabilities")
    player.start()
    with pytest.warns(UserWarning, match="no base capabilities"):
        player.connect()
    player.quit()


def test_only_this_machine_can_connect() -> None:
    player = standin(fault="hang@start")
    player.start()
    assert player.pid is not None
    ours = psutil.Process().net_connections("tcp")
    listening = [c for c in ours if c.status == psutil.CONN_LISTEN and c.laddr.port == player.port]
    assert [c.laddr.ip.removeprefix("::ffff:") for c in listening] == ["127.0.0.1"]
    player.quit()


# ----- The editor --------------------------------------------------------------------------------


def test_the_editor_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    launch = find_player("editor")
    assert (launch.command, launch.port) == ((), EDITOR_PORT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    editor = Player(Launch("unity:editor", port=port), timeout=20)
    editor.start()
    assert f"press Play in the Unity editor (waiting on port {port})" in capfd.readouterr().out
    command = [*find_player("standin", scene="3dball", agents=3).command]
    person = subprocess.Popen([*command, "--mlagents-port", str(port)], cwd=CHECKOUT)
    editor.connect()
    codec = Codec()
    editor.send(codec.encode_reset())
    assert codec.decode(editor.recv()).num_deciding == 3
    editor.quit()
    assert person.wait(10) == 0  # told to stop, and never killed: it is the person's


def test_nobody_presses_play() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    editor = Player(Launch("unity:editor", port=port), timeout=0.3)
    editor.start()
    with pytest.raises(PlayerFrozen, match="press Play"):
        editor.connect()
    assert not is_open(port)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorldError, match=f"port {port} is taken"):
            Player(Launch("unity:editor", port=port)).start()


@posix
def test_a_proxy_for_the_web_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    player, _, _ = connected()
    player.quit()
