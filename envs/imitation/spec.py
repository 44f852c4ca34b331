"""What an imitation task is, as data: reward, endings, observation, action, episode, physics.

`SPECS` holds three. "reference" is google-research/motion_imitation (Peng et al. 2020,
arXiv:2004.00784) value for value; "modern" is ours, which trains fastest; "humanoid" is DeepMimic
(Peng et al. 2018, arXiv:1804.02717) as pybullet_envs has it. Nothing elsewhere asks for a spec by
name: what differs between them is written here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlgym.envs.physics.engine import Actuation
from rlgym.errors import ConfigError
from rlgym.settings import change, suggest


@dataclass(frozen=True)
class Term:
    """One term of the reward: `weight * exp(-scale * error)`."""

    weight: float
    scale: float


@dataclass(frozen=True)
class RewardSpec:
    """The five terms and what their errors are made of; the weights sum to 1."""

    pose: Term = Term(0.5, 5.0)
    """Error: sum of squared differences of joint angles, rad^2."""
    velocity: Term = Term(0.05, 0.1)
    """Error: sum of squared differences of joint velocities, (rad/s)^2."""
    end_effector: Term = Term(0.2, 40.0)
    """Error: squared differences of the feet's positions, m^2."""
    root_pose: Term = Term(0.15, 20.0)
    """Error: squared distance of the base, m^2, plus the shares below."""
    root_velocity: Term = Term(0.1, 2.0)
    """Error: squared difference of the base's velocity, (m/s)^2, times a share, plus another."""
    joint_weights: tuple[float, ...] = ()
    """Of each joint in the errors of pose and velocity; () counts each once."""
    root_weight: float = 0.0
    """Of the base's rotation and angular velocity in the errors of pose and velocity."""
    end_effector_frame: Literal["heading", "world"] = "heading"
    """"heading": x and y relative to the base in its heading's frame, z in the world; "world":
    positions in the world."""
    end_effector_height: float = 3.0
    """Factor of the squared difference in z."""
    end_effector_shanks: bool = False
    """Count the shanks' centres of mass as end effectors too, where the table gives them: the
    original does for Laikago, whose list of feet is that of the links that may touch the ground."""
    end_effector_age: float = 0.0
    """Take the robot's end effectors as they were this many seconds ago, but its base as it is now:
    the original reads Bullet's link frames before it updates them."""
    end_effector_mean: bool = False
    """Divide the error by the number of feet instead of summing over them."""
    rotation_share: float = 0.5
    """Of the squared rotation angle, rad^2, in the error of root_pose."""
    linear_velocity_share: float = 0.0
    """Of the squared velocity difference in the error of root_pose."""
    angular_velocity_share: float = 0.0
    """Of the squared angular velocity difference in the error of root_pose."""
    velocity_linear_share: float = 1.0
    """Of the squared velocity difference in the error of root_velocity."""
    velocity_point: Literal["base", "centre_of_mass"] = "base"
    """Whose velocity that is: of the base's origin or of the whole robot's centre of mass."""
    velocity_angular_share: float = 0.1
    """Of the squared angular velocity difference in the error of root_velocity."""


@dataclass(frozen=True)
class TerminationSpec:
    """What ends an episode before its time; None, or False, leaves a cause out."""

    contact: bool = True
    """A link that must not touch the ground does; not before the first step was made."""
    distance: float | None = 1.0
    """Distance of the base from the reference's, m."""
    rotation: float | None = math.pi / 2
    """Angle between the base's orientation and the reference's, rad."""
    tilt: float | None = None
    """Angle between the base's z axis and the vertical, rad."""
    trunk_height: float | None = None
    """Height of the base's origin, as a fraction of the leg's length (thigh plus shank)."""
    knee_height: float | None = None
    """Height of the lowest knee, as a fraction of the leg's length."""
    clip_over: bool = True
    """A clip that does not loop has ended."""


