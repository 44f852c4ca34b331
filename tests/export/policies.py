"""Policies of every kind, with weights and statistics that are not what they started as."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlgym.agents.policy import ActorCritic
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig
from rlgym.spaces import Layout

VECTOR = spaces.Box(-5.0, 5.0, (6,), np.float32)
BOUNDED = spaces.Box(np.float32([-1.0, -2.0, 0.5]), np.float32([1.0, 3.0, 0.75]))
OPEN = spaces.Box(-np.inf, np.inf, (2, 2), np.float32)
NESTED = spaces.Dict(
    {
        "choice": spaces.Discrete(4, start=2),
        "many": spaces.MultiDiscrete([3, 2]),
        "flags": spaces.MultiBinary(3),
        "grid": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
        "picture": spaces.Box(0, 255, (12, 14, 3), np.uint8),
        "privileged": spaces.Box(-1.0, 1.0, (5,), np.float32),
    }
)
MIXED = spaces.Dict(
    {
        "turn": BOUNDED,
        "gear": spaces.Discrete(3, start=-1),
        "lights": spaces.MultiBinary(2),
        "tools": spaces.MultiDiscrete([2, 4], start=[1, 0]),
    }
)
PLAIN = {"hidden": (16, 8), "normalize_obs": True}
SOFT = {**PLAIN, "squash": True, "std": "state", "activation": "relu"}

KINDS: dict[str, tuple[gymnasium.Space, gymnasium.Space, dict[str, Any], type]] = {
    "clipped": (VECTOR, BOUNDED, PLAIN, ActorCritic),
    "open": (VECTOR, OPEN, {**PLAIN, "activation": "elu"}, ActorCritic),
    "squashed": (VECTOR, BOUNDED, {**PLAIN, "squash": True, "activation": "silu"}, ActorCritic),
    "state-std": (VECTOR, BOUNDED, {**PLAIN, "std": "state"}, ActorCritic),
    "gsde": (VECTOR, BOUNDED, {**PLAIN, "std": "gsde"}, ActorCritic),
    "linear": (VECTOR, BOUNDED, {"hidden": ()}, ActorCritic),
    "discrete": (VECTOR, spaces.Discrete(5, start=3), PLAIN, ActorCritic),
    "multi-discrete": (VECTOR, spaces.MultiDiscrete([3, 4]), PLAIN, ActorCritic),
    "multi-binary": (VECTOR, spaces.MultiBinary(4), PLAIN, ActorCritic),
    "nested": (NESTED, MIXED, PLAIN, ActorCritic),
    "nature": (spaces.Box(0, 255, (4, 40, 44), np.uint8), spaces.Discrete(3), PLAIN, ActorCritic),
    "gru": (VECTOR, BOUNDED, {**PLAIN, "recurrent": "gru", "recurrent_size": 7}, ActorCritic),
    "lstm": (VECTOR, BOUNDED, {**PLAIN, "recurrent": "lstm", "recurrent_size": 7}, ActorCritic),
    "sac": (VECTOR, BOUNDED, SOFT, SoftPolicy),
    "sac-gsde": (VECTOR, BOUNDED, {**SOFT, "std": "gsde"}, SoftPolicy),
    "sac-mixed": (NESTED, MIXED, SOFT, SoftPolicy),
}


def make_policy(kind: str, seed: int = 0) -> Any:
    """A policy whose parameters, statistics and heads have all been moved by noise."""
    observations, actions, settings, cls = KINDS[kind]
    config = NetworkConfig(**settings)
    policy = cls.build(Layout(observations), Layout(actions), config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.5 * noise / max(parameter[0].numel(), 4) ** 0.5)
        for norm in policy.obs_norm.values():
            norm.update(2.0 * torch.randn(50, *norm.shape, generator=generator) + 0.7)
    return policy


def observations(kind: str, rows: int, seed: int = 1) -> Any:
    """(rows, ...) observations of the policy's space: a tensor, or a flat dict of them."""
    space = KINDS[kind][0]
    layout = Layout(space)
    space.seed(seed)
    arrays = layout.alloc(rows)
    for row in range(rows):
        layout.write(space.sample(), arrays, row)
    if isinstance(arrays, dict):
        return {key: torch.from_numpy(array) for key, array in arrays.items()}
    return torch.from_numpy(arrays)
