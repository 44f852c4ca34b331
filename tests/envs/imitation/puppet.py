"""An engine without physics, on numpy or torch: joints are at their targets at once.

For what is not the physics': that the task does the same on both kinds of arrays, and what it does
with states that no simulation would give on request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgym.envs.imitation.arrays import choose_rows, namespace, renewed
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.physics.engine import Actuation, Randomization, Sensed, State
from rlgym.envs.physics.robots import Robot


class Puppet:
    """See `rlgym.envs.physics.engine.Engine`; the base glides on at the velocity of its reset."""

    name = "puppet"
    capabilities = frozenset({"push", "mass"})

    def __init__(self, robot: Robot, actuation: Actuation, num_worlds: int, like: Any) -> None:
        self.robot, self.actuation, self.num_worlds = robot, actuation, num_worlds
        xp = namespace(like)
        self._like = like
        widths = (3, 4, 3, 3, robot.nq, robot.nv)
        self._now = [xp.zeros((num_worlds, width), like) for width in widths]
        self.broken = xp.zeros((num_worlds,), like) > 0
        self.resets: list[tuple[Any, Randomization | None]] = []
        self.targets: list[Any] = []

    def reset(self, mask: Any, *first: Any) -> State:
        *start, randomization = first
        self.resets.append((namespace(mask).copy(mask), randomization))
        self._go([choose_rows(mask, new, old) for new, old in zip(start, self._now, strict=True)])
        self.broken = self.broken & ~mask
        return self._state()

    def step(self, previous: Any, target: Any, push: Any = None) -> State:
        self.targets.append((namespace(target).copy(previous), namespace(target).copy(target)))
        pos, quat, linvel, angvel, q, _ = self._now
        linvel = linvel if push is None else linvel + namespace(pos).astype(push, pos)
        dt = self.actuation.control_dt
        self._go([pos + dt * linvel, quat, linvel, angvel, target, (target - q) / dt])
        return self._state()

    def _go(self, now: list[Any]) -> None:
        """Be in another state; on torch, in the same memory."""
        self._now = [renewed(old, new) for old, new in zip(self._now, now, strict=True)]

    def _state(self) -> State:
        pos, quat, linvel, angvel, q, qd = (namespace(x).copy(x) for x in self._now)
        feet = foot_positions(self.robot, pos, quat, q)
        no = feet[..., 0] > 1e9
        return State(
            *(pos, quat, linvel, angvel, q, qd, feet, no, no[:, 0], 0.0 * qd, 0.0 * qd[:, 0]),
            *(self.broken, Sensed(quat, angvel, q, qd)),
        )

    def break_down(self, row: int) -> None:
        """Say from the next step on that a world blew up, until it is reset."""
        self.broken = np.arange(self.num_worlds) == row

    def close(self) -> None:
        pass
