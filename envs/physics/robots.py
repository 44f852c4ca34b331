"""The robot table: what a simulation must know of a robot, whatever its URDF says or leaves out.

Joints are in OUR order and convention, so that a clip or a policy means the same on every robot.
For quadrupeds: legs front right, front left, rear right, rear left; in each abduction, hip, knee;
abduction turns about +x (forward), hip and knee about +y (left), and at zero the leg hangs straight
down. `urdf angle = sign * (our angle + offset)`. Where a real robot's own angles are nearly that
(Laikago), ours are the real robot's, and `Leg` has the few degrees that lie between.

docs/robots.md shows how to add a robot.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from rlgym.envs.physics.urdf import complete
from rlgym.errors import WorldError
from rlgym.settings import suggest


@dataclass(frozen=True)
class Foot:
    """An end effector: a point of a link."""

    link: str
    """Name of the link in the model file."""
    point: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Its place in that link's own frame, m (scaled)."""
    radius: float = 0.0
    """Of the sphere around it that touches the ground, m."""
    half: tuple[float, ...] = ()
    """Where a box touches the ground instead: its half lengths along the link's axes, m."""


@dataclass(frozen=True)
class Leg:
    """Geometry of a leg for closed-form kinematics; lengths in m, in the canonical base frame."""

    hip: tuple[float, float, float]
    """Where the abduction axis meets the leg, from the base's origin."""
    abduction: float
    """Sideways distance (+y left) from there to the plane of thigh and shank."""
    thigh: float
    shank: float
    """From the knee to the foot's point."""
    thigh_zero: float = 0.0
    """Turn of the thigh about +y from straight down where our hip angle is zero, radians."""
    shank_zero: float = 0.0
    """Turn of the shank about +y from the thigh's line where our knee angle is zero, radians."""
    shank_centre: tuple[float, float] = (0.0, 0.0)
    """Centre of mass of the shank: its distance from the knee, m, and the turn about +y from the
    line to the foot, radians."""


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
    """Radians, our angles; () for these and for `torque_limit` = those of the URDF."""
    init_height: float
    """Of the base's origin above flat ground in the default pose, m."""
    feet: tuple[Foot, ...]
    legs: tuple[Leg, ...] = ()
    """Quadrupeds only."""
    base_rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    """xyzw orientation of the model's base frame when the robot stands with x forward, z up."""
    base_origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the origin of our base frame lies, in the model's base link frame, m (scaled)."""
    spherical: tuple[bool, ...] = ()
    """Which joints are spherical (four positions, three velocities); () = none."""
    may_touch: tuple[str, ...] = ()
    """Links, besides those of the feet, that may touch the ground without ending an episode."""
    scale: float = 1.0
    """Factor of the model's lengths."""
    added_inertia: float = 0.0
    """Rotational inertia that each link that moves has about every axis besides its own, kg m^2:
    motors' rotors, where servos are too strong for links as light as the file's."""
    damped_joints: bool = False
    """`kd` is the joints' own damping, which limits of torque do not bound; PyBullet keeps it in
    the servos."""
    friction: float = 1.0
    """Lateral friction coefficient of feet on ground."""
    licence: str = ""
    """Of the model file."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # lists would do, but no entry could be a key then
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        n = len(self.joints)
        sizes = {"sign": n, "offset": n, "kp": n, "kd": n, "torque_limit": n, "lower": n}
        sizes |= {"upper": n, "default_pose": self.nq}
        if self.spherical:
            sizes["spherical"] = n
        optional = ("lower", "upper", "torque_limit")
        for field, size in sizes.items():
            if len(getattr(self, field)) not in ((0, size) if field in optional else (size,)):
                raise WorldError(
                    f"robot '{self.name}': {field} has {len(getattr(self, field))} values, its {n} "
                    f"joints need {size}: complete the robot's entry"
                )
        if not self.feet:
            raise WorldError(f"robot '{self.name}' has no feet: name at least one end effector")
        for joint, low, high in zip(self.joints, self.lower, self.upper, strict=False):
            if not low < high:
                raise WorldError(
                    f"robot '{self.name}': joint '{joint}' has the limits {low} and {high}: "
                    f"the lower one must be below the upper one"
                )

    def __hash__(self) -> int:
        # caches look robots up many times a step, and hashing every field takes 3 us
        return hash(self.name)

    @property
    def is_spherical(self) -> tuple[bool, ...]:
        """Which joints are spherical, one value per joint."""
        return self.spherical or (False,) * len(self.joints)

    @property
    def nq(self) -> int:
        """Values in a pose: one for a hinge, four for a spherical joint."""
        return len(self.joints) + 3 * sum(self.spherical)

    @property
    def nv(self) -> int:
        """Values in a joint velocity: one for a hinge, three for a spherical joint."""
        return len(self.joints) + 2 * sum(self.spherical)


ROBOTS: dict[str, Robot] = {}
"""The robots that a name finds; `register_robot` adds to it."""


def register_robot(robot: Robot) -> Robot:
    """Add a robot to the table, under its name; one that is there already is replaced.

    Raises:
        WorldError: the entry leaves limits to a URDF that does not have them.
    """
    ROBOTS[robot.name] = complete(robot)
    return ROBOTS[robot.name]


def get_robot(name: str | Robot) -> Robot:
    """Return the robot of that name, or of a YAML file; a `Robot` as it is, with limits filled in.

    Raises:
        WorldError: there is no such robot (the nearest name is given), or its file is wrong.
    """
    if isinstance(name, Robot):
        return complete(name)
    if name.endswith((".yaml", ".yml")):
        from rlgym.envs.physics.robot_file import read_robot

        return complete(read_robot(name))
    if name not in ROBOTS:
        raise WorldError(f"there is no robot '{name}': {suggest(name, ROBOTS)}")
    return ROBOTS[name]


# ----- Quadrupeds -------------------------------------------------------------------------------

LEG_NAMES = ("FR", "FL", "RR", "RL")


def _names(pattern: str, legs: tuple[str, ...] = LEG_NAMES) -> tuple[str, ...]:
    """Fill each leg's name into the patterns of one leg's parts, which blanks separate."""
    return tuple(part.format(leg) for leg in legs for part in pattern.split())


def _legs(
    front: float, rear: float, side: float, height: float, abduction: tuple[float, float], **rest
) -> tuple[Leg, ...]:
    """Return four legs; right ones mirror left ones but for `abduction` (right, left)."""
    return tuple(
        Leg((x, y, height), offset, **rest)
        for x in (front, rear)
        for y, offset in ((-side, -abduction[0]), (side, abduction[1]))
    )


# Unitree A1. All numbers are the URDF's; gains are those of google-research/motion_imitation.
register_robot(
    Robot(
        name="a1",
        model="a1/a1.urdf",
        base="trunk",
        joints=_names("{0}_hip_joint {0}_upper_joint {0}_lower_joint"),
        sign=(1.0,) * 12,
        offset=(0.0,) * 12,
        default_pose=(0.0, 0.9, -1.8) * 4,
        kp=(100.0,) * 12,
        kd=(1.0, 2.0, 2.0) * 4,
        torque_limit=(20.0, 55.0, 55.0) * 4,
        lower=(-0.802851455917, -1.0471975512, -2.69653369433) * 4,
        upper=(0.802851455917, 4.18879020479, -0.916297857297) * 4,
        init_height=0.27,
        feet=tuple(Foot(link, radius=0.02) for link in _names("{}_toe")),
        legs=_legs(0.183, -0.183, 0.047, 0.0, (0.08505, 0.08505), thigh=0.2, shank=0.2),
        licence="pybullet_data (zlib); model by Unitree Robotics (BSD-3-Clause)",
    )
)

# Unitree Laikago, as google-research/motion_imitation drives it: angles are its SDK's, and the
# root is the centre of mass of the chassis, because that is what the clips of that project move.
# The file says y up and z forward. Its 100 N m are more than the motors have; 60 are ours.
_LAIKAGO_COM = (0.0, 0.03, 0.043794)
_LAIKAGO_ZERO = math.atan2(0.1422, 0.20833)  # of the thigh where the URDF's angle is zero
register_robot(
    Robot(
        name="laikago",
        model="laikago/laikago_toes_limits.urdf",
        base="chassis",
        joints=_names(
            "{0}_hip_motor_2_chassis_joint {0}_upper_leg_2_hip_motor_joint "
            "{0}_lower_leg_2_upper_leg_joint"
        ),
        sign=(-1.0, 1.0, 1.0, 1.0, 1.0, 1.0) * 2,
        offset=(0.0, -0.6, 0.66) * 4,
        default_pose=(0.0, 0.67, -1.25) * 4,
        kp=(220.0,) * 12,
        kd=(0.3, 2.0, 2.0) * 4,
        torque_limit=(60.0,) * 12,
        lower=(-1.0472, -0.7, -2.824, -0.873, -0.7, -2.824) * 2,
        upper=(0.873, 4.0, -0.66, 1.0472, 4.0, -0.66) * 2,
        init_height=0.48,
        feet=tuple(Foot(link, radius=0.03) for link in _names("toe{}")),
        legs=_legs(
            0.242889 - _LAIKAGO_COM[2],
            -0.194401 - _LAIKAGO_COM[2],
            0.0817145,
            -_LAIKAGO_COM[1],
            (0.053565 - 0.02069, 0.055855 - 0.02069),
            thigh=math.hypot(0.1422, 0.20833),
            shank=math.hypot(0.25, 0.022),
            thigh_zero=_LAIKAGO_ZERO - 0.6,
            shank_zero=math.atan2(0.022, 0.25) - _LAIKAGO_ZERO + 0.66,
            shank_centre=(math.hypot(0.02, 0.16), math.atan2(0.02, 0.16) - math.atan2(0.022, 0.25)),
        ),
        base_rotation=(0.5, 0.5, 0.5, 0.5),
        base_origin=_LAIKAGO_COM,
        may_touch=_names("{}_lower_leg"),
        licence="pybullet_data: by permission of Unitree Robotics; cite Coumans and Bai, PyBullet",
    )
)

# MIT mini-cheetah. The URDF has neither limits nor efforts: 17 N m is the peak torque of its
# actuator (Katz, Di Carlo, Kim: Mini Cheetah, ICRA 2019), times the knee's belt ratio of 1.55.
# The limits are ours, as wide as the legs go without passing through the body.
register_robot(
    Robot(
        name="mini_cheetah",
        model="mini_cheetah/mini_cheetah.urdf",
        base="body",
        joints=_names(
            "torso_to_abduct_{0}_j abduct_{0}_to_thigh_{0}_j thigh_{0}_to_knee_{0}_j",
            ("fr", "fl", "hr", "hl"),
        ),
        sign=(1.0, -1.0, -1.0) * 4,
        offset=(0.0,) * 12,
        default_pose=(0.0, 0.8, -1.6) * 4,
        kp=(40.0,) * 12,
        kd=(1.0,) * 12,
        torque_limit=(17.0, 17.0, 26.3) * 4,
        lower=(-0.8, -1.05, -2.7) * 4,
        upper=(0.8, 4.2, -0.3) * 4,
        init_height=0.287,
        feet=tuple(Foot(link, radius=0.015) for link in _names("toe_{}", ("fr", "fl", "hr", "hl"))),
        legs=_legs(0.19, -0.19, 0.049, 0.0, (0.062, 0.062), thigh=0.209, shank=0.18),
        may_touch=_names("shank_{}", ("fr", "fl", "hr", "hl")),
        licence="pybullet_data (zlib); model of the MIT Biomimetic Robotics Lab (MIT)",
    )
)

# Unitree Aliengo. The URDF leaves the upper joints without limits; those are A1's.
register_robot(
    Robot(
        name="aliengo",
        model="aliengo/aliengo.urdf",
        base="trunk",
        joints=_names("{0}_hip_joint {0}_upper_joint {0}_lower_joint"),
        sign=(1.0,) * 12,
        offset=(0.0,) * 12,
        default_pose=(0.0, 0.8, -1.6) * 4,
        kp=(150.0,) * 12,
        kd=(3.0,) * 12,
        torque_limit=(44.4,) * 12,
        lower=(-1.2217304764, -1.0471975512, -2.77507351067) * 4,
        upper=(1.2217304764, 4.18879020479, -0.645771823238) * 4,
        init_height=0.376,
        feet=tuple(Foot(link, radius=0.0265) for link in _names("{}_toe")),
        legs=_legs(0.2399, -0.2399, 0.051, 0.0, (0.083, 0.083), thigh=0.25, shank=0.25),
        licence="pybullet_data (zlib); model by Unitree Robotics (BSD-3-Clause)",
    )
)

# ----- Humanoids --------------------------------------------------------------------------------


def _bend(angle: float) -> tuple[float, float, float, float]:
    """Return the quaternion, xyzw, of a turn about the model's z axis, which points right."""
    return (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2))


