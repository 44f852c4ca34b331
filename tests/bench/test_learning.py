"""The learning benchmark's verdicts and its file of finished runs."""

import json
from typing import Any

import pytest

import rlgym
from rlgym import bench
from rlgym.bench.learning import (
    PROMISES,
    RunLog,
    case_of,
    key_of,
    markdown,
    time_ours,
    train_ours,
)
from rlgym.bench.memory import case_of as memory_case
from rlgym.config import load_preset
from rlgym.errors import UserError

HOPPER = "pybullet_envs_gymnasium:HopperBulletEnv-v0"


def record(score: float, minutes: float = 1.0, seed: int = 0, whole: bool = True) -> dict:
    return {
        "score": score, "minutes": minutes, "seed": seed, "success": None, "env_steps": 100_000,
        "whole": whole,
    }  # fmt: skip


def test_value_is_the_interquartile_mean_over_seeds():
    scores = [500.0, 500.0, 494.0, 10.0, 500.0]  # one bad seed is cut off
    case = case_of("CartPole-v1", [record(s, seed=i) for i, s in enumerate(scores)], [])
    assert case.value == pytest.approx((494.0 + 500.0 + 500.0) / 3)
    assert not case.met  # the goal is 500, and 498 is below it
    low, high = case.details["interval"]
    assert low < case.value <= high == 500.0


def test_one_bad_seed_of_five_does_not_miss_the_goal():
    scores = [500.0, 500.0, 500.0, 10.0, 500.0]
    assert case_of("CartPole-v1", [record(s, seed=i) for i, s in enumerate(scores)], []).met


def test_a_world_that_was_not_run_is_not_met():
    case = case_of("Pendulum-v1", [], [])
    assert not case.met
    assert "not run" in markdown([case])


@pytest.mark.parametrize(
    ("minutes", "theirs", "met"),
    [(10.0, [record(2600.0, 20.0)], True), (30.0, [record(2600.0, 20.0)], False), (1.0, [], False)],
)
def test_bullet_worlds_must_also_be_faster_than_sb3(minutes, theirs, met):
    case = case_of(HOPPER, [record(2700.0, minutes)], theirs)
    assert case.met is met


def test_table_has_the_numbers_of_both_sides():
    text = markdown([case_of(HOPPER, [record(2700.0, 10.0)], [record(2600.0, 20.0)])])
    row = "| HopperBulletEnv-v0 | 2575 | 2700.0 (one seed) | 1 | 100,000 |"
    assert f"{row} 10.0 (SB3 20.0, score 2600) |" in text


@pytest.mark.parametrize(("minutes", "met"), [(10.0, True), (30.0, False)])
def test_short_runs_of_both_sides_compare_minutes_and_score_nothing(minutes, met):
    short = {"minutes": minutes, "seed": 0, "env_steps": 50_000, "whole": False}
    theirs = {**short, "minutes": 20.0}
    # the whole run was slowed by something else and does not count
    case = case_of(HOPPER, [record(2700.0, 50.0)], [theirs], timed=[short])
    assert case.met is met
    assert case.baseline is None
    text = f"50.0 (scaled up from short runs {minutes:.1f}, SB3 20.0) |"
    assert text in markdown([case])


def test_a_short_run_of_sb3_alone_is_compared_with_our_whole_one():
    theirs = {"minutes": 20.0, "seed": 0, "env_steps": 50_000, "whole": False}
    case = case_of(HOPPER, [record(2700.0, 10.0)], [theirs])
    assert case.met
    assert "SB3 20.0) |" in markdown([case])


def test_short_runs_are_scaled_up_to_whole_ones():
    timed = time_ours(world="CartPole-v1", seed=0, steps=2000, algo="ppo")
    total = load_preset("cartpole-ppo").total_steps
    assert timed["env_steps"] >= 2000
    assert timed["minutes"] * 60 > 0.01 * total / timed["env_steps"]


def test_log_continues_after_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.add({"world": "a", "seed": 0, "score": 1.0})
    with path.open("a") as file:
        file.write('{"world": "b", "se')
    log = RunLog(path)
    log.add({"world": "c", "seed": 0, "score": 3.0})
    again = RunLog(path)
    assert [found["world"] for found in again.records] == ["a", "c"]
    assert again.find({"world": "c", "seed": 0})["score"] == 3.0
    assert again.find({"world": "c", "seed": 1}) is None


