"""Bullet worlds of robots with spherical joints, whose servos are stable PD controllers.

A humanoid's gains are high and its links are light: torques of a plain servo would have to be
renewed far more often than a thousand times a second. A stable PD controller (Tan, Liu and Turk
2011, "Stable Proportional-Derivative Controllers") takes its torque from the state at the end of
the physics step instead; Bullet has one, of which this is the use.

It predicts that state without the ground's forces, so that it is weaker in contact the longer the
step is: a standing humanoid's knees give way by 0.05 rad at a thousand steps a second and by 0.15
at 240, where an implicit servo's give way by 0.03. Hence an "implicit" servo is given a thousand,
as with other robots, and an "explicit" one the steps that were asked for: pybullet_envs' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgym.envs.imitation.rotations import conjugate, multiply, normalize, rotation_vector
from rlgym.envs.physics.bullet_world import BulletWorld
from rlgym.envs.physics.quiet_pybullet import pybullet as p


class BallWorld(BulletWorld):
    """`BulletWorld` of a robot with spherical joints.

    Bullet does not tell the torques of its controller: those of a state are what a PD servo asks
    for, within the robot's limits, at the end of each physics step. It has one pair of gains for a
    ball, and no friction in it.
    """

    def _take_motors_away(self) -> None:
        """Free the joints of the motors that Bullet loads them with."""
        for joint, ball in zip(self.model.joints, self.robot.is_spherical, strict=True):
            target, force = ([0.0, 0.0, 0.0, 1.0], [0.0] * 3) if ball else ([0.0], [0.0])
            p.setJointMotorControlMultiDof(
                self._body,
                joint,
                p.POSITION_CONTROL,
                targetPosition=target,
                positionGain=0.0,
                velocityGain=1.0,
                force=force,
                physicsClientId=self._client,
            )

    def _randomize(self, values: dict[str, Any]) -> None:
        self._randomize_links(values)
        if "motors" not in self._applied:
            self._take_motors_away()
            self._applied["motors"] = None
        self._set_latency(values)
        widths = [4 if ball else 1 for ball in self.robot.is_spherical]
        ends = np.cumsum(widths).tolist()
        self._parts = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        strength = self._per_joint(values["motor_strength"])
        self._gains = (
            (strength * self._per_joint(values["kp"]) * self.robot.kp).tolist(),
            (strength * self._per_joint(values["kd"]) * self.robot.kd).tolist(),
        )
        limits = [
            limit if self.actuation.limit_torque else 1e9 for limit in self.robot.torque_limit
        ]
        flags = self.robot.is_spherical
        self._forces = [[m] * (3 if ball else 1) for m, ball in zip(limits, flags, strict=True)]
        self._still = [[0.0] * len(force) for force in self._forces]

    def _per_joint(self, factors: list[float]) -> np.ndarray:
        """Return one factor per joint of a row of one per velocity: the mean of a ball's three."""
        widths = [3 if ball else 1 for ball in self.robot.is_spherical]
        starts = np.cumsum([0, *widths[:-1]])
        return np.add.reduceat(factors, starts) / widths

    def _put_joints(self, q: list[float], qd: list[float]) -> None:
        rest = iter(qd)
        velocities = [[next(rest) for _ in force] for force in self._forces]
        p.resetJointStatesMultiDof(
            self._body,
            self.model.joints,
            [q[part] for part in self._parts],
            velocities,
            physicsClientId=self._client,
        )

    def _goals(self, previous: np.ndarray, target: np.ndarray) -> list[list[float]]:
        goals = super()._goals(previous, target)
        if not self.actuation.interpolate:
            return goals
        for goal in goals:  # a straight line between quaternions is too short
            for part, ball in zip(self._parts, self.robot.is_spherical, strict=True):
                if ball:
                    goal[part] = normalize(np.array(goal[part])).tolist()
        return goals

    def _simulate(self, goals: list[list[float]]) -> tuple[list[float], float]:
        body, client, joints = self._body, self._client, self._joints
        kp, kd = self._gains
        for k, goal in enumerate(goals, start=1):
            p.setJointMotorControlMultiDofArray(
                body,
                joints,
                p.STABLE_PD_CONTROL,
                targetPositions=[goal[part] for part in self._parts],
                targetVelocities=self._still,
                forces=self._forces,
                positionGains=kp,
                velocityGains=kd,
                physicsClientId=client,
            )
            p.stepSimulation(client)
            states = p.getJointStatesMultiDof(body, joints, client)
            q = [x for state in states for x in state[0]]
            self._trail.append((q, [x for state in states for x in state[1]]))
            if k in self._watched:
                self._poses[self._clock + k] = self._read_pose()
        speeds = np.array([qd for _, qd in self._trail[-self._steps :]])
        torques = self._demand(
            np.array(goals), np.array([q for q, _ in self._trail[-self._steps :]]), speeds
        )
        power = np.abs(torques * speeds).sum() / self._steps
        return torques[-1].tolist(), float(power)

    def _demand(self, goals: np.ndarray, q: np.ndarray, qd: np.ndarray) -> np.ndarray:
        """Return the torques (steps, nv) that the servos ask for in states."""
        errors = []
        for part, ball in zip(self._parts, self.robot.is_spherical, strict=True):
            goal, now = goals[:, part], q[:, part]
            errors.append(rotation_vector(multiply(conjugate(now), goal)) if ball else goal - now)
        widths = [len(force) for force in self._forces]
        kp, kd = (np.repeat(gain, widths) for gain in self._gains)
        limit = np.concatenate(self._forces)
        return np.clip(kp * np.concatenate(errors, axis=1) - kd * qd, -limit, limit)
