"""The control loop: absolute deadlines, guards around every cycle, a report of how it kept time.

Cycle k is due at `start + k * dt`, whatever the cycles before it took: lateness does not add up. A
cycle that comes whole periods late skips what it missed.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .controller import Controller
from .errors import DeployError
from .guards import HOLD_SECONDS, Fault, Guards
from .observation import JOINT_ANGLE
from .robots.robot import Clock, Command, LinkError, Mode, Reading, Robot

DAMP_SECONDS = 0.5
"""For which a stopped robot is damped before it is let go."""
KEPT = 200_000
"""Cycles whose times are kept for the report."""
BUSY = 0.5
"""Share of a period that a policy may take before its rate is refused."""


class RealClock:
    """The machine's steady clock."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def wait_until(self, moment: float) -> None:
        """Sleep until then."""
        while (left := moment - time.monotonic()) > 0:
            time.sleep(left)


class VirtualClock:
    """A clock that waits for nobody: for tests, and to run a simulation as fast as it goes."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds."""
        return self._now

    def wait_until(self, moment: float) -> None:
        """Make it that time."""
        self._now = max(self._now, moment)


@dataclass
class Report:
    """How a run went."""

    control_dt: float
    """Seconds of a cycle."""
    cycles: int = 0
    """Cycles that were run."""
    missed: int = 0
    """Cycles that ended late or were skipped."""
    fault: Fault | None = None
    ended: str = ""
    """Why it ended."""
    untold: str = ""
    """What the robot could not be told, and why: the last hold or damp that did not reach it."""
    clipped: dict[str, int] = field(default_factory=dict)
    """Targets that limits and rate changed."""
    late: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Seconds from each deadline to the start of its cycle."""
    busy: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Seconds that each cycle took."""

    @property
    def miss_rate(self) -> float:
        """Share of the cycles that were missed."""
        return self.missed / max(self.cycles + self.missed, 1)

    def document(self) -> dict[str, Any]:
        """All of it as plain data; times in microseconds."""
        fault = None
        if self.fault is not None:
            fault = {"kind": self.fault.kind, "text": self.fault.text}
        return {
            "control_hz": 1.0 / self.control_dt,
            "cycles": self.cycles,
            "missed": self.missed,
            "miss_rate": self.miss_rate,
            "jitter_us": _quantiles(self.late),
            "cycle_us": _quantiles(self.busy),
            "clipped": dict(self.clipped),
            "fault": fault,
            "ended": self.ended,
            "untold": self.untold,
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        found = self.document()
        lines = [
            f"{self.cycles} cycles at {1 / self.control_dt:.4g} Hz, {self.missed} deadlines missed "
            f"({100 * self.miss_rate:.3g} %); ended: {self.ended}"
        ]
        for name, label in (("jitter_us", "began late by"), ("cycle_us", "cycle took")):
            values = "  ".join(f"{key} {value:,.0f}" for key, value in found[name].items())
            lines.append(f"  {label:<14} {values} us")
        if any(self.clipped.values()):
            text = ", ".join(f"{count} by {name}" for name, count in self.clipped.items())
            lines.append(f"  targets changed: {text}")
        if self.fault is not None:
            lines.append(f"  FAULT {self.fault.kind}: {self.fault.text}")
        if self.untold:
            lines.append(f"  THE ROBOT WAS NOT TOLD to {self.untold}")
        return lines


class Loop:
    """One run of a policy on a robot.

    Args:
        robot: connected.
        controller: of the bundle.
        guards: of the robot.
        clock: the one that the robot's readings are timed by.
        control_dt: seconds of a cycle.
        ramp: seconds over which the robot is brought into the pose that the policy starts in; 0: at
            once, for a robot that stands there.
    """

    def __init__(
        self,
        robot: Robot,
        controller: Controller,
        guards: Guards,
        clock: Clock,
        control_dt: float,
        ramp: float = 0.0,
    ) -> None:
        self.robot, self.controller, self.guards, self.clock = robot, controller, guards, clock
        self.report = Report(control_dt)
        self._dt = control_dt
        self._ramp = round(ramp / control_dt) if controller.joints is not None else 0
        self._from = np.zeros(0)
        """Where the robot stood at first."""
        self._sound: np.ndarray | None = None
        """The last target that passed the guards."""
        self._previous = np.zeros(0)
        self._begun = False

    def run(
        self, seconds: float | None = None, watch: Callable[[int, Reading], None] | None = None
    ) -> Report:
        """Run until time is over, the motion ends, a guard trips, or a person stops it.

        Args:
            seconds: of the policy, without the way to its start; None: no limit.
            watch: called after each sound cycle with its number and reading.

        Returns:
            The report; the robot is damped and not let go. A driver that fails is a fault there.
        """
        self.guards.check()
        steps = None if seconds is None else self._ramp + max(1, round(seconds / self._dt))
        gc.collect()
        gc.freeze()  # else Python looks through all that is loaded now and then, for a cycle or two
        try:
            self.report.ended = self._cycles(steps, watch)
        except KeyboardInterrupt:
            self.report.ended = "stopped by hand"
        finally:
            self._tell("damp")
            gc.unfreeze()
        self.report.fault, self.report.clipped = self.guards.fault, dict(self.guards.clipped)
        return self.report

    def _cycles(self, steps: int | None, watch: Callable[[int, Reading], None] | None) -> str:
        start, k, skipped = self.clock.now(), 0, 0
        while steps is None or k < steps:
            due = start + k * self._dt
            self.clock.wait_until(due)
            began = self.clock.now()
            reading = self._cycle(k, 1 + skipped)
            ended = self.clock.now()
            late = ended - due - self._dt
            self.report.cycles += 1
            self.report.late.append(began - due)
            self.report.busy.append(ended - began)
            if late > 0.0:
                self.report.missed += 1
            self.guards.deadline(late, ended)
            fault = self.guards.fault
            if fault is not None:
                self._tell(self.guards.mode(ended))
                if ended - fault.time >= HOLD_SECONDS + DAMP_SECONDS:
                    return f"a guard tripped: {fault.kind}"
            elif reading is not None and watch is not None:
                watch(k, reading)
            if fault is None and self.controller.over:
                return "the motion is over"
            skipped = max(0, int(late / self._dt))
            self.report.missed += skipped
            k += 1 + skipped
        return "its time is over"

    def _cycle(self, k: int, steps: int) -> Reading | None:
        """Read, look, think, look again, tell; returns the reading that was acted on."""
        guards = self.guards
        if guards.fault is not None:
            return None
        try:
            reading = self.robot.read()
            if not guards.reading(reading, self.clock.now()):
                return None
            if self._think(k, steps, reading):
                self._tell("run")
                return reading
        except Exception as error:  # whatever a driver or a policy does, the robot is held
            self._failed(error)
        return None

    def _failed(self, error: Exception) -> None:
        """Trip the guard that an error belongs to."""
        trip = self.guards.lost if isinstance(error, LinkError) else self.guards.failed
        trip(error, self.clock.now())

    def _think(self, k: int, steps: int, reading: Reading) -> bool:
        """Find the next target; returns whether it may be told."""
        controller, now = self.controller, self.clock.now()
        if controller.joints is None:
            self._policy(steps, reading)
            return self.guards.action(controller.action, now)
        if self._sound is None:
            q = np.asarray(reading.values[JOINT_ANGLE], np.float64)
            self._from = controller.joints.angles(q)
        before = self._from if self._sound is None else self._sound
        first = k >= self._ramp and not self._begun
        target = self._on_the_way(k) if k < self._ramp else self._policy(steps, reading)
        assert target is not None
        sound = self.guards.target(target, before, now)
        if sound is None:
            return False
        # as in training: an episode's first target is there at once
        self._previous, self._sound = sound if first else before, sound
        return True

    def _policy(self, steps: int, reading: Reading) -> np.ndarray | None:
        if self._begun:
            return self.controller.step(reading.values, steps)
        self._begun = True
        return self.controller.begin(reading.values)

    def _on_the_way(self, k: int) -> np.ndarray:
        """From where the robot stood to where the policy begins, smoothly, (nv,) rad."""
        share = (k + 1) / self._ramp
        share = share * share * (3 - 2 * share)
        return self._from + share * (self.controller.start_angles() - self._from)

    def _tell(self, mode: Mode) -> None:
        """Give the robot a command.

        Raises:
            Exception: the driver's, where the policy runs. A hold or damp that fails is reported,
                and a fault where there was none: the run ends in order.
        """
        controller = self.controller
        if self._sound is None and controller.joints is not None:
            mode = "damp"  # there is nothing sound to hold
        if controller.joints is None:
            target = gains = damping = np.zeros(0)
        else:
            target = np.zeros(controller.joints.nv) if self._sound is None else self._sound
            gains, damping = controller.stiffness, controller.damping
        action = controller.action if controller.joints is None and mode != "damp" else None
        previous = self._previous if mode == "run" else target
        stiffness = np.zeros_like(gains) if mode == "damp" else gains
        try:
            self.robot.write(Command(mode, action, target, previous, stiffness, damping))
        except Exception as error:
            if mode == "run":
                raise
            self._failed(error)
            said = " ".join(str(error).split())[:200]
            self.report.untold = f"{mode} ({type(error).__name__}: {said})"


def check_rate(controller: Controller, golden: dict[str, np.ndarray], control_dt: float) -> float:
    """Measure the policy here; returns seconds, the median of one action.

    Raises:
        DeployError: this machine cannot keep the rate.
    """
    first = {name: array[:1] for name, array in golden.items()}
    times = []
    for _ in range(50):
        began = time.perf_counter()
        controller.policy.run(first)
        times.append(time.perf_counter() - began)
    median = float(np.median(times))
    if median > BUSY * control_dt:
        raise DeployError(
            f"one action takes {median * 1e3:.2f} ms here, and a period is {control_dt * 1e3:.2f} "
            "ms: use a faster machine, or train a smaller network or at a lower rate"
        )
    return median


def _quantiles(values: deque[float]) -> dict[str, float]:
    """Quantiles of seconds, in microseconds."""
    if not values:
        return {}
    array = 1e6 * np.array(values)
    found = {f"p{share}": float(np.percentile(array, share)) for share in (50, 90, 99)}
    return {**found, "max": float(array.max())}
