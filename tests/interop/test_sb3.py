"""Stable-Baselines3 trains on our vector envs, and we use its own."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

import rlgym
from rlgym.envs.toy.counter import Counter
from rlgym.errors import ContractError, SpaceError
from rlgym.interop.sb3 import from_sb3, to_sb3
from rlgym.vector.check.conformance import check
from rlgym.vector.wrappers import FrameStack


def make(world="CartPole-v1", num_envs=4, **kwargs):
    return rlgym.make_vec(world, num_envs, backend="sync", verbose=False, **kwargs)


def dummy(world, num_envs=3):
    return DummyVecEnv([lambda: rlgym.make(world) for _ in range(num_envs)])


# ---------------------------------------------------------------------- ours as theirs
@pytest.mark.parametrize("world", ["CartPole-v1", "rlgym/Dot-v0", "rlgym/Privileged-v0"])
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_to_sb3_equals_dummy_vec_env(world, output):
    ours = to_sb3(make(world, 3, output=output, num_groups=3))
    theirs = dummy(world)
    for env in (ours, theirs):
        env.seed(7)
    obs, expected = ours.reset(), theirs.reset()
    ours.action_space.seed(0)
    ended = 0
    for _ in range(60):
        _assert_equal(obs, expected)
        actions = np.array([ours.action_space.sample() for _ in range(3)])
        obs, reward, done, infos = ours.step(actions)
        expected, other_reward, other_done, other_infos = theirs.step(actions)
        np.testing.assert_array_equal(reward, other_reward)
        np.testing.assert_array_equal(done, other_done)
        for info, other in zip(infos, other_infos, strict=True):
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            if "terminal_observation" in other:
                ended += 1
                _assert_equal(info["terminal_observation"], other["terminal_observation"])
            else:
                assert "terminal_observation" not in info
    assert ended > 2


def _assert_equal(a, b):
    if isinstance(a, dict):
        for key in b:
            np.testing.assert_array_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_truncation_is_told():
    env = to_sb3(make(lambda: Counter(length=3), 4, seed=0))
    env.reset()
    told = {False: 0, True: 0}
    names = [int(np.random.default_rng(s).integers(1000)) for s in range(4)]
    first = set(range(4))
    for _ in range(6):
        _, _, done, infos = env.step(np.zeros(4, np.int64))
        for row in np.flatnonzero(done):
            if row in first:
                first.discard(row)
                assert infos[row]["TimeLimit.truncated"] == (names[row] % 2 == 1)
                told[infos[row]["TimeLimit.truncated"]] += 1
    assert min(told.values()) > 0


@pytest.mark.parametrize(
    ("world", "policy"),
    [
        ("CartPole-v1", "MlpPolicy"),
        ("Pendulum-v1", "MlpPolicy"),
        ("rlgym/Privileged-v0", "MultiInputPolicy"),
    ],
)
def test_sb3_ppo_trains(world, policy):
    env = VecNormalize(to_sb3(make(world)))
    model = PPO(policy, env, n_steps=16, batch_size=32, n_epochs=1, device="cpu", seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(128)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)
    )
    if world != "Pendulum-v1":  # its episodes last 200 steps
        assert len(model.ep_info_buffer) > 0
    env.close()


def test_sb3_evaluates_a_policy_on_it():
    env = to_sb3(make("CartPole-v1", 2))
    model = PPO("MlpPolicy", env, device="cpu", seed=0)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=3, warn=False)
    assert isinstance(mean, float)
    assert mean >= 1
    VecMonitor(env).reset()


def test_what_sb3_may_ask():
    env = to_sb3(make("rlgym/Masked-v0", 3))
    env.reset()
    assert env.get_attr("num_envs") == [3, 3, 3]
    masks = env.env_method("action_masks", indices=[0, 2])
    assert [mask.shape for mask in masks] == [(5,), (5,)]
    with pytest.raises(AttributeError, match="cannot call 'fly'"):
        env.env_method("fly")
    with pytest.raises(AttributeError, match="env_kwargs"):
        env.set_attr("gravity", 1.0)
    with pytest.raises(AttributeError, match="no attribute 'gravity'"):
        env.get_attr("gravity")
    _, _, _, infos = env.step(
        np.array([int(mask.argmax()) for mask in env.env_method("action_masks")])
    )
    assert infos[0]["action_mask"].dtype == np.bool_
    env.close()


def test_nested_observations_are_refused():
    with pytest.raises(SpaceError, match="FlattenObservation"):
        to_sb3(make("rlgym/DictObs-v0", 1))


def test_wrapped_envs_go_over_too():
    env = to_sb3(FrameStack(make("CartPole-v1", 2), 3))
    assert env.reset().shape == (2, 12)


def test_toy_worlds_pass_sb3s_checker():
    check_env(rlgym.make("rlgym/Memory-v0").unwrapped)


# ---------------------------------------------------------------------- theirs as ours
@pytest.mark.parametrize("world", ["CartPole-v1", "rlgym/Counter-v0", "rlgym/Privileged-v0"])
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_from_sb3_passes_the_contract(world, output):
    findings = check(lambda: from_sb3(dummy(world), output=output), steps=60)
    # an SB3 env cannot tell how an episode came about; nothing else is amiss
    assert {finding.rule for finding in findings} == {"snapshot"}
    assert all("cannot be replayed" in finding.message for finding in findings)


@pytest.mark.parametrize("world", ["CartPole-v1", "rlgym/Counter-v0", "rlgym/Dot-v0"])
def test_from_sb3_equals_our_own(world):
    ours, theirs = make(world, 3), from_sb3(dummy(world))
    obs, _ = ours.reset(seed=4)
    expected, _ = theirs.reset(seed=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert torch.equal(obs, expected)
        actions = torch.randint(2, (3,), generator=generator)
        obs, *rest, info = ours.step(actions)
        expected, *others, other = theirs.step(actions)
        assert all(torch.equal(a, b) for a, b in zip(rest, others, strict=True))
        done = rest[1] | rest[2]
        for key in ("final_obs", "episode_return", "episode_length"):
            assert torch.equal(info[key][done], other[key][done])


def test_from_sb3_there_and_back():
    env = to_sb3(from_sb3(dummy("CartPole-v1", 2)))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu")
    model.learn(32)
    env.close()


def test_from_sb3_info_keys_and_groups():
    env = from_sb3(dummy("rlgym/Memory-v0", 2), info_keys=("is_success",))
    env.reset(seed=0)
    for _ in range(5):
        *_, terminated, _, info = env.step(torch.zeros(2, dtype=torch.int64))
    assert terminated.all()
    assert set(info["is_success"].tolist()) <= {0.0, 1.0}
    with pytest.raises(ContractError, match=r"not 'CartPole-v1': make one with rlgym.make_vec"):
        to_sb3("CartPole-v1")
    with pytest.raises(ContractError, match=r"any other goes to rlgym.make_vec"):
        from_sb3(3)
    with pytest.raises(ContractError, match="num_groups=1"):
        from_sb3(dummy("CartPole-v1", 2), num_groups=2)


def make_counter():
    return Counter()


@pytest.mark.slow
def test_from_sb3_with_worker_processes():
    env = from_sb3(SubprocVecEnv([make_counter, make_counter]))
    assert {f.rule for f in check(env, steps=30)} == {"snapshot"}
    env.close()
