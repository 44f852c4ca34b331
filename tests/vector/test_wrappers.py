"""Wrappers on the batch: numbers by hand, groups, numpy output, snapshots."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.config import WrapperConfig
from rlgym.envs.toy.counter import Counter
from rlgym.errors import ContractError
from rlgym.spaces import tree_items
from rlgym.vector.guard import NaNGuard
from rlgym.vector.wrappers import (
    Batch,
    ClipReward,
    FrameStack,
    RewardNormalize,
    RewardScale,
    wrap,
)


def make(world="rlgym/Counter-v0", num_envs=4, **kwargs):
    return rlgym.make_vec(world, num_envs, backend="sync", verbose=False, **kwargs)


def ones(env):
    return torch.ones(env.num_envs, dtype=torch.int64)


def test_reward_scale_leaves_the_reported_return_alone():
    plain, scaled = make(seed=1), RewardScale(make(seed=1), 0.25)
    plain.reset()
    scaled.reset()
    ended = 0
    for _ in range(20):
        _, reward, *_, info = plain.step(ones(plain))
        _, small, terminated, truncated, other = scaled.step(ones(scaled))
        assert torch.equal(small, reward * 0.25)
        assert torch.equal(other["episode_return"], info["episode_return"])
        ended += int((terminated | truncated).sum())
    assert ended > 4


def test_clip_reward():
    env = ClipReward(make(), 2.0)
    env.reset()
    rewards = torch.stack([env.step(ones(env))[1].clone() for _ in range(6)])
    assert rewards.max() == 2.0  # Counter pays t + 0.5
    assert rewards[0].tolist() == [1.5] * 4
    with pytest.raises(ContractError, match="above 0"):
        ClipReward(make(), 0.0)


def test_reward_normalize_by_hand():
    """Two slots, gamma 1/2: the deviation of discounted returns of the steps before."""
    env = RewardNormalize(make(num_envs=2, seed=5, env_kwargs={"length": 9}), gamma=0.5)
    env.reset()
    actions = torch.tensor([0, 1])
    seen: list[list[float]] = []
    discounted = np.zeros(2)
    for t in range(1, 5):
        _, reward, *_ = env.step(actions)
        raw = np.array([t, t + 0.5])
        deviation = 1.0 if not seen else np.std(np.concatenate(seen))
        np.testing.assert_allclose(reward.numpy(), raw / deviation, rtol=2e-3)
        discounted = 0.5 * discounted + raw
        seen.append(discounted.copy())


def test_reward_normalize_is_exact_over_groups_and_slots_that_do_not_act():
    """Against the moments of all that was seen, in one go and in double precision."""
    env = RewardNormalize(make(num_envs=4, num_groups=2), gamma=0.9)
    random = np.random.default_rng(0)
    returns, continues, seen = np.zeros(4), np.zeros(4), [np.zeros(0)]
    for _ in range(400):
        raw = (3.0 + 50.0 * random.standard_normal(4)).astype(np.float32)
        active, terminated, truncated = random.random((3, 4)) < [[0.8], [0.1], [0.1]]
        flags = [torch.from_numpy(array) for array in (terminated, truncated, active)]
        told = []
        for rows in map(env.group_slice, range(2)):
            ends, limits, acted = (flag[rows] for flag in flags)
            batch = Batch(torch.zeros(2), torch.from_numpy(raw)[rows], ends, limits, {})
            batch.info["active"] = acted
            env._on_step(batch, rows)
            told.append(batch.reward.clone())
        past = np.concatenate(seen)
        count = len(past) + 1e-4  # of which 1e-4 lies at 0, with a variance of 1
        variance = (np.square(past).sum() + 1e-4) / count - (past.sum() / count) ** 2
        np.testing.assert_allclose(torch.cat(told), raw / np.sqrt(variance + 1e-8), rtol=1e-6)
        returns = returns * continues * np.where(active, 0.9, 1.0) + raw
        continues = 1.0 - (terminated | truncated)
        seen.append(returns[active])


def test_reward_normalize_forgets_at_the_end_of_an_episode():
    env = RewardNormalize(make(num_envs=1, env_kwargs={"length": 2}), gamma=0.9)
    env.reset()
    for _ in range(30):
        _, _, terminated, truncated, _ = env.step(torch.zeros(1, dtype=torch.int64))
        if terminated | truncated:
            break
    env.step(torch.zeros(1, dtype=torch.int64))
    assert env.state["returns"].item() == 1.0  # the first reward of the new episode alone


def test_groups_and_whole_steps_agree():
    whole, halves = (
        RewardNormalize(RewardScale(make(seed=3, num_groups=2), 2.0)) for _ in range(2)
    )
    whole.reset()
    halves.reset()
    for _ in range(12):
        _, reward, *_ = whole.step(ones(whole))
        for group in range(2):
            halves.send(ones(halves)[halves.group_slice(group)], group)
        parts = [halves.recv(group)[1].clone() for group in range(2)]
        assert torch.equal(torch.cat(parts), reward)


def test_numpy_output_has_the_same_numbers():
    tensors = RewardNormalize(FrameStack(make("rlgym/TupleObs-v0", seed=2), 3))
    arrays = RewardNormalize(FrameStack(make("rlgym/TupleObs-v0", seed=2, output="numpy"), 3))
    obs, _ = tensors.reset()
    nested, _ = arrays.reset()
    arrays.action_space.seed(0)
    for _ in range(25):
        assert arrays.observation_space.contains(nested)
        for key, array in tree_items(arrays.obs_layout.flatten(nested)):
            np.testing.assert_array_equal(array, obs[key].numpy())
        actions = arrays.action_space.sample()
        obs, reward, _, _, info = tensors.step(actions)
        nested, reward_np, terminated_np, _, info_np = arrays.step(actions)
        np.testing.assert_array_equal(reward_np, reward.numpy())
        assert type(terminated_np) is np.ndarray
        final = arrays.obs_layout.flatten(info_np["final_obs"])
        done = info_np["_final_obs"]
        for key, array in tree_items(info["final_obs"]):
            np.testing.assert_array_equal(final[key][done], array.numpy()[done])


def test_frame_stack_fills_shifts_and_ends():
    env = FrameStack(make(num_envs=1, seed=4, env_kwargs={"length": 3}), 3)
    obs, _ = env.reset()
    name = float(np.random.default_rng(4).integers(1000))
    length = 3 + int(name) % 3
    assert obs.tolist() == [[name, 0.0] * 3]
    assert env.single_observation_space.shape == (6,)
    frames = [0.0, 0.0, 0.0]
    for t in range(1, length + 1):
        obs, *_, info = env.step(torch.zeros(1, dtype=torch.int64))
        frames = [*frames[1:], float(t)]
        shown = obs if t < length else info["final_obs"]
        assert shown[0, 1::2].tolist() == frames
        assert shown[0, ::2].tolist() == [name] * 3
    fresh = obs[0, 0].item()
    assert fresh != name
    assert obs.tolist() == [[fresh, 0.0] * 3]


def test_frame_stack_keeps_the_stack_of_a_lost_slot():
    """A world that raises: its last observation is the newest of the stack, not pushed again."""
    spec = {"fault": "crash", "at_step": 3, "only_seed": 4, "length": 9}
    env = FrameStack(make("rlgym/Crash-v0", 2, seed=4, env_kwargs=spec), 2)
    env.reset()
    actions = torch.zeros(2, dtype=torch.int64)
    env.step(actions)
    env.step(actions)
    obs, reward, _, truncated, info = env.step(actions)
    assert truncated.tolist() == [True, False]
    assert info["active"].tolist() == [False, True]
    assert reward[0] == 0.0
    assert info["final_obs"][0, 1::2].tolist() == [1.0, 2.0]
    assert obs[0, 1::2].tolist() == [0.0, 0.0]
    assert obs[1, 1::2].tolist() == [2.0, 3.0]


def test_frame_stack_takes_the_last_observation_of_an_agent_that_ended_while_it_waited():
    env = FrameStack(make(num_envs=3, seed=4), 2)
    first, _ = env.reset()
    first = first.clone()
    ends, last = torch.ones(3, dtype=torch.bool), torch.full((3, 2), 7.0)
    info = {"active": torch.tensor([True, False, False]), "final_obs": last}
    info["lost"] = torch.tensor([0.0, 0.0, 1.0])
    env._on_step(Batch(torch.zeros(3, 2), torch.zeros(3), ~ends, ends, info), slice(0, 3))
    finals = info["final_obs"]
    assert finals[:2, 2:].tolist() == [[7.0, 7.0]] * 2
    assert torch.equal(finals[:, :2], first[:, 2:]) and torch.equal(finals[2], first[2])


@pytest.mark.parametrize("channels_first", [False, True])
def test_frame_stack_joins_images_along_their_channels(channels_first):
    env = FrameStack(make("rlgym/Dot-v0", 2, env_kwargs={"channels_first": channels_first}), 4)
    shape = (4, 16, 16) if channels_first else (16, 16, 4)
    assert env.single_observation_space == spaces.Box(0, 255, shape, np.uint8)
    first, _ = env.reset()
    first = first.clone()
    obs, *_ = env.step(torch.zeros(2, dtype=torch.int64))
    axis = 1 if channels_first else 3
    assert obs.dtype == torch.uint8
    assert torch.equal(obs.narrow(axis, 0, 3), first.narrow(axis, 1, 3))
    assert not torch.equal(obs.narrow(axis, 3, 1), first.narrow(axis, 3, 1))


def test_frame_stack_of_every_kind_of_leaf():
    env = FrameStack(make("rlgym/TupleObs-v0", 2), 2)
    space = env.single_observation_space
    assert space[1][0] == spaces.MultiDiscrete([3, 3], start=[1, 1])
    assert space[1][1]["bits"].shape == (4,)
    obs, _ = env.reset(seed=0)
    row = env.obs_layout.read({k: v.numpy() for k, v in obs.items()}, 0)
    assert space.contains(row)


def test_a_restored_stack_of_wrappers_goes_on_identically():
    def stack():
        inner = FrameStack(NaNGuard(make("rlgym/IdentityBox-v0", seed=6), "skip"), 2)
        return ClipReward(RewardNormalize(RewardScale(inner, 3.0)), 5.0)

    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(40, 4, 2, generator=generator)
    env = stack()
    env.reset()
    for t in range(27):
        env.step(actions[t])
    snapshot = env.snapshot()
    assert all(isinstance(array, np.ndarray) for array in snapshot.values())
    expected = [[part.clone() for part in env.step(actions[t])[:2]] for t in range(27, 40)]
    again = stack()
    again.reset(seed=99)
    obs, info = again.restore(snapshot)
    assert info["replayed"].all()
    assert obs.shape == (4, 4)
    for t, (obs, reward) in zip(range(27, 40), expected, strict=True):
        new_obs, new_reward, *_ = again.step(actions[t])
        assert torch.equal(new_obs, obs)
        assert torch.equal(new_reward, reward)


def test_a_snapshot_at_the_mark_holds_the_wrappers_state_of_then():
    env = RewardNormalize(make(seed=1))
    env.reset()
    env.step(ones(env))
    env.mark()
    then = {key: value.clone() for key, value in env.state.items()}
    env.step(ones(env))
    snapshot = env.snapshot(at_mark=True)
    assert not torch.equal(then["mean"], env.state["mean"])
    for key, value in then.items():
        np.testing.assert_array_equal(snapshot[f"0-RewardNormalize:{key}"], value.numpy())


def test_a_snapshot_of_other_wrappers_is_refused():
    env = make()
    env.reset()
    with pytest.raises(ContractError, match="wrappers that the run was started with"):
        RewardNormalize(make()).restore(env.snapshot())


def test_slots_that_cannot_be_replayed_begin_with_a_full_stack():
    env = FrameStack(make("rlgym/Unreplayable-v0", 2), 3)
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(2, dtype=torch.int64))
    obs, info = env.restore(env.snapshot())
    assert not info["replayed"].any()
    assert obs.shape == (2, 6)
    assert torch.equal(obs[:, :2], obs[:, 4:])


def test_wrap_follows_the_config():
    config = WrapperConfig(
        reward_scale=0.5, normalize_reward=True, clip_reward=3.0, frame_stack=2, nan_guard="skip"
    )
    env = wrap(make(), config, gamma=0.9)
    kinds = []
    layer = env
    while hasattr(layer, "env"):
        kinds.append(type(layer).__name__)
        layer = layer.env
    assert kinds == ["ClipReward", "RewardNormalize", "RewardScale", "FrameStack", "NaNGuard"]
    assert env.unwrapped is layer
    plain = make()
    assert wrap(plain, WrapperConfig(nan_guard="off"), gamma=0.9) is plain


def test_what_a_step_returns_is_overwritten_not_reallocated():
    env = ClipReward(RewardScale(FrameStack(make(), 2), 2.0), 4.0)
    env.reset()
    first = [env.step(ones(env))[i].data_ptr() for i in range(4)]
    second = [env.step(ones(env))[i].data_ptr() for i in range(4)]
    assert first == second


def test_closing_a_wrapper_closes_the_worlds():
    inner = make(Counter)
    env = RewardScale(inner, 2.0)
    env.close()
    env.close()
    assert inner.closed


def test_reward_normalize_tends_to_unit_deviation():
    env = RewardNormalize(make("rlgym/IdentityBox-v0", 8, env_kwargs={}), gamma=0.9)
    env.reset()
    generator = torch.Generator().manual_seed(1)
    returns = torch.zeros(8)
    seen = []
    for _ in range(300):
        actions = torch.rand(8, 2, generator=generator) * 2 - 1
        _, reward, terminated, truncated, _ = env.step(actions)
        returns = returns * 0.9 + reward
        seen.append(returns.clone())
        returns = returns * ~(terminated | truncated)
    assert math.isclose(torch.stack(seen[100:]).std().item(), 1.0, rel_tol=0.1)