# DeepMimic's humanoid (Peng et al. 2018, arXiv:1804.02717) as pybullet_data has it: x forward, y
# up, z right, in every link's frame, and four times too large. Gains, limits of torque and
# friction are those of pybullet_envs; the end effectors are the centres of mass of its links
# there. A spherical joint's quaternion turns the child link's frame within its parent's; its limit
# bounds the components of its rotation vector. Knees slightly bent, feet flat.
register_robot(
    Robot(
        name="humanoid",
        model="humanoid/humanoid.urdf",
        base="base",
        joints=(
            *("chest", "neck"),
            *("right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow"),
            *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"),
        ),
        sign=(1.0,) * 12,
        offset=(0.0,) * 12,
        default_pose=(
            *(*_bend(0.0), *_bend(0.0)),
            *(*_bend(0.2), -0.4, *_bend(0.2), *_bend(0.0), 0.2) * 2,
        ),
        kp=(1000.0, 100.0, *(500.0, 500.0, 400.0, 400.0, 300.0) * 2),
        kd=(100.0, 10.0, *(50.0, 50.0, 40.0, 40.0, 30.0) * 2),
        torque_limit=(200.0, 50.0, *(200.0, 150.0, 90.0, 100.0, 60.0) * 2),
        lower=(-math.pi, -math.pi, *(-math.pi, -3.14, -math.pi, -math.pi, 0.0) * 2),
        upper=(math.pi, math.pi, *(math.pi, 0.0, math.pi, math.pi, 3.14) * 2),
        init_height=0.865,
        feet=(
            Foot("right_ankle", (0.045, -0.0225, 0.0), 0.0275, (0.0885, 0.0275, 0.045)),
            Foot("left_ankle", (0.045, -0.0225, 0.0), 0.0275, (0.0885, 0.0275, 0.045)),
            Foot("right_wrist", radius=0.04),
            Foot("left_wrist", radius=0.04),
        ),
        base_rotation=(math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)),
        spherical=(True, True, *(True, False, True, True, False) * 2),
        scale=0.25,
        # 90 N m on feet of 0.001 kg m^2 is 400 rad/s within one step of 1/240 s: without these two,
        # servos that reach their limits shake, and the same actions earn half the reward
        added_inertia=0.02,
        damped_joints=True,
        friction=0.9,
        licence="pybullet_data (zlib); model of DeepMimic by Xue Bin Peng (MIT)",
    )
)
