"""The batch behind the contract of vector envs: the contract itself, saving, blow-ups, pictures."""

import json
import time

import numpy as np
import psutil
import pytest
import torch

import rlgym
from rlgym.envs.imitation.vector_env import ImitationVectorEnv, make_imitation
from rlgym.envs.physics.bullet import BulletEngine
from rlgym.errors import ConfigError, ContractError, StateError
from rlgym.vector.contract import check

HARD = {
    "clip": ["trot", "sit", "turn"],
    "randomize": "modern",
    "episode": {
        "switch_seconds": [0.2, 0.5],
        "reference_start": 0.5,
        "perturb": 0.5,
        "seconds": 1.0,
    },
    "observation": {"history": 2},
    "action": {"cutoff": 5.0},
}
"""All of the task's state at once: switches, warm-ups, noise, latency, a filter, a history."""


def make(count: int = 4, **kwargs) -> ImitationVectorEnv:
    made = make_imitation(count, num_workers=1, **kwargs)
    assert isinstance(made, ImitationVectorEnv)
    return made


def random_actions(count: int, steps: int) -> torch.Tensor:
    return 0.5 * torch.randn(steps, count, 12, generator=torch.Generator().manual_seed(2))


def copied(obs):
    return {key: value.clone() for key, value in obs.items()}


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "kwargs",
    [
        HARD,
        pytest.param({"output": "numpy"}, marks=pytest.mark.slow),
        pytest.param(
            {"spec": "reference", "robot": "laikago", "clip": "laikago_walk"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["hard", "numpy", "reference"],
)
def test_contract(kwargs):
    findings = check(lambda: make(3, **kwargs), steps=40, seconds=0.7)
    assert [str(finding) for finding in findings if finding.severity != "note"] == []


def test_make_vec_knows_the_id():
    env = rlgym.make_vec("rlgym/Imitate-v0", 2, env_kwargs={"clip": "pace"}, num_workers=1)
    assert isinstance(env.unwrapped, ImitationVectorEnv) and env.num_envs == 2
    obs, _ = env.reset(seed=0)
    assert obs["policy"].shape == (2, 118) and obs["policy"].dtype == torch.float32
    assert set(env.reward_term_names) == {
        *("pose", "velocity", "end_effector", "root_pose", "root_velocity")
    }
    env.close()


def test_a_restored_env_goes_on_bit_for_bit_after_many_episodes():
    env, other = make(16, **HARD), make(16, seed=99, **HARD)
    env.reset(seed=0)
    actions = random_actions(16, 120)
    for act in actions[:60]:
        env.step(act)
    env.mark()
    expected = []
    for act in actions[60:]:
        obs, reward, *_ = env.step(act)
        expected.append((copied(obs), reward.clone()))
    snapshot = env.snapshot(at_mark=True)
    assert all(array.dtype != object for array in snapshot.values())
    _, info = other.restore(snapshot)
    assert info["replayed"].all() and other.health["unreplayed"] == 0
    ends = 0
    for act, (obs, reward) in zip(actions[60:], expected, strict=True):
        got, their_reward, terminated, truncated, _ = other.step(act)
        assert same(got, obs) and torch.equal(their_reward, reward)
        ends += int((terminated | truncated).sum())
    assert ends > 20
    env.close()
    other.close()


def test_a_seed_may_be_of_any_size():
    env = make(2, seed=2**70)
    first = copied(env.reset()[0])
    assert same(copied(env.reset(seed=2**70)[0]), first)
    assert not same(copied(env.reset(seed=2**70 + 5)[0]), first)
    env.close()


def test_a_mark_costs_little():
    env = make(256)
    env.reset(seed=0)
    times = []
    for _ in range(30):
        begin = time.process_time()
        env.mark()
        times.append(time.process_time() - begin)
    assert min(times) < 300e-6  # measured: 50 us
    env.close()


def test_a_snapshot_of_another_size_is_refused():
    env, other = make(2), make(3)
    env.reset(seed=0)
    with pytest.raises(ContractError, match="use num_envs 2"):
        other.restore(env.snapshot())
    with pytest.raises(StateError, match="reset"):
        make(1).snapshot(at_mark=True)
    env.close()
    other.close()


def test_bullet_goes_on_bit_for_bit():
    env, other = (make_imitation(2, engine="bullet", num_workers=0) for _ in range(2))
    env.reset(seed=0)
    actions = torch.randn(12, 2, 12, generator=torch.Generator().manual_seed(3))
    for act in actions[:6]:
        env.step(act)
    _, info = other.restore(env.snapshot())
    assert info["replayed"].all() and other.health["unreplayed"] == 0
    for act in actions[6:]:
        obs, reward, *_ = env.step(act)
        got, their_reward, *_ = other.step(act)
        assert same(got, obs) and torch.equal(their_reward, reward)
    env.close()
    other.close()


def test_an_engine_that_cannot_go_on_begins_new_episodes_and_says_so(monkeypatch):
    monkeypatch.setattr(BulletEngine, "capabilities", BulletEngine.capabilities - {"snapshot"})
    env = make_imitation(2, engine="bullet", num_workers=0)
    env.reset(seed=0)
    env.step(torch.zeros(2, 12))
    before = copied(env.step(torch.zeros(2, 12))[0])
    obs, info = env.restore(env.snapshot())
    assert not info["replayed"].any() and env.health["unreplayed"] == 2
    assert not same(obs, before) and all(torch.isfinite(value).all() for value in obs.values())
    env.close()


@pytest.mark.parametrize("engine", ["mujoco", "bullet"])
def test_a_snapshot_that_does_not_fit_begins_new_episodes(engine):
    env, other = make_imitation(2, engine=engine, num_workers=0), make_imitation(2)
    env.reset(seed=0)
    env.step(torch.zeros(2, 12))
    snapshot = env.snapshot()
    snapshot.pop("engine:broken", None)  # as one of an older version
    obs, info = other.restore(snapshot)
    assert not info["replayed"].any() and other.health["unreplayed"] == 2
    assert all(torch.isfinite(value).all() for value in obs.values())
    for act in random_actions(2, 3):
        other.step(act)
    env.close()
    other.close()


def test_a_killed_worker_is_replaced_and_its_slots_are_lost(capsys):
    env = make_imitation(4, engine="bullet", num_workers=2)
    env.reset(seed=0)
    env.step(torch.zeros(4, 12))
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if "bullet_worker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    _, reward, terminated, truncated, info = env.step(torch.zeros(4, 12))
    assert (~info["active"]).sum() == 2 and not terminated.any()
    assert torch.equal(truncated, ~info["active"]) and not reward[truncated].any()
    assert env.health["restarts"] == 1 and env.health["lost_slots"] == 2
    assert env.health["blow_ups"] == 0 and "worker" in capsys.readouterr().err
    *_, info = env.step(torch.zeros(4, 12))
    assert info["active"].all()
    env.close()


def test_a_blow_up_loses_its_slot_and_is_written_down(tmp_path, capsys):
    env = make(3, crash_dir=tmp_path, randomize={"push": 1e5, "push_seconds": 0.3})
    obs, _ = env.reset(seed=0)
    before = copied(obs)
    lost = 0
    for _ in range(12):
        obs, reward, terminated, truncated, info = env.step(torch.zeros(3, 12))
        away = ~info["active"]
        lost += int(away.sum())
        assert (truncated[away]).all() and not terminated[away].any() and not reward[away].any()
        for key, value in before.items():
            assert torch.equal(info["final_obs"][key][away], value[away])
            assert torch.isfinite(obs[key]).all()
        before = copied(obs)
    assert 0 < lost == env.health["blow_ups"] == env.health["lost_slots"]
    reports = sorted(tmp_path.glob("*.json"))
    assert len(reports) == lost == len(env.crash_reports)
    report = json.loads(reports[0].read_text())
    assert "blew up" in report["what"] and len(report["state"]["target"]) == 12
    assert "blew up" in capsys.readouterr().err
    env.close()


def test_a_slot_is_drawn_with_its_reference():
    env = make(2, render_mode="rgb_array")
    with pytest.raises(StateError, match="reset"):
        env.render_slot(0)
    env.reset(seed=0)
    env.step(torch.zeros(2, 12))
    frames = [env.render_slot(row) for row in range(2)]
    assert frames[0].shape == (360, 480, 3) and frames[0].dtype == np.uint8
    assert (frames[0] != frames[1]).any() and frames[0].std() > 5
    env.close()
    with pytest.raises(ConfigError, match="rgb_array"):
        make(1, render_mode="rgb")
