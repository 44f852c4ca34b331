"""The loop keeps absolute deadlines, and every fault stops the robot within one cycle."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgym.deploy.bundle import Bundle
from rlgym.deploy.controller import Controller
from rlgym.deploy.errors import DeployError, FaultError
from rlgym.deploy.guards import HOLD_SECONDS, Guards
from rlgym.deploy.loop import DAMP_SECONDS, Loop, RealClock, VirtualClock, check_rate
from rlgym.deploy.policy import Policy
from rlgym.deploy.robots.dry_run import DryRun
from rlgym.deploy.robots.faulty import KINDS, Faulty
from rlgym.deploy.robots.robot import Command, LinkError, Reading, Settings
from tests.deploy.bundles import DT, follower, plain


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(follower(tmp_path_factory.mktemp("bundles") / "trot.rlpolicy"))


class Remembering(DryRun):
    """A dry run that keeps what it was told, and when."""

    def __init__(self, manifest: Any, clock: Any, settings: Any) -> None:
        super().__init__(manifest, clock, settings)
        self.told: list[tuple[float, Command]] = []

    def write(self, command: Command) -> None:
        self.told.append((self._clock.now(), command))
        super().write(command)


def make_loop(bundle: Bundle, kind: str = "", after: float = 1.0, **guards: Any) -> Any:
    clock = VirtualClock()
    controller = Controller(bundle, Policy(bundle, "numpy"))
    robot: Any = Remembering(bundle.manifest, clock, Settings())
    told = robot.told
    needs = controller.observer.needs
    if kind:
        robot = Faulty(robot, kind, after, clock)
    watch = Guards(bundle.manifest, DT, needs, **guards)
    loop = Loop(robot, controller, watch, clock, DT, ramp=0.3)
    return loop, told, clock


def test_a_sound_run_follows_the_clip(bundle: Bundle) -> None:
    loop, told, _ = make_loop(bundle)
    report = loop.run(seconds=3.0)
    assert report.fault is None and report.missed == 0
    assert report.cycles == 10 + 100 and len(told) == report.cycles + 1
    assert [command.mode for _, command in told[:-1]] == ["run"] * report.cycles
    assert told[-1][1].mode == "damp" and not told[-1][1].stiffness.any()
    steps = np.diff([moment for moment, _ in told[:-1]])
    np.testing.assert_allclose(steps, DT, atol=1e-9)
    clip = loop.controller.reference.clip
    for k in (0, 17, 99):
        wanted = clip.pose(np.array([DT * (k + 1)]))[2][0]
        np.testing.assert_allclose(told[10 + k][1].target, wanted, atol=1e-5)


def test_the_way_to_the_start_is_smooth_and_ends_there(bundle: Bundle) -> None:
    loop, told, _ = make_loop(bundle)
    loop.run(seconds=0.03)
    way = np.array([command.target for _, command in told[:10]])
    start = np.array(bundle.manifest["robot"]["default_joint_pos"])
    np.testing.assert_allclose(way[-1], loop.controller.start_angles(), atol=1e-9)
    whole = np.abs(way[-1] - start).max()
    steps = np.abs(np.diff(np.vstack([start, way]), axis=0)).max()
    assert whole > 0.05 and steps < 0.2 * whole


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_trips_its_guard_within_one_cycle(bundle: Bundle, kind: str) -> None:
    loop, told, _ = make_loop(bundle, kind, after=1.0)
    report = loop.run(seconds=10.0)
    assert report.fault is not None and report.fault.kind == kind
    broken = 1.0 if kind != "overrun" else 2.0  # that one takes a second of its own
    assert broken - 1e-9 <= report.fault.time <= broken + DT + 1e-9
    before = [command for moment, command in told if moment < 1.0]
    assert {command.mode for command in before} == {"run"}
    after = [(moment, command) for moment, command in told if moment >= report.fault.time]
    sound = before[-1].target
    if kind == "overrun":  # acted on before anyone could know
        sound = after[0][1].target
    for moment, command in after:
        if command.mode == "run":
            assert kind == "overrun"
            continue
        np.testing.assert_array_equal(command.target, sound)
        held = moment - report.fault.time < HOLD_SECONDS
        expected = "hold" if held and kind not in ("tilt", "limit", "overrun") else "damp"
        assert command.mode == expected or command is after[-1][1]
        assert command.stiffness.any() == (command.mode == "hold")
        assert command.damping.all()
    assert told[-1][1].mode == "damp"
    assert told[-1][0] - report.fault.time >= HOLD_SECONDS + DAMP_SECONDS - DT
    assert report.ended == f"a guard tripped: {kind}"


@pytest.mark.parametrize(
    ("place", "kind"), [(np.full(3, np.nan), "non-finite"), (np.zeros(4), "shape")]
)
def test_a_position_that_the_policy_does_not_ask_for_is_looked_at_too(
    bundle: Bundle, place: np.ndarray, kind: str
) -> None:
    loop, _, clock = make_loop(bundle)
    read = loop.robot.read

    def lost() -> Reading:
        shown = place if clock.now() > 1.0 else np.zeros(3)
        return Reading(clock.now(), {**read().values, "position": shown})

    loop.robot.read = lost
    fault = loop.run(seconds=10.0).fault
    assert fault.kind == kind and "position" in fault.text
    assert 1.0 <= fault.time <= 1.0 + DT + 1e-9


def test_a_fault_latches_until_it_is_reset(bundle: Bundle) -> None:
    loop, told, _ = make_loop(bundle, "tilt", after=0.5)
    loop.run(seconds=1.0)
    count = len(told)
    with pytest.raises(FaultError, match="tilt: the base leans by"):
        loop.run(seconds=1.0)
    assert len(told) == count
    loop.guards.reset()
    assert loop.guards.mode(0.0) == "run"


def test_a_policy_that_breaks_is_held(bundle: Bundle) -> None:
    for answer, kind in ((np.nan, "non-finite"), (None, "unknown")):
        loop, told, _ = make_loop(bundle)
        policy = loop.controller.policy
        calls = [0]

        def act(
            obs: Any, mask: Any = None, own: Any = policy.act, n: Any = calls, bad: Any = answer
        ) -> Any:
            n[0] += 1
            if n[0] < 20:
                return own(obs, mask)
            if bad is None:
                raise ZeroDivisionError("in the driver")
            return np.full(12, bad)

        policy.act = act
        report = loop.run(seconds=3.0)
        assert report.fault.kind == kind
        assert all(np.isfinite(command.target).all() for _, command in told)


def test_targets_stay_within_limits_and_rate(bundle: Bundle) -> None:
    loop, told, _ = make_loop(bundle, rate_limit=2.0)
    policy = loop.controller.policy
    policy.act = lambda obs, mask=None: np.full(12, 1000.0)
    report = loop.run(seconds=2.0)
    targets = np.array([command.target for _, command in told])
    assert np.abs(np.diff(targets, axis=0)).max() <= 2.0 * DT + 1e-9
    assert (targets <= np.array(bundle.manifest["robot"]["target_upper"]) + 1e-9).all()
    assert report.clipped["rate"] > 100


def test_a_lost_link_is_a_fault_of_its_own_on_the_way_out_too(bundle: Bundle) -> None:
    loop, _, _ = make_loop(bundle)
    loop.robot.write = lambda command: (_ for _ in ()).throw(LinkError("cut"))
    report = loop.run(seconds=1.0)
    assert report.fault.kind == "link" and report.fault.text == "cut"


def test_a_driver_that_keeps_raising_ends_the_run_in_order(bundle: Bundle) -> None:
    loop, _, _ = make_loop(bundle)

    def broken(command: Command) -> None:
        raise OSError(f"no bus for {command.mode}")

    loop.robot.write = broken
    report = loop.run(seconds=1.0)
    assert report.fault.kind == "unknown" and report.fault.text == "OSError: no bus for run"
    assert report.ended == "a guard tripped: unknown"
    assert report.untold == "damp (OSError: no bus for damp)"
    assert report.document()["untold"] in report.lines()[-1]


def test_a_damp_that_fails_is_a_fault_where_there_was_none(bundle: Bundle) -> None:
    loop, _, _ = make_loop(bundle)
    write = loop.robot.write

    def cut(command: Command) -> None:
        if command.mode != "run":
            raise LinkError("cut")
        write(command)

    loop.robot.write = cut
    report = loop.run(seconds=1.0)
    assert report.ended == "its time is over" and report.untold == "damp (LinkError: cut)"
    assert report.fault.kind == "link"


def test_no_first_reading_means_nothing_is_held(bundle: Bundle) -> None:
    loop, told, _ = make_loop(bundle, "non-finite", after=0.0)
    loop.run(seconds=1.0)
    assert {command.mode for _, command in told} == {"damp"}


def test_late_cycles_are_counted_and_skipped_not_caught_up(bundle: Bundle) -> None:
    loop, told, clock = make_loop(bundle)
    read = loop.robot.read
    calls = [0]

    def slow() -> Reading:
        calls[0] += 1
        if calls[0] == 50:
            clock.wait_until(clock.now() + 1.5 * DT)  # one deadline: late by half a period
        return read()

    loop.robot.read = slow
    report = loop.run(seconds=3.0)
    assert report.fault is None and report.missed == 1
    moments = np.array([moment for moment, _ in told[:-1]])
    due = moments / DT
    assert np.count_nonzero(np.abs(due - np.round(due)) > 1e-6) == 2  # and then on time again
    assert report.document()["jitter_us"]["max"] == pytest.approx(0.5e6 * DT)


def test_the_motion_goes_on_over_skipped_cycles(bundle: Bundle) -> None:
    loop, _, clock = make_loop(bundle)
    read, calls = loop.robot.read, [0]

    def slow() -> Reading:
        calls[0] += 1
        if calls[0] == 50:
            clock.wait_until(clock.now() + 2.2 * DT)
        return read()

    loop.robot.read = slow
    report = loop.run(seconds=3.0)
    assert report.fault is None and report.missed == 2
    assert loop.controller.reference.time == pytest.approx(3.0 - DT)


def test_the_real_clock_keeps_the_rate() -> None:
    clock, late = RealClock(), []
    start = clock.now()
    for k in range(1, 20):
        clock.wait_until(start + 0.005 * k)
        late.append(clock.now() - start - 0.005 * k)
    assert min(late) >= 0.0
    assert clock.now() - start >= 0.095


def test_a_rate_that_this_machine_cannot_keep_is_refused(bundle: Bundle) -> None:
    controller = Controller(bundle, Policy(bundle, "numpy"))
    golden = {"policy": np.zeros((1, 118), np.float32)}
    assert 0 < check_rate(controller, golden, 10.0) < 5.0
    own = controller.policy.run

    def slow(inputs: Any) -> Any:
        time.sleep(0.002)
        return own(inputs)

    controller.policy.run = slow
    with pytest.raises(DeployError, match=r"one action takes .* ms here, and a period is 2.00 ms"):
        check_rate(controller, golden, 0.002)


def test_a_policy_without_joints_gets_what_was_recorded(tmp_path: Path) -> None:
    bundle = Bundle(plain(tmp_path / "plain.rlpolicy"))
    golden = bundle.arrays("golden.npz")
    clock = VirtualClock()
    controller = Controller(bundle, Policy(bundle, "numpy"))
    robot = Remembering(bundle.manifest, clock, Settings(golden={"obs": golden["inputs/obs"]}))
    guards = Guards(bundle.manifest, 0.02, controller.observer.needs)
    report = Loop(robot, controller, guards, clock, 0.02, ramp=2.0).run(seconds=0.8)
    assert report.cycles == 40 and report.fault is None
    actions = np.array([command.action for _, command in robot.told[:-1]])
    np.testing.assert_allclose(actions, golden["world/"], atol=1e-6)
    assert robot.told[-1][1].action is None
