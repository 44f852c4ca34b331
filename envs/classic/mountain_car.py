"""An underpowered car in a valley (Moore 1990, "Efficient memory-based learning for robots").

Two worlds of one valley: pushed left, not at all or right; or with any force up to a bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

LEFT, RIGHT = -1.2, 0.6
MAX_SPEED = 0.07
GRAVITY = 0.0025
START = (-0.6, -0.4)


class _Car:
    """What both worlds have in common; the state is position and velocity: (N, 2).

    Args:
        goal_velocity: least velocity at the goal.
    """

    GOAL: float
    """Where it is."""
    start_random = 1
    step_random = 0

    def __init__(self, goal_velocity: float = 0.0) -> None:
        low, high = np.array([LEFT, -MAX_SPEED]), np.array([RIGHT, MAX_SPEED])
        self.observation_space = spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        self.goal_velocity = goal_velocity

    def start(self, random: Tensor) -> Tensor:
        """At rest near the bottom."""
        low, high = START
        position = random[:, 0] * (high - low) + low
        return torch.stack((position, torch.zeros_like(position)), 1)

    def observe(self, state: Tensor) -> Tensor:
        """All of it."""
        return state

    def _roll(self, state: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a push (N,), and whether that is the goal; a wall on the left stops."""
        position, velocity = state.unbind(1)
        velocity = velocity + push - GRAVITY * torch.cos(3.0 * position)
        velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
        position = (position + velocity).clamp(LEFT, RIGHT)
        stopped = (position <= LEFT) & (velocity < 0.0)
        velocity = torch.where(stopped, 0.0, velocity)
        there = (position >= self.GOAL) & (velocity >= self.goal_velocity)
        return torch.stack((position, velocity), 1), there


class MountainCar(_Car):
    """MountainCar-v0: a push to the left, none, or one to the right."""

    FORCE = 0.001
    GOAL = 0.5
    max_episode_steps = 200
    action_space = spaces.Discrete(3)

    def step(self, state: Tensor, actions: Any, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every step costs 1."""
        state, there = self._roll(state, (actions - 1) * self.FORCE)
        return state, -torch.ones_like(state[:, 0]), there


class MountainCarContinuous(_Car):
    """MountainCarContinuous-v0: any force up to a bound."""

    POWER = 0.0015
    GOAL = 0.45
    max_episode_steps = 999
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, state: Tensor, actions: Any, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The goal is worth 100, force costs its square."""
        action = actions[:, 0]
        state, there = self._roll(state, action.clamp(-1.0, 1.0) * self.POWER)
        return state, 100.0 * there - 0.1 * action.square(), there
