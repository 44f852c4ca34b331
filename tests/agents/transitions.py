"""Random transitions of any space, and a replay buffer that holds nothing else."""

from types import SimpleNamespace

import torch

from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig, SACConfig
from rlgym.spaces import Layout

PLAIN = {"hidden": (16, 16), "activation": "relu", "std": "state", "squash": True}


def observations(layout, count, generator):
    layout.space.seed(int(torch.randint(2**31, (), generator=generator)))
    draws = [layout.space.sample() for _ in range(count)]
    tree = layout.alloc(count)
    for row, draw in enumerate(draws):
        layout.write(draw, tree, row)
    if layout.single:
        return torch.from_numpy(tree)
    return {key: torch.from_numpy(array) for key, array in tree.items()}


def batch(policy, count=32, seed=0, masks=False, discount=0.9):
    """`count` transitions, with what `rlgym.rollout.replay.Batch` has."""
    generator = torch.Generator().manual_seed(seed)
    size = policy.action_layout.mask_size
    mask = torch.rand(2, count, size, generator=generator) < 0.7 if masks and size else None
    noise = policy.distribution.noise(count, generator=generator)
    ends = torch.rand(count, generator=generator) < 0.1
    return SimpleNamespace(
        obs=observations(policy.obs_layout, count, generator),
        next_obs=observations(policy.obs_layout, count, generator),
        actions=policy.actions.random(noise, None if mask is None else mask[0]),
        rewards=torch.randn(count, generator=generator),
        discounts=torch.where(ends, 0.0, discount),
        weights=(torch.rand(count, generator=generator) < 0.8).float(),
        index=torch.arange(count),
        mask=None if mask is None else mask[0],
        next_mask=None if mask is None else mask[1],
    )


class Fixed:
    """Gives the same batches again and again, and keeps the priorities that it is told."""

    def __init__(self, *batches):
        self.batches = batches
        self.count = 0
        self.priorities = []

    def sample(self, batch_size, generator):
        self.count += 1
        return self.batches[(self.count - 1) % len(self.batches)]

    def set_priorities(self, index, errors):
        self.priorities.append((index, errors))


def learner(obs_space, action_space, network=None, algo=None, seed=0, own=None, **build):
    """A policy and its learner; `network` changes `PLAIN`."""
    policy = SoftPolicy.build(
        Layout(obs_space),
        Layout(action_space),
        NetworkConfig(**{**PLAIN, **(network or {})}),
        seed,
        own,
        **build,
    )
    return SAC(policy, algo or SACConfig())
