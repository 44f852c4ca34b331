"""`rlgym export` and `rlgym verify` on a small run of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import rlgym
from rlgym.cli.main import main
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.policy import Policy

CONFIG = {
    "num_envs": 4,
    "backend": "sync",
    "total_steps": 512,
    "algo": {"num_steps": 32, "minibatch_size": 64, "epochs": 1},
    "network": {"hidden": [8]},
    "eval": {"episodes": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and its bundle in C beside."""
    path = tmp_path_factory.mktemp("runs") / "first"
    rlgym.train("CartPole-v1", preset=None, run_dir=str(path), console="off", **CONFIG)
    assert main(["export", str(path), "--to", "c-int8", "--steps", "64"]) == 0
    return path


@pytest.fixture(scope="module")
def bundle(folder):
    """The bundle's path."""
    return str(folder / "first.rlpolicy")


def refused(capsys, *words):
    """Run, and return the one line of the error."""
    status = main(list(words))
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1, said
    return said


def test_the_bundle_is_told(folder, capsys):
    assert main(["export", str(folder), "--steps", "40", "--out", str(folder / "b.rlpolicy")]) == 0
    said = capsys.readouterr().out
    assert "40 golden pairs" in said
    assert "onnxruntime" in said and f"rlgym verify {folder / 'b.rlpolicy'}" in said


def test_the_bundle_acts_as_the_run_does(folder, bundle):
    loaded = rlgym.load_policy(str(folder))
    policy = Policy(Bundle(bundle))
    for i in range(20):
        obs = loaded.observation_space.sample().clip(-3, 3) * (i / 20)
        assert policy.act(obs) == loaded.act(obs)


def test_where_it_comes_from(bundle):
    manifest = Bundle(bundle).manifest
    assert manifest["provenance"]["run"] == "first"
    assert manifest["provenance"]["world"]["env_id"] == "CartPole-v1"
    assert manifest["robot"] is None and manifest["targets"] is None
    assert manifest["action"][0]["kind"] == "discrete"


def test_folders_of_this_machine_stay_here():
    from rlgym.cli.export import _public

    private = str(Path(__file__).resolve())
    assert _public({"clip": {"file": private}, "n": [1, private]}) == {
        "clip": {"file": "test_export.py"},
        "n": [1, "test_export.py"],
    }


def test_verify_says_what_agreed(bundle, capsys):
    assert main(["verify", bundle]) == 0
    said = capsys.readouterr().out
    assert "ok  numpy" in said and "ok  onnx" in said and "-  c-int8" in said
    assert said.endswith("verified\n")


def test_verify_as_json(bundle, capsys):
    assert main(["verify", bundle, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert [check["name"] for check in found["checks"]] == ["files", "numpy", "onnx", "c-int8"]


def test_whole_episodes_beside_the_trained_policy(folder, bundle, capsys):
    words = ("--closed-loop", "--run", str(folder), "--episodes", "4", "--json")
    assert main(["verify", bundle, *words]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    loops = {check["name"]: check for check in checks if check["name"].startswith("loop")}
    assert list(loops) == ["loop trained", "loop onnx", "loop c-int8"]
    assert loops["loop onnx"]["error"] == 0.0


def test_the_world_of_a_bundle_alone(bundle, capsys):
    assert main(["verify", bundle, "--closed-loop", "--trust", "--episodes", "3"]) == 0
    said = capsys.readouterr().out
    assert "loop onnx" in said and "from onnx" in said


def test_a_world_that_a_stranger_names_is_not_started(bundle, capsys):
    said = refused(capsys, "verify", bundle, "--closed-loop")
    assert "--run RUN" in said and "--trust" in said


def test_a_bundle_of_another_run(folder, bundle, tmp_path, capsys):
    other = tmp_path / "other"
    settings = {**CONFIG, "total_steps": 256}
    rlgym.train("CartPole-v1", preset=None, run_dir=str(other), console="off", **settings)
    said = refused(capsys, "verify", bundle, "--closed-loop", "--run", str(other))
    assert "has no checkpoint of step" in said


def test_a_changed_bundle(bundle, tmp_path, capsys):
    copy = tmp_path / "changed.rlpolicy"
    shutil.copy(bundle, copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 255
    copy.write_bytes(data)
    refused(capsys, "verify", str(copy))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onxx"), "there is no format 'onxx'"),
        (("--steps", "3"), "--steps must be at least 32"),
        (("--out", "nowhere\0/x.rlpolicy"), "cannot be written"),
        (("--out", "thesis.pdf"), "ends in .rlpolicy"),
    ],
)
def test_what_export_refuses(folder, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "export", str(folder), *words)


def test_what_is_no_run_or_bundle(tmp_path, capsys):
    assert "holds no run" in refused(capsys, "export", str(tmp_path))
    assert "no manifest.json" in refused(capsys, "verify", str(tmp_path))
    assert "there is no such bundle" in refused(capsys, "verify", str(tmp_path / "x.rlpolicy"))
    assert "at least 1" in refused(capsys, "verify", str(tmp_path), "--episodes", "0")
