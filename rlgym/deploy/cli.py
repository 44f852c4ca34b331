"""`rlgym-deploy`: run a policy's bundle on a robot, a simulated one, or none."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from .bundle import Bundle, finite
from .controller import Controller
from .errors import DeployError
from .guards import Guards
from .loop import Loop, RealClock, Report, VirtualClock, check_rate
from .observation import check_sensors
from .policy import Policy, golden_pairs
from .robots import DRIVERS, make_robot
from .robots.faulty import KINDS, Faulty
from .robots.robot import Robot, Settings

RAMP_SECONDS = 2.0
"""Where the bundle does not say how long the way to the first pose takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0: done, 1: a guard tripped, 2: refused."""
    wanted = _parser().parse_args(argv)
    try:
        report = deploy(wanted)
    except DeployError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before anything moved", file=sys.stderr)
        return 130
    if wanted.json:
        print(json.dumps({"bundle": wanted.bundle, "robot": wanted.robot, **report.document()}))
    else:
        print("\n".join(report.lines()))
    return 1 if report.fault is not None else 0


def deploy(wanted: argparse.Namespace) -> Report:
    """Check everything that can be checked, then run.

    Raises:
        DeployError: something does not fit; nothing has moved.
    """
    _check_numbers(wanted)
    bundle = Bundle(wanted.bundle)
    manifest = bundle.manifest
    control_dt = _control_dt(manifest, wanted.hz)
    policy = Policy(bundle, wanted.runtime)
    golden, _ = golden_pairs(bundle, policy.graph)
    controller = Controller(bundle, policy, wanted.clip, wanted.motion, wanted.start)
    action_time = 0.0 if wanted.fast else check_rate(controller, golden, control_dt)
    clock = VirtualClock() if wanted.fast else RealClock()
    needs = controller.observer.needs
    shown = {name: golden[name] for name in golden if name != "state"}
    settings = Settings(wanted.model, wanted.address, wanted.timeout, shown)
    guards = Guards(manifest, control_dt, needs, wanted.rate_limit)
    robot = make_robot(wanted.robot, manifest, clock, settings)
    try:
        check_sensors(needs, robot.sensors, robot.name)
        check_joints(controller, robot)
        if not wanted.json:
            print(
                f"{bundle.path}: hashes and {len(next(iter(golden.values())))} golden pairs agree "
                f"(error {policy.golden_error:.1e}); {policy.runtime}, "
                f"{action_time * 1e6:.0f} us an action; robot {robot.name}"
            )
        if wanted.inject:
            kind, _, after = wanted.inject.partition("@")
            robot = Faulty(robot, kind, _seconds(after or "1"), clock)
        safety = manifest.get("safety") or {}
        ramp = wanted.ramp
        if ramp is None:
            ramp = finite(safety.get("start_ramp_seconds", RAMP_SECONDS), "start_ramp_seconds")
        with _stopped_by_terminate():
            return Loop(robot, controller, guards, clock, control_dt, ramp).run(wanted.seconds)
    finally:
        _let_go(robot)


def _let_go(robot: Robot) -> None:
    """Close a driver; one that fails at that takes no report with it."""
    try:
        robot.close()
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        print(f"robot {robot.name} did not close ({type(error).__name__}: {said})", file=sys.stderr)


@contextlib.contextmanager
def _stopped_by_terminate() -> Iterator[None]:
    """Let whoever ends the process, such as a service, find the robot damped like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_joints(controller: Controller, robot: Robot) -> None:
    """Refuse a robot whose joints are others, or in another order.

    Raises:
        DeployError: lists both.
    """
    wanted = () if controller.joints is None else controller.joints.names
    if tuple(robot.joints) != tuple(wanted):
        raise DeployError(
            f"the policy moves the joints {', '.join(wanted) or 'none'}, in this order; robot "
            f"'{robot.name}' has {', '.join(robot.joints) or 'none'}: use the policy's robot, or "
            "put its joints into this order in its controller"
        )


def _control_dt(manifest: dict[str, Any], hertz: float | None) -> float:
    """Seconds of a control step: the bundle's, or what the person says where it has none.

    Raises:
        DeployError: neither says, or they differ.
    """
    timing = manifest.get("timing")
    if timing is None:
        if hertz is None:
            raise DeployError("the bundle does not say how often its policy acts: give --hz")
        if not 0 < hertz <= 10_000:
            raise DeployError("--hz must be above 0 and at most 10000")
        return 1.0 / hertz
    own = finite(timing.get("control_hz"), "timing.control_hz")
    if not 0 < own <= 10_000:
        raise DeployError(f"timing.control_hz is {own:g} in the manifest, and must be above 0")
    if hertz is not None and abs(hertz - own) > 1e-3 * own:
        raise DeployError(
            f"the policy was trained at {own:.5g} Hz, not at {hertz:g}: leave --hz out, or train "
            "at that rate"
        )
    return 1.0 / own


def _check_numbers(wanted: argparse.Namespace) -> None:
    """Refuse settings that no run could have.

    Raises:
        DeployError: names the first one.
    """
    for name in ("seconds", "ramp", "rate_limit", "timeout", "start"):
        value = getattr(wanted, name)
        least = -math.inf if name == "start" else 0.0
        if value is not None and not (math.isfinite(value) and value >= least):
            option = name.replace("_", "-")
            raise DeployError(f"--{option} is {value:g}, and must be a number from 0 on")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DeployError(f"'{text}' is no number of seconds") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlgym-deploy",
        description="Run a policy's bundle on a robot. Before anything moves, its hashes, its "
        "golden pairs, the robot's sensors and joints, and the rate are checked.",
    )
    add = parser.add_argument
    add("bundle", help="NAME.rlpolicy, a zip or a folder")
    drivers = ", ".join(DRIVERS)
    add("--robot", default="dry-run", help=f"{drivers}, or package.module:Class (dry-run)")
    add("--seconds", type=float, default=None, help="how long the policy runs (until stopped)")
    add("--hz", type=float, default=None, help="control rate, where the bundle does not say it")
    add("--runtime", choices=("auto", "onnx", "numpy"), default="auto", help="(auto)")
    add("--clip", default="", help="motion to imitate, where the bundle has several")
    add("--motion", default="", help=".npz of a motion that the bundle may not hold")
    add("--start", type=float, default=None, help="the motion's time to begin at, s")
    add("--ramp", type=float, default=None, help="seconds of the way to the first pose")
    add("--rate-limit", type=float, default=None, help="fastest change of a target, rad/s")
    add("--model", default="", help="model file, where the bundle's is not in pybullet_data")
    add("--address", default=Settings.address, help=f"of a controller ({Settings.address})")
    add("--timeout", type=float, default=Settings.timeout, help="for its first answer, s")
    add("--fast", action="store_true", help="as fast as a simulated robot goes, not in real time")
    add("--inject", default="", metavar="FAULT@S", help=f"break on purpose: {', '.join(KINDS)}")
    add("--json", action="store_true", help="print one JSON object")
    return parser
