"""No robot at all: joints that are at once where they are told to be, or recorded observations.

It shows that a bundle loads, keeps its rate and passes the guards before anything can move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..observation import (
    ANGULAR_VELOCITY,
    JOINT_ANGLE,
    JOINT_VELOCITY,
    LINEAR_VELOCITY,
    ORIENTATION,
    POSITION,
    Joints,
)
from .robot import Clock, Command, Reading, Settings


class DryRun:
    """Stands upright where it is, its joints being where the last command wanted them.

    With a policy that has no joints of ours, it shows the observations that were recorded when the
    bundle was made, one after the other.
    """

    name = "dry-run"

    def __init__(self, manifest: Mapping[str, Any], clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._golden = dict(settings.golden or {})
        self._row = 0
        robot = manifest.get("robot")
        self._values: dict[str, np.ndarray] = {}
        self.joints: tuple[str, ...] = ()
        if robot is None:
            self._values = {name: array[0] for name, array in self._golden.items()}
        else:
            joints = Joints(robot)
            self.joints, self._has_balls = joints.names, joints.has_balls
            self._values = {
                ORIENTATION: np.array([0.0, 0.0, 0.0, 1.0]),
                ANGULAR_VELOCITY: np.zeros(3),
                LINEAR_VELOCITY: np.zeros(3),
                JOINT_ANGLE: np.array(robot["default_joint_pos"], np.float64),
                JOINT_VELOCITY: np.zeros(joints.nv),
                POSITION: np.array([0.0, 0.0, float(robot["init_height"])]),
            }
            self._lower, self._upper = np.array(robot["lower"]), np.array(robot["upper"])
        self.sensors = {name: int(value.size) for name, value in self._values.items()}
        self._time = clock.now()

    def read(self) -> Reading:
        """See `Robot`."""
        return Reading(self._clock.now(), dict(self._values))

    def write(self, command: Command) -> None:
        """See `Robot`."""
        if not self.joints:
            self._row += 1
            for name, array in self._golden.items():
                self._values[name] = array[self._row % len(array)]
            return
        if self._has_balls or command.mode == "damp":
            return
        now = self._clock.now()
        target = np.clip(command.target, self._lower, self._upper)
        moved = target - self._values[JOINT_ANGLE]
        self._values[JOINT_VELOCITY] = moved / max(now - self._time, 1e-3)
        self._values[JOINT_ANGLE], self._time = target, now

    def close(self) -> None:
        """See `Robot`."""
