"""Some actions are forbidden at each step, and only the mask tells which."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Masked(gymnasium.Env):
    """Choose the highest score among the allowed choices, for each component of the action.

    Observation: the scores, one per choice. `info["action_mask"]`: bool, one flag per choice, True
    means allowed; at least one choice of each component is allowed. Reward: the share of components
    that chose the best allowed score.

    Args:
        choices: number of choices per component; one makes a Discrete action, more a MultiDiscrete.
        strict: raise on a forbidden choice; otherwise it costs 1 per component.
    """

    def __init__(self, choices: tuple[int, ...] = (5,), strict: bool = True) -> None:
        """Set up the spaces."""
        self.choices, self.strict = tuple(choices), strict
        self.observation_space = spaces.Box(0.0, 1.0, (sum(self.choices),), np.float32)
        single = len(self.choices) == 1
        self.action_space = (
            spaces.Discrete(self.choices[0]) if single else spaces.MultiDiscrete(list(self.choices))
        )
        self._starts = np.cumsum((0, *self.choices[:-1]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Draw scores and a mask."""
        super().reset(seed=seed)
        return self._draw()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Judge the action by the mask and the scores that were shown.

        Raises:
            ValueError: a forbidden choice, when `strict`.
        """
        reward = 0.0
        for start, count, choice in zip(
            self._starts, self.choices, np.atleast_1d(action), strict=True
        ):
            allowed = self._mask[start : start + count]
            if not allowed[choice]:
                if self.strict:
                    raise ValueError(
                        f"choice {choice} is forbidden by the action mask {allowed.tolist()}"
                    )
                reward -= 1.0
                continue
            best = np.where(allowed, self._scores[start : start + count], -1.0).argmax()
            reward += float(choice == best)
        obs, info = self._draw()
        return obs, reward / len(self.choices), False, False, info

    def _draw(self) -> tuple[np.ndarray, dict]:
        self._scores = self.np_random.random(sum(self.choices), dtype=np.float32)
        self._mask = self.np_random.random(sum(self.choices)) < 0.5
        for start, count in zip(self._starts, self.choices, strict=True):
            self._mask[start + self.np_random.integers(count)] = True
        return self._scores.copy(), {"action_mask": self._mask.copy()}
