"""Tensor worlds behind the contract: resets, seeds, saving, and a world of one's own."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.errors import ConfigError, ContractError, SpaceError, StateError
from rlgym.registry import TENSOR_WORLDS
from rlgym.spaces import tree_items
from rlgym.vector.check.conformance import check
from rlgym.vector.device import DeviceVectorEnv
from rlgym.vector.tensor_world import OneWorld, WorldBatch, uniform
from rlgym.vector.wrappers import FrameStack, RewardNormalize, RewardScale


class Walk:
    """A walk on a line with wind; ends beyond 1, and after 5 steps. Its state is a dict."""

    max_episode_steps = 5
    start_random = 1
    step_random = 2
    observation_space = spaces.Dict(
        {"place": spaces.Box(-9, 9, (1,), np.float32), "steps": spaces.Discrete(100)}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def start(self, random):
        return {"place": random - 0.5, "steps": torch.zeros(len(random), dtype=torch.int64)}

    def step(self, state, actions, random):
        place = state["place"] + actions + 0.1 * random[:, :1]
        return (
            {"place": place, "steps": state["steps"] + 1},
            place[:, 0] * 1.0,
            place[:, 0].abs() > 1,
        )

    def observe(self, state):
        return state


def walk(num_envs=6, **kwargs):
    return DeviceVectorEnv(WorldBatch(Walk(), num_envs, name="Walk"), **kwargs)


def play(env, steps, seed=0):
    """Observations, rewards and flags of random actions, as one list of copies."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(steps):
        obs, *rest, info = env.step(torch.rand(env.num_envs, 1, generator=generator) - 0.5)
        parts = [tensor for _, tensor in tree_items(obs)] + rest
        parts += [info["episode_return"], info["episode_length"]]
        parts += [tensor for _, tensor in tree_items(info["final_obs"])]
        seen.append([part.clone() for part in parts])
    return seen


def equal(a, b):
    return all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("world", sorted(TENSOR_WORLDS))
def test_the_contract_holds(world, output):
    def factory():
        return rlgym.make_vec(world, 4, backend="device", output=output)

    findings = check(factory, steps=60)  # a note says that no episode ended in so few steps
    assert [finding for finding in findings if finding.severity != "note"] == []


def test_the_contract_holds_for_a_world_of_ones_own():
    assert check(walk, steps=60) == []
    assert check(lambda: FrameStack(RewardScale(walk(), 0.5), 2), steps=30) == []


def test_an_episode_ends_and_the_next_begins_in_the_same_step():
    env = walk(3)
    first, _ = env.reset(seed=1)
    start = first["place"].clone()
    for step in range(1, 6):
        obs, _, terminated, truncated, info = env.step(torch.zeros(3, 1))
        assert not terminated.any()
        assert truncated.tolist() == [step == 5] * 3
    assert info["episode_length"].tolist() == [5, 5, 5]
    assert info["final_obs"]["steps"].tolist() == [5, 5, 5]
    assert obs["steps"].tolist() == [0, 0, 0]
    assert (obs["place"].abs() <= 0.5).all() and not torch.equal(obs["place"], start)
    assert (info["final_obs"]["place"] > start).all()  # the wind blows one way


def test_a_slot_depends_on_its_seed_alone():
    alone, many = walk(1), walk(5)
    alone.reset(seed=7)
    many.reset(seed=[1, 2, 7, 3, 4])
    for step in range(150):  # beyond what is drawn at once
        push = 0.3 * torch.ones(5, 1) if step % 7 else -torch.ones(5, 1)
        a, b = alone.step(push[:1]), many.step(push)
        assert torch.equal(a[0]["place"][0], b[0]["place"][2])
        assert torch.equal(a[1][0], b[1][2])


def test_a_reset_without_seed_goes_on():
    env = walk(4, seed=5)
    first, _ = env.reset()
    first = first["place"].clone()
    second, _ = env.reset()
    assert not torch.equal(first, second["place"])
    again, _ = env.reset(seed=5)
    assert torch.equal(first, again["place"])


def test_random_numbers_are_uniform_and_unrelated():
    numbers = uniform(torch.arange(200), torch.arange(100), 3)
    assert numbers.shape == (100, 200, 3) and numbers.dtype == torch.float32
    assert numbers.min() >= 0 and numbers.max() < 1
    flat = numbers.reshape(-1, 3).double()
    assert (flat.mean(0) - 0.5).abs().max() < 0.01
    assert (flat.var(0) - 1 / 12).abs().max() < 0.002
    assert (torch.corrcoef(flat.T) - torch.eye(3)).abs().max() < 0.02
    neighbours = torch.stack((numbers[:-1, :, 0].flatten(), numbers[1:, :, 0].flatten()))
    assert torch.corrcoef(neighbours.double())[0, 1].abs() < 0.02
    assert len(numbers.unique()) > 0.99 * numbers.numel()


def test_how_many_steps_are_drawn_at_once_changes_nothing():
    one, other = walk(), walk()
    one.reset(seed=3)
    other.reset(seed=3)
    other.prepare(4)
    left = play(one, 4) + play(one, 90, 1)
    right = play(other, 4)
    other.prepare(90)
    assert equal(left, right + play(other, 90, 1))


