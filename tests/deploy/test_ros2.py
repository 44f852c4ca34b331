"""The ROS 2 node against a fake transport: no ROS is installed where tests run."""

import sys
from pathlib import Path
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
import pytest

from rlgym.deploy.bundle import Bundle
from rlgym.deploy.controller import Controller
from rlgym.deploy.errors import DeployError
from rlgym.deploy.guards import Guards
from rlgym.deploy.loop import Loop, VirtualClock
from rlgym.deploy.policy import Policy
from rlgym.deploy.robots import ros2
from rlgym.deploy.robots.robot import Command, LinkError, Settings
from rlgym.deploy.robots.ros2 import IMU, JOINT_STATES, MODE, TARGETS, Ros2Robot
from tests.deploy.bundles import DT, follower


class FakeRos:
    """Delivers what is in `messages` at each spin, and keeps what is published."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.heard: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self.published: dict[str, list[Any]] = {TARGETS: [], MODE: []}
        self.down = self.closed = False

    def subscribe(self, kind: str, topic: str, heard: Any) -> None:
        assert kind == {JOINT_STATES: "sensor_msgs/JointState", IMU: "sensor_msgs/Imu"}[topic]
        self.heard[topic] = heard

    def publish(self, kind: str, topic: str, data: Any) -> None:
        if self.down:
            raise RuntimeError("Failed to publish:\npublisher's context is invalid")
        kinds = {TARGETS: "std_msgs/Float64MultiArray", MODE: "std_msgs/String"}
        assert kind == kinds[topic]
        self.published[topic].append(data)

    def spin(self, seconds: float) -> None:
        if self.down:
            raise OSError("the node is shut down")
        self.clock.wait_until(self.clock.now() + seconds)
        for topic, message in self.messages.items():
            self.heard[topic](message)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(follower(tmp_path_factory.mktemp("bundles") / "l.rlpolicy", "laikago"))


@pytest.fixture
def ros(bundle: Bundle) -> FakeRos:
    """A robot that stands in its default pose and names its joints in an order of its own."""
    fake, about = FakeRos(VirtualClock()), bundle.manifest["robot"]
    ours = np.array(about["default_joint_pos"]) + np.array(about["offset"])
    q = (np.array(about["sign"]) * ours).tolist()
    names = [*reversed(about["joint_names"]), "head"]
    fake.messages[JOINT_STATES] = Message(
        name=names, position=[*reversed(q), 9.0], velocity=[0.0] * 13
    )
    still = Message(x=0.0, y=0.0, z=0.0)
    fake.messages[IMU] = Message(
        orientation=Message(x=0.0, y=0.0, z=0.0, w=1.0), angular_velocity=still
    )
    return fake


def test_a_run_is_published_in_the_model_files_angles(bundle: Bundle, ros: FakeRos) -> None:
    robot = Ros2Robot(bundle.manifest, ros.clock, Settings(), ros)
    about = bundle.manifest["robot"]
    assert robot.joints == tuple(about["joint_names"])
    shown = robot.read().values
    np.testing.assert_allclose(shown["joint_angle"], about["default_joint_pos"], atol=1e-12)
    controller = Controller(bundle, Policy(bundle, "numpy"))
    guards = Guards(bundle.manifest, DT, controller.observer.needs)
    report = Loop(robot, controller, guards, ros.clock, DT, ramp=0.15).run(0.3)
    assert report.fault is None
    assert ros.published[MODE] == ["run"] * report.cycles + ["damp"]
    target, stiffness, damping = np.array(ros.published[TARGETS][-2]).reshape(3, 12)
    wanted = controller.reference.clip.pose(np.array([10 * DT]))[2][0]
    wanted = np.array(about["sign"]) * (wanted + np.array(about["offset"]))
    np.testing.assert_allclose(target, wanted, atol=1e-5)
    np.testing.assert_allclose(stiffness, about["stiffness"])
    np.testing.assert_allclose(damping, about["damping"])
    assert not np.array(ros.published[TARGETS][-1]).reshape(3, 12)[1].any()
    robot.close()
    assert ros.closed


def test_a_topic_that_falls_silent_makes_the_reading_stale(bundle: Bundle, ros: FakeRos) -> None:
    robot = Ros2Robot(bundle.manifest, ros.clock, Settings(), ros)
    start = robot.read().time
    del ros.messages[IMU]
    ros.clock.wait_until(start + 5.0)
    guards = Guards(bundle.manifest, DT, robot.sensors)
    assert not guards.reading(robot.read(), ros.clock.now())
    assert guards.fault is not None and guards.fault.kind == "stale"


def test_a_node_that_is_shut_down_is_a_lost_link(bundle: Bundle, ros: FakeRos) -> None:
    robot = Ros2Robot(bundle.manifest, ros.clock, Settings(), ros)
    ros.down = True
    with pytest.raises(LinkError, match="shut down"):
        robot.read()


def test_a_node_that_is_shut_down_cannot_be_told(bundle: Bundle, ros: FakeRos) -> None:
    robot = Ros2Robot(bundle.manifest, ros.clock, Settings(), ros)
    ros.down = True
    still = np.zeros(12)
    with pytest.raises(LinkError, match="ROS: Failed to publish: publisher's context is invalid"):
        robot.write(Command("damp", None, still, still, still, still))


def test_ctrl_c_is_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ROS is shut down by it, and the robot can no more be told to damp."""
    asked: dict[str, Any] = {}
    rclpy: Any = Message(init=asked.update, create_node=lambda name: name)
    options: Any = Message(SignalHandlerOptions=Message(NO="no handlers"))
    monkeypatch.setitem(sys.modules, "rclpy", rclpy)
    monkeypatch.setitem(sys.modules, "rclpy.signals", options)
    ros2._Rclpy()
    assert asked == {"signal_handler_options": "no handlers"}


def test_joints_that_are_missing_are_not_made_up(bundle: Bundle, ros: FakeRos) -> None:
    ros.messages[JOINT_STATES].name[3] = "tail"
    robot = Ros2Robot(bundle.manifest, ros.clock, Settings(), ros)
    assert set(robot.joints) != set(bundle.manifest["robot"]["joint_names"])
    assert robot.sensors["joint_angle"] == 0


def test_silence_at_the_start_names_the_topic(bundle: Bundle, ros: FakeRos) -> None:
    del ros.messages[IMU]
    with pytest.raises(DeployError, match="nothing came on /imu/data in 1 s"):
        Ros2Robot(bundle.manifest, ros.clock, Settings(timeout=1.0), ros)
    assert ros.closed


def test_without_ros_the_error_says_what_to_do(bundle: Bundle) -> None:
    try:
        import rclpy  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(DeployError, match=r"this robot needs rclpy .*setup\.bash"):
            Ros2Robot(bundle.manifest, VirtualClock(), Settings())


def test_a_policy_without_joints_is_refused(tmp_path: Path, ros: FakeRos) -> None:
    with pytest.raises(DeployError, match="moves no joints"):
        Ros2Robot({"robot": None}, ros.clock, Settings(), ros)
