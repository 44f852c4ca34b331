"""Imitation on the engine warp: the same task as on MuJoCo, recordable, resumable, trainable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlgym
from rlgym.envs.imitation.batch import MAX_LINES
from rlgym.vector.contract import check
from rlgym.vector.device import DeviceVectorEnv
from tests import tape

pytestmark = pytest.mark.slow  # Warp compiles its kernels: a minute or two, the first time

WORLD = "rlgym/Imitate-v0"
CHANGES: dict[str, Any] = {
    "clip": ["trot", "turn"],
    "randomize": "modern",
    "episode": {"switch_seconds": [0.2, 0.4], "seconds": 0.8, "perturb": 0.3},
}


def worlds(count: int, engine: str = "warp", **kwargs: Any) -> DeviceVectorEnv:
    pytest.importorskip("mujoco_warp", reason="needs the extra 'gpu'")
    made: Any = rlgym.make_vec(WORLD, count, device="cpu", env_kwargs={"engine": engine, **kwargs})
    return made


def actions(count: int, steps: int, size: float = 0.3) -> torch.Tensor:
    return size * torch.randn(steps, count, 12, generator=torch.Generator().manual_seed(7))


def test_the_task_is_the_same_as_on_mujoco():
    """First observations to rounding; then rewards, until a contact or a clip's end is rounded."""
    ours, theirs = (
        worlds(16, episode={"perturb": 0.3}),
        worlds(16, "mujoco", episode={"perturb": 0.3}),
    )
    a, _ = ours.reset(seed=3)
    b, _ = theirs.reset(seed=3)
    for key in b:
        assert torch.allclose(a[key], b[key], atol=2e-4), key
    for step, action in enumerate(actions(16, 12)):
        a, reward, *_, info = ours.step(action)
        b, their_reward, *_, their_info = theirs.step(action)
        share = 1.0 if step < 2 else 0.7
        assert (abs(reward - their_reward) < 2e-3).float().mean() >= share, step
        near = (abs(a["policy"] - b["policy"]) < 2e-2).all(1)
        assert near.float().mean() >= share, step
        assert info["reward_terms"].keys() == their_info["reward_terms"].keys()
    assert torch.equal(info["episode_length"], their_info["episode_length"])


def test_it_keeps_the_contract():
    check(worlds(4, episode={"seconds": 0.3}), steps=30)


def test_recorded_halves_do_what_a_step_does(monkeypatch):
    ours = worlds(8, **CHANGES)
    recorded = tape.with_graphs(monkeypatch)
    theirs = worlds(8, **CHANGES)
    for env in (ours, theirs):
        env.reset(seed=1)
    ended = 0
    for action in actions(8, 40):
        a, b = ours.step(action), theirs.step(action)
        for name, ours_, theirs_ in zip(("reward", "end", "cut"), a[1:4], b[1:4], strict=True):
            assert torch.equal(ours_, theirs_), name
        assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])
        assert torch.equal(a[4]["final_obs"]["policy"], b[4]["final_obs"]["policy"])
        ended += int((a[2] | a[3]).sum())
    assert ended > 4 and len(recorded) == 2


def test_a_restored_env_goes_on_bit_for_bit():
    first, second = worlds(6, **CHANGES), worlds(6, **CHANGES)
    first.reset(seed=2)
    for action in actions(6, 9):
        first.step(action)
    first.mark()
    kept = first.snapshot(at_mark=True)
    _, info = second.restore(kept)
    assert info["replayed"].all()
    for action in actions(6, 20):
        a, b = first.step(action), second.step(action)
        assert torch.equal(a[1], b[1]) and torch.equal(a[0]["policy"], b[0]["policy"])
    other = worlds(6, clip="trot")  # nothing varies there: another engine
    _, info = other.restore(kept)
    assert not info["replayed"].any() and other.health["unreplayed"] == 6


def test_a_world_that_blows_up_is_lost_for_one_step(capsys):
    env = worlds(3)
    before, _ = env.reset(seed=0)
    before = {key: value.clone() for key, value in before.items()}
    engine: Any = env.batch.task.engine  # type: ignore[attr-defined]
    engine._qvel[1] = 1e9
    obs, reward, terminated, truncated, info = env.step(torch.zeros(3, 12))
    assert truncated.tolist() == [False, True, False] and not terminated[1]
    assert info["active"].tolist() == [True, False, True] and reward[1] == 0.0
    for key, value in before.items():
        assert torch.equal(info["final_obs"][key][1], value[1])
        assert torch.isfinite(obs[key]).all()
    assert info["reward_terms"]["pose"].isnan().tolist() == [False, True, False]
    env.prepare(1)
    assert (env.health["blow_ups"], env.health["lost_slots"]) == (1, 1)
    assert "the physics of 1 worlds blew up" in capsys.readouterr().err
    for _ in range(MAX_LINES + 5):
        engine._qvel[1] = 1e9
        env.step(torch.zeros(3, 12))
        env.prepare(1)
    assert capsys.readouterr().err.count("\n") == MAX_LINES - 1


def test_training_resumes_bit_for_bit(tmp_path: Path):
    """On Warp's CPU device, through the collector of device worlds; scores are MuJoCo's."""
    pytest.importorskip("mujoco_warp", reason="needs the extra 'gpu'")
    settings: dict[str, Any] = {
        "preset": "imitate-a1-ppo",
        "env": {"engine": "warp", "randomize": "modern"},
        "num_envs": 16,
        "device": "cpu",
        "algo": {"minibatch_size": 64},
        "eval": {"every": 512, "episodes": 2},
        "checkpoint": {"every": 512},
        "console": "off",
    }
    whole = rlgym.train(WORLD, total_steps=1024, run_dir=tmp_path / "whole", **settings)
    rlgym.train(WORLD, total_steps=512, run_dir=tmp_path / "cut", **settings)
    cut = rlgym.resume(tmp_path / "cut", total_steps=1024, console="off")
    assert whole.health["unreplayed"] == cut.health["unreplayed"] == 0
    pairs = zip(whole.policy.parameters(), cut.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert np.isfinite(whole.result.mean)
