"""One imitation world, as Gymnasium sees it."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlgym
import rlgym.envs.imitation
from rlgym.envs.imitation.vector_env import make_imitation
from rlgym.errors import UserError
from rlgym.vector.contract import check


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"engine": "bullet"},
        {"robot": "laikago", "clip": "laikago_walk", "spec": "reference", "engine": "pybullet"},
    ],
    ids=["modern", "bullet", "reference"],
)
def test_gymnasiums_checker_is_content(kwargs):
    env = gymnasium.make("rlgym/Imitate-v0", **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric).*")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.slow
def test_our_checker_is_content():
    findings = check(rlgym.envs.imitation.WORLD, steps=12, seconds=0.5)
    assert [str(finding) for finding in findings if finding.severity == "error"] == []


def test_it_is_the_batch_with_one_slot():
    env = rlgym.make("rlgym/Imitate-v0", clip="pace")
    batch = make_imitation(3, clip="pace", seed=7, num_workers=1)
    obs, _ = env.reset(seed=8)
    many, _ = batch.reset()
    for step in range(40):
        assert np.array_equal(obs["policy"], many["policy"][1].numpy())
        action = np.random.default_rng(step).normal(0, 0.3, 12).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        many, rewards, *_, infos = batch.step(torch.from_numpy(np.tile(action, (3, 1))))
        assert reward == pytest.approx(float(rewards[1]), rel=1e-6)
        assert info["reward_terms"]["pose"] == pytest.approx(
            float(infos["reward_terms"]["pose"][1])
        )
        if terminated or truncated:
            assert info["cause"] != "none"
            final = infos["final_obs"]["policy"][1].numpy()
            assert np.array_equal(obs["policy"], final)
            break
    env.close()
    batch.close()


def test_unseeded_resets_go_on():
    env = rlgym.make("rlgym/Imitate-v0")
    first = env.reset(seed=3)[0]["policy"]
    second = env.reset()[0]["policy"]
    assert not np.array_equal(first, second)
    env.reset(seed=3)
    assert np.array_equal(env.reset()[0]["policy"], second)
    env.close()


def test_it_draws_itself():
    env = gymnasium.make("rlgym/Imitate-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (360, 480, 3)
    env.close()


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="did you mean 'a1'") as caught:
        rlgym.make("rlgym/Imitate-v0", robot="a11")
    assert "\n" not in str(caught.value)
