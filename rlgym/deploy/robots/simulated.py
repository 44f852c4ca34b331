"""What simulated robots have in common: the model's file, the servo's targets, sensors that lag.

A simulation moves on by one control step with each command, so that a loop around it does step by
step what training did.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..bundle import finite
from ..errors import DeployError
from ..observation import (
    ANGULAR_VELOCITY,
    JOINT_ANGLE,
    JOINT_VELOCITY,
    ORIENTATION,
    POSITION,
    Joints,
)
from .robot import Clock, Command, Reading, Settings

State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Position (3,), orientation (4,), angular velocity in the base's frame (3,), joint angles and
velocities (n,): all as the manifest has them."""
_NAMES = (POSITION, ORIENTATION, ANGULAR_VELOCITY, JOINT_ANGLE, JOINT_VELOCITY)


class Simulated(ABC):
    """A robot in a physics engine; an engine adds `advance` and `state`.

    Args:
        manifest: of the bundle.
        clock: the loop's.
        settings: what the command line said.
        longest: seconds of a physics step that the engine can take at most.

    Raises:
        DeployError: the bundle's robot cannot be simulated.
    """

    name = "simulated"

    def __init__(
        self,
        manifest: Mapping[str, Any],
        clock: Clock,
        settings: Settings,
        longest: float = math.inf,
    ) -> None:
        robot, timing = manifest.get("robot"), manifest.get("timing")
        world = manifest.get("simulation")
        if robot is None or timing is None or world is None:
            raise DeployError(
                "the bundle describes no robot that could be simulated: use --robot dry-run or udp"
            )
        shapes = Joints(robot)
        if shapes.has_balls:
            raise DeployError(
                f"robot '{robot['name']}' has ball joints, which --robot {self.name} does not "
                "move: use --robot dry-run"
            )
        self.robot, self.world, self._clock = robot, world, clock
        self.joints = shapes.names
        self.sensors = {POSITION: 3, ORIENTATION: 4, ANGULAR_VELOCITY: 3}
        self.sensors |= {JOINT_ANGLE: shapes.nq, JOINT_VELOCITY: shapes.nv}
        self.model = model_path(robot, settings)
        step = finite(timing["physics_dt"], "timing.physics_dt")
        parts = max(1, math.ceil(step / longest - 1e-9))
        self.time_step, self.substeps = step / parts, int(timing["decimation"]) * parts
        self.sign = np.array(robot["sign"], np.float64)
        self.offset = np.array(robot["offset"], np.float64)
        self.torque_limit = (
            np.array(robot["torque_limit"], np.float64) if world["limit_torque"] else None
        )
        self._interpolate = bool(timing["interpolate"])
        self._clip = timing["target_clip"]
        self._lag = finite(world["latency"], "simulation.latency") / self.time_step
        self._kept = math.ceil(self._lag) + 1
        self._trail: list[State] = []

    @abstractmethod
    def advance(self, target: np.ndarray, stiffness: np.ndarray, damping: np.ndarray) -> None:
        """Simulate one physics step; `target` (n,) rad as the manifest has angles."""

    @abstractmethod
    def state(self) -> State:
        """Return what is the case now."""

    def begin(self) -> None:
        """Forget what the sensors showed: the robot was put somewhere else."""
        self._trail = [self.state()] * self._kept

    def read(self) -> Reading:
        """See `Robot`."""
        shown: dict[str, np.ndarray] = dict(zip(_NAMES, self._delayed(), strict=True))
        return Reading(self._clock.now(), shown)

    def write(self, command: Command) -> None:
        """See `Robot`; simulates one control step."""
        start, step = command.previous, command.target - command.previous
        for k in range(1, self.substeps + 1):
            goal = command.target
            if self._interpolate:
                goal = start + (k / self.substeps) * step
            if self._clip is not None:  # targets stay near the angles that the sensors show
                shown = self._delayed()[3]
                goal = np.clip(goal, shown - self._clip, shown + self._clip)
            self.advance(goal, command.stiffness, command.damping)
            if k + self._kept > self.substeps or self._clip is not None:
                self._trail.append(self.state())
                del self._trail[: -self._kept]

    def close(self) -> None:
        """See `Robot`."""
        self._trail.clear()

    def _delayed(self) -> State:
        whole = math.floor(self._lag + 1e-9)
        share = self._lag - whole
        newer = self._trail[-1 - whole]
        if share < 1e-6:
            return newer
        older = self._trail[-2 - whole]
        position, orientation, *rest = (
            a + share * (b - a) for a, b in zip(newer, older, strict=True)
        )
        return position, orientation / np.linalg.norm(orientation), rest[0], rest[1], rest[2]


def model_path(robot: Mapping[str, Any], settings: Settings) -> Path:
    """Find a robot's model file: a bundle can only name one inside pybullet_data.

    Raises:
        DeployError: it is not there; says what to do.
    """
    if settings.model:
        path = Path(settings.model)
        if not path.is_file():
            raise DeployError(f"there is no model file {path}")
        return path
    name = PurePosixPath(robot["model"])
    if robot["model_source"] != "pybullet_data":
        raise DeployError(f"the bundle's robot is in a file of its own, {name}: give --model FILE")
    data = importlib.util.find_spec("pybullet_data")
    if data is None or not data.submodule_search_locations:
        raise DeployError("the robot's model is in pybullet_data: pip install pybullet")
    if name.is_absolute() or ".." in name.parts or "\\" in str(name):
        raise DeployError(f"the bundle names a model outside of pybullet_data: {name}")
    path = Path(data.submodule_search_locations[0]) / name
    if not path.is_file():
        raise DeployError(f"pybullet_data has no model {name}: give --model FILE")
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what a library written in C prints from our output."""
    sys.stdout.flush()
    kept: list[tuple[int, int]] = []
    hole = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            with contextlib.suppress(OSError):  # a service may have neither
                kept.append((stream, os.dup(stream)))
                os.dup2(hole, stream)
        yield
    finally:
        for stream, own in kept:
            os.dup2(own, stream)
            os.close(own)
        os.close(hole)
