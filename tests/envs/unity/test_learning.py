"""PPO learns in Unity's protocol what it must: through players, slots, masks and memory."""

import os
from pathlib import Path
from typing import Any

import pytest

import rlgym

QUICK: dict[str, Any] = {
    "name": "ppo",
    "num_steps": 32,
    "minibatch_size": 128,
    "epochs": 4,
    "learning_rate": 0.003,
    "learning_rate_schedule": "linear",
}


def trained(folder: Path, scene: str, total_steps: int, **settings: Any) -> Any:
    """A finished run on a scene of the stand-in."""
    env = {"scene": scene, **settings.pop("env", {})}
    algo = {**QUICK, **settings.pop("algo", {})}
    return rlgym.train(
        "unity:standin",
        preset=None,
        run_dir=folder / "run",
        total_steps=total_steps,
        env=env,
        algo=algo,
        console="off",
        eval={"every": 0, "episodes": 20},
        checkpoint={"every": 0},
        **settings,
    )


def mean_return(run: Any) -> float:
    """Of the last episodes of training."""
    return sum(run.state.returns) / len(run.state.returns)


def test_groups_learn_in_seconds(tmp_path: Path) -> None:
    run = trained(tmp_path, "groups", 5_000, env={"agents": 12})
    assert run.result.mean > 5.0  # 11 is all, 1.75 is chance


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_3dball_is_balanced_in_under_two_minutes(tmp_path: Path) -> None:
    begin = sum(os.times()[:4])  # CPU time, with the players': no other process is counted
    run = rlgym.train("unity:standin", run_dir=tmp_path / "run", console="off", total_steps=60_000)
    seconds = sum(os.times()[:4]) - begin
    assert run.config.preset == "unity-3dball-ppo"
    assert run.config.num_envs == 12
    assert run.result.mean >= 90
    assert seconds < 120


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scene", "steps", "settings", "least"),
    [
        ("hybrid", 30_000, {"network": {"log_std_init": -0.7}}, 17.0),  # 20 is all, about 12 chance
        ("memory", 30_000, {"network": {"recurrent": "gru", "recurrent_size": 32}}, 0.9),
        ("buffer", 40_000, {"network": {"log_std_init": -0.7}}, 3.0),  # 20 is all, 0 is chance
        (
            "staggered",
            30_000,
            {"network": {"normalize_obs": True, "log_std_init": -0.7}, "algo": {"num_steps": 64}},
            30.0,  # about 1 is chance
        ),
        ("roles", 20_000, {"env": {"behavior": "Hunter?team=0"}}, 0.5),
    ],
)
def test_a_scene_is_learned(
    tmp_path: Path, scene: str, steps: int, settings: dict, least: float
) -> None:
    assert trained(tmp_path, scene, steps, **settings).result.mean >= least


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_masked_moves_are_never_taken_and_the_goal_is_found(tmp_path: Path) -> None:
    run = trained(
        tmp_path, "grid", 40_000, env={"agents": 16}, algo={"entropy_coef": 0.01, "gamma": 0.97}
    )
    assert mean_return(run) > 0.0  # about -0.2 is chance: the wrong goal is as near as the right
    scalars = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "Grid/Forbidden" not in scalars  # the player counts them, and had none to tell of
