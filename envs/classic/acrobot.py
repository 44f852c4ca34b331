"""Two links, a motor between them (Sutton 1996, "Generalization in reinforcement learning")."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

DT = 0.2
GRAVITY = 9.8
LENGTH, CENTRE, MASS, INERTIA = 1.0, 0.5, 1.0, 1.0
"""Of both links: metres, metres to the centre of mass, kilograms, kg m^2."""
MAX_SPEEDS = (4.0 * math.pi, 9.0 * math.pi)
START = 0.1
"""Bound of each number at the start."""


class Acrobot:
    """Acrobot-v1, "book" dynamics; the state is two angles and their velocities: (N, 4)."""

    max_episode_steps = 500
    start_random = 4
    step_random = 0

    def __init__(self) -> None:
        high = np.array([1.0, 1.0, 1.0, 1.0, *MAX_SPEEDS], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(3)

    def start(self, random: Tensor) -> Tensor:
        """Nearly hanging, nearly at rest."""
        return random * (2 * START) - START

    def step(self, state: Tensor, actions: Any, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the classical Runge-Kutta method; 0 for the goal's step, else -1."""
        torque = (actions - 1).to(state.dtype)
        k1 = _rates(state, torque)
        k2 = _rates(state + (0.5 * DT) * k1, torque)
        k3 = _rates(state + (0.5 * DT) * k2, torque)
        k4 = _rates(state + DT * k3, torque)
        after = state + (DT / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        angles = torch.remainder(after[:, :2] + math.pi, 2.0 * math.pi) - math.pi
        fast, faster = MAX_SPEEDS
        first, second = after[:, 2].clamp(-fast, fast), after[:, 3].clamp(-faster, faster)
        after = torch.cat((angles, first[:, None], second[:, None]), 1)
        upper, lower = angles.unbind(1)
        above = -upper.cos() - (upper + lower).cos() > 1.0
        return after, above.to(state.dtype) - 1.0, above

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of each angle, and the velocities."""
        upper, lower, first, second = state.unbind(1)
        return torch.stack((upper.cos(), upper.sin(), lower.cos(), lower.sin(), first, second), 1)


def _rates(state: Tensor, torque: Tensor) -> Tensor:
    """Time derivative of states (N, 4) (Sutton and Barto, "Reinforcement learning")."""
    upper, lower, first, second = state.unbind(1)
    sin, cos = lower.sin(), lower.cos()
    coupling = MASS * LENGTH * CENTRE
    d1 = MASS * (CENTRE**2 + LENGTH**2 + CENTRE**2) + 2.0 * INERTIA + 2.0 * coupling * cos
    d2 = MASS * CENTRE**2 + INERTIA + coupling * cos
    # cos(x - pi / 2) is sin(x)
    pull2 = MASS * CENTRE * GRAVITY * (upper + lower).sin()
    pull1 = (
        pull2
        + (MASS * CENTRE + MASS * LENGTH) * GRAVITY * upper.sin()
        - coupling * sin * second * (second + 2.0 * first)
    )
    share = d2 / d1
    faster2 = (torque + share * pull1 - coupling * first * first * sin - pull2) / (
        MASS * CENTRE**2 + INERTIA - d2 * share
    )
    faster1 = -(d2 * faster2 + pull1) / d1
    return torch.stack((first, second, faster1, faster2), 1)
