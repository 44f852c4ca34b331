"""Endings that are not the end: the value of a truncated state."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class TruncationTrap(gymnasium.Env):
    """Reward 1 at every step; each step ends the episode with probability `probability`.

    The observation is constant and actions do nothing, so the value is one number. With
    `end="truncated"` time merely ran out: it is `1 / (1 - gamma)`. With `end="terminated"` it is
    `1 / (1 - gamma * (1 - probability))`. A learner that confuses the two learns the other number.

    Args:
        end: "truncated" or "terminated".
        probability: chance that a step is the episode's last.
    """

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, end: str = "truncated", probability: float = 0.2) -> None:
        """Remember how episodes end."""
        if end not in ("truncated", "terminated"):
            raise ValueError(f'end is {end!r}: use "truncated" or "terminated"')
        self.end, self.probability = end, probability

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Pay 1 and perhaps end."""
        ended = bool(self.np_random.random() < self.probability)
        terminated = ended and self.end == "terminated"
        return np.ones(1, np.float32), 1.0, terminated, ended and not terminated, {}
