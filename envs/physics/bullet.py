"""PyBullet behind the engine protocol: full collision, PD torques at 1 kHz, a client per world.

Every world is a robot in a physics client of its own. With workers, each process steps several of
them (`bullet_worker.py`); only flat rows of numbers cross, which this module converts for the
whole batch at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlgym.envs.imitation.rotations import conjugate, multiply, normalize, rotate, rotate_inverse
from rlgym.envs.physics.bullet_model import (
    Build,
    inspect,
    layout,
    reset_fields,
    state_fields,
    step_fields,
)
from rlgym.envs.physics.bullet_world import BulletWorld
from rlgym.envs.physics.engine import Actuation, Randomization, Sensed, State
from rlgym.envs.physics.robots import Robot

CAPABILITIES = frozenset(
    {"mass", "inertia", "friction", "motor_strength", "kp", "kd", "viscous", "coulomb", "latency"}
    | {"push", "terrain"}
)


class BulletEngine:
    """See `rlgym.envs.physics.engine.Engine`.

    An implicit servo is approximated by explicit torques at 1 kHz or faster: longer physics steps
    are cut into shorter ones. Resets are not bit-exact (Bullet keeps contacts between steps), so
    "snapshot" is not among the capabilities: `restore` begins at the same state, without them.

    Args:
        robot: what to simulate.
        actuation: of its joints.
        num_worlds: worlds.
        merge, collide, inertia, iterations, gravity, contact_distance, friction: see `Build`.

    Raises:
        WorldError: the robot cannot be built.
    """

    name = "bullet"
    capabilities = CAPABILITIES

    def __init__(
        self,
        robot: Robot,
        actuation: Actuation,
        num_worlds: int,
        *,
        merge: bool = True,
        collide: Literal["all", "feet"] = "all",
        inertia: Literal["file", "shapes"] = "file",
        iterations: int = 50,
        gravity: float = 9.81,
        contact_distance: float = 0.001,
        friction: float | None = None,
    ) -> None:
        """Build the worlds, each in the robot's default pose."""
        self.robot, self.actuation, self.num_worlds = robot, actuation, num_worlds
        self.build = Build(merge, collide, inertia, iterations, gravity, contact_distance, friction)
        self.model = inspect(robot, self.build)
        self._reset, reset_size = layout(reset_fields(robot))
        self._step, step_size = layout(step_fields(robot))
        self._state, state_size = layout(state_fields(robot))
        self._resets = np.zeros((num_worlds, reset_size))
        self._steps = np.zeros((num_worlds, step_size))
        self._rows = np.zeros((num_worlds, state_size))
        self._measure()
        home = self._home()
        self._worlds = [
            BulletWorld(robot, self.model, actuation, self.build, home) for _ in range(num_worlds)
        ]
        self.closed = False

    def _measure(self) -> None:
        """Compute what the conversions between our frames and Bullet's need."""
        robot = self.robot
        com = np.array(self.model.com_quat)
        self._turn = multiply(conjugate(com), conjugate(np.array(robot.base_rotation)))
        """From our base frame to the base's principal axes."""
        self._arm = rotate_inverse(com, np.array(robot.base_origin) - np.array(self.model.com_pos))
        """Our base frame's origin, in the base's principal axes."""
        self._sign, self._offset = np.array(robot.sign), np.array(robot.offset)
        self._points = np.array(self.model.foot_points)

    def _home(self) -> np.ndarray:
        """Row of the default pose, which worlds begin in and return to when they blow up."""
        robot = self.robot
        one = self._resets[:1].copy()
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
        self._fill(
            self._resets,
            root_pos,
            root_quat,
            root_linvel,
            root_angvel,
            q,
            qd,
            randomization or Randomization(),
            np.asarray(mask, np.bool_),
        )
        for row in np.flatnonzero(mask).tolist():
            self._worlds[row].reset(self._resets[row], self._rows[row])
        return self._read()

    def step(
        self, previous: np.ndarray, target: np.ndarray, push: np.ndarray | None = None
    ) -> State:
        """See `Engine.step`."""
        steps, fields = self._steps, self._step
        steps[:, fields["previous"]] = self._sign * (previous + self._offset)
        steps[:, fields["target"]] = self._sign * (target + self._offset)
        steps[:, fields["push"]] = 0.0 if push is None else push
        for row, world in enumerate(self._worlds):
            world.step(steps[row], self._rows[row])
        return self._read()

    def snapshot(self) -> dict[str, np.ndarray]:
        """See `Engine.snapshot`; without contacts and the sensors' delayed readings."""
        return {"resets": self._resets.copy(), "rows": self._rows.copy()}

    def restore(self, snapshot: dict[str, np.ndarray]) -> State:
        """See `Engine.restore`."""
        self._resets[:] = snapshot["resets"]
        for name in ("base_pos", "base_quat", "linvel", "angvel", "q", "qd"):
            self._resets[:, self._reset[name]] = snapshot["rows"][:, self._state[name]]
        for row, world in enumerate(self._worlds):
            world.reset(self._resets[row], self._rows[row])
        return self._read()

    def close(self) -> None:
        """See `Engine.close`."""
        for world in self._worlds:
            world.close()
        self.closed = True

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
        rows[:, fields["qd"]] = self._sign * qd
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
        rows, fields = self._rows, self._state
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
            qd=self._sign * rows[:, fields["qd"]],
            foot_pos=link_pos + rotate(link_quat, self._points),
            foot_contact=rows[:, fields["foot_contact"]] > 0.5,
            illegal_contact=rows[:, fields["illegal_contact"]][:, 0] > 0.5,
            torque=self._sign * rows[:, fields["torque"]],
            power=rows[:, fields["power"]][:, 0].copy(),
            broken=rows[:, fields["broken"]][:, 0] > 0.5,
            sensed=Sensed(
                root_quat=sensed_quat,
                root_angvel=rotate_inverse(sensed_quat, rows[:, fields["sensed_angvel"]]),
                q=self._sign * rows[:, fields["sensed_q"]] - self._offset,
                qd=self._sign * rows[:, fields["sensed_qd"]],
            ),
        )