@dataclass(frozen=True)
class ObservationSpec:
    """What the policy sees: terms in order, each with its history, newest reading first."""

    terms: tuple[str, ...]
    """Of: imu (roll, pitch and their rates), gravity (direction in the base's frame),
    angular_velocity (base's frame), joint_angle, joint_velocity, last_action; then, without a
    history, linear_velocity (base's frame; no sensor has it) and targets (for each of
    `target_steps`: position 3, orientation 4, joints)."""
    history: int = 1
    """Readings of each sensed term and of the last action."""
    history_start: Literal["state", "default"] = "state"
    """What fills the history when an episode begins: its first readings, or those of a robot that
    stands in its default pose (and are all that the first observation shows)."""
    last_action: Literal["action", "target"] = "action"
    """The last action as given, or as `offset + scale * action`; 0 when an episode begins."""
    target_steps: tuple[int, ...] = (1, 2, 10, 30)
    """Control steps ahead at which the reference is shown."""
    target_origin: Literal["reference", "robot"] = "reference"
    """From whose base the positions of targets are measured; the axes are the robot's heading's."""
    target_convention: Literal["canonical", "model"] = "canonical"
    """In whose terms targets are shown: the robot table's, or the model file's orientation of the
    base, signs and zeros of joints."""
    privileged: bool = True
    """Also observe what only a simulation knows, for the critic; makes the space a Dict."""


@dataclass(frozen=True)
class ActionSpec:
    """How an action becomes targets of the joints: `offset + scale * action`, filtered, clipped."""

    scale: float = 0.25
    """Radians per unit of action."""
    bound: float = 8.0
    """Of the action space, in units of action."""
    offset: Literal["default", "clip_mean"] = "default"
    """The robot's default pose, or the mean pose of the slot's clip."""
    cutoff: float | None = None
    """Hz, of a second-order Butterworth low-pass on the targets."""
    limit_margin: float | None = 0.3
    """Targets are clipped this far, in rad, beyond the joints' limits (a servo needs an error to
    push with); None does not clip."""


@dataclass(frozen=True)
class EpisodeSpec:
    """How episodes begin, go on and end in time."""

    seconds: float = 10.0
    """Time limit; the episode is truncated there."""
    curriculum_seconds: float | None = None
    """Time limit at the start of training; grows to `seconds`; None: no curriculum."""
    curriculum_steps: int = 30_000_000
    """Env steps, over all slots, after which the limit is `seconds`; it grows as their cube."""
    reference_start: float = 1.0
    """Probability of beginning in the reference's state at a random phase; else: default pose."""
    warm_up: float = 0.25
    """Seconds over which the reference stands in the default pose after such a default start."""
    hold_first_step: bool = False
    """Keep the reference where it is during an episode's first step, one step behind ever after."""
    start_axis: Literal["forward", "left"] = "forward"
    """Axis of the reference's base that an episode begins with in line with the world's x (or y):
    the original takes the x axis of Laikago's URDF, which points left."""
    lift: float = 0.002
    """Height above the reference at which an episode begins, m."""
    lift_feet: bool = False
    """Begin higher still where the reference's feet are in the ground, until they are out of it."""
    perturb: float = 0.0
    """Probability of disturbing the state that an episode begins with."""
    perturb_position: float = 0.025
    """Standard deviation of the base's x and y then, m."""
    perturb_rotation: float = 0.025 * math.pi
    """Standard deviation of the base's rotation then, rad."""
    perturb_joints: float = 0.05 * math.pi
    """Standard deviation of the joint angles then, rad."""
    perturb_velocity: float = 0.1
    """Standard deviation of the base's velocity then, m/s."""
    perturb_rate: float = 0.05 * math.pi
    """Standard deviation of angular and joint velocities then, rad/s."""
    sync_position: bool = True
    """At each wrap of a looping clip, move the reference's x and y to the robot's."""
    switch_seconds: tuple[float, ...] = ()
    """Shortest and longest time between changes of the clip; () keeps an episode's clip."""


