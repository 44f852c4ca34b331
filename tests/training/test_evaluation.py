"""A score is the mean of exactly the episodes that were asked for, long ones as likely as short."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.training.evaluation import evaluate


class Lengths(gymnasium.Env):
    """Reward 1 a step; the episode's length is drawn: 1 or 19 steps."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    lengths = (1, 19)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.choice(self.lengths))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        done = self.left == 0
        info = {"is_success": self.lengths[0] == 1} if done else {}
        return np.zeros(1, np.float32), 1.0, done, False, info


class Endless(Lengths):
    lengths = (10**9,)


class Crashing(Lengths):
    """Raises in the third step of its life; every later world of the slot is sound."""

    lengths = (5,)
    lives = 0

    def reset(self, *, seed=None, options=None):
        Crashing.lives += 1
        self.sound = Crashing.lives > 2
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if not self.sound and self.left == 3:
            raise RuntimeError("broken on purpose")
        return super().step(action)


class Memo(gymnasium.Env):
    """Success needs the first observation at the end: shows that states are kept and reset."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue = 0, int(self.np_random.integers(10))
        return np.array([self.cue], np.float32), {}

    def step(self, action):
        self.t += 1
        right = float(action == self.cue) if self.t == 3 else 0.0
        return np.zeros(1, np.float32), right, self.t == 3, False, {}


class Still:
    """Action 0; or its noise; or, with memory, the first observation of the episode."""

    device = torch.device("cpu")

    def __init__(self, memory=False):
        self.memory = memory
        self.drawn = 0

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1) if self.memory else None

    def noise(self, num_steps, num_envs, generator):
        self.drawn += 1
        return torch.rand((num_steps, num_envs, 1), generator=generator)

    def act(self, obs, noise=None, state=None, start=None, mask=None, deterministic=False):
        if state is not None:
            state = torch.where(start[:, None], obs, state)
            return state[:, 0].long(), None, state
        if deterministic:
            return torch.zeros(len(obs), dtype=torch.int64), None, None
        assert noise is not None
        return (noise[:, 0] > 0.5).long(), None, None


def make(world, num_envs=4, **kwargs):
    return rlgym.make_vec(world, num_envs, backend="sync", **kwargs)


@pytest.mark.parametrize("episodes", [1, 2, 7, 8, 13])
def test_exactly_the_episodes_that_were_asked_for(episodes):
    result = evaluate(Still(), make(Lengths), episodes)
    assert result.episodes == len(result.lengths) == episodes
    assert result.returns == tuple(float(n) for n in result.lengths)


def test_short_episodes_are_not_favoured():
    # Mean of {1, 19} is 10. Taking the first 200 to end over 50 slots would give about 2.
    result = evaluate(Still(), make(Lengths, num_envs=50), 400, seed=5)
    assert result.mean == pytest.approx(10.0, abs=1.5)


def test_numbers_of_a_result():
    result = evaluate(Still(), make(Lengths, num_envs=2), 20, seed=1)
    returns = np.array(result.returns)
    assert set(returns) == {1.0, 19.0}
    assert result.mean == returns.mean() and result.std == returns.std()
    assert (result.min, result.max) == (1.0, 19.0)
    assert result.success_rate == 1.0
    assert result.metrics() == {
        "eval/mean_reward": result.mean,
        "eval/std_reward": result.std,
        "eval/mean_ep_length": result.mean,
        "eval/success_rate": 1.0,
    }
    assert result.document()["returns"] == result.returns


def test_the_same_seed_plays_the_same_episodes():
    env = make(Lengths)
    first = evaluate(Still(), env, 9, seed=3)
    assert evaluate(Still(), env, 9, seed=3) == first
    assert evaluate(Still(), env, 9, seed=4) != first


def test_samples_come_from_a_generator_of_its_own():
    state = torch.random.get_rng_state()
    policy = Still()
    env = make("CartPole-v1")
    first = evaluate(policy, env, 4, deterministic=False, seed=1)
    assert policy.drawn >= 1
    assert evaluate(policy, env, 4, deterministic=False, seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_endless_world_is_cut():
    result = evaluate(Still(), make(Endless), 4, max_steps=30)
    assert result.lengths == (30, 30, 30, 30) and result.cut == 4
    assert result.returns == (30.0,) * 4


def test_lost_slot_repeats_its_episode(capsys):
    Crashing.lives = 0
    env = make(Crashing, num_envs=2)
    result = evaluate(Still(), env, 4)
    assert env.health["lost_slots"] >= 1
    assert result.lengths == (5, 5, 5, 5)


def test_memory_is_kept_within_episodes_and_reset_between_them():
    result = evaluate(Still(memory=True), make(Memo, num_envs=3), 12)
    assert result.mean == 1.0
