"""PyBullet behind the engine protocol: full collision, PD torques at 1 kHz, a client per world.

Every world is a robot in a physics client of its own. With workers, each process steps several of
them (`bullet_worker.py`); only flat rows of numbers cross, which this module converts for the
whole batch at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlgym.envs.imitation.joints import per_position, per_velocity
from rlgym.envs.imitation.rotations import conjugate, multiply, normalize, rotate, rotate_inverse
from rlgym.envs.physics.bullet_crew import BulletCrew
from rlgym.envs.physics.bullet_model import (
    Build,
    inspect,
    layout,
    reset_fields,
    split,
    state_fields,
    step_fields,
)
from rlgym.envs.physics.bullet_worker import Worlds, plan, to_document
from rlgym.envs.physics.engine import Actuation, Randomization, Sensed, State
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.terrain import Terrain, make_terrain
from rlgym.envs.physics.urdf import complete
from rlgym.errors import StateError
from rlgym.vector.workers.link import default_workers

CAPABILITIES = frozenset(
    {"mass", "inertia", "friction", "motor_strength", "kp", "kd", "viscous", "coulomb", "latency"}
    | {"push", "terrain", "snapshot"}
)
CLOSED = "this engine is closed: make another one"


class BulletEngine:
    """See `rlgym.envs.physics.engine.Engine`.

    An implicit servo is approximated by explicit torques at 1 kHz or faster: longer physics steps
    are cut into shorter ones. Bullet keeps contacts between steps that cannot be read, but the
    same reset is followed by the same motion, bit for bit: a snapshot is each world's last reset
    and the targets since, and `restore` simulates them again.

    Args:
        robot: what to simulate.
        actuation: of its joints.
        num_worlds: worlds.
        num_workers: processes that step them; 0: this one; None: one per usable core (less one for
            this process where there are at least four), or this one for a single world.
        collide, gravity, friction, merge, inertia, iterations, contact_distance, cone_friction,
            ground_friction, stood_before: see `Build`.
        terrain: name or `Terrain`.
        timeout: seconds to wait for a step or a reset before a worker counts as frozen.
        max_restarts: replaced workers before the engine gives up.

    Raises:
        WorldError: the robot cannot be built, or a worker does not start.
    """

    name = "bullet"
    capabilities = CAPABILITIES

    def __init__(
        self,
        robot: Robot,
        actuation: Actuation,
        num_worlds: int,
        *,
        num_workers: int | None = None,
        collide: Literal["feet", "all"] = "all",
        terrain: str | Terrain = "flat",
        gravity: float = 9.81,
        friction: float | None = None,
        merge: bool = True,
        inertia: Literal["file", "shapes"] = "file",
        iterations: int = 50,
        contact_distance: float = 0.001,
        cone_friction: bool = True,
        ground_friction: float = 1.0,
        stood_before: bool = False,
        timeout: float = 60.0,
        max_restarts: int = 10,
    ) -> None:
        """Build the worlds, each in the robot's default pose."""
        self.robot = robot = complete(robot)
        if any(robot.spherical):  # in which Bullet's controller has no friction
            self.capabilities = CAPABILITIES - {"viscous", "coulomb"}
        self.actuation, self.num_worlds = actuation, num_worlds
        self.physics_step, _ = split(actuation, robot)
        self.terrain = make_terrain(terrain)
        self.build = Build(
            merge=merge,
            collide=collide,
            inertia=inertia,
            iterations=iterations,
            gravity=gravity,
            contact_distance=contact_distance,
            friction=friction,
            cone_friction=cone_friction,
            ground_friction=ground_friction,
            stood_before=stood_before,
            spacing=self.terrain.spacing,
        )
        self.model = inspect(robot, self.build)
        self._reset, _ = layout(reset_fields(robot))
        self._step, _ = layout(step_fields(robot))
        self._state, _ = layout(state_fields(robot))
        self._measure()
        heights = None if self.terrain.is_flat else self.terrain.heights
        if num_workers is None:
            num_workers = 0 if num_worlds == 1 else default_workers()
        self._crew: BulletCrew | None = None
        self._worlds: Worlds | None = None
        if num_workers:
            self._crew = BulletCrew(
                robot,
                to_document(robot, self.model, actuation, self.build),
                {"home": self._home()} | ({} if heights is None else {"heights": heights}),
                num_worlds,
                num_workers,
                timeout,
                max_restarts,
            )
            self._arrays = self._crew.arrays
        else:
            self._arrays = {k: np.zeros(*entry) for k, entry in plan(robot, num_worlds).items()}
            self._worlds = Worlds(
                self._arrays,
                range(num_worlds),
                robot,
                self.model,
                actuation,
                self.build,
                self._home(),
                heights,
            )
        self._lost = np.zeros(num_worlds, np.bool_)
        self._log: list[np.ndarray] = []
        """Rows of `steps` of each step since `_begun`'s first."""
        self._begun = np.zeros(num_worlds, np.int64)
        """Index in the log of the first step since each world's last reset."""
        self._arrays["resets"][:] = self._home()

    @property
    def losses(self) -> list[str]:
        """One line for each worker that was lost and replaced."""
        return [] if self._crew is None else self._crew.losses

    def _measure(self) -> None:
        """Compute what the conversions between our frames and Bullet's need."""
        robot = self.robot
        com = np.array(self.model.com_quat)
        self._turn = multiply(conjugate(com), conjugate(np.array(robot.base_rotation)))
        """From our base frame to the base's principal axes."""
        self._arm = rotate_inverse(com, np.array(robot.base_origin) - np.array(self.model.com_pos))
        """Our base frame's origin, in the base's principal axes."""
        # spherical joints are as the model file has them
        self._sign = np.array(per_position(robot, robot.sign, 1.0))
        self._offset = np.array(per_position(robot, robot.offset, 0.0))
        self._sign_v = np.array(per_velocity(robot, robot.sign))
        self._points = np.array(self.model.foot_points)

    def _home(self) -> np.ndarray:
        """Row of the default pose, which worlds begin in and return to when they blow up."""
        robot = self.robot
        one = np.zeros((1, plan(robot, 1)["resets"][0][1]))
        self._fill(
            one,
            np.array([[0.0, 0.0, robot.init_height + 0.01]]),
            np.array([[0.0, 0.0, 0.0, 1.0]]),
            np.zeros((1, 3)),
            np.zeros((1, 3)),
            np.array([robot.default_pose]),
            np.zeros((1, robot.nv)),
            Randomization(),
            np.ones(1, np.bool_),
        )
        return one[0]

    # ------------------------------------------------------------------ the protocol
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
        """See `Engine.reset`."""
        arrays, mask = self._arrays, np.asarray(mask, np.bool_)
        self._fill(
            arrays["resets"],
            root_pos,
            root_quat,
            root_linvel,
            root_angvel,
            q,
            qd,
            randomization or Randomization(),
            mask,
        )
        arrays["mask"][:] = mask
        self._begin(mask)
        self._lost[mask] = False
        if self._crew is not None:
            for rows in self._crew.reset():
                self._lost[rows.start : rows.stop] |= ~mask[rows.start : rows.stop]
            self._send_home(self._lost)
        elif self._worlds is not None:
            self._worlds.reset()
        else:
            raise StateError(CLOSED)
        return self._read()

    def step(
        self, previous: np.ndarray, target: np.ndarray, push: np.ndarray | None = None
    ) -> State:
        """See `Engine.step`."""
        steps, fields = self._arrays["steps"], self._step
        steps[:, fields["previous"]] = self._sign * (previous + self._offset)
        steps[:, fields["target"]] = self._sign * (target + self._offset)
        steps[:, fields["push"]] = 0.0 if push is None else push
        lost, self._lost = self._lost, np.zeros_like(self._lost)
        if self._crew is not None:
            for rows in self._crew.step():
                lost[rows.start : rows.stop] = True
        elif self._worlds is not None:
            self._worlds.step()
        else:
            raise StateError(CLOSED)
        self._log.append(steps.copy())
        broken = self._arrays["states"][:, self._state["broken"]][:, 0]
        broken[lost] = 1.0
        if broken.any():
            self._send_home(broken > 0.5)
        return self._read()

    def _begin(self, mask: np.ndarray) -> None:
        """Note that worlds begin anew, and forget the steps that no world needs any more."""
        self._begun[mask] = len(self._log)
        oldest = int(self._begun.min())
        del self._log[:oldest]
        self._begun -= oldest

    def _send_home(self, mask: np.ndarray) -> None:
        """Note that worlds are in the default pose."""
        self._arrays["resets"][mask] = self._home()
        self._begin(mask)

    def snapshot(self) -> dict[str, np.ndarray]:
        """See `Engine.snapshot`."""
        width = self._arrays["steps"].shape
        log = np.array(self._log) if self._log else np.zeros((0, *width))
        return {"resets": self._arrays["resets"].copy(), "begun": self._begun.copy(), "log": log}

    def restore(self, snapshot: dict[str, np.ndarray]) -> State:
        """See `Engine.restore`.

        Raises:
            WorldError: a worker was lost over it.
        """
        log, begun = snapshot["log"], snapshot["begun"]
        self._arrays["resets"][:] = snapshot["resets"]
        if self._crew is not None:
            self._crew.replay(log, begun)
        elif self._worlds is not None:
            self._worlds.replay(log, begun)
        else:
            raise StateError(CLOSED)
        self._log, self._begun[:] = list(log), begun
        self._lost[:] = False
        return self._read()

    def close(self) -> None:
        """See `Engine.close`."""
        if self._crew is not None:
            self._crew.stop()
        if self._worlds is not None:
            self._worlds.close()
        self._crew = self._worlds = None

    # ------------------------------------------------------------------ conversions
    def _fill(
        self,
        rows: np.ndarray,
        root_pos: np.ndarray,
        root_quat: np.ndarray,
        root_linvel: np.ndarray,
        root_angvel: np.ndarray,
        q: np.ndarray,
        qd: np.ndarray,
        randomization: Randomization,
        mask: np.ndarray,
    ) -> None:
        """Convert states into rows of `reset_fields`, where `mask` is True."""
        fields, robot = self._reset, self.robot
        kept, rows = rows, np.empty_like(rows)
        quat = multiply(root_quat, conjugate(self._turn))
        arm = rotate(quat, self._arm)
        rows[:, fields["base_pos"]] = root_pos - arm
        rows[:, fields["base_quat"]] = quat
        rows[:, fields["linvel"]] = root_linvel - np.cross(root_angvel, arm)
        rows[:, fields["angvel"]] = root_angvel
        rows[:, fields["q"]] = self._sign * (q + self._offset)
        rows[:, fields["qd"]] = self._sign_v * qd
        friction = robot.friction if self.build.friction is None else self.build.friction
        defaults = {"mass": 1.0, "inertia": 1.0, "friction": friction, "motor_strength": 1.0}
        defaults |= {"kp": 1.0, "kd": 1.0, "viscous": 0.0, "coulomb": 0.0}
        defaults |= {"latency": self.actuation.latency}
        for name, default in defaults.items():
            given = getattr(randomization, name)
            if given is None:
                rows[:, fields[name]] = default
            else:
                rows[:, fields[name]] = np.reshape(given, (len(rows), -1))
        kept[mask] = rows[mask]

    def _read(self) -> State:
        """Convert the worlds' rows into a state."""
        rows, fields = self._arrays["states"], self._state
        count, feet = len(rows), len(self._points)
        quat = rows[:, fields["base_quat"]]
        angvel = rows[:, fields["angvel"]]
        arm = rotate(quat, self._arm)
        sensed_quat = normalize(multiply(rows[:, fields["sensed_quat"]], self._turn))
        link_pos = rows[:, fields["foot_link_pos"]].reshape(count, feet, 3)
        link_quat = rows[:, fields["foot_link_quat"]].reshape(count, feet, 4)
        return State(
            root_pos=rows[:, fields["base_pos"]] + arm,
            root_quat=multiply(quat, self._turn),
            root_linvel=rows[:, fields["linvel"]] + np.cross(angvel, arm),
            root_angvel=angvel.copy(),
            q=self._sign * rows[:, fields["q"]] - self._offset,
            qd=self._sign_v * rows[:, fields["qd"]],
            foot_pos=link_pos + rotate(link_quat, self._points),
            foot_contact=rows[:, fields["foot_contact"]] > 0.5,
            illegal_contact=rows[:, fields["illegal_contact"]][:, 0] > 0.5,
            torque=self._sign_v * rows[:, fields["torque"]],
            power=rows[:, fields["power"]][:, 0].copy(),
            broken=rows[:, fields["broken"]][:, 0] > 0.5,
            sensed=Sensed(
                root_quat=sensed_quat,
                root_angvel=rotate_inverse(sensed_quat, rows[:, fields["sensed_angvel"]]),
                q=self._sign * rows[:, fields["sensed_q"]] - self._offset,
                qd=self._sign_v * rows[:, fields["sensed_qd"]],
            ),
        )
