"""Recall a cue after it is gone: solvable with memory only."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Memory(gymnasium.Env):
    """The first observation shows a cue; `delay` steps later a flag asks for it.

    An observation is a one-hot cue (zeros after the first step) and the flag. Only the action that
    answers the flag is rewarded: 1 when it names the cue, else 0. Then the episode terminates. All
    questions look alike, so a policy without memory earns `1 / num_cues` on average.

    Args:
        delay: steps between the cue and the question, at least 1.
        num_cues: number of cues and of actions.
    """

    def __init__(self, delay: int = 4, num_cues: int = 2) -> None:
        """Set up the spaces."""
        self.delay, self.num_cues = delay, num_cues
        self.observation_space = spaces.Box(0.0, 1.0, (num_cues + 1,), np.float32)
        self.action_space = spaces.Discrete(num_cues)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Draw a cue and show it."""
        super().reset(seed=seed)
        self._cue, self._t = int(self.np_random.integers(self.num_cues)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Wait, or judge the answer."""
        asked = self._t == self.delay
        right = asked and action == self._cue
        self._t += 1
        return self._observe(), float(right), asked, False, {"is_success": right} if asked else {}

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.num_cues + 1, np.float32)
        if self._t == 0:
            obs[self._cue] = 1.0
        obs[-1] = self._t == self.delay
        return obs
