"""A robot that breaks on purpose, to see that the guards hold: `rlgym-deploy --inject tilt@2`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import DeployError
from ..observation import JOINT_ANGLE, ORIENTATION
from .robot import Clock, Command, LinkError, Reading, Robot

KINDS = ("stale", "non-finite", "jump", "shape", "link", "overrun", "limit", "tilt")
"""What can be broken; each trips the guard of that name."""


class Faulty:
    """A robot whose sensors, link or timing break at some time.

    Args:
        robot: the sound one.
        kind: of `KINDS`.
        after: seconds of the clock until it breaks.
        clock: the loop's.

    Raises:
        DeployError: there is no such fault, or the robot lacks what would break.
    """

    def __init__(self, robot: Robot, kind: str, after: float, clock: Clock) -> None:
        if kind not in KINDS:
            raise DeployError(f"there is no fault '{kind}': use {', '.join(KINDS)}")
        needs = {"jump": JOINT_ANGLE, "limit": JOINT_ANGLE, "tilt": ORIENTATION}
        if kind in needs and needs[kind] not in robot.sensors:
            raise DeployError(f"'{kind}' breaks sensor {needs[kind]}, which this robot lacks")
        self._robot, self._kind, self._clock = robot, kind, clock
        self._from = clock.now() + after
        self.name, self.joints, self.sensors = robot.name, robot.joints, robot.sensors

    def read(self) -> Reading:
        """See `Robot`."""
        reading = self._robot.read()
        now = self._clock.now()
        if now < self._from:
            return reading
        values = dict(reading.values)
        first = next(iter(values))
        if self._kind == "link":
            raise LinkError("the robot does not answer (injected)")
        if self._kind == "stale":
            return replace(reading, time=now - 10.0)
        if self._kind == "overrun":
            self._clock.wait_until(now + 1.0)
            return replace(self._robot.read(), time=self._clock.now())
        if self._kind == "non-finite":
            values[first] = np.full_like(values[first], np.nan, np.float64)
        elif self._kind == "shape":
            values[first] = np.append(values[first], values[first].flat[0])
        elif self._kind == "tilt":
            half = 0.5 * math.pi / 2
            values[ORIENTATION] = np.array([math.sin(half), 0.0, 0.0, math.cos(half)])
        else:
            q = np.array(values[JOINT_ANGLE], np.float64)
            q[-1] += 10.0
            if self._kind == "jump":  # within limits, but nothing moves so fast
                q[-1] = values[JOINT_ANGLE][-1]
                q[1] += 1.9
            values[JOINT_ANGLE] = q
        return replace(reading, values=values)

    def write(self, command: Command) -> None:
        """See `Robot`."""
        self._robot.write(command)

    def close(self) -> None:
        """See `Robot`."""
        self._robot.close()
