"""A world that gives NaN: halted with a file that shows it again, or skipped and counted."""

import json
import re

import numpy as np
import pytest
import torch

import rlgym
from rlgym.envs.toy.faults import Faulty
from rlgym.errors import ContractError, WorldError
from rlgym.vector.guard import NaNGuard, replay_dump
from rlgym.vector.wrappers import RewardScale

ACTIONS = torch.zeros(3, dtype=torch.int64)


def make(fault="nan", at_step=4, **kwargs):
    options = {"fault": fault, "at_step": at_step, "only_seed": 11, "length": 9} | kwargs
    return rlgym.make_vec(
        "rlgym/NaN-v0", 3, backend="sync", seed=10, env_kwargs=options, verbose=False
    )


def test_halt_names_world_and_slot_and_the_dump_shows_it_again(tmp_path):
    env = NaNGuard(make(), "halt", tmp_path / "dumps")
    env.reset()
    for _ in range(3):
        env.step(ACTIONS)
    with pytest.raises(WorldError, match=r"world rlgym/NaN-v0, slot 1: observation is not") as info:
        env.step(ACTIONS)
    assert "\n" not in str(info.value)
    (path,) = (tmp_path / "dumps").iterdir()
    assert str(path) in str(info.value)
    replay = replay_dump(path, rlgym.make)
    assert (replay.step, replay.what) == (4, "observation")
    assert np.isnan(replay.obs[1])


def test_halt_on_a_reward(tmp_path):
    env = NaNGuard(make("nan_reward"), "halt", tmp_path)
    env.reset()
    with pytest.raises(WorldError, match="slot 1: reward is not finite"):
        for _ in range(4):
            env.step(ACTIONS)
    assert replay_dump(next(tmp_path.iterdir()), rlgym.make).what == "reward"


def test_a_later_episode_is_dumped_with_the_state_of_its_generator(tmp_path):
    env = NaNGuard(make(at_step=8, length=5), "halt", tmp_path)
    env.reset()
    with pytest.raises(WorldError, match="slot 1"):
        for _ in range(8):  # the first episode of slot 1 has 6 steps
            env.step(ACTIONS)
    document = json.loads(next(tmp_path.iterdir()).read_text())
    assert document["seed"] is None
    assert document["rng"]["bit_generator"] == "PCG64"
    # the fault counts steps of the world's life; in the replay the life is the episode
    kwargs = document["kwargs"] | {"at_step": len(document["actions"][""]), "only_seed": None}
    replay = replay_dump(next(tmp_path.iterdir()), lambda *_, **__: Faulty(**kwargs))
    assert replay.step == 2
    assert replay.obs[0] == env.env.arrays.obs[1, 0]  # the same name was drawn


@pytest.mark.parametrize("fault", ["nan", "nan_reward"])
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_skip_ends_the_episode_as_a_lost_one(fault, output, tmp_path, capsys):
    options = {"fault": fault, "at_step": 4, "only_seed": 11, "length": 9}
    inner = rlgym.make_vec(
        "rlgym/NaN-v0", 3, backend="sync", seed=10, env_kwargs=options, output=output
    )
    env = NaNGuard(inner, "skip", tmp_path)
    env.reset()
    for _ in range(3):
        last = torch.as_tensor(env.step(ACTIONS.numpy())[0]).clone()
    obs, reward, terminated, truncated, info = env.step(ACTIONS.numpy())
    assert terminated.tolist() == [False, False, False]
    assert truncated.tolist() == [False, True, False]
    assert info["active"].tolist() == [True, False, True]
    assert reward.tolist() == [4.0, 0.0, 4.0]
    assert info["final_obs"][1].tolist() == last[1].tolist()
    assert info["episode_return"][1] == 1 + 2 + 3
    assert info["episode_length"][1] == 3
    assert obs[1, 1] == 0  # a new episode
    assert torch.as_tensor(obs).isfinite().all()
    assert env.health["nan_skips"] == 1
    assert np.isfinite(inner.arrays.final_obs).all()
    if output == "numpy":
        assert info["_final_obs"].tolist() == [False, True, False]
    for t in range(1, 5):  # the new episode goes on
        obs, reward, *_, info = env.step(ACTIONS.numpy())
        assert obs[1, 1] == t
        assert reward[1] == t
    assert info["active"].all()
    assert env.health["nan_skips"] == 1
    err = capsys.readouterr().err
    path = re.search(r"rlgym doctor (\S+\.json)", err).group(1)
    assert replay_dump(path, rlgym.make).step == 4


@pytest.mark.parametrize("backend", ["sync", "process"])
def test_skip_in_one_group_while_the_other_steps(backend, tmp_path, capsys):
    options = {"fault": "nan", "at_step": 2, "only_seed": 10, "length": 9}
    inner = rlgym.make_vec(
        "rlgym/NaN-v0",
        4,
        backend=backend,
        seed=10,
        num_groups=2,
        num_workers=2,
        env_kwargs=options,
    )
    env = NaNGuard(inner, "skip", tmp_path)
    env.reset()
    pair = ACTIONS[:2]
    env.send(pair, 0)
    env.send(pair, 1)
    env.recv(0)
    env.send(pair, 0)
    env.recv(1)
    env.send(pair, 1)
    first, _, _, truncated, _ = env.recv(0)
    assert truncated.tolist() == [True, False]
    assert first[:, 1].tolist() == [0.0, 2.0]
    env.send(pair, 0)
    obs, _, _, truncated, _ = env.recv(1)
    assert truncated.tolist() == [False, False]
    assert obs[:, 1].tolist() == [2.0, 2.0]
    assert env.recv(0)[0][:, 1].tolist() == [1.0, 3.0]
    assert replay_dump(next(tmp_path.iterdir()), rlgym.make).step == 2
    env.close()


