"""Every backend, with every kind of world, passes the contract's own tests."""

import pytest
from hypothesis import given, settings

import rlgym
from rlgym.vector import contract
from rlgym.vector.check.conformance import check
from rlgym.vector.guard import NaNGuard
from rlgym.vector.sync import SyncVectorEnv
from rlgym.vector.wrappers import ClipReward, FrameStack, RewardNormalize, RewardScale
from tests.random_worlds import SPACES, RandomWorld

WORLDS = [
    "CartPole-v1",
    "Pendulum-v1",
    "rlgym/Counter-v0",
    "rlgym/DictObs-v0",
    "rlgym/Dot-v0",
    "rlgym/MaskedMulti-v0",
    "rlgym/Mixed-v0",
    "rlgym/RewardTerms-v0",
    "rlgym/TruncationTrap-v0",
    "rlgym/TupleObs-v0",
]
WRAPPERS = {
    "scale": lambda env: RewardScale(env, 0.1),
    "clip": lambda env: ClipReward(env, 1.0),
    "normalize": RewardNormalize,
    "frames": lambda env: FrameStack(env, 3),
    "guard": lambda env: NaNGuard(env, "skip"),
    "all": lambda env: RewardNormalize(RewardScale(FrameStack(NaNGuard(env), 2), 2.0)),
}


def factory(world, backend, output="torch", **kwargs):
    return lambda: rlgym.make_vec(
        world, 4, backend=backend, output=output, num_groups=2, verbose=False, **kwargs
    )


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("world", WORLDS)
def test_sync(world, output):
    findings = check(factory(world, "sync", output), steps=60)
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.mark.parametrize(
    ("world", "output"),
    [
        ("CartPole-v1", "torch"),
        ("rlgym/TupleObs-v0", "numpy"),
        ("rlgym/MaskedMulti-v0", "torch"),
        ("rlgym/RewardTerms-v0", "torch"),
        ("rlgym/Dot-v0", "torch"),
    ],
)
def test_process(world, output):
    assert check(factory(world, "process", output, num_workers=2), steps=60) == []


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name):
    for output in ("torch", "numpy"):
        inner = factory("rlgym/DictObs-v0", "sync", output)
        assert check(lambda inner=inner: WRAPPERS[name](inner()), steps=45) == []


def test_one_slot_and_one_group():
    assert check(lambda: rlgym.make_vec("rlgym/Memory-v0", 1, backend="sync"), steps=40) == []


def test_an_env_that_is_handed_over_stays_open():
    env = rlgym.make_vec("rlgym/Counter-v0", 2, backend="sync")
    assert contract.check(env, steps=30) == []
    env.reset()
    env.close()


@settings(max_examples=8)
@given(observation=SPACES, action=SPACES)
def test_random_spaces(observation, action):
    def world():
        return RandomWorld(observation, action)

    for output in ("torch", "numpy"):

        def env(output=output):
            return FrameStack(SyncVectorEnv(world, 2, num_groups=2, output=output), 2)

        assert check(env, steps=20) == []
