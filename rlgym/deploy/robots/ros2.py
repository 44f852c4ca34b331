"""A thin ROS 2 node: readings from sensor_msgs, targets to a forward position controller.

Only `_Rclpy` knows ROS; the driver itself speaks to a transport, which tests replace. It subscribes
to /joint_states (sensor_msgs/JointState) and /imu/data (sensor_msgs/Imu), and publishes to
/rlgym/targets (std_msgs/Float64MultiArray: targets, then stiffness, then damping, each in the
policy's order of joints) and /rlgym/mode (std_msgs/String: run, hold, damp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import DeployError
from ..observation import ANGULAR_VELOCITY, JOINT_ANGLE, JOINT_VELOCITY, ORIENTATION, Joints
from . import optional
from .robot import Clock, Command, LinkError, Reading, Settings

JOINT_STATES, IMU = "/joint_states", "/imu/data"
TARGETS, MODE = "/rlgym/targets", "/rlgym/mode"


class Transport(Protocol):
    """What the driver needs of ROS."""

    def subscribe(self, kind: str, topic: str, heard: Callable[[Any], None]) -> None:
        """Call `heard` with each message of a kind, such as "sensor_msgs/JointState"."""
        ...

    def publish(self, kind: str, topic: str, data: Any) -> None:
        """Send a message whose field `data` is this; what it raises has no common family."""
        ...

    def spin(self, seconds: float) -> None:
        """Take in what has come, waiting at most so long.

        Raises:
            OSError: the node is shut down.
        """
        ...

    def close(self) -> None:
        """Shut the node down."""
        ...


class Ros2Robot:
    """See `Robot`.

    Args:
        transport: None: rclpy's.
    """

    name = "ros2"

    def __init__(
        self,
        manifest: Mapping[str, Any],
        clock: Clock,
        settings: Settings,
        transport: Transport | None = None,
    ) -> None:
        robot = manifest.get("robot")
        if robot is None:
            raise DeployError("the bundle's policy moves no joints: --robot ros2 cannot run it")
        if any(robot["spherical"]):
            raise DeployError("the bundle's robot has ball joints, which JointState cannot show")
        self._clock, self._wanted = clock, tuple(robot["joint_names"])
        self._shapes = Joints(robot)
        self._values: dict[str, np.ndarray] = {}
        self._times: dict[str, float] = {}
        self._names: tuple[str, ...] = ()
        self._transport = _Rclpy() if transport is None else transport
        self._transport.subscribe("sensor_msgs/JointState", JOINT_STATES, self._hear_joints)
        self._transport.subscribe("sensor_msgs/Imu", IMU, self._hear_imu)
        until = clock.now() + settings.timeout
        while len(self._times) < 2 and clock.now() < until:
            self._spin(0.05)
        if len(self._times) < 2:
            missing = [topic for topic in (JOINT_STATES, IMU) if topic not in self._times]
            self._transport.close()
            raise DeployError(f"nothing came on {', '.join(missing)} in {settings.timeout:g} s")
        self.sensors = {name: int(value.size) for name, value in self._values.items()}
        # messages name their joints, so their order is no matter
        self.joints = self._wanted if set(self._wanted) <= set(self._names) else self._names

    def _hear_joints(self, message: Any) -> None:
        self._names = tuple(message.name)
        place = {name: i for i, name in enumerate(self._names)}
        if not set(self._wanted) <= place.keys():
            self._values[JOINT_ANGLE] = self._values[JOINT_VELOCITY] = np.zeros(0)
        else:
            rows = [place[name] for name in self._wanted]
            self._values[JOINT_ANGLE] = np.array(message.position, np.float64)[rows]
            self._values[JOINT_VELOCITY] = np.array(message.velocity, np.float64)[rows]
            self._shapes.from_model(self._values, JOINT_ANGLE, JOINT_VELOCITY)
        self._times[JOINT_STATES] = self._clock.now()

    def _hear_imu(self, message: Any) -> None:
        q, rate = message.orientation, message.angular_velocity
        self._values[ORIENTATION] = np.array([q.x, q.y, q.z, q.w], np.float64)
        self._values[ANGULAR_VELOCITY] = np.array([rate.x, rate.y, rate.z], np.float64)
        self._times[IMU] = self._clock.now()

    def _spin(self, seconds: float) -> None:
        try:
            self._transport.spin(seconds)
        except (OSError, IndexError) as error:  # shut down, or a message with too few values
            raise LinkError(f"ROS: {error}") from None

    def read(self) -> Reading:
        """See `Robot`; as old as the older of its two topics."""
        self._spin(0.0)
        return Reading(min(self._times.values()), dict(self._values))

    def write(self, command: Command) -> None:
        """See `Robot`; angles are the model file's."""
        target = self._shapes.to_model(command.target)
        data = [*target.tolist(), *command.stiffness.tolist(), *command.damping.tolist()]
        try:
            self._transport.publish("std_msgs/String", MODE, command.mode)
            self._transport.publish("std_msgs/Float64MultiArray", TARGETS, data)
        except Exception as error:
            raise LinkError(f"ROS: {' '.join(str(error).split())[:200]}") from None

    def close(self) -> None:
        """See `Robot`."""
        self._transport.close()


class _Rclpy:
    """ROS itself; rclpy comes with a ROS 2 installation, not from the package index."""

    def __init__(self) -> None:
        sourced = "rclpy does not help: source ROS 2's setup.bash first"
        self._rclpy = optional("rclpy", sourced)
        signals = optional("rclpy.signals", sourced)
        # its own handlers shut ROS down at Ctrl-C, before the robot could be told to damp
        self._rclpy.init(signal_handler_options=signals.SignalHandlerOptions.NO)
        self._node = self._rclpy.create_node("rlgym_deploy")
        self._publishers: dict[str, Any] = {}

    @staticmethod
    def _type(kind: str) -> Any:
        package, name = kind.split("/")
        return getattr(optional(f"{package}.msg", package), name)

    def subscribe(self, kind: str, topic: str, heard: Callable[[Any], None]) -> None:
        """See `Transport`."""
        self._node.create_subscription(self._type(kind), topic, heard, 1)

    def publish(self, kind: str, topic: str, data: Any) -> None:
        """See `Transport`."""
        if topic not in self._publishers:
            self._publishers[topic] = self._node.create_publisher(self._type(kind), topic, 1)
        message = self._type(kind)()
        message.data = data
        self._publishers[topic].publish(message)

    def spin(self, seconds: float) -> None:
        """See `Transport`: two subscriptions, so two messages at most are waiting."""
        if not self._rclpy.ok():
            raise OSError("the node is shut down")
        for _ in range(2):
            self._rclpy.spin_once(self._node, timeout_sec=seconds)

    def close(self) -> None:
        """See `Transport`."""
        self._node.destroy_node()
        self._rclpy.try_shutdown()
