"""What stands between a policy and motors: each reading and each target is looked at, in order.

Readings: link, stale, non-finite, shape, tilt, limit, jump. Targets: non-finite, shape, then they
are clipped to their limits and to their rate. The clock: overrun. The first that trips is the
fault; it latches until `reset`. The robot then holds its last sound target, and after
`HOLD_SECONDS` is only damped; where holding makes no sense (it lies, it is beyond its limits, we
are too late) it is damped at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .bundle import finite
from .errors import FaultError
from .observation import JOINT_ANGLE, ORIENTATION, POSITION, Joints
from .robots.robot import Mode, Reading
from .rotations import gravity

Kind = Literal[
    "link", "stale", "non-finite", "shape", "tilt", "limit", "jump", "overrun", "unknown"
]
HOLD_SECONDS = 0.5
"""For which the last sound target is held before motors are only damped."""
DAMPED_AT_ONCE = frozenset(("tilt", "limit", "overrun", "unknown"))
"""Faults after which a held target could do harm."""
BEYOND = 0.15
"""Radians beyond a joint's limit at which its angle is a fault: stops give way a little."""
FASTEST = 50.0
"""rad/s: no joint moves further from one reading to the next; a sensor that says so lies."""
TARGET_MARGIN = 0.3
"""Radians beyond its limit to which a target may lie where the bundle does not say."""
UNIT = 0.01
"""By how much the length of an orientation may differ from 1."""


@dataclass(frozen=True)
class Fault:
    """Why a robot was stopped."""

    kind: Kind
    text: str
    """One sentence with numbers."""
    time: float
    """Of the loop's clock, s."""


