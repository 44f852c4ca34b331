"""A run that does not fit the device says what it needs and what would fit."""

import pytest
import torch

import rlgym
from rlgym.agents.policy import ActorCritic
from rlgym.config import NetworkConfig, PPOConfig, TrainConfig
from rlgym.errors import UserError
from rlgym.registry import make_vec
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.training import memory

CPU = torch.device("cpu")


def built(num_envs=64, num_steps=16):
    config = TrainConfig(num_envs=num_envs, algo=PPOConfig(num_steps=num_steps))
    env = make_vec("CartPole-v1", num_envs, backend="device")
    policy = ActorCritic.build(env.obs_layout, env.action_layout, NetworkConfig())
    return config, env, policy


def test_the_rollout_is_estimated_as_it_is_allocated():
    config, env, policy = built()
    buffer = RolloutBuffer(16, 64, env.obs_layout, env.action_layout)
    estimated = memory.parts(config, env, policy, CPU)["the rollout"]
    assert 0.9 * buffer.nbytes < estimated < 2.0 * buffer.nbytes


def test_what_is_too_much_is_refused_with_what_fits(monkeypatch):
    config, env, policy = built()
    needed = sum(memory.parts(config, env, policy, CPU).values())
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    memory.check_memory(config, env, policy, CPU)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed // 2)
    with pytest.raises(UserError, match=r"64 worlds need about .*the rollout .*pass --num-envs"):
        memory.check_memory(config, env, policy, CPU)
    text = memory.shortage(config, env, policy, CPU, needed // 2)
    fits = int(text.rsplit(" ", 1)[1])
    assert sum(memory.parts(config, env, policy, CPU, fits).values()) <= needed // 2
    assert sum(memory.parts(config, env, policy, CPU, fits + 2).values()) > needed // 2


def test_a_run_asks_before_it_allocates(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match="need about"):
        rlgym.train("CartPole-v1", run_dir=tmp_path, backend="device", console="off")


def test_memory_that_ends_during_a_run_is_explained(tmp_path):
    class Greedy:
        def on_rollout(self, run, buffer):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(UserError, match=r"need about .*use fewer worlds \(--num-envs\)"):
        rlgym.train(
            "CartPole-v1", run_dir=tmp_path, backend="device", console="off", hooks=Greedy()
        )
    with pytest.raises(UserError, match=r"no memory left: .*--algo.buffer-size"):
        changes = {"algo": {"name": "sac"}, "hooks": Greedy(), "console": "off"}
        rlgym.train("Pendulum-v1", run_dir=tmp_path / "sac", **changes)