@dataclass(frozen=True)
class RandomizeSpec:
    """Ranges, (low, high), drawn once an episode for each world; () leaves a quantity alone."""

    mass: tuple[float, ...] = ()
    """Factor."""
    inertia: tuple[float, ...] = ()
    """Factor."""
    friction: tuple[float, ...] = ()
    """Coefficient between feet and ground."""
    motor_strength: tuple[float, ...] = ()
    """Factor, for each joint."""
    kp: tuple[float, ...] = ()
    """Factor, for each joint."""
    kd: tuple[float, ...] = ()
    """Factor, for each joint."""
    viscous: tuple[float, ...] = ()
    """N m s/rad, for each joint."""
    coulomb: tuple[float, ...] = ()
    """N m, for each joint."""
    latency: tuple[float, ...] = ()
    """s, of the sensors."""
    push: float = 0.0
    """Largest change of the base's velocity along x and along y, m/s; 0: no pushes."""
    push_seconds: float = 2.0
    """Mean time between pushes."""
    noise_angle: float = 0.0
    """Standard deviation of the joint angles' readings, rad."""
    noise_velocity: float = 0.0
    """Standard deviation of the joint velocities' readings, rad/s."""
    noise_rotation: float = 0.0
    """Standard deviation of the orientation's reading about each axis, rad."""
    noise_rate: float = 0.0
    """Standard deviation of the angular velocity's reading, rad/s."""


@dataclass(frozen=True)
class BulletSpec:
    """What only PyBullet's worlds have; other engines do without."""

    merge: bool = True
    """Make one link of links that are fixed to each other, with the same mass and inertia, and
    contacts hard: faster, and nearer to MuJoCo; else the file is simulated as it is."""
    inertia: Literal["file", "shapes"] = "file"
    """Take rotational inertia from the model file, where it has any, or from collision shapes."""
    iterations: int = 50
    """Of the constraint solver."""
    contact_distance: float = 0.001
    """A link this near to the ground touches it, m; Bullet itself reports contacts up to .02."""
    cone_friction: bool = True
    """Bound friction by a cone, not a pyramid: alike in all directions, and nearer to MuJoCo's."""
    ground_friction: float = 1.0
    """Of the ground; Bullet multiplies it with the feet's."""
    stood_before: bool = False
    """The robot stood in its default pose until the reset: delayed readings may be older."""


@dataclass(frozen=True)
class WarpSpec:
    """What only MuJoCo Warp's worlds have."""

    max_contacts: int | None = None
    """Of one world that there is room for; None: as many as its geoms can have, up to 32."""
    capture: bool = True
    """Launch a control step as one recorded graph; without, it is slower: for comparison."""


@dataclass(frozen=True)
class PhysicsSpec:
    """The world that the engine simulates, beside the actuation."""

    gravity: float = 9.81
    """m/s^2, downwards."""
    collide: Literal["feet", "all"] = "feet"
    """Which links touch the ground; "feet" is faster, and endings are then judged by heights."""
    friction: float | None = None
    """Coefficient between feet and ground; None: the robot table's."""
    bullet: BulletSpec = field(default_factory=BulletSpec)
    """More of it in PyBullet."""
    warp: WarpSpec = field(default_factory=WarpSpec)
    """More of it in MuJoCo Warp."""


@dataclass(frozen=True)
class Spec:
    """One imitation task, whole."""

    reward: RewardSpec
    termination: TerminationSpec
    observation: ObservationSpec
    action: ActionSpec
    episode: EpisodeSpec
    actuation: Actuation
    physics: PhysicsSpec = field(default_factory=PhysicsSpec)
    randomize: RandomizeSpec = field(default_factory=RandomizeSpec)


REFERENCE = Spec(
    reward=RewardSpec(end_effector_shanks=True, end_effector_age=0.001),
    termination=TerminationSpec(),
    observation=ObservationSpec(
        terms=("imu", "last_action", "joint_angle", "targets"),
        history=3,
        history_start="default",
        last_action="target",
        target_convention="model",
        privileged=False,
    ),
    action=ActionSpec(scale=1.0, bound=2 * math.pi, cutoff=4.0, limit_margin=None),
    episode=EpisodeSpec(
        seconds=19.8,  # 600 steps
        curriculum_seconds=0.66,  # 20 steps
        reference_start=0.9,
        hold_first_step=True,
        start_axis="left",
        lift=0.0,
    ),
    actuation=Actuation(
        time_step=0.001,
        substeps=33,
        servo="explicit",
        interpolate=True,
        target_clip=0.2,
        limit_torque=False,
        latency=0.002,
    ),
    physics=PhysicsSpec(
        gravity=10.0,
        collide="all",
        bullet=BulletSpec(
            merge=False,
            inertia="shapes",
            iterations=9,
            contact_distance=0.1,  # whatever Bullet reports
            cone_friction=False,
            ground_friction=0.9,
            stood_before=True,
        ),
    ),
)