class Guards:
    """The guards of one robot.

    Args:
        manifest: of the bundle.
        control_dt: seconds of a control step.
        needs: sensors that are looked at, and how many values each gives.
        rate_limit: fastest change of a target, rad/s; None: the bundle's, if it has one; infinite:
            none.

    Attributes:
        fault: what tripped; stays until `reset`.
        clipped: targets, joint by joint, that were changed by "limits" and by "rate".
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        control_dt: float,
        needs: Mapping[str, int],
        rate_limit: float | None = None,
    ) -> None:
        safety = manifest.get("safety") or {}
        self._dt, self._needs = control_dt, dict(needs)
        self._stale = finite(safety.get("stale_seconds", 2 * control_dt), "safety.stale_seconds")
        self._tilt = finite(safety.get("tilt_limit", math.pi), "safety.tilt_limit")
        self._allowed = int(finite(safety.get("missed_deadlines", 3), "safety.missed_deadlines"))
        self._damped: set[str] = set(DAMPED_AT_ONCE)
        if safety.get("on_nan", "hold") == "damp":
            self._damped.add("non-finite")
        rate = safety.get("target_rate") if rate_limit is None else rate_limit
        self._step = None if rate is None else np.array(rate, np.float64) * control_dt
        robot = manifest.get("robot")
        self._joints = None if robot is None else Joints(robot)
        if self._joints is not None and robot is not None:
            self._read_limits(robot, manifest.get("timing") or {}, self._joints)
        self.reset()

    def reset(self) -> None:
        """Forget the fault, as a person who has looked at the robot may ask for."""
        self.fault: Fault | None = None
        self.clipped = {"limits": 0, "rate": 0}
        self._late = 0
        self._before: np.ndarray | None = None
        self._before_time = 0.0

    def _read_limits(
        self, robot: Mapping[str, Any], timing: Mapping[str, Any], joints: Joints
    ) -> None:
        self._lower = joints.per_velocity(robot["lower"])
        self._upper = joints.per_velocity(robot["upper"])
        if robot.get("target_lower") is not None:
            self._low = np.array(robot["target_lower"], np.float64)
            self._high = np.array(robot["target_upper"], np.float64)
            return
        # a servo that never sees a larger error than `target_clip` does the same with a target that
        # lies no further beyond the limit than that
        margin = timing.get("target_clip") or TARGET_MARGIN
        self._low, self._high = self._lower - margin, self._upper + margin

    # ------------------------------------------------------------------ what they look at
    def lost(self, error: Exception, now: float) -> None:
        """The robot could not be reached."""
        self._trip("link", str(error), now)

    def failed(self, error: Exception, now: float) -> None:
        """Something went wrong that no guard knows."""
        self._trip("unknown", f"{type(error).__name__}: {error}", now)

    def reading(self, reading: Reading, now: float) -> bool:
        """Look at a reading; returns whether it may be acted on."""
        values = reading.values
        age = now - reading.time
        if not age <= self._stale:
            return self._trip("stale", f"the newest reading is {age * 1e3:.0f} ms old", now)
        needs = self._needs
        if self._joints is not None and POSITION in values:  # a motion is laid by it where it is
            needs = {POSITION: 3, **needs}
        for name, size in needs.items():
            value = values.get(name)
            if value is None or not np.isfinite(value).all():
                what = "missing" if value is None else "not finite"
                return self._trip("non-finite", f"sensor '{name}' is {what}", now)
            if value.size != size:
                text = f"sensor '{name}' gave {value.size} values, and must give {size}"
                return self._trip("shape", text, now)
        if ORIENTATION in self._needs and not self._upright(values[ORIENTATION], now):
            return False
        if self._joints is not None and not self._joints.has_balls:
            return self._sane_joints(np.asarray(values[JOINT_ANGLE], np.float64), reading.time, now)
        return True

    def target(self, target: np.ndarray, previous: np.ndarray, now: float) -> np.ndarray | None:
        """Look at joint targets (nv,); returns what may be told to the robot, None after a fault.

        Args:
            target: rad, what the policy asks for.
            previous: rad, what the robot was told before.
            now: seconds of the loop's clock.
        """
        assert self._joints is not None
        if not np.isfinite(target).all():
            self._trip("non-finite", "the policy's action is not finite", now)
            return None
        if target.shape != (self._joints.nv,):
            text = f"the policy gave {target.size} targets to {self._joints.nv} joints"
            self._trip("shape", text, now)
            return None
        bounded = np.clip(target, self._low, self._high)
        self.clipped["limits"] += int(np.count_nonzero(bounded != target))
        if self._step is None:
            return bounded
        slow = np.clip(bounded, previous - self._step, previous + self._step)
        self.clipped["rate"] += int(np.count_nonzero(slow != bounded))
        return slow

    def action(self, action: Any, now: float) -> bool:
        """Look at what a policy without joints said: arrays, or a dict of them."""
        parts = action.values() if isinstance(action, dict) else [action]
        if all(np.isfinite(part).all() for part in parts):
            return True
        return self._trip("non-finite", "the policy's action is not finite", now)

    def deadline(self, late: float, now: float) -> bool:
        """Look at the clock; returns whether we are still in time.

        Args:
            late: seconds by which a cycle ended after the next one should have begun; negative
                where it did not.
            now: seconds of the loop's clock.
        """
        if late <= 0.0:
            self._late = 0
            return True
        self._late += 1 + int(late / self._dt)
        if self._late < self._allowed:
            return True
        return self._trip("overrun", f"{self._late} deadlines in a row were missed", now)

    # ------------------------------------------------------------------ what they do
    def mode(self, now: float) -> Mode:
        """What the robot may do now."""
        if self.fault is None:
            return "run"
        if self.fault.kind in self._damped or now - self.fault.time >= HOLD_SECONDS:
            return "damp"
        return "hold"

    def check(self) -> None:
        """Refuse to go on after a fault.

        Raises:
            FaultError: says which it was.
        """
        if self.fault is not None:
            raise FaultError(f"{self.fault.kind}: {self.fault.text}; reset the guards to go on")

    def _trip(self, kind: Kind, text: str, now: float) -> bool:
        if self.fault is None:
            self.fault = Fault(kind, text, now)
        return False

    def _upright(self, orientation: np.ndarray, now: float) -> bool:
        length = float(np.linalg.norm(orientation))
        if abs(length - 1.0) > UNIT:
            return self._trip("shape", f"the orientation's length is {length:.3g}, not 1", now)
        down = float(gravity(np.asarray(orientation, np.float64) / length)[2])
        tilt = math.acos(min(max(-down, -1.0), 1.0))
        if tilt > self._tilt:
            text = f"the base leans by {tilt:.2f} rad, {self._tilt:.2f} is allowed"
            return self._trip("tilt", text, now)
        return True

    def _sane_joints(self, q: np.ndarray, time: float, now: float) -> bool:
        assert self._joints is not None
        beyond = np.maximum(self._lower - q, q - self._upper)
        if beyond.max() > BEYOND:
            worst = int(beyond.argmax())
            name, limit = self._joints.names[worst], f"{beyond[worst]:.2f} rad beyond its limit"
            return self._trip("limit", f"joint '{name}' is {limit}", now)
        before, self._before = self._before, q.copy()
        seconds, self._before_time = max(time - self._before_time, self._dt), time
        if before is not None:
            moved = np.abs(q - before)
            if moved.max() > FASTEST * seconds:
                worst = int(moved.argmax())
                name = self._joints.names[worst]
                text = f"joint '{name}' jumped by {moved[worst]:.2f} rad within {seconds:.3f} s"
                return self._trip("jump", text, now)
        return True
