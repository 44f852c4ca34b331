"""Run as several processes: learners that learn together equal one that has all their rows.

Each process updates on rows of its own. Rank 0 then repeats the updates alone, on the rows of all,
with minibatches made of the same rows, and prints the largest differences as JSON.
"""

import json
import sys

import numpy as np
import torch
from gymnasium import spaces

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig, PPOConfig, SACConfig
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.spaces import Layout
from rlgym.training.distributed import joined
from tests.agents.conftest import fill
from tests.agents.transitions import PLAIN, Fixed, batch

T, N, SIZE, UPDATES = 16, 4, 2, 3
LAYOUTS = tuple(Layout(spaces.Box(-1, 1, (size,), np.float32)) for size in (4, 3))
PPO_CASES = {
    "plain": ({"normalize_obs": True}, {"entropy_coef": 0.01, "value_clip": 0.2}),
    "stopped by KL": ({}, {"target_kl": 0.003, "learning_rate": 3e-3}),
    "adapted by KL": ({}, {"target_kl": 0.01, "learning_rate_schedule": "kl"}),
    "autograd": ({"recurrent": "gru", "recurrent_size": 8}, {}),
}
SAC_CASES = {"written out": ({}, {}), "autograd": ({}, {"layer_norm": True})}


def ppo(case, minibatch):
    network, algo = PPO_CASES[case]
    policy = ActorCritic.build(*LAYOUTS, NetworkConfig(hidden=(16, 16), **network), 0)
    return PPO(policy, PPOConfig(minibatch_size=minibatch, epochs=3, **algo))


def rollout(policy, rank, update, num_envs=N):
    buffer = RolloutBuffer(T, num_envs, *LAYOUTS, "cpu", 0, policy.state_shape)
    fill(buffer, *LAYOUTS, policy, seed=10 * update + rank)
    buffer.active[:, 1 + rank :: 3] = False  # another share of each process's rows counts
    buffer.upload()
    return buffer


def join(buffers, policy):
    whole = RolloutBuffer(T, N * SIZE, *LAYOUTS, "cpu", 0, policy.state_shape)
    for name in ("all_obs", "actions", "rewards", "terminated", "truncated", "bootstrap", "active"):
        getattr(whole, name).copy_(torch.cat([getattr(b, name) for b in buffers], 1))
    whole.episode_start.copy_(torch.cat([b.episode_start for b in buffers], 1))
    whole.last_start.copy_(torch.cat([b.last_start for b in buffers]))
    whole.upload()
    return whole


class Interleaved:
    """`torch.randperm` for the whole: each minibatch is made of those of the processes."""

    def __init__(self, minibatch, recurrent):
        self.size = minibatch // T if recurrent else minibatch
        self.recurrent = recurrent
        self.generators = [torch.Generator().manual_seed(rank) for rank in range(SIZE)]
        self.draw = torch.randperm

    def __call__(self, total, **_):
        orders = []
        for rank, generator in enumerate(self.generators):
            order = self.draw(total // SIZE, generator=generator)
            if self.recurrent:  # rows are slots
                order = order + rank * N
            else:
                order = order // N * (N * SIZE) + rank * N + order % N
            orders.append(order.split(self.size))
        return torch.cat([part for parts in zip(*orders, strict=True) for part in parts])


def prove_ppo(case, group):
    minibatch = 2 * T
    learner = ppo(case, minibatch)
    group.connect(learner)
    generator = torch.Generator().manual_seed(group.rank)
    for update in range(UPDATES):
        learner.update(rollout(learner.policy, group.rank, update), update / 10, generator)
    if not group.leads:
        return None
    whole = ppo(case, minibatch * SIZE)
    start = float(whole.optimizer.flat.sum())
    torch.randperm = Interleaved(minibatch, whole.policy.memory is not None)
    for update in range(UPDATES):
        parts = [rollout(whole.policy, rank, update) for rank in range(SIZE)]
        whole.update(join(parts, whole.policy), update / 10, generator)
    torch.randperm = torch.randperm.draw
    assert abs(float(whole.optimizer.flat.sum()) - start) > 1e-3
    return difference(learner, whole)


def prove_sac(case, group):
    network, build = SAC_CASES[case]

    def sac():
        cfg = NetworkConfig(**{**PLAIN, "normalize_obs": True, **network})
        return SAC(SoftPolicy.build(*LAYOUTS, cfg, 0, **build), SACConfig(learning_rate=1e-3))

    def drawn(learner, rank):
        return [batch(learner.policy, 32, 10 * rank + i) for i in range(10)]

    learner, whole = sac(), sac()
    group.connect(learner)
    learner.update(Fixed(*drawn(learner, group.rank)), 10, 0.0, generator(group.rank))
    learner.policy.update_normalizer(rollout(ppo("plain", T).policy, group.rank, 0))
    if not group.leads:
        return None
    generators = [generator(rank) for rank in range(SIZE)]
    noise = whole.policy.actions.learner_noise

    def joint_noise(rows, _):
        parts = [noise(rows // SIZE, g)[0].split(rows // SIZE // 2) for g in generators]
        return [torch.cat([part[half] for half in (0, 1) for part in parts])]

    whole.policy.actions.learner_noise = joint_noise
    pairs = zip(*(drawn(whole, rank) for rank in range(SIZE)), strict=True)
    joint = []
    for pair in pairs:
        whole_batch = pair[0]
        for name in ("obs", "next_obs", "actions", "rewards", "discounts", "weights"):
            setattr(whole_batch, name, torch.cat([getattr(b, name) for b in pair]))
        joint.append(whole_batch)
    whole.update(Fixed(*joint), 10, 0.0, generators[0])
    policy = ppo("plain", T).policy
    whole.policy.update_normalizer(join([rollout(policy, r, 0) for r in range(SIZE)], policy))
    return difference(learner, whole)


def generator(rank):
    return torch.Generator().manual_seed(100 + rank)


def difference(ours, theirs):
    """The largest one of any number that the next update depends on."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def main():
    torch.set_num_threads(1)
    with joined() as group:
        assert group.size == SIZE
        found = {f"PPO, {case}": prove_ppo(case, group) for case in PPO_CASES}
        found |= {f"SAC, {case}": prove_sac(case, group) for case in SAC_CASES}
        long = group.exchange({"rank": group.rank, "text": "x" * 5000 * group.rank})
        assert [(told["rank"], len(told["text"])) for told in long] == [(0, 0), (1, 5000)]
        means = group.average({"a": torch.tensor(float(group.rank)), "b": 2 * group.rank})
        assert [float(means[name]) for name in "ab"] == [0.5, 1.0]
    if group.leads:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
