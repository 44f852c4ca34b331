"""The UDP protocol, against a controller on loopback."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgym.deploy.bundle import Bundle
from rlgym.deploy.cli import check_joints
from rlgym.deploy.controller import Controller
from rlgym.deploy.errors import DeployError
from rlgym.deploy.guards import Guards
from rlgym.deploy.loop import Loop, RealClock
from rlgym.deploy.policy import Policy
from rlgym.deploy.robots.robot import LinkError, Settings
from rlgym.deploy.robots.udp import HEADER, MODES, UdpRobot
from tests.deploy.bundles import DT, follower, plain
from tests.deploy.controllers import SENSORS, FakeController, standing


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    # Laikago's own angles have other signs and zeros than ours
    return Bundle(follower(tmp_path_factory.mktemp("bundles") / "l.rlpolicy", "laikago"))


def model_angles(bundle: Bundle) -> np.ndarray:
    robot = bundle.manifest["robot"]
    ours = np.array(robot["default_joint_pos"]) + np.array(robot["offset"])
    return np.array(robot["sign"]) * ours


def connect(bundle: Bundle, controller: FakeController, timeout: float = 5.0) -> UdpRobot:
    settings = Settings(address=controller.address, timeout=timeout)
    return UdpRobot(bundle.manifest, RealClock(), settings)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 5.0
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def test_a_run_over_loopback(bundle: Bundle) -> None:
    names = bundle.manifest["robot"]["joint_names"]
    with standing(names, model_angles(bundle)) as controller:
        robot = connect(bundle, controller)
        assert controller.hello["joints"] == names and controller.hello["protocol"] == 1
        assert controller.hello["sensors"]["joint_angle"] == 12
        assert controller.hello["control_hz"] == pytest.approx(1 / DT)
        driver = Controller(bundle, Policy(bundle, "numpy"))
        check_joints(driver, robot)
        # a loaded machine may be late: that is not what is tried here
        manifest = {**bundle.manifest, "safety": {**bundle.manifest["safety"]}}
        manifest["safety"] |= {"missed_deadlines": 1000, "stale_seconds": 10.0}
        guards = Guards(manifest, DT, driver.observer.needs)
        report = Loop(robot, driver, guards, RealClock(), DT, ramp=0.15).run(0.3)
        wait_for(lambda: controller.commands and controller.commands[-1][0] == MODES["damp"])
        robot.close()
    assert report.fault is None
    about = bundle.manifest["robot"]
    modes = [mode for mode, _ in controller.commands]
    assert modes == [MODES["run"]] * (len(modes) - 1) + [MODES["damp"]]
    target, stiffness, damping = controller.commands[-2][1].reshape(3, 12)
    np.testing.assert_allclose(stiffness, about["stiffness"], rtol=1e-6)
    np.testing.assert_allclose(damping, about["damping"], rtol=1e-6)
    wanted = driver.reference.clip.pose(np.array([driver.reference.time + DT]))[2][0]
    wanted = np.array(about["sign"]) * (wanted + np.array(about["offset"]))
    np.testing.assert_allclose(target, wanted, atol=1e-4)


def test_readings_are_in_our_convention_and_the_newest_counts(bundle: Bundle) -> None:
    with standing(bundle.manifest["robot"]["joint_names"], model_angles(bundle)) as controller:
        robot = connect(bundle, controller)
        controller.mute = True
        q = robot.read().values["joint_angle"]
        np.testing.assert_allclose(q, bundle.manifest["robot"]["default_joint_pos"], atol=1e-6)
        robot.read()
        last = controller.sequence
        for sequence, rate in ((last + 3, 3.0), (last + 2, 2.0), (last + 3, 9.0)):
            controller.values[1] = np.full(3, rate)
            controller.send_sensors(sequence)
        wait_for(lambda: robot.read().values["angular_velocity"][0] == 3.0)
        time.sleep(0.05)
        assert robot.read().values["angular_velocity"][0] == 3.0  # late and double ones are dropped
        robot.close()


def test_silence_makes_readings_old_and_a_closed_port_is_a_lost_link(bundle: Bundle) -> None:
    with standing(bundle.manifest["robot"]["joint_names"], model_angles(bundle)) as controller:
        robot = connect(bundle, controller)
        controller.mute = True
        time.sleep(0.02)
        first = robot.read()
        time.sleep(0.05)
        assert robot.read().time == first.time

    def lost() -> bool:
        try:
            robot._send(4, 0, b"", 0)
            robot.read()
        except LinkError:
            return True
        return False

    wait_for(lost)
    robot.close()


def test_what_is_none_of_ours_is_ignored_and_a_short_reading_trips_the_guard(
    bundle: Bundle,
) -> None:
    with standing(bundle.manifest["robot"]["joint_names"], model_angles(bundle)) as controller:
        robot = connect(bundle, controller)
        controller.mute = True
        for data in (b"", b"RLD1", b"nonsense" * 10, HEADER.pack(b"XXXX", 3, 0, 0, 999, 0.0)):
            controller.send_raw(data)
        good = robot.read()
        controller.values[2] = np.zeros(11)
        controller.send_sensors()
        wait_for(lambda: robot.read().values["joint_angle"].size != 12)
        guards = Guards(bundle.manifest, DT, robot.sensors)
        assert good.values["joint_angle"].size == 12
        assert not guards.reading(robot.read(), robot.read().time)
        assert guards.fault is not None and guards.fault.kind == "shape"
        controller.send(SENSORS, b"\x00" * 7, 88)  # torn
        robot.close()


def test_other_joints_or_another_order_are_refused(bundle: Bundle) -> None:
    names = bundle.manifest["robot"]["joint_names"]
    swapped = [names[1], names[0], *names[2:]]
    with standing(swapped, model_angles(bundle)) as controller:
        robot = connect(bundle, controller)
        driver = Controller(bundle, Policy(bundle, "numpy"))
        with pytest.raises(DeployError, match="in this order; robot 'udp' has"):
            check_joints(driver, robot)
        robot.close()


def test_a_policy_without_joints_speaks_in_its_own_terms(tmp_path: Path) -> None:
    bundle = Bundle(plain(tmp_path / "plain.rlpolicy"))
    ready = {"protocol": 1, "joints": [], "sensors": {"obs": 4}}
    with FakeController(ready, [np.array([0.5, -0.25, 9.0, 9.0])]) as controller:
        robot = connect(bundle, controller)
        assert controller.hello["sensors"] == {"obs": 4}
        driver = Controller(bundle, Policy(bundle, "numpy"))
        manifest = {**bundle.manifest, "safety": {"stale_seconds": 10.0, "missed_deadlines": 1000}}
        guards = Guards(manifest, 0.02, driver.observer.needs)
        Loop(robot, driver, guards, RealClock(), 0.02).run(0.1)
        wait_for(lambda: controller.commands and controller.commands[-1][0] == MODES["damp"])
        robot.close()
    np.testing.assert_allclose(controller.commands[0][1], [-0.5, 0.25])
    assert controller.commands[-1][1].size == 0


BAD_READY = [
    {},
    [],
    {"protocol": 2, "joints": [], "sensors": {"obs": 4}},
    {"protocol": 1, "joints": "abc", "sensors": {"obs": 4}},
    {"protocol": 1, "joints": [1], "sensors": {"obs": 4}},
    {"protocol": 1, "joints": [], "sensors": {"obs": 4.5}},
    {"protocol": 1, "joints": [], "sensors": {"obs": 10**9}},
    {"protocol": 1, "joints": []},
]


@pytest.mark.parametrize("ready", BAD_READY, ids=str)
def test_a_controller_that_says_nonsense_is_refused(bundle: Bundle, ready: Any) -> None:
    with (
        FakeController(ready, [np.zeros(4)]) as controller,
        pytest.raises(DeployError, match="READY must be JSON"),
    ):
        connect(bundle, controller)


def test_nobody_there_is_said_in_one_line(bundle: Bundle) -> None:
    with pytest.raises(DeployError, match=r"gave no READY within 0\.2 s: start it first"):
        UdpRobot(bundle.manifest, RealClock(), Settings(address="127.0.0.1:9", timeout=0.2))
    for address in ("localhost", "127.0.0.1:", "127.0.0.1:99999", ":5"):
        with pytest.raises(DeployError, match="--address must be HOST:PORT"):
            UdpRobot(bundle.manifest, RealClock(), Settings(address=address))
