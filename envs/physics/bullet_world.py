"""One robot in a physics client of its own: what a process does for each of its Bullet worlds.

Numbers cross in flat rows of floats, in Bullet's own terms: the frame of the base's centre of mass,
joints with the model file's signs and zeros. `bullet.py` converts whole batches of rows at once.
Torch-free: worker processes import it.

The loop in `BulletWorld.step` runs a thousand times per simulated second. Measured there (us):
getJointStates for twelve joints 6, setJointMotorControlArray with a list 4 (with an array 7), the
servo in plain Python 4 (in numpy 8), stepSimulation 20 to 60.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from rlgym.envs.physics.bullet_model import (
    Build,
    Model,
    connect,
    layout,
    load,
    reset_fields,
    split,
    state_fields,
    step_fields,
)
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.quiet_pybullet import pybullet as p
from rlgym.envs.physics.robots import Robot

FASTEST = 100.0
"""m/s and, times ten, rad/s: the base of a world that blew up is faster."""
LARGEST = 1e6
"""No number of a sane world is larger."""
BOX = (500.0, 500.0, 5.0)
"""m, half the extents of the box whose top is the ground for links that must not touch it."""
FAR = (0.0, 0.0, 100.0)
"""m, a place where a robot touches nothing."""
NEAR = 2.5
"""Radii around a foot's centre within which a contact of its link is the foot's."""


class BulletWorld:
    """One robot on one terrain, until it is closed.

    Args:
        robot: to simulate.
        model: what `inspect` found of it with this `build`.
        actuation: of the joints.
        build: of robot and world.
        home: row that the world is reset to, now and when it blew up.
        heights: (rows, columns) m, float32, of the ground, as `Terrain` has them; None: a plane.
        out: row to write the state into.
    """

    def __init__(
        self,
        robot: Robot,
        model: Model,
        actuation: Actuation,
        build: Build,
        home: np.ndarray,
        heights: np.ndarray | None,
        out: np.ndarray,
    ) -> None:
        """Build the world and reset it to `home`."""
        self.robot, self.model, self.actuation, self.build = robot, model, actuation, build
        self._time_step, self._steps = split(actuation, robot)
        self._reset, _ = layout(reset_fields(robot))
        self._step, _ = layout(step_fields(robot))
        self._state, _ = layout(state_fields(robot))
        self._ramp = np.linspace(0.0, 1.0, self._steps + 1)[1:, None]
        self._limit = list(robot.torque_limit) if actuation.limit_torque else None
        self._joints = list(model.joints)
        self._foot_of = {link: foot for foot, link in enumerate(model.feet)}
        self._sensed = slice(self._state["sensed_quat"].start, self._state["sensed_qd"].stop)
        self._home, self._heights = home.copy(), heights
        self._client = -1
        self._rebuild()
        self.reset(self._home, out)

    # ------------------------------------------------------------------ building
    def _rebuild(self) -> None:
        """Make the world anew: what an explosion leaves of one cannot be trusted."""
        self.close()
        build, model = self.build, self.model
        client = self._client = connect()
        p.setGravity(0.0, 0.0, -build.gravity, physicsClientId=client)
        p.setPhysicsEngineParameter(
            fixedTimeStep=self._time_step,
            numSolverIterations=build.iterations,
            enableConeFriction=int(build.cone_friction),
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        body = self._body = load(self.robot, model.flags, client, model.urdf)
        p.changeDynamics(body, -1, linearDamping=0.0, angularDamping=0.0, physicsClientId=client)
        for link in range(-1, model.links):
            p.changeDynamics(body, link, jointDamping=0.0, physicsClientId=client)
        feet = set(model.feet)
        rest = set(range(-1, model.links)) - feet if build.collide == "all" else set()
        if self._heights is not None:
            self._make_ground(self._height_field(), feet | rest)
        else:
            walking = feet | (rest & set(model.may_touch))
            self._make_ground(p.createCollisionShape(p.GEOM_PLANE, physicsClientId=client), walking)
            if rest - walking:
                # Bullet looks at every link every time against a plane, whose bounds are infinite,
                # and at none against a box that it is not near: half the time of a robot of meshes
                self._make_ground(self._box(), rest - walking, -BOX[2])
        self._applied: dict[str, Any] = {}

    def _make_ground(self, shape: int, links: set[int], height: float = 0.0) -> None:
        """Make ground of a shape, which only these links of the robot meet."""
        client = self._client
        if self._heights is not None:
            height = 0.5 * float(self._heights.min() + self._heights.max())  # Bullet centres it
        ground = p.createMultiBody(0.0, shape, -1, [0.0, 0.0, height], physicsClientId=client)
        friction = self.build.ground_friction
        p.changeDynamics(ground, -1, lateralFriction=friction, physicsClientId=client)
        for link in set(range(-1, self.model.links)) - links:
            p.setCollisionFilterPair(ground, self._body, -1, link, 0, physicsClientId=client)

    def _box(self) -> int:
        client = self._client
        return p.createCollisionShape(p.GEOM_BOX, halfExtents=BOX, physicsClientId=client)

    def _height_field(self) -> int:
        assert self._heights is not None
        rows, columns = self._heights.shape
        return p.createCollisionShape(
            p.GEOM_HEIGHTFIELD,
            meshScale=[self.build.spacing, self.build.spacing, 1.0],
            heightfieldData=self._heights.ravel().tolist(),
            numHeightfieldRows=columns,
            numHeightfieldColumns=rows,
            physicsClientId=self._client,
        )

    def close(self) -> None:
        """Give up the client."""
        if self._client >= 0:
            with contextlib.suppress(p.error):
                p.disconnect(self._client)
            self._client = -1

    # ------------------------------------------------------------------ resets
    def reset(self, row: np.ndarray, out: np.ndarray) -> None:
        """Put the robot into a state.

        Args:
            row: fields of `reset_fields`.
            out: row for the fields of `state_fields`.
        """
        values = {name: row[where].tolist() for name, where in self._reset.items()}
        self._randomize(values)
        body, client = self._body, self._client
        # away from all that it touches: Bullet would carry the old contacts over, and the same
        # reset would not be followed by the same motion
        p.resetBasePositionAndOrientation(body, FAR, (0.0, 0.0, 0.0, 1.0), client)
        p.performCollisionDetection(client)
        p.resetBasePositionAndOrientation(body, values["base_pos"], values["base_quat"], client)
        p.resetBaseVelocity(body, values["linvel"], values["angvel"], client)
        self._put_joints(values["q"], values["qd"])
        p.performCollisionDetection(client)
        now = before = values["q"], values["qd"]
        if self.build.stood_before:
            before = self._home[self._reset["q"]].tolist(), [0.0] * self.robot.nv
        self._trail = [*[before] * (self._lag + 1), now]
        self._clock, self._poses = 0, {0: self._read_pose()}
        self._write(out, [0.0] * self.robot.nv, 0.0)

    def _put_joints(self, q: list[float], qd: list[float]) -> None:
        """Set the joints' positions and velocities."""
        p.resetJointStatesMultiDof(
            self._body,
            self.model.joints,
            [[x] for x in q],
            [[x] for x in qd],
            physicsClientId=self._client,
        )

    def _randomize(self, values: dict[str, Any]) -> None:
        """Change what differs from the last reset."""
        self._randomize_links(values)
        old, body, client, model = self._applied, self._body, self._client, self.model
        if old.get("viscous") != values["viscous"]:
            for joint, damping in zip(model.joints, values["viscous"], strict=True):
                p.changeDynamics(body, joint, jointDamping=damping, physicsClientId=client)
        if old.get("coulomb") != values["coulomb"]:
            # a motor that holds still with at most this torque is Coulomb's friction; with none
            # it also takes Bullet's own motor away, which every loaded joint has
            p.setJointMotorControlArray(
                body,
                model.joints,
                p.VELOCITY_CONTROL,
                forces=values["coulomb"],
                physicsClientId=client,
            )
        old |= {name: values[name] for name in ("viscous", "coulomb")}
        strength = values["motor_strength"]
        robot = self.robot
        self._kp = [s * f * k for s, f, k in zip(strength, values["kp"], robot.kp, strict=True)]
        self._kd = [s * f * k for s, f, k in zip(strength, values["kd"], robot.kd, strict=True)]
        self._set_latency(values)

    def _randomize_links(self, values: dict[str, Any]) -> None:
        """Change masses, inertias and friction where they differ from the last reset."""
        old, body, client, model = self._applied, self._body, self._client, self.model
        scales = values["mass"][0], values["inertia"][0]
        if old.get("scales") != scales:
            mass, inertia = scales[0], scales[0] * scales[1]
            for link in range(-1, model.links):
                p.changeDynamics(
                    body,
                    link,
                    mass=mass * model.masses[link + 1],
                    localInertiaDiagonal=[inertia * x for x in model.inertias[link + 1]],
                    physicsClientId=client,
                )
        if old.get("friction") != values["friction"]:
            for link in set(model.feet):
                friction = values["friction"][0]
                p.changeDynamics(body, link, lateralFriction=friction, physicsClientId=client)
        old |= {"friction": values["friction"], "scales": scales}

    def _set_latency(self, values: dict[str, Any]) -> None:
        lag = values["latency"][0] / self._time_step
        self._lag = math.floor(lag + 1e-9)
        self._blend = lag - self._lag if lag - self._lag > 1e-6 else 0.0
        shown = -self._lag, -self._lag - 1, 0
        self._watched = {k % self._steps or self._steps for k in shown}

    # ------------------------------------------------------------------ steps
    def step(self, row: np.ndarray, out: np.ndarray) -> None:
        """Simulate a control step.

        Args:
            row: fields of `step_fields`.
            out: row for the fields of `state_fields`.
        """
        if not np.isfinite(row).all():
            self._blow_up(out)
            return
        fields, body, client = self._step, self._body, self._client
        goals = self._goals(row[fields["previous"]], row[fields["target"]])
        push = row[fields["push"]]
        if push.any():
            linear, angular = p.getBaseVelocity(body, client)
            p.resetBaseVelocity(body, (linear + push).tolist(), angular, client)
        torque, power = self._simulate(goals)
        self._clock += self._steps
        self._write(out, torque, power)
        out[self._sensed] = self._delayed()
        del self._trail[: -2 * self._steps - 1]
        self._poses = {k: v for k, v in self._poses.items() if k >= self._clock - 2 * self._steps}
        if not np.abs(out).max() < LARGEST or self._is_absurd():
            self._blow_up(out)

    def _blow_up(self, out: np.ndarray) -> None:
        """Begin anew at home, and say so."""
        self._rebuild()
        self.reset(self._home, out)
        out[self._state["broken"]] = 1.0

    def _simulate(self, goals: list[list[float]]) -> tuple[list[float], float]:
        """Advance by a control step, adding to the trail and, where `_watched`, to the poses.

        Args:
            goals: the joints' targets of each physics step.

        Returns:
            Torques of the last physics step, N m, and mean power, W.
        """
        body, client, joints = self._body, self._client, self._joints
        kp, kd, limit, clip = self._kp, self._kd, self._limit, self.actuation.target_clip
        trail, watched, lagging = self._trail, self._watched, -1 - self._lag
        get, put, advance, mode = (
            p.getJointStates,
            p.setJointMotorControlArray,
            p.stepSimulation,
            p.TORQUE_CONTROL,
        )
        q, qd = trail[-1]
        torque: list[float] = []
        work: list[float] = []
        for k, goal in enumerate(goals, start=1):
            if clip is None:
                torque = [
                    gain * (t - x) - damping * v
                    for t, x, v, gain, damping in zip(goal, q, qd, kp, kd, strict=True)
                ]
            else:  # targets stay near the angles that the sensors show
                shown = self._between() if self._blend else trail[lagging][0]
                torque = [
                    gain * ((t if -clip <= t - y <= clip else y + clip if t > y else y - clip) - x)
                    - damping * v
                    for t, y, x, v, gain, damping in zip(goal, shown, q, qd, kp, kd, strict=True)
                ]
            if limit is not None:
                torque = [
                    x if -m <= x <= m else m if x > m else -m
                    for x, m in zip(torque, limit, strict=True)
                ]
            put(body, joints, mode, forces=torque, physicsClientId=client)
            advance(client)
            states = get(body, joints, client)
            q, qd = [state[0] for state in states], [state[1] for state in states]
            trail.append((q, qd))
            work += torque
            work += qd
            if k in watched:
                self._poses[self._clock + k] = self._read_pose()
        torques, speeds = np.array(work).reshape(self._steps, 2, -1).swapaxes(0, 1)
        return torque, float(np.vdot(np.abs(torques), np.abs(speeds))) / self._steps

    def _goals(self, previous: np.ndarray, target: np.ndarray) -> list[list[float]]:
        """Return the joints' targets of each physics step."""
        if not self.actuation.interpolate:
            return [target.tolist()] * self._steps
        return (previous + self._ramp * (target - previous)).tolist()

    def _between(self) -> list[float]:
        """Return joint angles as they were `latency` ago, between two physics steps."""
        newer, older = self._trail[-1 - self._lag][0], self._trail[-2 - self._lag][0]
        return [x + self._blend * (y - x) for x, y in zip(newer, older, strict=True)]

    def _delayed(self) -> np.ndarray:
        """Return sensors' readings: orientation, angular velocity, joint angles, velocities."""
        at, lag = self._clock - self._lag, self._lag
        newer = self._reading(self._poses[max(at, 0)], self._trail[-1 - lag])
        if not self._blend:
            return newer
        older = self._reading(self._poses[max(at - 1, 0)], self._trail[-2 - lag])
        return newer + self._blend * (older - newer)

    @staticmethod
    def _reading(pose: Any, joints: Any) -> np.ndarray:
        return np.array([*pose[1], *pose[3], *joints[0], *joints[1]])

    # ------------------------------------------------------------------ states
    def _read_pose(self) -> tuple[Any, Any, Any, Any]:
        """Read the base's position, orientation, velocity and angular velocity."""
        body, client = self._body, self._client
        return *p.getBasePositionAndOrientation(body, client), *p.getBaseVelocity(body, client)

    def _write(self, out: np.ndarray, torque: list[float], power: float) -> None:
        """Write the state into a row; sensors' readings without delay."""
        model = self.model
        pos, quat, linvel, angvel = self._poses[self._clock]
        q, qd = self._trail[-1]
        links = p.getLinkStates(self._body, model.feet, 0, 1, self._client)
        feet_pos = [x for link in links for x in link[4]]
        feet_quat = [x for link in links for x in link[5]]
        touching, illegal = self._contacts(links)
        state = (*pos, *quat, *linvel, *angvel, *q, *qd, *feet_pos, *feet_quat, *torque)
        sensed = (*quat, *angvel, *q, *qd)
        out[:] = (*state, *touching, illegal, power, *sensed, 0.0)

    def _contacts(self, links: Any) -> tuple[list[float], float]:
        """Find out which feet touch the ground, and whether a link does that must not."""
        model = self.model
        touching, illegal = [0.0] * len(model.feet), 0.0
        points = p.getContactPoints(bodyA=self._body, physicsClientId=self._client)
        for point in points:
            if point[8] > self.build.contact_distance:
                continue
            link = point[3]
            if link in self._foot_of:
                foot = self._foot_of[link]
                if model.bare_feet[foot] or self._is_foot(foot, links[foot], point[5]):
                    touching[foot] = 1.0
                    continue
            if link not in model.may_touch:
                illegal = 1.0
        return touching, illegal

    def _is_foot(self, foot: int, link: Any, point: Any) -> bool:
        """Tell a foot from the rest of the link that it was merged into."""
        centre, _ = p.multiplyTransforms(
            link[4], link[5], self.model.foot_points[foot], (0.0, 0.0, 0.0, 1.0)
        )
        return math.dist(centre, point) <= NEAR * self.robot.feet[foot].radius

    def _is_absurd(self) -> bool:
        """Whether the base is faster than any robot is."""
        linear, angular = self._poses[self._clock][2:]
        return math.hypot(*linear) > FASTEST or math.hypot(*angular) > 10 * FASTEST
