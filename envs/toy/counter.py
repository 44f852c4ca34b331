"""A world that says where it is, for tests of the machinery around it."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observation (name, t); reward `t + action / 2`; terminated or truncated, by the name.

    `name`, below 1000, is drawn at reset and `t` counts the steps of the episode. The first draw
    after `reset(seed=s)` is `np.random.default_rng(s).integers(1000)`. An episode lasts
    `length + name % 3` steps, so that slots end apart: terminated when the name is even, truncated
    when it is odd. All numbers are exact in float32. `info["is_success"]` comes with the last step
    of an episode.

    Args:
        length: steps of the shortest episode.
        step_seconds: time that each step takes, busy waiting (a world that costs something).
    """

    observation_space = spaces.Box(0.0, 1000.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 5, step_seconds: float = 0.0) -> None:
        """Start before the first episode."""
        self.length, self.step_seconds = length, step_seconds
        self.seed: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Draw a name and start counting."""
        super().reset(seed=seed)
        if seed is not None:
            self.seed = seed
        self.name, self.t = int(self.np_random.integers(1000)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Count a step."""
        if self.step_seconds:
            until = time.perf_counter() + self.step_seconds
            while time.perf_counter() < until:
                pass
        self.t += 1
        ended = self.t >= self.length + self.name % 3
        terminated = ended and self.name % 2 == 0
        info = {"is_success": terminated} if ended else {}
        return (
            self._observe(),
            self.t + 0.5 * int(action),
            terminated,
            ended and not terminated,
            info,
        )

    def _observe(self) -> np.ndarray:
        return np.array([self.name, self.t], np.float32)


class RewardTerms(gymnasium.Env):
    """A reward that is the sum of named terms, which `info["reward_terms"]` lists.

    A walk on a line: the action in [-1, 1] is the step made; "progress" pays it, "effort" charges
    its square.
    """

    metadata = {"render_modes": [], "reward_terms": ("progress", "effort")}
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start near the origin."""
        super().reset(seed=seed)
        self._x = float(self.np_random.uniform(-1, 1))
        return np.array([self._x], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Walk and itemise the reward."""
        move = float(np.clip(action[0], -1, 1))
        self._x += move
        terms = {"progress": move, "effort": -0.5 * move * move}
        return (
            np.array([self._x], np.float32),
            sum(terms.values()),
            False,
            False,
            {"reward_terms": terms},
        )
