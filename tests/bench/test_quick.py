"""Every benchmark runs from end to end with --quick and ends in its JSON object."""

import json

import pytest
import torch

from rlgym import bench, load_policy


def run_quick(capsys, *words: str) -> dict:
    threads = torch.get_num_threads()
    assert bench.run([*words, "--quick", "--json"]) == 1, "a quick run meets no goal"
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.splitlines()
    outcome = json.loads(lines[-1])
    assert outcome["name"] == words[0]
    assert outcome["quick"] is True
    assert outcome["cases"], outcome["measured"]
    return outcome


def test_ppo_update(capsys):
    outcome = run_quick(capsys, "ppo-update")
    assert [case["goal"]["bound"] for case in outcome["cases"]] == [0.25, 0.5]
    for case in outcome["cases"]:
        assert case["value"] > 0.0
        assert case["ratio"] == pytest.approx(case["value"] / case["baseline"])


def test_vector(capsys):
    outcome = run_quick(capsys, "vector")
    assert [case["goal"]["bound"] for case in outcome["cases"]] == [0.9, 5.0]


def test_tensor_worlds_alone(capsys):
    outcome = run_quick(capsys, "native-envs")
    assert outcome["cases"][0]["goal"] == {"on": "value", "is": "at least", "bound": 4e6}
    assert [case["goal"]["bound"] for case in outcome["cases"][1:]] == [20.0] * 4


def test_an_accelerators_goals_are_not_met_on_a_cpu(capsys):
    outcome = run_quick(capsys, "gpu-ppo", "--device", "cpu")
    assert [case["goal"]["bound"] for case in outcome["cases"]] == [50e6, 4e6]
    outcome = run_quick(capsys, "gpu-sac", "--device", "cpu")
    assert outcome["cases"][0]["conditions"] == {"the device is an accelerator": False}
    assert outcome["cases"][0]["ratio"] > 0


def test_memory(capsys):
    outcome = run_quick(capsys, "memory")
    assert outcome["cases"][0]["unit"] == "MB per million steps"
    assert outcome["cases"][0]["details"]["last_mb"] > 50.0


def test_learning_keeps_what_was_run(capsys, tmp_path):
    results = tmp_path / "deep" / "learning.jsonl"
    outcome = run_quick(capsys, "learning", "--results", str(results))
    case = outcome["cases"][0]
    assert case["name"] == "CartPole-v1"
    assert case["details"]["interval"] == [case["value"]] * 2  # one seed: a point
    record = json.loads(results.read_text())
    assert record["score"] == case["value"]
    (folder,) = results.with_suffix("").iterdir()  # kept, to play or to go on with
    assert load_policy(folder).step == record["env_steps"]

    # A line cut short by a crash is left out; the run that is there is not repeated.
    with results.open("a") as file:
        file.write('{"world": "CartPo')
    again = run_quick(capsys, "learning", "--results", str(results))
    assert again["cases"][0]["details"]["minutes"] == case["details"]["minutes"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_native_cartpole(capsys):
    outcome = run_quick(capsys, "native-cartpole")
    assert [case["goal"]["bound"] for case in outcome["cases"]] == [0.05, 20.0]
    assert outcome["cases"][1]["ratio"] > 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)  # both sides import everything, in processes of their own
def test_ppo_cartpole(capsys):
    outcome = run_quick(capsys, "ppo-cartpole", "--limit", "50")
    case = outcome["cases"][0]
    assert case["values"] == [50.0]  # 2,048 steps are not enough: the limit counts
    assert case["details"]["ours"][0]["steps"] >= 2048
    assert not any(case["conditions"].values())


@pytest.mark.slow
@pytest.mark.timeout(900)  # trains, and installs the robot's runtime
def test_export(capsys):
    outcome = run_quick(capsys, "export")
    found = {case["name"]: case for case in outcome["cases"]}
    assert len(found) == 9
    assert found["largest error of float formats"]["met"]
    assert set(found["largest error of int8 weights"]["details"]["errors"]) == {
        *("c-int8", "tflite-int8")
    }
    faults = next(case for name, case in found.items() if "guard" in name)
    assert faults["met"] and len(faults["details"]) == 8
    runtime = found["virtual environment of the runtime"]
    assert runtime["met"] or "failed" in runtime["details"]  # without a network


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_imitate_trot(capsys):
    outcome = run_quick(capsys, "imitate-trot", "--limit", "100")
    low, high, bullet = outcome["cases"]
    assert low["values"] == high["values"] == [100.0], (
        "8,192 steps are not enough: the limit counts"
    )
    assert 0.0 < bullet["value"] < 0.8
    baselines = low["details"]["baselines"]
    assert (
        0.3 < baselines["bullet standing"]["score"] < 0.45 < baselines["mujoco open_loop"]["score"]
    )
    assert 0.0 < baselines["bullet standing"]["time_step"] <= 0.001
    assert 0.001 < baselines["mujoco standing"]["time_step"] <= 0.005


@pytest.mark.slow
@pytest.mark.timeout(900)  # Warp compiles its kernels, the first time
def test_warp(capsys):
    pytest.importorskip("mujoco_warp", reason="needs the extra 'gpu'")
    outcome = run_quick(capsys, "warp", "--device", "cpu")
    rate, agreement = outcome["cases"]
    assert rate["value"] > rate["baseline"] > 0.0
    assert 0.0 < agreement["value"] < 1e-4


@pytest.mark.slow
def test_unity(capsys):
    outcome = run_quick(capsys, "unity")
    bounds = [case["goal"]["bound"] for case in outcome["cases"]]
    assert bounds == [2.0, 8.0, 3.5, 8.0, 6.0, 11.0, 3.0]
    assert all(case["value"] > 0 and case["baseline"] > 0 for case in outcome["cases"])
    assert outcome["cases"][0]["details"]["raw exchange"]
