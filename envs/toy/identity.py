"""Repeat what you see: the smallest task for each kind of action."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

KINDS: dict[str, spaces.Space] = {
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([3, 2]),
    "multibinary": spaces.MultiBinary(3),
}


class Identity(gymnasium.Env):
    """A random observation each step; the action that equals it earns the most.

    The reward is the share of components that match; for `kind="box"` it is 1 minus the mean
    absolute difference. No action changes the next observation, so the best return of an episode
    is its length.

    Args:
        kind: "box", "discrete", "multidiscrete" or "multibinary": both spaces.
    """

    def __init__(self, kind: str = "discrete") -> None:
        """Take both spaces from `KINDS`."""
        self.kind = kind
        self.observation_space = KINDS[kind]
        self.action_space = KINDS[kind]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict]:
        """Draw the first observation."""
        super().reset(seed=seed)
        self._obs = self._draw()
        return self._obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Compare the action with the last observation and draw the next."""
        if self.kind == "box":
            reward = 1.0 - float(np.abs(np.clip(action, -1, 1) - self._obs).mean())
        else:
            reward = float(np.mean(np.asarray(action) == self._obs))
        self._obs = self._draw()
        return self._obs, reward, False, False, {}

    def _draw(self) -> Any:
        # not observation_space.sample(): reset seeds np_random only, so that could not be replayed
        if self.kind == "box":
            return self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.kind == "discrete":
            return int(self.np_random.integers(4))
        if self.kind == "multidiscrete":
            return self.np_random.integers([3, 2])
        return self.np_random.integers(0, 2, 3, dtype=np.int8)
