"""MuJoCo on the CPU: a batch of worlds stepped by `mujoco.rollout`'s own threads.

A control step is one call into C for the whole batch. The state is ours (one row of MuJoCo's
physics state per world), so a reset overwrites a row and a snapshot is a copy. The solver does not
start from an earlier solution: a world's future depends on its state alone, bit for bit, whichever
thread steps it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from mujoco.rollout import Rollout

from rlgym.envs.imitation.joints import per_velocity, to_angles
from rlgym.envs.imitation.kinematics import foot_positions, sole_heights
from rlgym.envs.imitation.rotations import normalize, rotate, rotate_inverse
from rlgym.envs.physics.engine import Actuation, Randomization, Sensed, State
from rlgym.envs.physics.mujoco_model import compile_model, mujoco
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.terrain import Terrain, make_terrain
from rlgym.errors import StateError

TOUCH = 0.003
"""m above the ground below which a foot's sphere touches it; soft contacts sink in by 1 or 2 mm."""
MAX_SPEED = 500.0
"""m/s, rad/s: nothing real moves so fast; a state beyond has blown up."""
MODEL_FIELDS = frozenset(
    ("mass", "inertia", "friction", "motor_strength", "kp", "kd", "viscous", "coulomb")
)
"""Of `Randomization`: those that a world needs its own MuJoCo model for."""


