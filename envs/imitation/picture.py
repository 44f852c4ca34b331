"""Pictures of one slot of a task: the robot, and the reference as a ghost."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgym.envs.imitation.task import ImitationTask
from rlgym.errors import ConfigError, StateError

MODES = ("human", "rgb_array")
"""Render modes."""


def check_mode(mode: str | None) -> None:
    """Make sure that a render mode exists.

    Raises:
        ConfigError: it does not.
    """
    if mode not in (None, *MODES):
        raise ConfigError(f"there is no render_mode {mode!r}: use {' or '.join(map(repr, MODES))}")


class Picture:
    """Draws slots of a task; what it draws with is made by the first picture.

    Args:
        task: to be seen.
    """

    def __init__(self, task: ImitationTask) -> None:
        self.task = task
        self._view: Any = None
        self._window: Any = None

    def frame(self, row: int) -> np.ndarray:
        """Return a picture of a slot, (H, W, 3) uint8.

        Raises:
            StateError: the task was not reset yet.
        """
        from rlgym.envs.physics.view import (
            View,
        )  # PyBullet's renderer, which training can do without

        if self._view is None:
            terrain = self.task.terrain or "flat"
            self._view = View(self.task.robot, terrain=terrain, ghost=True)
        return self._view.frame(*self._poses(row))

    def show(self, row: int) -> None:
        """Show a slot in a window.

        Raises:
            WorldError: there is no display.
        """
        from rlgym.envs.physics.view import Window

        if self._window is None:
            self._window = Window(self.task.robot, ghost=True)
        self._window.show(*self._poses(row))

    def _poses(self, row: int) -> tuple[Any, Any]:
        from rlgym.envs.physics.view import Pose

        state, ref = self.task.state, self.task.ref
        if state is None or ref is None:
            raise StateError("there is nothing to draw before the first reset: call reset() once")
        return (
            Pose(state.root_pos[row], state.root_quat[row], state.q[row]),
            Pose(ref.root_pos[row], ref.root_quat[row], ref.q[row]),
        )

    def close(self) -> None:
        """Close the window and the renderer."""
        for shown in (self._view, self._window):
            if shown is not None:
                shown.close()
        self._view = self._window = None
