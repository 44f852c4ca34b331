"""A training run on imitation that is cut and continued ends as one that was not."""

import pytest

import rlgym
from tests.training.runs import StopAt, digest, train

WORLD = "rlgym/Imitate-v0"
EPISODE = {"seconds": 0.6, "reference_start": 0.7, "curriculum_seconds": 0.3}
HARD = {"clip": ["trot", "sit"], "randomize": "modern", "episode": EPISODE}


SLOW = pytest.param(
    {"engine": "bullet", "episode": {"seconds": 0.6}}, marks=pytest.mark.slow, id="bullet"
)


@pytest.mark.parametrize("env", [pytest.param(HARD, id="mujoco"), SLOW])
def test_a_cut_run_ends_as_the_uncut_one(env, tmp_path):
    changes = {"env": env, "num_workers": 1, "total_steps": 480, "eval": {"every": 0}}
    changes |= {"network": {"normalize_obs": True}, "checkpoint": {"every": 0}}
    whole = train(WORLD, tmp_path / "whole", **changes)
    train(WORLD, tmp_path / "cut", hooks=StopAt(150), **changes)
    cut = rlgym.resume(tmp_path / "cut", console="off")
    assert cut.health["unreplayed"] == 0 and cut.state.env_steps == whole.state.env_steps
    assert digest(cut) == digest(whole)
    assert cut.state.episodes == whole.state.episodes > 10
