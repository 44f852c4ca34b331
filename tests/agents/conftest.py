"""A small rollout of random numbers, with the actions that the policy itself takes."""

import numpy as np
import pytest
import torch

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.spaces import Layout, tree_items


def fill(buffer, obs_layout, action_layout, policy, seed=0):
    """Observations drawn from the space, actions from the policy, rewards from a normal."""
    T, N = buffer.num_steps, buffer.num_envs
    rng = np.random.default_rng(seed)
    obs_layout.space.seed(seed)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in tree_items(buffer.all_obs):
        leaf = next(leaf for leaf in obs_layout.leaves if leaf.key == key)
        draws = [leaf.space.sample() for _ in range((T + 1) * N)]
        tensor.copy_(torch.as_tensor(np.stack(draws)).view(tensor.shape))
    ends = torch.as_tensor(rng.random((T, N)))
    buffer.terminated.copy_(ends < 0.1)
    buffer.truncated.copy_((ends > 0.1) & (ends < 0.15))
    buffer.bootstrap.copy_(torch.where(buffer.truncated, 0.5, 0.0))
    buffer.episode_start[0] = True
    buffer.episode_start[1:] = (buffer.terminated | buffer.truncated)[:-1]
    buffer.last_start.copy_((buffer.terminated | buffer.truncated)[-1])
    buffer.rewards.copy_(torch.as_tensor(rng.normal(size=(T, N))))
    if buffer.action_mask is not None:
        buffer.all_masks.copy_(torch.as_tensor(rng.random(tuple(buffer.all_masks.shape)) < 0.7))
    noise = policy.noise(T, N, generator)
    state = policy.initial_state(N)
    for t in range(T):
        obs = {key: x[t] for key, x in tree_items(buffer.obs)}
        mask = None if buffer.action_mask is None else buffer.action_mask[t]
        _, raw, state = policy.act(
            obs.get("", obs), noise[t, slice(0, N)], state, buffer.episode_start[t], mask
        )
        for (_, target), (_, action) in zip(
            tree_items(buffer.actions), tree_items(raw), strict=True
        ):
            target[t] = action


@pytest.fixture
def rollout():
    """`rollout(obs_space, action_space, ...)` -> a learner, a filled buffer, a generator."""

    def build(
        obs_space,
        action_space,
        network=None,
        algo=None,
        num_steps=16,
        num_envs=4,
        masks=False,
        seed=0,
        own=None,
        symmetry=None,
    ):
        layouts = Layout(obs_space), Layout(action_space)
        policy = ActorCritic.build(*layouts, network or NetworkConfig(), seed, own)
        size = layouts[1].mask_size if masks else 0
        buffer = RolloutBuffer(num_steps, num_envs, *layouts, "cpu", size, policy.state_shape)
        fill(buffer, *layouts, policy, seed)
        learner = PPO(policy, algo or PPOConfig(), symmetry=symmetry)
        return learner, buffer, torch.Generator().manual_seed(seed)

    return build
