"""Each tensor world is Gymnasium's own in one step, from any state of its episodes."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.envs.classic import Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum

STEPS = 10_000
WORLDS = {
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Acrobot-v1": Acrobot,
}
NEAR = 1e-5


def act(name, env, t, rng):
    """Actions that reach the far ends of a world too, where chance alone would not."""
    state = env.unwrapped.state
    if rng.random() < 0.2 or name == "CartPole-v1":
        return env.action_space.sample()
    if name == "MountainCar-v0":
        return 2 if state[1] >= 0 else 0
    if name == "MountainCarContinuous-v0":
        return np.array([1.5 if state[1] >= 0 else -1.5], np.float32)  # beyond the bounds too
    if name == "Acrobot-v1":
        return 2 if state[3] > 0 else 0
    return np.array([2.5 if state[1] > 0 else -2.5], np.float32)


def episodes(name):
    """STEPS transitions of Gymnasium's own episodes, with the states before and after."""
    env = gymnasium.make(name)
    env.action_space.seed(1)
    rng = np.random.default_rng(2)
    env.reset(seed=3)
    rows = []
    for t in range(STEPS):
        before = np.array(env.unwrapped.state, np.float64)
        action = act(name, env, t, rng)
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((before, action, obs, reward, terminated, np.array(env.unwrapped.state)))
        if terminated or truncated:
            env.reset()
    env.close()
    return [np.array(column) for column in zip(*rows, strict=True)]


def distance_to_the_end(name, after):
    """How far a state is from ending, or not ending, the episode: (STEPS,)."""
    if name == "CartPole-v1":
        x, angle = np.abs(after[:, 0]) - 2.4, np.abs(after[:, 2]) - 12 * 2 * math.pi / 360
        return np.minimum(np.abs(x), np.abs(angle))
    if name == "Acrobot-v1":
        return np.abs(-np.cos(after[:, 0]) - np.cos(after[:, 1] + after[:, 0]) - 1.0)
    if name == "Pendulum-v1":
        return np.ones(len(after))
    goal = 0.5 if name == "MountainCar-v0" else 0.45
    return np.minimum(np.abs(after[:, 0] - goal), np.abs(after[:, 1]) + 1.0)


@pytest.mark.parametrize("name", WORLDS)
def test_one_step_is_gymnasiums(name):
    before, actions, obs, rewards, terminated, after = episodes(name)
    if name == "Pendulum-v1":  # its angle grows with the turns; ours is the angle alone
        before[:, 0] = (before[:, 0] + math.pi) % (2 * math.pi) - math.pi
    world = WORLDS[name]()
    state, reward, ended = world.step(
        torch.from_numpy(before.astype(np.float32)),
        torch.from_numpy(actions),
        torch.zeros(STEPS, 0),
    )
    clear = distance_to_the_end(name, after) > NEAR
    assert clear.sum() > 0.99 * STEPS
    np.testing.assert_array_equal(ended.numpy()[clear], terminated[clear])
    assert terminated.any() or name == "Pendulum-v1"
    np.testing.assert_allclose(world.observe(state).numpy(), obs, rtol=0, atol=NEAR)
    same = clear | (ended.numpy() == terminated)
    np.testing.assert_allclose(reward.numpy()[same], rewards[same], rtol=0, atol=NEAR)
    assert reward.dtype == torch.float32 and ended.dtype == torch.bool


@pytest.mark.parametrize("name", WORLDS)
def test_it_declares_what_gymnasium_declares(name):
    env, world = gymnasium.make(name), WORLDS[name]()
    assert world.observation_space == env.observation_space
    assert world.action_space == env.action_space
    assert world.max_episode_steps == env.spec.max_episode_steps
    env.close()


@pytest.mark.parametrize("name", WORLDS)
def test_episodes_start_as_gymnasiums_do(name):
    """Bounds and means of 4,000 first observations agree."""
    env, world = gymnasium.make(name), WORLDS[name]()
    theirs = np.array([env.reset(seed=seed)[0] for seed in range(4000)])
    random = torch.rand(4000, world.start_random, generator=torch.Generator().manual_seed(0))
    ours = world.observe(world.start(random)).numpy()
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    spread = theirs.std(0) + 1e-6
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.1 * spread).all()
    assert (np.abs(ours.std(0) - theirs.std(0)) < 0.1 * spread).all()
    assert (ours.min(0) >= theirs.min(0) - 0.05 * spread).all()
    assert (ours.max(0) <= theirs.max(0) + 0.05 * spread).all()
    env.close()


def test_arguments_are_gymnasiums():
    state = torch.tensor([[2.39, 2.0, 0.0, 0.0]])
    left, stay = torch.tensor([0]), torch.zeros(1, 0)
    assert CartPole(sutton_barto_reward=True).step(state, left, stay)[1].item() == -1.0
    assert CartPole().step(state, left, stay)[1].item() == 1.0
    falls = Pendulum(g=0.0).step(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1), stay)[0]
    assert falls[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    at_goal = torch.tensor([[0.49, 0.02]])
    assert MountainCar().step(at_goal, torch.tensor([2]), stay)[2].item()
    assert not MountainCar(goal_velocity=0.07).step(at_goal, torch.tensor([2]), stay)[2].item()
    assert isinstance(MountainCarContinuous(goal_velocity=0.1).action_space, spaces.Box)