@pytest.mark.parametrize("steps", [0, 3, 70])
def test_a_snapshot_brings_everything_back(steps):
    env = walk()
    env.reset(seed=2)
    play(env, steps)
    snapshot = env.snapshot()
    after = play(env, 80, 1)
    fresh = walk(seed=9)
    _, info = fresh.restore(snapshot)
    assert info["replayed"].all()
    assert fresh.health["unreplayed"] == 0
    assert equal(after, play(fresh, 80, 1))


def test_the_mark_stays_where_it_was_made():
    env = walk()
    env.reset(seed=2)
    play(env, 3)
    env.mark()
    after = play(env, 9, 1)
    fresh = walk()
    fresh.restore(env.snapshot(at_mark=True))
    assert equal(after, play(fresh, 9, 1))


def test_a_snapshot_of_other_worlds_begins_new_episodes():
    env = walk(4)
    env.reset(seed=0)
    other = rlgym.make_vec("CartPole-v1", 4, backend="device", seed=1)
    _, info = other.restore(env.snapshot())
    assert not info["replayed"].any()
    assert other.health["unreplayed"] == 4
    with pytest.raises(ContractError, match="holds 4 slots, this env has 6: use num_envs 4"):
        walk(6).restore(env.snapshot())


def test_what_is_not_understood_is_refused():
    env = walk(2)
    with pytest.raises(StateError, match="before the first reset"):
        env.step(torch.zeros(2, 1))
    with pytest.raises(ContractError, match="no reset options"):
        env.reset(options={"low": 1})
    env.reset()
    with pytest.raises(SpaceError, match=r"expected \[2, 1\]"):
        env.step(torch.zeros(3, 1))
    env.close()
    with pytest.raises(StateError, match="closed"):
        env.step(torch.zeros(2, 1))


def test_rewards_are_normalised_as_host_worlds_normalise_them():
    ours, theirs = (
        rlgym.vector.wrappers.wrap(env, rlgym.config.WrapperConfig(**settings), 0.9)
        for env, settings in (
            (rlgym.make_vec("Pendulum-v1", 8, backend="device"), {"normalize_reward": True}),
            (rlgym.make_vec("Pendulum-v1", 8, backend="sync"), {"nan_guard": "off"}),
        )
    )
    theirs = RewardNormalize(theirs, 0.9)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    world, host = ours.unwrapped.batch, theirs.unwrapped
    for _ in range(40):
        states = np.stack([slot.world.unwrapped.state for slot in host._slots])
        states[:, 0] = (states[:, 0] + np.pi) % (2 * np.pi) - np.pi
        world._state.copy_(torch.from_numpy(states))
        actions = torch.rand(8, 1) * 4 - 2
        torch.testing.assert_close(
            ours.step(actions)[1], theirs.step(actions)[1], atol=1e-4, rtol=1e-4
        )


def test_the_registry_chooses_tensors_where_they_are_faster(capfd):
    env = rlgym.make_vec("CartPole-v1", 64)
    assert env.kind == "device" and env.batch.device.type == "cpu"
    assert "backend device for CartPole-v1: 64 worlds as tensors on cpu" in capfd.readouterr().err
    for kwargs in (
        {"num_envs": 8},
        {"num_envs": 64, "env_kwargs": {"render_mode": "rgb_array"}},
        {"num_envs": 64, "num_groups": 2},
        {"num_envs": 64, "num_workers": 1},
    ):
        env = rlgym.make_vec("MountainCar-v0", verbose=False, **kwargs)
        assert env.kind == "host"
        env.close()


def test_the_registry_says_what_tensor_worlds_do_not_take():
    with pytest.raises(ConfigError, match=r'takes no argument .render_mode.*backend="sync"'):
        rlgym.make_vec("CartPole-v1", 4, backend="device", env_kwargs={"render_mode": "rgb_array"})
    with pytest.raises(ConfigError, match=r"not a tensor world.*CartPole-v1"):
        rlgym.make_vec("rlgym/Counter-v0", 4, backend="device")
    with pytest.raises(ConfigError, match="one group"):
        rlgym.make_vec("CartPole-v1", 4, backend="device", num_groups=2)
    with pytest.raises(ContractError, match="at least 1"):
        rlgym.make_vec("CartPole-v1", 0, backend="device")
    lower = rlgym.make_vec("Pendulum-v1", 2, backend="device", env_kwargs={"g": 3.0})
    assert lower.batch.world.g == 3.0


@pytest.fixture
def registered():
    rlgym.register("test/Walk-v0", Walk, tensor=True)
    yield "test/Walk-v0"
    TENSOR_WORLDS.pop("test/Walk-v0")
    gymnasium.registry.pop("test/Walk-v0")


def test_a_registered_world_is_a_gymnasium_world_too(registered):
    env = rlgym.make(registered)
    assert isinstance(env.unwrapped, OneWorld)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    assert np.array_equal(env.reset(seed=3)[0]["place"], obs["place"])
    for _ in range(5):
        obs, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert isinstance(reward, float)
    assert truncated and not terminated and obs["steps"] == 5
    assert check(registered, steps=30) == []
