"""Gymnasium's own tools on our vector envs, our worlds by Gymnasium's ids, and random spaces."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from hypothesis import given, settings

import rlgym
import rlgym.vector.sync
from rlgym.envs.toy.counter import Counter
from rlgym.errors import ContractError, StateError
from rlgym.interop.gymnasium import SingleEnv, register
from rlgym.registry import VECTOR_ENTRY_POINTS
from tests.random_worlds import SPACES, RandomWorld


def make_numpy(world, num_envs=3, **kwargs):
    return rlgym.make_vec(
        world, num_envs, backend="sync", output="numpy", verbose=False, seed=5, **kwargs
    )


def reference(world, num_envs=3, **kwargs):
    """Gymnasium's own vector env of the same worlds."""
    made = [lambda: rlgym.make(world, **kwargs) for _ in range(num_envs)]
    return SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP)


def equal(a, b, where=None):
    """Nested values are bit-equal (in the rows of `where`)."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], where) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(equal(x, y, where) for x, y in zip(a, b, strict=True))
    rows = slice(None) if where is None else where
    return a.dtype == b.dtype and np.array_equal(a[rows], b[rows], equal_nan=a.dtype.kind == "f")


def assert_same_run(ours, theirs, steps=40, seed=5):
    obs, _ = ours.reset(seed=seed)
    expected, _ = theirs.reset(seed=seed)
    ours.action_space.seed(1)
    assert equal(obs, expected)
    for _ in range(steps):
        actions = ours.action_space.sample()
        obs, reward, terminated, truncated, info = ours.step(actions)
        expected, other_reward, *flags, other_info = theirs.step(actions)
        assert equal(obs, expected)
        np.testing.assert_array_equal(reward, other_reward.astype(np.float32))
        np.testing.assert_array_equal(terminated, flags[0])
        np.testing.assert_array_equal(truncated, flags[1])
        done = terminated | truncated
        assert np.array_equal(info["_final_obs"], done)
        if done.any():
            for row in np.flatnonzero(done):
                one = gymnasium.vector.utils.iterate(ours.observation_space, info["final_obs"])
                final = other_info["final_obs"][row]
                assert equal(_leafed(list(one)[row]), _leafed(final))


def _leafed(value):
    if isinstance(value, dict):
        return {key: _leafed(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_leafed(part) for part in value)
    return np.asarray(value)[None]


@pytest.mark.parametrize(
    "world",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "rlgym/DictObs-v0",
        "rlgym/Dot-v0",
        "rlgym/IdentityMultiBinary-v0",
        "rlgym/Mixed-v0",
        "rlgym/TruncationTrap-v0",
        "rlgym/TupleObs-v0",
    ],
)
def test_sync_equals_gymnasiums_sync(world):
    assert_same_run(make_numpy(world), reference(world))


def test_record_episode_statistics():
    ours = vector_wrappers.RecordEpisodeStatistics(make_numpy("CartPole-v1"))
    ours.reset()
    ours.action_space.seed(0)
    ended = 0
    for _ in range(80):
        *_, terminated, truncated, info = ours.step(ours.action_space.sample())
        done = terminated | truncated
        ended += done.sum()
        if done.any():
            np.testing.assert_array_equal(info["_episode"], done)
            np.testing.assert_array_equal(info["episode"]["l"][done], info["episode_length"][done])
            np.testing.assert_allclose(info["episode"]["r"][done], info["episode_return"][done])
    assert ended == ours.episode_count > 3


@pytest.mark.parametrize(
    "wrap",
    [
        vector_wrappers.NormalizeReward,
        vector_wrappers.DictInfoToList,
        lambda env: vector_wrappers.TransformReward(env, lambda reward: reward * 2),
        lambda env: vector_wrappers.ClipReward(env, -1, 1),
        lambda env: vector_wrappers.RescaleAction(env, -1.0, 1.0),
        lambda env: vector_wrappers.ClipAction(env),
    ],
)
def test_gymnasiums_vector_wrappers(wrap):
    inner = make_numpy("Pendulum-v1")
    env = wrap(inner)
    env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(210):  # past the end of an episode
        obs, reward, *_ = env.step(env.action_space.sample())
    assert np.isfinite(obs).all()
    assert len(reward) == 3
    env.close()
    assert inner.closed


def test_gymnasiums_observation_wrappers_refuse_same_step_autoreset():
    """They refuse its own vector env as well; FrameStack and the learner's normaliser stand in."""
    for env in (make_numpy("Pendulum-v1"), reference("Pendulum-v1")):
        with pytest.raises(ValueError, match="SAME_STEP"):
            vector_wrappers.NormalizeObservation(env)


