"""What a robot is to the runtime: it can be read and told where its joints should be.

A new robot is one class with these members; `rlgym-deploy --robot package.module:Class` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import DeployError

Mode = Literal["run", "hold", "damp"]
"""Follow the policy; stay at the last sound target; no stiffness, only damping."""


class LinkError(DeployError):
    """The robot cannot be reached."""


@dataclass(frozen=True)
class Reading:
    """What the sensors showed."""

    time: float
    """When they did, in seconds of the loop's clock."""
    values: Mapping[str, np.ndarray]
    """By the sensors' names (see `observation`): SI units, angles as the manifest has them."""


@dataclass(frozen=True)
class Command:
    """What a robot is told."""

    mode: Mode
    action: Any
    """What the policy said, for a robot that has no joints of ours; None where there are."""
    target: np.ndarray
    """(nv,) rad of the joints, in the manifest's order, signs and zeros."""
    previous: np.ndarray
    """(nv,) the target before: where the way to the new one begins, for those who interpolate."""
    stiffness: np.ndarray
    """(nv,) N m/rad; 0 while only damped."""
    damping: np.ndarray
    """(nv,) N m s/rad."""


class Clock(Protocol):
    """Time, real or simulated."""

    def now(self) -> float:
        """Seconds; never goes back."""
        ...

    def wait_until(self, moment: float) -> None:
        """Return at that time, or at once when it is over."""
        ...


class Robot(Protocol):
    """A driver.

    Made as `Class(manifest, clock, settings)`: the bundle's manifest, the loop's clock, and what
    the command line said (`Settings`). It may not move anything before the first `write`.
    """

    name: str
    joints: tuple[str, ...]
    """The joints' names as the robot has them, in its order; () without any."""
    sensors: Mapping[str, int]
    """What it can read, and how many values each sensor gives."""

    def read(self) -> Reading:
        """Return the newest reading, at once.

        Raises:
            LinkError: the robot cannot be reached.
        """
        ...

    def write(self, command: Command) -> None:
        """Tell the robot what to do until the next command, and return at once.

        Raises:
            LinkError: the robot cannot be reached.
        """
        ...

    def close(self) -> None:
        """Let go of the robot."""
        ...


@dataclass(frozen=True)
class Settings:
    """What the command line said to a driver."""

    model: str = ""
    """Model file of the robot, where the bundle names one that is not in pybullet_data."""
    address: str = "127.0.0.1:9871"
    """HOST:PORT of a controller."""
    timeout: float = 5.0
    """Seconds to wait for a controller's first answer."""
    golden: Mapping[str, np.ndarray] | None = None
    """Recorded observations, (K, *shape) by input, for a robot that has no sensors of its own."""
