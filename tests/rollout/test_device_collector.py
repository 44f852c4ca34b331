"""Rollouts on the device: the host's numbers, recorded or not, and nothing read on the way."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig, PPOConfig, SACConfig
from rlgym.errors import WorldError
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.collector import HostCollector
from rlgym.rollout.device_collector import DeviceCollector
from rlgym.rollout.replay import ReplayBuffer
from rlgym.vector.device import DeviceVectorEnv
from rlgym.vector.tensor_world import WorldBatch
from tests import tape
from tests.agents.test_device_clean import DeviceClean
from tests.vector.test_device import Walk

FIELDS = ("rewards", "terminated", "truncated", "bootstrap", "active", "episode_start")


class Short:
    """One number that counts up; half of the slots end at 7, all are truncated after 3 steps."""

    max_episode_steps = 3
    start_random = 1
    step_random = 0
    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def start(self, random):
        return torch.cat((random * 10, torch.zeros_like(random)), 1)

    def step(self, state, actions, random):
        after = state + torch.stack((actions - 1.0, torch.ones_like(state[:, 0])), 1)
        return after, after[:, 0] * 0.1, after[:, 0] > 7

    def observe(self, state):
        return state


def parts(world, num_envs=5, num_steps=8, seed=0, network=None, collector=DeviceCollector, **more):
    """A collector with its own env, policy and buffer, begun."""
    env = DeviceVectorEnv(WorldBatch(world, num_envs))
    network = network or NetworkConfig(hidden=(8,))
    policy = ActorCritic.build(env.obs_layout, env.action_layout, network, seed=seed)
    buffer = RolloutBuffer(
        num_steps, num_envs, env.obs_layout, env.action_layout, state_shape=policy.state_shape
    )
    made = collector(env, policy, buffer, torch.Generator().manual_seed(seed), **more)
    made.start(*env.reset(seed=seed))
    return made


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
@pytest.mark.parametrize("num_steps", [2, 8])
def test_it_stores_what_the_host_collector_stores(recurrent, num_steps):
    """The same env through both: rows, bootstraps of truncated episodes, statistics, memory."""
    network = NetworkConfig(hidden=(8,), recurrent=recurrent, recurrent_size=4)
    ours = parts(Short(), network=network, num_steps=num_steps)
    theirs = parts(Short(), network=network, num_steps=num_steps, collector=HostCollector)
    ended = 0
    for _ in range(6):
        a, b = ours.collect(), theirs.collect()
        x, y = ours.buffer, theirs.buffer
        assert torch.equal(x.all_obs, y.all_obs) and torch.equal(x.actions, y.actions)
        for name in FIELDS:
            torch.testing.assert_close(getattr(x, name), getattr(y, name), msg=name)
        assert torch.equal(x.last_start, y.last_start)
        if recurrent != "none":
            torch.testing.assert_close(x.initial_state, y.initial_state)
            torch.testing.assert_close(x.last_state, y.last_state)
        assert a.returns == pytest.approx(b.returns) and a.lengths == b.lengths
        assert (a.env_steps, x.all_active) == (b.env_steps, y.all_active)
        ended += len(a.returns)
    assert ended > 20 and x.bootstrap.abs().max() > 0


def test_nothing_is_read_before_the_rollout_is_over():
    made = parts(Walk())
    with DeviceClean() as mode:
        made.begin()
    assert mode.found == []
    made.finish()


def test_learning_in_a_recorded_graph_is_learning(monkeypatch):
    """PPO, rollouts and updates recorded: the same parameters, bit for bit, as run each time."""

    def train():
        made = parts(Short(), num_envs=6, num_steps=8)
        cfg = PPOConfig(
            num_steps=8,
            minibatch_size=20,
            epochs=2,
            learning_rate=0.01,
            learning_rate_schedule="linear",
            clip_schedule="linear",
            entropy_coef=0.01,
        )
        learner = PPO(made.policy, cfg)
        generator = torch.Generator().manual_seed(1)
        log = []
        for i in range(9):
            stats = made.collect()
            metrics = learner.update(made.buffer, i / 9, generator)
            log.append((stats.returns, {name: float(value) for name, value in metrics.items()}))
        return learner.optimizer.flat.clone(), log

    plain, log = train()
    recorded = tape.with_graphs(monkeypatch)
    graphed, same = train()
    assert len(recorded) == 2  # the rollout, and the update
    assert torch.equal(plain, graphed)
    assert str(same) == str(log)


class Counted(Short):
    """The same in whole numbers that do not begin at 0."""

    observation_space = spaces.MultiDiscrete([30, 4], start=[-9, 2])

    def observe(self, state):
        return torch.stack((state[:, 0].floor(), state[:, 1] + 2), 1).long()


@pytest.mark.parametrize("case", ["normalised", "kl", "memory", "squashed", "counted"])
def test_other_policies_are_recorded_too(monkeypatch, case):
    network = {
        "normalised": NetworkConfig(hidden=(8,), normalize_obs=True),
        "kl": NetworkConfig(hidden=(8,)),
        "memory": NetworkConfig(hidden=(8,), recurrent="gru", recurrent_size=4),
        "squashed": NetworkConfig(hidden=(8,), squash=True),
        "counted": NetworkConfig(hidden=(8,)),
    }[case]
    world = {"squashed": Walk, "counted": Counted}.get(case, Short)
    schedule = {"learning_rate_schedule": "kl", "target_kl": 0.01} if case == "kl" else {}

    def train():
        made = parts(world(), network=network)
        cfg = PPOConfig(num_steps=8, minibatch_size=16, epochs=2, **schedule)
        learner, generator = PPO(made.policy, cfg), torch.Generator().manual_seed(1)
        for i in range(7):
            made.collect()
            learner.update(made.buffer, i / 7, generator)
        return {name: value.clone() for name, value in learner.state_dict().items()}

    plain = train()
    recorded = tape.with_graphs(monkeypatch)
    graphed = train()
    assert len(recorded) == 2
    assert all(torch.equal(plain[name], graphed[name]) for name in plain)


def test_what_keeps_an_update_from_being_recorded_is_said(monkeypatch, capfd):
    tape.with_graphs(monkeypatch)
    made = parts(Short())
    learner = PPO(made.policy, PPOConfig(num_steps=8, minibatch_size=16, target_kl=0.02))
    made.collect()
    learner.update(made.buffer, 0.0, torch.Generator().manual_seed(1))
    assert "PPO's update is not a graph, it runs as it is: target_kl" in capfd.readouterr().err


def test_sac_in_recorded_graphs_is_sac(monkeypatch):
    def train():
        env = DeviceVectorEnv(WorldBatch(Walk(), 4))
        network = NetworkConfig(hidden=(8,), std="state", squash=True)
        policy = SoftPolicy.build(env.obs_layout, env.action_layout, network, seed=0)
        layouts = env.obs_layout, env.action_layout
        buffer = RolloutBuffer(2, 4, *layouts, keep_finals=True)
        made = DeviceCollector(env, policy, buffer, torch.Generator().manual_seed(0))
        replay = ReplayBuffer(400, 4, *layouts, "cpu", gamma=0.9)
        learner = SAC(policy, SACConfig(num_steps=2, batch_size=16, actor_every=2))
        generator = torch.Generator().manual_seed(1)
        made.start(*env.reset(seed=0))
        log = []
        for i in range(24):
            policy.random = i < 6
            made.collect()
            replay.add(buffer)
            if i >= 6:
                metrics = learner.update(replay, 2, i / 24, generator)
                log.append({name: float(value) for name, value in metrics.items()})
        assert replay.size == 24 * 8
        return {name: value.clone() for name, value in learner.state_dict().items()}, log

    plain, log = train()
    recorded = tape.with_graphs(monkeypatch)
    graphed, same = train()
    assert len(recorded) == 4  # random and own actions; updates with the actor and without
    assert all(torch.equal(plain[name], graphed[name]) for name in plain)
    assert str(same) == str(log)


class Broken(Short):
    def step(self, state, actions, random):
        after, reward, ended = super().step(state, actions, random)
        late = (after[:, 1] == 2) & (torch.arange(len(after)) == 3)
        return after, torch.where(late, torch.nan, reward), ended


def test_a_value_that_is_not_finite_is_named_within_one_rollout():
    made = parts(Broken())
    with pytest.raises(WorldError, match=r"world Broken, slot 3: reward is not finite in step 1"):
        made.collect()
    parts(Broken(), guard=False).collect()


def test_a_collector_goes_on_from_what_another_saved():
    one = parts(Walk(), num_steps=4)
    one.collect()
    one.mark()
    saved = {name: value.clone() for name, value in one.state().items()}
    worlds = one.env.snapshot(at_mark=True)
    after = [one.collect() for _ in range(3)]
    other = parts(Walk(), num_steps=4, seed=0)
    obs, info = other.env.restore(worlds)
    other.start(obs, info)
    other.load_state(saved, info["replayed"])
    again = [other.collect() for _ in range(3)]
    assert torch.equal(one.buffer.actions, other.buffer.actions)
    assert [s.returns for s in after] == [s.returns for s in again]


def test_a_run_resumes_bit_for_bit(tmp_path):
    settings = {
        **{"preset": None, "num_envs": 64, "backend": "device", "console": "off"},
        **{"algo": {"num_steps": 8, "minibatch_size": 128, "epochs": 2}},
        **{"eval": {"every": 0, "episodes": 2}, "wrappers": {"reward_scale": 0.1}},
    }
    whole = rlgym.train("Pendulum-v1", run_dir=tmp_path / "whole", total_steps=4096, **settings)
    half = rlgym.train("Pendulum-v1", run_dir=tmp_path / "half", total_steps=2048, **settings)
    from rlgym.training.run import resume

    assert half.env.unwrapped.backend == "device"
    more = resume(tmp_path / "half", total_steps=4096, console="off")
    assert more.health["unreplayed"] == 0
    a, b = whole.learner.state_dict(), more.learner.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.result.mean == more.result.mean  # in Gymnasium's own world