def test_table_alone_trains_nothing(tmp_path, capsys):
    words = ["learning", "--table", "--json", "--results", str(tmp_path / "none.jsonl")]
    assert bench.run(words) == 1
    outcome = json.loads(capsys.readouterr().out)
    names = [world if algo == "ppo" else f"{world} SAC" for world, algo in PROMISES]
    assert sorted(case["name"] for case in outcome["cases"]) == sorted(names)
    assert not (tmp_path / "none.jsonl").exists()


def test_one_algorithm_alone(tmp_path, capsys):
    words = ["learning", "--table", "--json", "--algo", "sac", "--results", str(tmp_path / "x")]
    bench.run(words)
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert all(case["name"].endswith(" SAC") for case in cases)
    assert len(cases) == sum(algo == "sac" for _, algo in PROMISES)
    with pytest.raises(UserError, match="'CartPole-v1' and sac: the worlds are Pendulum-v1"):
        bench.run([*words, "--world", "CartPole-v1"])


def test_runs_of_either_algorithm_are_told_apart(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    # written before there was more than one algorithm: a record of PPO names none
    log.add({**key_of(HOPPER, "ppo", "sb3", 0, None), "score": 1.0})
    del log.records[0]["algo"]
    assert log.find(key_of(HOPPER, "ppo", "sb3", 0, None))["score"] == 1.0
    assert log.find(key_of(HOPPER, "sac", "sb3", 0, None)) is None
    log.add({**key_of(HOPPER, "sac", "sb3", 0, None), "score": 2.0})
    assert log.find(key_of(HOPPER, "sac", "sb3", 0, None))["score"] == 2.0
    assert log.find(key_of(HOPPER, "ppo", "sb3", 0, None))["score"] == 1.0
    ours = key_of("Pendulum-v1", "ppo", "ours", 0, None)
    assert ours["preset"] != key_of("Acrobot-v1", "ppo", "ours", 0, None)["preset"]


def test_an_interrupted_run_goes_on_and_a_finished_one_is_only_scored(tmp_path):
    class EndAtOnce:
        def on_update(self, run, metrics):
            return True

    whole: dict[str, Any] = {
        "world": "CartPole-v1",
        "steps": 1500,
        "seed": 3,
        "episodes": 2,
        "which": "last",
        "algo": "ppo",
    }
    cut = tmp_path / "cut"
    run = rlgym.train(
        "CartPole-v1", seed=3, total_steps=1500, run_dir=cut, hooks=EndAtOnce(), console="off"
    )
    assert 0 < run.state.env_steps < 1500
    resumed = train_ours(**whole, run_dir=str(cut))
    straight = train_ours(**whole, run_dir=str(tmp_path / "straight"))
    assert resumed["env_steps"] == straight["env_steps"] >= 1500
    assert resumed["score"] == straight["score"]
    assert resumed["minutes"] > run.state.seconds / 60.0
    scored = train_ours(**whole, run_dir=str(cut))
    assert scored["score"] == resumed["score"]
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == resumed["env_steps"]


@pytest.mark.parametrize(("rates", "met"), [([1.0, 1.0], True), ([1.0, 0.99], False), ([], False)])
def test_a_promised_success_rate_must_be_reached_in_every_run(rates, met):
    runs = [{**record(-2.0, seed=i), "success": rate} for i, rate in enumerate(rates)]
    case = case_of("panda_gym:PandaReach-v3", runs or [record(-2.0)], [], "sac")
    assert case.met is met
    assert case.name == "panda_gym:PandaReach-v3 SAC"


def test_unknown_world_lists_those_with_a_promise():
    with pytest.raises(UserError, match="Pendulum-v1"):
        bench.run(["learning", "--world", "Pong-v5"])


def test_memory_slope_leaves_out_the_warm_up():
    # 100 MB appear in the first fifth; then 3 MB per million steps.
    notes = [[step, 500.0 + min(step, 2e5) * 5e-4 + step * 3e-6] for step in range(0, 10**6, 10**4)]
    case = memory_case("sync", notes, 10**6, 5.0)
    assert case.value == pytest.approx(3.0)
    assert case.met
