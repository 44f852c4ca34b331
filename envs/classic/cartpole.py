"""A pole on a cart (Barto, Sutton and Anderson 1983, doi 10.1109/TSMC.1983.6313077)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

GRAVITY = 9.8
POLE_MASS = 0.1
MASS = POLE_MASS + 1.0
HALF_LENGTH = 0.5
POLE_MOMENT = POLE_MASS * HALF_LENGTH
FORCE = 10.0
TAU = 0.02
X_LIMIT = 2.4
ANGLE_LIMIT = 12 * 2 * math.pi / 360
START = 0.05
"""Bound of each number at the start."""


class CartPole:
    """CartPole-v1; the state is x, its velocity, the pole's angle, its velocity: (N, 4).

    Args:
        sutton_barto_reward: 0 a step and -1 at the end, in place of 1 a step.
    """

    max_episode_steps = 500
    start_random = 4
    step_random = 0

    def __init__(self, sutton_barto_reward: bool = False) -> None:
        high = np.array([X_LIMIT * 2, np.inf, ANGLE_LIMIT * 2, np.inf], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(2)
        self.sutton_barto_reward = sutton_barto_reward

    def start(self, random: Tensor) -> Tensor:
        """Near upright, near the middle."""
        return random * (2 * START) - START

    def step(self, state: Tensor, actions: Any, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Euler's step (Florian 2005, coneural.org/florian/papers/05_cart_pole.pdf)."""
        _, velocity, angle, spin = state.unbind(1)
        sin, cos = angle.sin(), angle.cos()
        # rsub(x, a, alpha=b) is a - b x: one operation instead of two
        force = torch.rsub(actions, -FORCE / MASS, alpha=-2.0 * FORCE / MASS)
        push = torch.addcmul(force, spin * spin, sin, value=POLE_MOMENT / MASS)
        lever = torch.rsub(cos * cos, 4.0 / 3.0 * HALF_LENGTH, alpha=POLE_MOMENT / MASS)
        turn = torch.addcmul(GRAVITY * sin, cos, push, value=-1.0) / lever
        pull = torch.addcmul(push, turn, cos, value=-POLE_MOMENT / MASS)
        after = torch.add(state, torch.stack((velocity, pull, spin, turn), 1), alpha=TAU)
        beyond = after.abs()
        terminated = (beyond[:, 0] > X_LIMIT) | (beyond[:, 2] > ANGLE_LIMIT)
        if self.sutton_barto_reward:
            return after, -terminated.to(torch.float32), terminated
        return after, torch.ones_like(angle), terminated

    def observe(self, state: Tensor) -> Tensor:
        """All of it."""
        return state