MODERN = Spec(
    reward=RewardSpec(),
    termination=TerminationSpec(tilt=math.radians(60.0), trunk_height=0.35, knee_height=0.0875),
    observation=ObservationSpec(
        terms=(
            "gravity",
            "angular_velocity",
            "joint_angle",
            "joint_velocity",
            "last_action",
            "targets",
        ),
    ),
    action=ActionSpec(offset="clip_mean"),
    episode=EpisodeSpec(),
    actuation=Actuation(time_step=1 / 210, substeps=7, servo="damped"),  # 33.3 ms
)

HUMANOID = Spec(
    reward=RewardSpec(
        pose=Term(0.5, 2.0),
        velocity=Term(0.05, 0.1),
        end_effector=Term(0.15, 40.0),
        root_pose=Term(0.2, 5.0),
        root_velocity=Term(0.1, 10.0),
        # chest, neck, then right and left: hip, knee, ankle, shoulder, elbow
        joint_weights=(
            *(0.10416, 0.0625),
            *(0.10416, 0.0625, 0.0416, 0.0625, 0.0416),
            *(0.10416, 0.0625, 0.0416, 0.0625, 0.0416),
        ),
        root_weight=0.20833,
        end_effector_frame="world",
        end_effector_height=1.0,
        end_effector_mean=True,
        rotation_share=0.1,
        linear_velocity_share=0.01,
        angular_velocity_share=0.001,
        velocity_linear_share=0.1,
        velocity_point="centre_of_mass",
        velocity_angular_share=0.0,
    ),
    termination=TerminationSpec(),
    observation=ObservationSpec(
        terms=(*MODERN.observation.terms[:-1], "linear_velocity", "targets"),
        target_origin="robot",  # the reward's hands and feet are in the world
    ),
    action=ActionSpec(offset="clip_mean", limit_margin=None),
    episode=EpisodeSpec(lift_feet=True),
    actuation=Actuation(time_step=1 / 240, substeps=8, servo="implicit"),
    physics=PhysicsSpec(collide="all"),
)

SPECS: dict[str, Spec] = {"reference": REFERENCE, "modern": MODERN, "humanoid": HUMANOID}
"""By the name that `spec=` takes."""

RANDOMIZE: dict[str, RandomizeSpec] = {
    "none": RandomizeSpec(),
    "reference": RandomizeSpec(
        mass=(0.8, 1.2),
        inertia=(0.5, 1.5),
        friction=(0.5, 1.25),
        motor_strength=(0.8, 1.2),
        viscous=(0.0, 0.05),
        coulomb=(0.0, 0.05),
        latency=(0.0, 0.04),
    ),
    "modern": RandomizeSpec(
        mass=(0.8, 1.25),
        friction=(0.5, 1.25),
        motor_strength=(0.9, 1.1),
        kp=(0.8, 1.2),
        kd=(0.8, 1.2),
        latency=(0.0, 0.02),
        push=0.5,
        noise_angle=0.01,
        noise_velocity=0.5,
        noise_rotation=0.02,
        noise_rate=0.1,
    ),
}
"""By the name that `randomize=` takes; "reference" is the original's table."""


def get_spec(spec: str | Spec, changes: Mapping[str, Any] | None = None) -> Spec:
    """Return a spec by name, with nested changes such as `{"action": {"scale": 0.3}}`.

    Raises:
        ConfigError: for an unknown name or setting (with the nearest), or a wrong type.
    """
    if isinstance(spec, str):
        if spec not in SPECS:
            raise ConfigError(f"there is no spec {spec!r}: {suggest(spec, SPECS)}")
        spec = SPECS[spec]
    return change(spec, changes or {}, {})