@pytest.mark.parametrize(
    "name", ["Memory", "IdentityBox", "Mixed", "DictObs", "TupleObs", "Dot", "Counter"]
)
def test_worlds_pass_gymnasiums_checker(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(gymnasium.make(f"rlgym/{name}-v0").unwrapped, skip_render_check=True)


def test_an_id_with_its_module_needs_no_import():
    code = (
        "import gymnasium; "
        "env = gymnasium.make('rlgym.interop.gymnasium:rlgym/Memory-v0'); "
        "print(env.reset(seed=0)[0].shape)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(3,)"


# ---------------------------------------------------------------------- one slot as a world
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_single_env_is_the_world_itself(output):
    """The same observations, rewards and endings as the world, over several episodes."""
    for name in ("CartPole-v1", "rlgym/TupleObs-v0", "rlgym/MaskedMulti-v0"):
        env = SingleEnv(rlgym.make_vec(name, 1, backend="sync", output=output))
        world = rlgym.make(name)
        (obs, info), (expected, other) = env.reset(seed=3), world.reset(seed=3)
        rng = np.random.default_rng(0)
        for _ in range(60):
            assert equal(_leafed(obs), _leafed(expected))
            action = _allowed(world, other.get("action_mask"), rng)
            if "action_mask" in other:
                assert info["action_mask"].tolist() == other["action_mask"].tolist()
            obs, reward, terminated, truncated, info = env.step(action)
            expected, other_reward, *flags, other = world.step(action)
            assert (reward, terminated, truncated) == (np.float32(other_reward), *flags)
            if terminated or truncated:
                assert equal(_leafed(obs), _leafed(expected))
                with pytest.raises(StateError, match=r"call reset\(\) first"):
                    env.step(action)
                (obs, info), (expected, other) = env.reset(), world.reset()
        env.close()


def _allowed(world, mask, rng):
    if mask is None:
        world.action_space.seed(int(rng.integers(2**31)))
        return world.action_space.sample()
    parts = np.split(mask, np.cumsum(world.action_space.nvec)[:-1])
    return np.array([rng.choice(np.flatnonzero(part)) for part in parts])


def test_a_world_that_is_a_batch_already(monkeypatch):
    def batch(num_envs, length=5, **kwargs):
        return rlgym.vector.sync.SyncVectorEnv(lambda: Counter(length), num_envs, **kwargs)

    monkeypatch.setitem(VECTOR_ENTRY_POINTS, "lab/Batch-v0", batch)
    register()
    env = gymnasium.make("lab/Batch-v0", length=2)
    assert isinstance(env.unwrapped, SingleEnv)
    env.reset(seed=0)
    assert env.step(1)[1] == 1.5
    env.close()
    del gymnasium.registry["lab/Batch-v0"]


def test_single_env_passes_gymnasiums_checker():
    env = SingleEnv(rlgym.make_vec("CartPole-v1", 1, backend="sync"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    with pytest.raises(ContractError, match="num_envs=1"):
        SingleEnv(rlgym.make_vec("CartPole-v1", 2, backend="sync"))


# ---------------------------------------------------------------------- random spaces
@settings(max_examples=60)
@given(observation=SPACES, action=SPACES)
def test_random_spaces_equal_gymnasiums_sync(observation, action):
    def world():
        return RandomWorld(observation, action)

    ours = rlgym.make_vec(world, 2, backend="sync", output="numpy", verbose=False)
    theirs = SyncVectorEnv([world, world], autoreset_mode=AutoresetMode.SAME_STEP)
    assert_same_run(ours, theirs, steps=12)
