"""Robots that a policy can run on; each driver loads what it needs when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ..errors import DeployError
from .robot import Clock, Robot, Settings

DRIVERS = {
    "dry-run": ("dry_run", "DryRun"),
    "bullet": ("bullet", "BulletRobot"),
    "mujoco": ("mujoco", "MujocoRobot"),
    "udp": ("udp", "UdpRobot"),
    "ros2": ("ros2", "Ros2Robot"),
}
"""By name: the module in this package, and the class."""


def make_robot(name: str, manifest: Mapping[str, Any], clock: Clock, settings: Settings) -> Robot:
    """Make the driver of a robot.

    Args:
        name: of `DRIVERS`, or "package.module:Class" of a driver of one's own.
        manifest: of the bundle.
        clock: the loop's.
        settings: what the command line said.

    Raises:
        DeployError: there is no such driver, or it cannot be made.
    """
    if name in DRIVERS:
        module, kind = DRIVERS[name]
        return getattr(importlib.import_module(f".{module}", __name__), kind)(
            manifest, clock, settings
        )
    module, _, kind = name.partition(":")
    if not kind:
        raise DeployError(
            f"there is no robot '{name}': use {', '.join(DRIVERS)}, or package.module:Class"
        )
    try:
        driver = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise DeployError(f"robot '{name}' cannot be loaded ({error})") from None
    return driver(manifest, clock, settings)


def optional(module: str, package: str) -> Any:
    """Import what only one driver needs.

    Raises:
        DeployError: it is not installed; names the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeployError(f"this robot needs {module} ({error}): pip install {package}") from None
