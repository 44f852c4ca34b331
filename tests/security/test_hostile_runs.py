"""Run folders that a stranger made: they start nothing, lead nowhere, and take no memory."""

import inspect
import os
import sys
from functools import partial

import pytest
import torch
import yaml

import rlgym
from rlgym.cli.main import main
from rlgym.config import PRIVILEGED, NetworkConfig, TrainConfig, save_config, to_dict
from rlgym.errors import CheckpointError, UserError
from rlgym.registry import require_trusted_worlds
from rlgym.training import checkpoint, run_lock
from rlgym.training.loaded import load_policy
from rlgym.training.run_lock import locked
from rlgym.training.state import Snapshot
from tests.security.test_hostile_files import make_run, nothing_happens, refused

# --- what a file says of its worlds ---------------------------------------------------------------

SETTINGS = {
    "args": ("unity:standin", {"env": {"args": ["-logFile", "victim"]}}),
    "log_folder": ("unity:standin", {"env": {"log_folder": "victim"}}),
    "a scored scene's": ("unity:editor", {"eval": {"env": {"log_folder": "victim"}}}),
    "a flag as a value": ("unity:standin", {"env": {"with_child": "-logFile=victim"}}),
    "a flag in a list": ("unity:standin", {"env": {"fault": ["--logFile=victim"]}}),
    "once_file": ("rlgym/Crash-v0", {"env": {"once_file": "victim"}}),
    "by another name": ("rlgym.envs.toy:rlgym/Crash-v0", {"env": {"once_file": "victim"}}),
}


