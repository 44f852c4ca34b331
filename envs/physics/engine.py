"""The protocol that every physics engine implements: batches in, batches out, one robot per world.

Everything here is in the robot's canonical frame: joints in the order, with the signs and the zero
of `Robot` (see `rlgym.envs.physics.robots`), the base's x axis forward and its z axis up,
quaternions xyzw, SI units. An engine converts to its own model at its border, by joint name.

Arrays are numpy (float64) for engines on the CPU and torch for engines on an accelerator; the
leading axis is the world, B of them. What `reset` and `step` return is overwritten by the next
call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Array = Any
"""A numpy array or a torch tensor; one kind throughout an engine's life."""


@dataclass(frozen=True)
class Actuation:
    """How targets of the joints become motion: the same words for every engine."""

    time_step: float
    """Seconds of one physics step."""
    substeps: int
    """Physics steps of one control step."""
    servo: Literal["explicit", "implicit", "damped"]
    """PD torques computed before each physics step ("explicit"), or integrated with the dynamics:
    "implicit" is MuJoCo's way, which is smoothest; "damped" lets contacts know of the damping, and
    moves as an explicit servo of fine steps does."""
    interpolate: bool = False
    """Move the target linearly from the previous one to the new one over the substeps."""
    target_clip: float | None = None
    """Bound of the target's distance from the measured joint angle, in radians."""
    limit_torque: bool = True
    """Clip torques to the robot's limits."""
    latency: float = 0.0
    """Seconds by which the sensors' readings lag behind, where no randomization says otherwise."""

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.time_step * self.substeps


@dataclass
class Sensed:
    """What the robot's own sensors read: `State` as it was `latency` seconds ago."""

    root_quat: Array
    """(B, 4) orientation, from the IMU."""
    root_angvel: Array
    """(B, 3) angular velocity in the base's frame, rad/s, from the gyroscope."""
    q: Array
    """(B, nq) joint positions."""
    qd: Array
    """(B, nv) joint velocities."""


@dataclass
class State:
    """One robot per world, after a reset or a control step."""

    root_pos: Array
    """(B, 3) origin of the base link, m, world frame."""
    root_quat: Array
    """(B, 4) orientation of the base."""
    root_linvel: Array
    """(B, 3) velocity of the base's origin, m/s, world frame."""
    root_angvel: Array
    """(B, 3) rad/s, world frame."""
    q: Array
    """(B, nq) joint positions: a hinge is one angle in radians, a spherical joint four (xyzw)."""
    qd: Array
    """(B, nv) rad/s: a hinge one value, a spherical joint three in its child's frame."""
    foot_pos: Array
    """(B, feet, 3) m, world frame."""
    foot_contact: Array
    """(B, feet) bool: the foot touches the ground."""
    illegal_contact: Array
    """(B,) bool: a link that must not touch the ground does."""
    torque: Array
    """(B, nv) joint torques of the last physics step, N m; 0 after a reset."""
    power: Array
    """(B,) mean over the control step of the sum of |torque * velocity|, W; 0 after a reset."""
    broken: Array
    """(B,) bool: the simulation of this world blew up (non-finite or absurd); its row is reset."""
    sensed: Sensed
    """Delayed readings; without latency the same numbers as above."""


@dataclass
class Randomization:
    """What differs between worlds; each None leaves all worlds as the robot table has them.

    Names are those of `Engine.capabilities`: an engine that cannot change a quantity does not list
    it there, and refuses to be given it.
    """

    mass: Array | None = None
    """(B,) factor of every link's mass."""
    inertia: Array | None = None
    """(B,) factor of every link's rotational inertia, beside the one of mass."""
    friction: Array | None = None
    """(B,) lateral friction coefficient between feet and ground."""
    motor_strength: Array | None = None
    """(B, nv) factor of the torque that a motor gives."""
    kp: Array | None = None
    """(B, nv) factor of the position gain."""
    kd: Array | None = None
    """(B, nv) factor of the velocity gain."""
    viscous: Array | None = None
    """(B, nv) joint friction in proportion to velocity, N m s/rad."""
    coulomb: Array | None = None
    """(B, nv) constant joint friction, N m."""
    latency: Array | None = None
    """(B,) sensor latency, s; at most two control steps less one physics step."""


class Engine(Protocol):
    """Rigid-body simulation of `num_worlds` copies of one robot on one terrain.

    Made by `rlgym.envs.physics.make_engine(name, robot, actuation, num_worlds, ...)`.
    """

    name: str
    """"bullet", "mujoco" or "warp"."""
    robot: Any
    actuation: Actuation
    num_worlds: int
    physics_step: float
    """Seconds of a step of physics: the actuation's, or less where an engine needs less for it."""
    capabilities: frozenset[str]
    """Fields of `Randomization` that it honours, plus "push", "terrain" and "snapshot"."""

    def reset(
        self,
        mask: Array,
        root_pos: Array,
        root_quat: Array,
        root_linvel: Array,
        root_angvel: Array,
        q: Array,
        qd: Array,
        randomization: Randomization | None = None,
    ) -> State:
        """Put the worlds where `mask` (B,) is True into a state; the others are not touched.

        All arguments are full-size (B, ...); only rows of `mask` count, also in `randomization`.
        """
        ...

    def step(self, previous: Array, target: Array, push: Array | None = None) -> State:
        """Simulate one control step of every world.

        Args:
            previous: (B, nq) target at the end of the last control step (used by interpolation).
            target: (B, nq) new target of the joints.
            push: (B, 3) change of the base's velocity at the start of the step, m/s, world frame.
        """
        ...

    def snapshot(self) -> dict[str, Any]:
        """Arrays that bring another engine of the same arguments to this very state."""
        ...

    def restore(self, snapshot: dict[str, Any]) -> State:
        """Continue from a snapshot, bit for bit where "snapshot" is among the capabilities."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...
