"""The robot table: what a simulation must know of a robot, whatever its URDF says or leaves out.

Joints are in OUR order and convention, so that a clip or a policy means the same on every robot.
For quadrupeds: legs front right, front left, rear right, rear left; in each abduction, hip, knee;
abduction turns about +x (forward), hip and knee about +y (left), and at zero the leg hangs straight
down. `urdf angle = sign * (our angle + offset)`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Foot:
    """An end effector: a point of a link."""

    link: str
    """Name of the link in the model file."""
    point: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Its place in that link's own frame, m."""
    radius: float = 0.0
    """Of the sphere around it that touches the ground, m."""


@dataclass(frozen=True)
class Leg:
    """Geometry of a leg for closed-form kinematics; lengths in m, in the canonical base frame."""

    hip: tuple[float, float, float]
    """Where the abduction axis meets the leg, from the base's origin."""
    abduction: float
    """Sideways distance (+y left) from there to the plane of thigh and shank."""
    thigh: float
    shank: float


@dataclass(frozen=True)
class Robot:
    """One entry of the table; tuples are in canonical joint order, one value per joint."""

    name: str
    model: str
    """URDF or MJCF: a path inside pybullet_data, or any absolute path."""
    base: str
    """Name of the base link in the model file."""
    joints: tuple[str, ...]
    """Names in the model file."""
    sign: tuple[float, ...]
    offset: tuple[float, ...]
    """Radians; `urdf angle = sign * (our angle + offset)`."""
    default_pose: tuple[float, ...]
    """(nq) our angles of the stance that episodes begin with."""
    kp: tuple[float, ...]
    """N m/rad."""
    kd: tuple[float, ...]
    """N m s/rad."""
    torque_limit: tuple[float, ...]
    """N m."""
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    """Radians, our angles."""
    init_height: float
    """Of the base's origin above flat ground in the default pose, m."""
    feet: tuple[Foot, ...]
    legs: tuple[Leg, ...] = ()
    """Quadrupeds only."""
    base_rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    """xyzw orientation of the model's base frame when the robot stands with x forward, z up."""
    spherical: tuple[bool, ...] = ()
    """Which joints are spherical (four positions, three velocities); () = none."""
    may_touch: tuple[str, ...] = ()
    """Links, besides those of the feet, that may touch the ground without ending an episode."""
    scale: float = 1.0
    """Factor of the model's lengths."""
    friction: float = 1.0
    """Lateral friction coefficient of feet on ground."""
    licence: str = ""
    """Of the model file."""
