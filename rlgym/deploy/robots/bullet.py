"""A robot in PyBullet: the loop, the guards and the policy with physics instead of motors.

Torques of the servos are computed here before each physics step, which is at most 1 ms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DeployError
from ..rotations import conjugate, multiply, rotate
from . import optional
from .robot import Clock, Settings
from .simulated import Simulated, State, silence

LONGEST_STEP = 0.001
"""Seconds; with torques held for longer, robots of this size fall."""
ITERATIONS = 50
"""Of the constraint solver."""


class BulletRobot(Simulated):
    """The bundle's robot on flat ground."""

    name = "bullet"

    def __init__(self, manifest: Mapping[str, Any], clock: Clock, settings: Settings) -> None:
        super().__init__(manifest, clock, settings, LONGEST_STEP)
        with silence():
            self._bullet = p = optional("pybullet", "pybullet")
            self._client = p.connect(p.DIRECT)
            self._build()
        self._find_joints()
        info = p.getDynamicsInfo(self._body, -1, self._client)
        self._com_pos, self._com_quat = np.array(info[3]), np.array(info[4])
        self._turn = np.array(self.robot["base_rotation"], np.float64)
        self._origin = np.array(self.robot["base_origin"], np.float64)
        height = float(self.world["start_height"])
        self.place(
            np.array([0.0, 0.0, height]),
            np.array([0.0, 0.0, 0.0, 1.0]),
            np.array(self.robot["default_joint_pos"], np.float64),
        )

    def _build(self) -> None:
        p, client = self._bullet, self._client
        p.setGravity(0.0, 0.0, -float(self.world["gravity"]), physicsClientId=client)
        p.setPhysicsEngineParameter(
            fixedTimeStep=self.time_step,
            numSolverIterations=ITERATIONS,
            enableConeFriction=1,
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        shapes = self._inertias(self._load(p.URDF_IGNORE_VISUAL_SHAPES))
        p.removeBody(0, client)
        self._body = self._load(p.URDF_IGNORE_VISUAL_SHAPES | p.URDF_USE_INERTIA_FROM_FILE)
        own = self._inertias(self._body)
        plane = p.createCollisionShape(p.GEOM_PLANE, physicsClientId=client)
        ground = p.createMultiBody(0.0, plane, physicsClientId=client)
        p.changeDynamics(ground, -1, lateralFriction=1.0, physicsClientId=client)
        p.changeDynamics(
            self._body, -1, linearDamping=0.0, angularDamping=0.0, physicsClientId=client
        )
        feet = set(self.robot["feet"])
        added = float(self.world["added_inertia"])
        for link in range(-1, p.getNumJoints(self._body, client)):
            p.changeDynamics(self._body, link, jointDamping=0.0, physicsClientId=client)
            info = p.getJointInfo(self._body, link, client) if link >= 0 else None
            inertia = np.array(own[link] if min(own[link]) > 0.0 else shapes[link])
            if info is None or info[2] != p.JOINT_FIXED:
                inertia = inertia + added
            p.changeDynamics(
                self._body, link, localInertiaDiagonal=inertia.tolist(), physicsClientId=client
            )
            if info is not None and info[12].decode() in feet:
                friction = float(self.world["friction"])
                p.changeDynamics(self._body, link, lateralFriction=friction, physicsClientId=client)
            elif self.world["collide"] == "feet":
                p.setCollisionFilterPair(ground, self._body, -1, link, 0, physicsClientId=client)

    def _load(self, flags: int) -> int:
        p = self._bullet
        try:
            return p.loadURDF(
                str(self.model),
                flags=flags,
                globalScaling=float(self.robot["model_scale"]),
                physicsClientId=self._client,
            )
        except p.error as error:
            raise DeployError(f"Bullet cannot read {self.model} ({error})") from None

    def _inertias(self, body: int) -> dict[int, tuple[float, ...]]:
        """Principal moments of each link of a body; zeros where Bullet refuses the file's."""
        p = self._bullet
        links = range(-1, p.getNumJoints(body, self._client))
        return {link: p.getDynamicsInfo(body, link, self._client)[2] for link in links}

    def _find_joints(self) -> None:
        p = self._bullet
        count = p.getNumJoints(self._body, self._client)
        infos = [p.getJointInfo(self._body, index, self._client) for index in range(count)]
        numbers = {info[1].decode(): info[0] for info in infos}
        missing = [name for name in self.joints if name not in numbers]
        if missing:
            raise DeployError(
                f"{self.model} has no joints {', '.join(missing)}; it has {', '.join(numbers)}"
            )
        self._numbers = [numbers[name] for name in self.joints]
        p.setJointMotorControlArray(  # Bullet's own motors hold every joint
            self._body,
            self._numbers,
            p.VELOCITY_CONTROL,
            forces=[0.0] * len(self._numbers),
            physicsClientId=self._client,
        )

    def place(
        self,
        position: np.ndarray,
        orientation: np.ndarray,
        angles: np.ndarray,
        velocities: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Put the robot somewhere.

        Args:
            position: (3,) m of the base's origin.
            orientation: (4,) of the base, x forward and z up.
            angles: (n,) rad of the joints.
            velocities: of the base (3,) m/s and (3,) rad/s in the world, of the joints (n,) rad/s;
                None: it stands still.
        """
        p, n = self._bullet, len(angles)
        linear, angular, rates = velocities or (np.zeros(3), np.zeros(3), np.zeros(n))
        link = multiply(orientation, self._turn)
        arm = rotate(link, self._com_pos - self._origin)
        quat = multiply(link, self._com_quat)
        p.resetBasePositionAndOrientation(
            self._body, (position + arm).tolist(), quat.tolist(), self._client
        )
        velocity = linear + np.cross(angular, arm)
        p.resetBaseVelocity(self._body, velocity.tolist(), angular.tolist(), self._client)
        p.resetJointStatesMultiDof(
            self._body,
            self._numbers,
            [[x] for x in self.sign * (angles + self.offset)],
            [[x] for x in self.sign * rates],
            physicsClientId=self._client,
        )
        self._look_at_joints()
        self.begin()

    def advance(self, target: np.ndarray, stiffness: np.ndarray, damping: np.ndarray) -> None:
        """See `Simulated`."""
        p = self._bullet
        torque = stiffness * (target - self._angles) - damping * self._rates
        if self.torque_limit is not None:
            torque = np.clip(torque, -self.torque_limit, self.torque_limit)
        p.setJointMotorControlArray(
            self._body,
            self._numbers,
            p.TORQUE_CONTROL,
            forces=(self.sign * torque).tolist(),
            physicsClientId=self._client,
        )
        p.stepSimulation(self._client)
        self._look_at_joints()

    def state(self) -> State:
        """See `Simulated`."""
        p = self._bullet
        pos, quat = p.getBasePositionAndOrientation(self._body, self._client)
        _, angular = p.getBaseVelocity(self._body, self._client)
        link = multiply(np.array(quat), conjugate(self._com_quat))
        orientation = multiply(link, conjugate(self._turn))
        position = np.array(pos) - rotate(link, self._com_pos - self._origin)
        rate = rotate(conjugate(orientation), np.array(angular))
        return position, orientation, rate, self._angles, self._rates

    def _look_at_joints(self) -> None:
        joints = self._bullet.getJointStates(self._body, self._numbers, self._client)
        angles, rates = np.array([joint[:2] for joint in joints]).T
        self._angles = self.sign * angles - self.offset
        self._rates = self.sign * rates

    def close(self) -> None:
        """See `Robot`."""
        with contextlib.suppress(self._bullet.error):
            self._bullet.disconnect(self._client)