class MujocoEngine:
    """`rlgym.envs.physics.engine.Engine` by MuJoCo.

    Args:
        robot: A complete entry of the robot table.
        actuation: Servo and time steps. An explicit servo's forces are those at the start of each
            physics step.
        num_worlds: B.
        num_threads: That step the batch; by default one per usable processor. Results do not
            depend on it.
        collide: "feet": only feet touch the ground, and `illegal_contact` stays False (heights
            tell a fall); "all": every link does.
        terrain: Name or `Terrain`.
        gravity: m/s^2, downwards.
        friction: Coefficient between robot and ground, instead of the robot's.

    Raises:
        WorldError: MuJoCo refuses the robot's file, or the entry does not fit it.
    """

    name = "mujoco"
    capabilities = MODEL_FIELDS | {"latency", "push", "terrain", "snapshot"}

    def __init__(
        self,
        robot: Robot,
        actuation: Actuation,
        num_worlds: int,
        *,
        num_threads: int | None = None,
        collide: Literal["feet", "all"] = "feet",
        terrain: str | Terrain = "flat",
        gravity: float = 9.81,
        friction: float | None = None,
    ) -> None:
        self.robot, self.actuation, self.num_worlds = robot, actuation, num_worlds
        self.physics_step = actuation.time_step
        self.terrain = make_terrain(terrain)
        self._compiled = compiled = compile_model(
            robot,
            actuation,
            collide,
            self.terrain,
            gravity=gravity,
            friction=robot.friction if friction is None else friction,
        )
        self._model = model = compiled.model
        self._size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        mujoco.set_mju_user_warning(_ignore)  # it would write MUJOCO_LOG.TXT; we see `broken`
        threads = min(num_threads or _usable_processors(), num_worlds)
        self._rollout: Rollout | None = Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._models = [model] * num_worlds
        self._own_models = False
        self._allocate()

    def _allocate(self) -> None:
        """Make every array that steps write into."""
        B, K, robot, model = self.num_worlds, self.actuation.substeps, self.robot, self._model
        feet = len(robot.feet)
        self._now = np.zeros((B, self._size))
        self._states = np.zeros((B, K, self._size))
        self._earlier: np.ndarray | None = None  # the control step before, once latency needs it
        self._sensors = np.zeros((B, K, model.nsensordata))
        self._control = np.zeros((B, K, model.nu))
        self._latency = np.full(B, self.actuation.latency)
        self._random: dict[str, np.ndarray] = {}
        self._q = self._compiled.q_index + 1  # in a state, after the time
        self._v = self._compiled.v_index + 1 + model.nq
        self._ramp = np.arange(1, K + 1)[:, None] / K
        self._radius = np.array([foot.radius for foot in robot.feet])
        self._boxes = any(foot.half for foot in robot.feet)
        pos, quat, linvel, angvel = (np.zeros((B, n)) for n in (3, 4, 3, 3))
        q, qd = np.zeros((B, robot.nq)), np.zeros((B, robot.nv))
        self.state = State(
            root_pos=pos,
            root_quat=quat,
            root_linvel=linvel,
            root_angvel=angvel,
            q=q,
            qd=qd,
            foot_pos=np.zeros((B, feet, 3)),
            foot_contact=np.zeros((B, feet), bool),
            illegal_contact=np.zeros(B, bool),
            torque=np.zeros((B, robot.nv)),
            power=np.zeros(B),
            broken=np.zeros(B, bool),
            sensed=Sensed(quat.copy(), angvel.copy(), q.copy(), qd.copy()),
        )
        everything = np.ones(B, bool)
        home = np.tile([0.0, 0.0, robot.init_height], (B, 1))
        upright = np.tile([0.0, 0.0, 0.0, 1.0], (B, 1))
        self._home = np.zeros((B, self._size))
        self.reset(
            everything, home, upright, linvel, angvel, np.tile(robot.default_pose, (B, 1)), qd
        )
        self._home[:] = self._now

    # ----- The protocol --------------------------------------------------------------------------

    def reset(
        self,
        mask: np.ndarray,
        root_pos: np.ndarray,
        root_quat: np.ndarray,
        root_linvel: np.ndarray,
        root_angvel: np.ndarray,
        q: np.ndarray,
        qd: np.ndarray,
        randomization: Randomization | None = None,
    ) -> State:
        rows = np.flatnonzero(mask)
        if rows.size == 0:
            return self.state
        nq = self._model.nq
        new = np.zeros((rows.size, self._size))
        quat = root_quat[rows]
        new[:, 1:4] = root_pos[rows]
        new[:, 4:8] = quat[:, [3, 0, 1, 2]]
        new[:, self._q] = q[rows]
        new[:, 1 + nq : 4 + nq] = root_linvel[rows]
        new[:, 4 + nq : 7 + nq] = rotate_inverse(quat, root_angvel[rows])
        new[:, self._v] = qd[rows]
        self._now[rows] = new
        self._states[rows] = new[:, None]
        if self._earlier is not None:
            self._earlier[rows] = new[:, None]
        if randomization is not None:
            self._randomize(rows, randomization)
        self.state.torque[rows] = 0.0
        self.state.power[rows] = 0.0
        self.state.broken[rows] = False
        self.state.illegal_contact[rows] = False
        self._read(rows)
        return self.state

    def step(
        self, previous: np.ndarray, target: np.ndarray, push: np.ndarray | None = None
    ) -> State:
        if self._rollout is None:
            raise StateError("this engine is closed: make another one")
        B, K = self.num_worlds, self.actuation.substeps
        if self._earlier is not None:
            self._states, self._earlier = self._earlier, self._states
        start = 1 + self._model.nq
        if push is not None:
            self._now[:, start : start + 3] += push
        self._set_control(previous, target)
        self._rollout.rollout(
            self._models,
            self._data,
            self._now,
            self._control,
            nstep=K,
            skip_checks=True,
            state=self._states,
            sensordata=self._sensors,
            chunk_size=max(1, B // (8 * len(self._data))),
        )
        self._now[:] = self._states[:, -1]
        self._read_sensors()
        self._mend()
        self._read(slice(None))
        return self.state

    def snapshot(self) -> dict[str, Any]:
        random = {f"random.{name}": array for name, array in self._random.items()}
        return {name: array.copy() for name, array in (self._memory() | random).items()}

    def restore(self, snapshot: dict[str, Any]) -> State:
        self._earlier = None
        if "earlier" in snapshot:
            self._remember()
        memory = self._memory()
        for name, array in memory.items():
            array[:] = snapshot[name]
        random = {name[7:]: a for name, a in snapshot.items() if name.startswith("random.")}
        if random:
            self._randomize(np.arange(self.num_worlds), Randomization(**random))
        self._read(slice(None))
        return self.state

    def close(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None

    # ----- Parts ---------------------------------------------------------------------------------

    def _memory(self) -> dict[str, np.ndarray]:
        """Return the arrays that the future depends on, or that `_read` does not compute."""
        state = self.state
        arrays = {"now": self._now, "latency": self._latency, "torque": state.torque}
        arrays |= {"power": state.power, "illegal_contact": state.illegal_contact}
        arrays |= {"broken": state.broken}
        if self._earlier is not None:
            arrays |= {"states": self._states, "earlier": self._earlier}
        return arrays

    def _remember(self) -> None:
        """Keep the states of the control step before from now on: latency may reach into it."""
        if self._earlier is None:
            self._earlier = np.repeat(self._now[:, None], self.actuation.substeps, axis=1)
            self._states[:] = self._earlier

    def _set_control(self, previous: np.ndarray, target: np.ndarray) -> None:
        """Write the targets of each physics step; a spherical joint's as a rotation vector."""
        new = to_angles(self.robot, target)
        control = self._control[:, :, : new.shape[1]]
        if self.actuation.interpolate:
            old = to_angles(self.robot, previous)
            np.multiply((new - old)[:, None], self._ramp, out=control)
            control += old[:, None]
        else:
            control[:] = new[:, None]

    def _read_sensors(self) -> None:
        """Take torque, power and contacts from what MuJoCo measured."""
        nv, state = self.robot.nv, self.state
        torque = self._sensors[:, :, :nv]
        if self.actuation.target_clip is not None:
            torque = torque + self._sensors[:, :, nv : 2 * nv]
            if self.actuation.limit_torque:
                limit = np.array(per_velocity(self.robot, self.robot.torque_limit))
                torque = np.clip(torque, -limit, limit)
        speed = self._states[:, :, self._v]
        if self.robot.damped_joints:
            torque = torque - self._model.dof_damping[self._compiled.v_index] * speed
        state.torque[:] = torque[:, -1]
        np.einsum("bkv,bkv->b", np.abs(torque), np.abs(speed), out=state.power)
        state.power /= self.actuation.substeps
        if self._compiled.contact_sensors:
            found = self._sensors[:, -1, self._model.nu :]
            state.illegal_contact[:] = found[:, 0] > found[:, 1:].sum(axis=1)

    def _mend(self) -> None:
        """Find worlds that blew up and put them back into the default pose."""
        now, broken = self._now, self.state.broken
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.abs(now[:, 1:]).max(axis=1)
            broken[:] = ~(size < MAX_SPEED)  # also True for NaN
        if broken.any():
            now[broken] = self._home[broken]
            self._states[broken] = now[broken, None]
            if self._earlier is not None:
                self._earlier[broken] = now[broken, None]
            self.state.torque[broken] = 0.0
            self.state.power[broken] = 0.0
            self.state.illegal_contact[broken] = False

    def _read(self, rows: Any) -> None:
        """Compute `state` from the physics state, for all rows or an index array of some."""
        now, state, nq = self._now[rows], self.state, self._model.nq
        pos, quat, q = now[:, 1:4], now[:, [5, 6, 7, 4]], now[:, self._q]
        foot_pos = foot_positions(self.robot, pos, quat, q)
        if self._boxes:
            height = sole_heights(self.robot, pos, quat, q)
        else:
            height = foot_pos[..., 2] - self._radius
        if not self.terrain.is_flat:
            height -= self.terrain.height(foot_pos[..., :2])
        local = now[:, 4 + nq : 7 + nq]
        state.root_pos[rows] = pos
        state.root_quat[rows] = quat
        state.root_linvel[rows] = now[:, 1 + nq : 4 + nq]
        state.root_angvel[rows] = rotate(quat, local)
        state.q[rows] = q
        state.qd[rows] = now[:, self._v]
        state.foot_pos[rows] = foot_pos
        state.foot_contact[rows] = height < TOUCH
        if self._latency.any():
            self._sense(rows)
        else:
            sensed = state.sensed
            sensed.root_quat[rows] = quat
            sensed.root_angvel[rows] = local
            sensed.q[rows] = q
            sensed.qd[rows] = state.qd[rows]

    def _sense(self, rows: Any) -> None:
        """Read the sensors as they were `latency` ago, linear between physics steps."""
        self._remember()
        assert self._earlier is not None
        K, nq = self.actuation.substeps, self._model.nq
        past = np.concatenate((self._earlier[rows], self._states[rows]), axis=1)
        at = 2 * K - 1 - self._latency[rows] / self.actuation.time_step
        first = np.clip(np.floor(at).astype(int), 0, 2 * K - 2)
        share = np.clip(at - first, 0.0, 1.0)[:, None]
        each = np.arange(len(past))
        then = (1.0 - share) * past[each, first] + share * past[each, first + 1]
        sensed = self.state.sensed
        sensed.root_quat[rows] = normalize(then[:, [5, 6, 7, 4]])
        sensed.root_angvel[rows] = then[:, 4 + nq : 7 + nq]
        sensed.q[rows] = then[:, self._q]
        sensed.qd[rows] = then[:, self._v]

    # ----- Randomization -------------------------------------------------------------------------

    def _randomize(self, rows: np.ndarray, asked: Randomization) -> None:
        """Change the models of some worlds; what is None stays as it was."""
        if asked.latency is not None:
            self._latency[rows] = asked.latency[rows]
            self._random["latency"] = self._latency
            if self._latency.any():
                self._remember()
        wanted = {name: getattr(asked, name) for name in MODEL_FIELDS}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not wanted:
            return
        if not self._own_models:
            self._models = [copy.copy(self._model) for _ in range(self.num_worlds)]
            self._own_models = True
        for name, value in wanted.items():
            if name not in self._random:
                self._random[name] = np.array(value, dtype=float)
            self._random[name][rows] = value[rows]
        fields = {name: value for name, value in self._random.items() if name in MODEL_FIELDS}
        for row in rows:
            self._apply(self._models[row], {name: value[row] for name, value in fields.items()})

    def _apply(self, model: Any, values: dict[str, Any]) -> None:
        """Write one world's values into its model."""
        base = self._model
        if "mass" in values or "inertia" in values:
            mass = values.get("mass", 1.0)
            model.body_mass[:] = base.body_mass * mass
            model.body_inertia[:] = base.body_inertia * (mass * values.get("inertia", 1.0))
        if "friction" in values:
            model.geom_friction[self._compiled.foot_geoms, 0] = values["friction"]
        strength = values.get("motor_strength", 1.0)
        kp, kd = strength * values.get("kp", 1.0), strength * values.get("kd", 1.0)
        at = self._compiled.v_index
        model.dof_damping[at] = base.dof_damping[at] * kd + values.get("viscous", 0.0)
        model.dof_armature[at] = base.dof_armature[at] * kd  # of the servo, see `compile_model`
        if not values.keys().isdisjoint(("motor_strength", "kp", "kd")):
            repeat = base.nu // self.robot.nv
            kp, kd = (np.tile(np.broadcast_to(x, self.robot.nv), repeat) for x in (kp, kd))
            model.actuator_gainprm[:, 0] = base.actuator_gainprm[:, 0] * kp
            model.actuator_biasprm[:, 1] = base.actuator_biasprm[:, 1] * kp
            model.actuator_biasprm[:, 2] = base.actuator_biasprm[:, 2] * kd
            if self.actuation.target_clip is not None:  # the bound of the error, not of the torque
                model.actuator_forcerange[:] = base.actuator_forcerange * kp[:, None]
        if "coulomb" in values:
            model.dof_frictionloss[at] = values["coulomb"]
        if not values.keys().isdisjoint(("mass", "inertia", "motor_strength", "kd")):
            mujoco.mj_setConst(model, self._data[0])


def _ignore(_: str) -> None:
    """Take MuJoCo's warnings of unstable worlds and do nothing."""


def _usable_processors() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
