"""Rigid-body engines behind one batched protocol, and the robots that they simulate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlgym.errors import MissingExtraError, WorldError
from rlgym.settings import suggest

if TYPE_CHECKING:
    from rlgym.envs.physics.engine import Actuation, Engine
    from rlgym.envs.physics.robots import Robot

ENGINES = {
    "mujoco": ("rlgym.envs.physics.mujoco", "MujocoEngine", "mujoco"),
    "warp": ("rlgym.envs.physics.warp", "WarpEngine", "gpu"),
    "bullet": ("rlgym.envs.physics.bullet", "BulletEngine", None),
    "pybullet": ("rlgym.envs.physics.bullet", "BulletEngine", None),
}
"""Module and class of each engine, and the extra that brings what it needs."""
PACKAGES = {"mujoco": "mujoco", "warp": "mujoco-warp", "mujoco_warp": "mujoco-warp"}
"""Top-level module -> the package that has it, of those that only an extra brings."""


def make_engine(
    name: str, robot: str | Robot, actuation: Actuation, num_worlds: int, **settings: Any
) -> Engine:
    """Make an engine by name.

    Args:
        name: "mujoco", "warp" or "bullet" ("pybullet" is the same).
        robot: Name or entry of the robot table.
        actuation: Servo and time steps.
        num_worlds: Copies of the robot.
        settings: Of every engine: `gravity`, `friction`, `collide`, `terrain`; others are in the
            engine's own docstring.

    Raises:
        WorldError: there is no such engine or robot, or the robot's model file does not fit it.
        MissingExtraError: the engine's package is not installed.
    """
    from rlgym.envs.physics.robots import get_robot

    if name not in ENGINES:
        raise WorldError(f"there is no engine '{name}': {suggest(name, ENGINES)}")
    module, kind, extra = ENGINES[name]
    try:
        engine = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        package = PACKAGES.get((error.name or "").partition(".")[0])
        if extra is None or package is None:
            raise
        raise MissingExtraError(
            f"the engine '{name}' needs the package {package}: pip install 'rlgym-lab[{extra}]'"
        ) from None
    return engine(get_robot(robot), actuation, num_worlds, **settings)