@pytest.mark.parametrize("backend", ["sync", "process"])
@pytest.mark.parametrize("policy", ["halt", "skip"])
def test_a_final_observation_is_watched_too(backend, policy, tmp_path):
    """NaN in the very step that ends an episode shows in `final_obs` only."""
    options = {"fault": "nan", "at_step": 9, "only_seed": 11, "length": 8}
    inner = rlgym.make_vec(
        "rlgym/NaN-v0", 3, backend=backend, seed=10, num_workers=1, env_kwargs=options
    )
    env = NaNGuard(inner, policy, tmp_path)
    env.reset()
    name = int(np.random.default_rng(11).integers(1000))
    assert 8 + name % 3 == 9  # the step of the fault is the episode's last
    for _ in range(8):
        obs, *_ = env.step(ACTIONS)
    last = obs[1].clone()
    if policy == "halt":
        with pytest.raises(WorldError, match="slot 1: final observation is not finite"):
            env.step(ACTIONS)
    else:
        *_, truncated, info = env.step(ACTIONS)
        assert truncated[1]
        assert not info["active"][1]
        assert torch.equal(info["final_obs"][1], last)
        assert env.health["nan_skips"] == 1
    replay = replay_dump(next(tmp_path.iterdir()), rlgym.make)
    assert (replay.step, replay.what) == (9, "observation")
    env.close()


def test_the_guard_moves_no_mark(tmp_path):
    """A run that halts can still be saved as it stood at its last update."""
    env = NaNGuard(make(), "halt", tmp_path)
    env.reset()
    env.step(ACTIONS)
    env.mark()
    then = env.snapshot(at_mark=True)
    with pytest.raises(WorldError):
        for _ in range(3):
            env.step(ACTIONS)
    now = env.snapshot(at_mark=True)
    assert all(np.array_equal(then[key], now[key]) for key in then)


@pytest.mark.parametrize("policy", ["halt", "skip"])
def test_nothing_changes_while_all_is_finite(policy):
    for world in ("CartPole-v1", "rlgym/DictObs-v0"):
        plain = rlgym.make_vec(world, 4, backend="sync", seed=2)
        guarded = NaNGuard(rlgym.make_vec(world, 4, backend="sync", seed=2), policy)
        plain.reset()
        guarded.reset()
        actions = torch.randint(2, (60, 4), generator=torch.Generator().manual_seed(0))
        for t in range(60):
            expected, got = plain.step(actions[t]), guarded.step(actions[t])
            for a, b in zip(expected[1:4], got[1:4], strict=True):
                assert torch.equal(a, b)
            a, b = (r[0] if isinstance(r[0], dict) else {"": r[0]} for r in (expected, got))
            assert all(torch.equal(a[key], b[key]) for key in a)
        assert guarded.health["nan_skips"] == 0


def test_a_world_that_only_gives_nan_is_given_up():
    class Hopeless(Faulty):
        def _observe(self):
            return super()._observe() * np.nan

    env = NaNGuard(rlgym.make_vec(Hopeless, 1, backend="sync"), "skip")
    with pytest.raises(WorldError, match="observation of 10 resets is not finite"):
        env.reset()


def test_a_dump_of_a_callable_needs_the_callable(tmp_path):
    inner = rlgym.make_vec(lambda: Faulty("nan", 2), 1, backend="sync")
    env = NaNGuard(inner, "halt", tmp_path)
    env.reset()
    with pytest.raises(WorldError, match="not finite"):
        for _ in range(2):
            env.step(ACTIONS[:1])
    path = next(tmp_path.iterdir())
    assert replay_dump(path, lambda: Faulty("nan", 2)).step == 2
    with pytest.raises(WorldError, match="stay finite"):
        replay_dump(path, lambda: Faulty("nan", 99))


def test_a_strangers_dump_imports_nothing(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(
        json.dumps(
            {"world": "antigravity:X-v0", "kwargs": {}, "seed": 0, "options": None, "rng": None}
            | {"actions": {"": []}, "name": "X"}
        )
    )
    with pytest.raises(WorldError, match=r"would import antigravity.*--trust"):
        replay_dump(path, rlgym.make)
    victim = tmp_path / "victim"
    document = json.loads(path.read_text()) | {"world": "rlgym/Crash-v0"}
    path.write_text(json.dumps(document | {"kwargs": {"once_file": str(victim)}}))
    with pytest.raises(WorldError, match=r"write anywhere.*--trust"):
        replay_dump(path, rlgym.make)
    assert not victim.exists()
    path.write_text("[1, 2]")
    with pytest.raises(WorldError, match="not a NaN dump"):
        replay_dump(path, rlgym.make)


def test_wrong_uses():
    with pytest.raises(ContractError, match='"off", "halt" or "skip"'):
        NaNGuard(make(), "stop")
    with pytest.raises(ContractError, match="directly on the worlds"):
        NaNGuard(RewardScale(make(), 2.0))
