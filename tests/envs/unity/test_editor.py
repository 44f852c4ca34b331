"""The scene in the Unity editor, where a person presses Play; the stand-in in its place."""

import socket
import subprocess
import sys

import pytest

import rlgym
from rlgym.envs.unity.launch import EDITOR_PORT, find_player

PERSON = f"""
import socket, time
while True:  # until someone waits; a port that is taken cannot be bound
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", {EDITOR_PORT}))
        except OSError:
            break
    time.sleep(0.1)
from rlgym.envs.unity.standin.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_run_in_the_editor_is_scored_there_too(tmp_path):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", EDITOR_PORT)) == 0:
            pytest.skip("something waits for an editor here")
    scene = ["--scene", "3dball", "--agents", "2", "--max-steps", "15"]
    home = find_player("standin").environment["PYTHONPATH"]
    person = subprocess.Popen([sys.executable, "-c", PERSON, *scene], env={"PYTHONPATH": home})
    try:
        run = rlgym.train(
            "unity:editor",
            preset=None,
            run_dir=tmp_path / "run",
            total_steps=192,
            console="off",
            algo={"num_steps": 32, "minibatch_size": 64, "epochs": 1},
            network={"hidden": [4]},
            eval={"episodes": 2, "every": 128},
        )
        assert run.state.env_steps == 192 and run.config.num_envs == 2
        assert run.result is not None and run.result.episodes == 2
        assert person.wait(20) == 0  # told to stop, as the editor leaves play mode
    finally:
        person.kill()
