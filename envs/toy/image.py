"""A tiny picture: find the dot."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Dot(gymnasium.Env):
    """A bright 2x2 dot on dim noise; naming its quadrant (Discrete(4), row by row) earns 1.

    Args:
        size: height and width in pixels, even.
        channels_first: (1, H, W) instead of (H, W, 1).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, size: int = 16, channels_first: bool = False, render_mode: str | None = None
    ) -> None:
        """Set up a uint8 image space."""
        self.size, self.channels_first, self.render_mode = size, channels_first, render_mode
        shape = (1, size, size) if channels_first else (size, size, 1)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Draw the first picture."""
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Judge the quadrant and draw the next picture."""
        reward = float(action == self._quadrant)
        return self._draw(), reward, False, False, {}

    def render(self) -> np.ndarray:
        """Give the picture as (H, W, 3)."""
        return np.repeat(self._picture[:, :, None], 3, axis=2)

    def _draw(self) -> np.ndarray:
        half = self.size // 2
        self._picture = self.np_random.integers(0, 64, (self.size, self.size), dtype=np.uint8)
        self._quadrant = int(self.np_random.integers(4))
        row, column = (
            self.np_random.integers(0, half - 1, 2) + np.array(divmod(self._quadrant, 2)) * half
        )
        self._picture[row : row + 2, column : column + 2] = 255
        picture = self._picture.copy()
        return picture[None] if self.channels_first else picture[:, :, None]
