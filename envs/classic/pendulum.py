"""A pendulum to be swung up and held (Gymnasium's Pendulum-v1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
DT = 0.05


class Pendulum:
    """Pendulum-v1 of mass 1 and length 1; the state is the angle, in [-pi, pi), and its velocity.

    Gymnasium lets the angle grow; nothing depends on the turns, and float32 keeps its digits so.

    Args:
        g: gravity, m/s^2.
    """

    max_episode_steps = 200
    start_random = 2
    step_random = 0

    def __init__(self, g: float = 10.0) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)
        self.g = g

    def start(self, random: Tensor) -> Tensor:
        """Any angle, at most 1 rad/s."""
        angle, speed = random.unbind(1)
        return torch.stack(((2.0 * angle - 1.0) * math.pi, 2.0 * speed - 1.0), 1)

    def step(self, state: Tensor, actions: Any, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Semi-implicit Euler; the reward is of the state before the step."""
        angle, speed = state.unbind(1)
        torque = actions[:, 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        cost = angle.square() + 0.1 * speed.square() + 0.001 * torque.square()
        faster = speed + (1.5 * self.g * angle.sin() + 3.0 * torque) * DT
        faster = faster.clamp(-MAX_SPEED, MAX_SPEED)
        further = angle + faster * DT
        further = torch.remainder(further + math.pi, 2.0 * math.pi) - math.pi
        never = torch.zeros_like(angle, dtype=torch.bool)
        return torch.stack((further, faster), 1), -cost, never

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of the angle, and its velocity."""
        angle, speed = state.unbind(1)
        return torch.stack((angle.cos(), angle.sin(), speed), 1)