def hostile_run(folder, env_id, settings):
    make_run(folder)
    config = {"env_id": env_id, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_file_does_not_say_where_worlds_write(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    hostile_run(tmp_path / "run", *SETTINGS[kind])
    with nothing_happens(tmp_path):
        for verb in ("eval", "resume", "play", "record", "export", "sim2sim"):
            assert main([verb, "run"]) == 2
        assert main(["train", "--config", "run/config.yaml"]) == 2
        assert main(["train", SETTINGS[kind][0], "--config", "run/config.yaml"]) == 2
        with pytest.raises(UserError, match="trust=True"):
            rlgym.resume("run")
        with pytest.raises(UserError, match="trust=True"):
            rlgym.train(rlgym.config.load_config("run/config.yaml"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert all("with which they can write anywhere" in line for line in lines)
    assert all("--trust" in line for line in lines)


def test_what_a_person_says_again_is_trusted():
    config = TrainConfig(env_id="unity:standin", env={"args": ["-logFile", "x"], "agents": -3})
    require_trusted_worlds(config, "file", {"env": {"args": []}})
    with pytest.raises(UserError, match=r"eval\.env\.log_folder"):
        scored = rlgym.config.EvalConfig(env={"log_folder": "x"})
        require_trusted_worlds(TrainConfig(eval=scored), "file", {"env": {"log_folder": "y"}})
    require_trusted_worlds(TrainConfig(eval=scored), "file", {"eval": {"env": {"log_folder": ""}}})
    require_trusted_worlds(TrainConfig(eval=scored), "file", {"eval": scored})
    program = TrainConfig(env_id="unity:/x/Game.x86_64", env={"args": ["-x"]})
    with pytest.raises(UserError, match=r"env\.args"):  # the program, but not what it is told
        require_trusted_worlds(program, "file", {"env_id": program.env_id})
    world = TrainConfig(env={"name": "-x"})  # a flag only where there is a program
    require_trusted_worlds(world, "file", {})


def test_a_file_names_no_cluster_though_its_section_is_changed(tmp_path, capsys):
    collect = rlgym.config.CollectConfig(ray="10.0.0.1:6379")
    make_run(tmp_path)
    save_config(TrainConfig(collect=collect), tmp_path / "config.yaml")
    with nothing_happens(tmp_path):
        assert main(["resume", str(tmp_path), "--collect.patience", "5"]) == 2
    assert "join the Ray cluster" in capsys.readouterr().err
    said = refused(UserError, tmp_path, partial(rlgym.resume, tmp_path, collect={"cpus": 2.0}))
    assert "join the Ray cluster" in said
    with pytest.raises(CheckpointError):  # what comes after that question
        rlgym.resume(tmp_path, collect=collect)


def test_a_flag_takes_the_place_of_what_a_file_says(tmp_path, monkeypatch, capsys):
    hostile_run(tmp_path, "rlgym/Crash-v0", {"env": {"once_file": str(tmp_path / "victim")}})
    for words in (["eval"], ["resume", "--total-steps", "20"]):
        assert main([*words[:1], str(tmp_path), *words[1:], "--env.once-file", "null"]) == 2
        assert "write anywhere" not in capsys.readouterr().err  # but that there is no policy
    typed = ["--config", str(tmp_path / "config.yaml"), "--env.once-file", "null"]
    assert main(["train", *typed, "--print-config"]) == 0


def test_every_path_that_a_scene_takes_is_known():
    pytest.importorskip("mlagents_envs")
    from rlgym.envs.unity.world import UnityWorld

    settings = inspect.signature(UnityWorld).parameters.values()
    paths = {one.name for one in settings if "Path" in str(one.annotation)}
    assert {"log_folder", "crash_dir"} <= paths <= set(PRIVILEGED)


# --- links in the folder --------------------------------------------------------------------------

ENTRIES = ("run.lock", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "crashes", "sim2sim")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_run_writes_through_no_link(tmp_path, capsys, name):
    run, victim = tmp_path / "run", tmp_path / "victim"
    make_run(run)
    save_config(TrainConfig(), run / "config.yaml")
    if name == "checkpoints":
        (run / name).rename(victim)
    elif "." in name:
        victim.write_text("precious")
    else:
        victim.mkdir()
    (run / name).symlink_to(victim)
    with nothing_happens(tmp_path):
        for verb in ("eval", "resume", "export"):
            assert main([verb, str(run)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(f"{name} is a link" in line for line in said)
    assert f"{name} is a link" in refused(UserError, tmp_path, rlgym.resume, run)
    with pytest.raises(UserError, match="is a link"):
        rlgym.train("CartPole-v1", run_dir=run, overwrite=True)
    assert not victim.is_file() or victim.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens no file in this way")
def test_a_link_that_appears_late_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.lock").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(run_lock, "require_plain", lambda folder: None)
    with pytest.raises(UserError, match="cannot be written"), locked(run):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_the_way_to_a_run_may_lead_through_links(tmp_path):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "mine").symlink_to(tmp_path / "runs" / "run")
    for folder in (tmp_path / "runs" / "run", tmp_path / "mine"):
        with locked(folder):
            assert os.listdir(tmp_path / "disk" / "run") == ["run.lock"]


# --- what policy.json describes -------------------------------------------------------------------

BOX = {"kind": "Box", "shape": [4], "dtype": "float32", "low": "-inf", "high": "inf"}
HUGE = {"kind": "Box", "shape": [20_000_000], "dtype": "float32", "low": 0.0, "high": 1.0}
DEEP: dict = BOX
for _ in range(400):
    DEEP = {"kind": "Tuple", "spaces": [DEEP]}
POLICIES = {
    "a wide network": ({"network": {"hidden": [2000, 2000]}}, "only the network has"),
    "a network of no memory": ({"network": {"hidden": [10**6, 10**6]}}, "only the network has"),
    "a number that is none": ({"network": {"hidden": [10**12, 10**12]}}, "describes no policy"),
    "less than nothing": ({"network": {"hidden": [-1]}}, "describes no policy"),
    "many layers": ({"network": {"hidden": [1] * 100_000}}, "describes no policy"),
    "many large parts": (
        {"observation_space": {"kind": "Tuple", "spaces": [HUGE] * 40}},
        "more than 30,000,000 values",
    ),
    "parts in parts": ({"observation_space": DEEP}, "policy"),
    "many choices": (
        {"action_space": {"kind": "Discrete", "n": 10**9, "start": 0}},
        "only the network has",
    ),
}


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("kind", POLICIES)
def test_memory_is_taken_for_what_was_saved_only(tmp_path, algo, kind):
    change, expected = POLICIES[kind]
    document = {
        "algo": algo,
        "num_critics": 2,
        "layer_norm": False,
        "observation_space": BOX,
        "action_space": {"kind": "Discrete", "n": 2, "start": 0},
        "custom_network": False,
        **change,
    }
    document["network"] = {**to_dict(NetworkConfig()), **document.get("network", {})}
    tensors = {f"towers.weight_{i}": torch.ones(2, 4, 8) for i in (0, 2)}
    checkpoint.save(tmp_path, 10, {"model": tensors}, {"policy": document})
    save_config(TrainConfig(), tmp_path / "config.yaml")
    assert expected in refused(CheckpointError, tmp_path, load_policy, tmp_path)


# --- what env.safetensors holds -------------------------------------------------------------------


def test_worlds_in_numbers_that_numpy_lacks_are_refused(tmp_path):
    tensors = {"model": {}, "rng": {"shuffle": torch.zeros(1)}, "optimizer": {}}
    tensors["env"] = {"returns": torch.zeros(2, dtype=torch.bfloat16)}
    saved = checkpoint.save(tmp_path, 10, tensors, {"state": {}, "policy": {}})
    assert "env.safetensors" in refused(CheckpointError, tmp_path, Snapshot.from_files, saved)
