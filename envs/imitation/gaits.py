"""Gaits made from parameters: foot paths on the ground, turned into joints by closed-form IK.

Stance feet stand still on the ground while the base moves over them with constant velocity and
yaw rate; swinging feet follow cubic Hermite curves that leave and meet the ground at its speed.
So a clip has no slip and no jump in velocity, for every quadruped and every gait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlgym.envs.imitation.clips import Clip
from rlgym.envs.imitation.kinematics import foot_positions, leg_angles
from rlgym.envs.imitation.rotations import about_z, conjugate, rotate
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ClipError, ConfigError
from rlgym.settings import change, suggest

A1_LEG = 0.4
"""Thigh plus shank of A1, m: lengths of gaits are A1's, and scale with the leg."""
FRAMES = 200
"""Frames of a cycle, fine enough that its straight pieces do not show in velocities."""
GRAVITY = 9.81


@dataclass(frozen=True)
class Gait:
    """Parameters of a cyclic gait; lengths are for legs of 0.4 m (A1) and scale with the leg."""

    speed: float = 0.0
    """Forwards, m/s."""
    side: float = 0.0
    """To the left, m/s."""
    yaw_rate: float = 0.0
    """Turning to the left, rad/s."""
    period: float = 0.5
    """Seconds of a cycle."""
    duty: float = 0.55
    """Share of the cycle for which a foot is on the ground."""
    swing: float = 0.06
    """Height to which a foot is lifted, m."""
    height: float = 0.0
    """Of the base above its height in the robot's default pose, m."""
    forward: float = -0.01
    """Of the feet from below the hips, m; negative: backwards."""
    width: float = 0.0
    """Of each foot outwards from below its hip's joint, m."""
    phases: tuple[float, ...] = (0.0, 0.5, 0.5, 0.0)
    """When each leg (FR, FL, RR, RL) begins its stance, as shares of the cycle."""


@dataclass(frozen=True)
class Motion:
    """Parameters of a motion with all feet on the ground that ends; lengths scale with the leg."""

    seconds: float = 1.5
    """Time of the movement."""
    hold: float = 0.5
    """Seconds for which its last pose is held."""
    start_height: float = 0.0
    """Of the base above its height in the default pose, at the start, m."""
    end_height: float = 0.0
    """The same at the end."""
    start_pitch: float = 0.0
    """Of the base, nose down, at the start, rad."""
    end_pitch: float = 0.0
    """The same at the end."""
    forward: float = -0.01
    """Of the feet from below the hips, m; negative: backwards."""
    width: float = 0.0
    """Of each foot outwards from below its hip's joint, m."""


GAITS: dict[str, Gait | Motion] = {
    "trot": Gait(speed=0.55),
    "pace": Gait(speed=0.8, period=0.4, phases=(0.0, 0.5, 0.0, 0.5)),
    "bound": Gait(speed=0.55, phases=(0.0, 0.0, 0.5, 0.5)),
    "walk": Gait(speed=0.3, period=0.8, duty=0.75, swing=0.05, phases=(0.75, 0.25, 0.5, 0.0)),
    "pronk": Gait(speed=0.4, period=0.4, duty=0.6, swing=0.04, phases=(0.0, 0.0, 0.0, 0.0)),
    "turn": Gait(yaw_rate=0.8),
    "sidestep": Gait(side=0.25),
    "stand_up": Motion(start_height=-0.09),
    "sit": Motion(end_height=-0.04, end_pitch=-0.35),
}
"""By name; each parameter can be changed."""


def parse_gait(text: str) -> tuple[str, dict[str, Any]]:
    """Split "trot:speed=.8,period=.4" into the name and its changes.

    A value with slashes is a list: "bound:phases=0/0/.5/.5".

    Raises:
        ClipError: a change without "=".
    """
    name, _, rest = text.partition(":")
    changes: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ClipError(f"'{part}' in '{text}' is no parameter: write trot:speed=.8,period=.4")
        changes[key.strip()] = value.split("/") if "/" in value else value.strip()
    return name, changes


def generate(robot: Robot, gait: str, changes: Mapping[str, Any] | None = None) -> Clip:
    """Make the clip of a gait for a quadruped.

    Args:
        robot: One with four legs.
        gait: A name of `GAITS`.
        changes: Parameters that differ from the table's, such as {"speed": 0.8}.

    Raises:
        ClipError: no such gait or parameter, a value out of range, a foot that cannot get there.
    """
    if gait not in GAITS:
        raise ClipError(f"there is no gait '{gait}': {suggest(gait, GAITS)}")
    if len(robot.legs) != 4:
        raise ClipError(f"{robot.name} has no four legs in the robot table: gaits need them")
    try:
        settings = change(GAITS[gait], changes or {}, {}, lambda path: f"{gait}'s {path}")
    except ConfigError as error:
        raise ClipError(str(error)) from None
    if isinstance(settings, Motion):
        times, root_pos, root_quat, feet = _movement(robot, gait, settings)
    else:
        times, root_pos, root_quat, feet = _cycle(robot, gait, settings)
    q = _joints(robot, gait, root_pos, root_quat, feet)
    given = ",".join(f"{key}={value}" for key, value in (changes or {}).items())
    return Clip(
        name=f"{gait}:{given}" if given else gait,
        robot=robot.name,
        joint_names=robot.joints,
        dt=float(times[1] - times[0]),
        root_pos=root_pos,
        root_quat=root_quat,
        q=q,
        loop=isinstance(settings, Gait),
        cycle_heading=isinstance(settings, Gait) and settings.yaw_rate != 0,
        source="generated by rlgym",
        licence="Apache-2.0",
        may_ship=True,
    ).check()


def stance(robot: Robot, forward: float, width: float) -> tuple[np.ndarray, float]:
    """Return where feet stand, (4, 3) with z on the ground, and the base's height above it.

    The base is as high as in the robot's default pose; feet are below the abduction's offset.
    """
    scale = leg_scale(robot)
    level = np.array([[0.0, 0.0, 0.0, 1.0]])
    default = np.array([robot.default_pose])
    radius = robot.feet[0].radius
    height = radius - foot_positions(robot, np.zeros((1, 3)), level, default)[0, :, 2].mean()
    feet = np.empty((4, 3))
    for row, leg in zip(feet, robot.legs, strict=True):
        side = np.sign(leg.abduction)
        row[:] = (
            leg.hip[0] + forward * scale,
            leg.hip[1] + leg.abduction + side * width * scale,
            radius,
        )
    return feet, float(height)


def leg_scale(robot: Robot) -> float:
    """Length of the robot's legs compared with A1's."""
    return (robot.legs[0].thigh + robot.legs[0].shank) / A1_LEG


def _cycle(
    robot: Robot, name: str, gait: Gait
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return times (F,), base positions (F, 3), rotations (F, 4), feet (F, 4, 3) in the world."""
    _check_cycle(name, gait)
    scale = leg_scale(robot)
    home, height = stance(robot, gait.forward, gait.width)
    times = np.linspace(0.0, gait.period, FRAMES + 1)
    base, yaw = _travel(gait, times)
    base[:, 2] = height + gait.height * scale + _hop(gait, times)
    feet = np.empty((len(times), 4, 3))
    for leg, phase in enumerate(gait.phases):
        feet[:, leg] = _foot(gait, times / gait.period - phase, home[leg], gait.swing * scale)
    # feet were found in the base's level frame; put them into the world
    flat = rotate(about_z(yaw)[:, None], feet)
    flat[..., :2] += base[:, None, :2]
    return times, base, about_z(yaw), flat


def _check_cycle(name: str, gait: Gait) -> None:
    if not 0.05 <= gait.period <= 10:
        raise ClipError(f"{name}'s period is {gait.period} s: choose one from 0.05 to 10 s")
    if not 0.1 <= gait.duty <= 0.95:
        raise ClipError(f"{name}'s duty is {gait.duty}: choose a share from 0.1 to 0.95")
    if len(gait.phases) != 4:
        raise ClipError(f"{name} has {len(gait.phases)} phases: give four, FR, FL, RR, RL")
    if gait.swing < 0:
        raise ClipError(f"{name}'s swing is {gait.swing} m: feet are lifted, not sunk")


def _travel(gait: Gait, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integrate the constant velocity of the base's own frame: positions (T, 3), headings (T,)."""
    yaw = gait.yaw_rate * times
    half = 0.5 * yaw
    chord = times * np.sinc(half / np.pi)  # the chord of an arc: its length times sin(x) / x
    x = chord * (gait.speed * np.cos(half) - gait.side * np.sin(half))
    y = chord * (gait.speed * np.sin(half) + gait.side * np.cos(half))
    return np.stack([x, y, np.zeros_like(x)], -1), yaw


def _on_ground(gait: Gait, home: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Where a foot that stands at `home` at 0 s is `seconds` later, in the moving base's frame."""
    moved, yaw = _travel(gait, seconds)
    return rotate(about_z(-yaw), home - moved)


def _foot(gait: Gait, phase: np.ndarray, home: np.ndarray, lift: float) -> np.ndarray:
    """Path (T, 3) of a foot in the base's level frame; its stance begins at phase 0."""
    phase = phase % 1.0
    stance_time, swing_time = gait.duty * gait.period, (1 - gait.duty) * gait.period
    standing = _on_ground(gait, home, phase * gait.period - 0.5 * stance_time)
    ends = np.array([0.5, -0.5]) * stance_time
    leave, meet = _on_ground(gait, home, ends)
    nearby = _on_ground(gait, home, np.concatenate([ends - 1e-6, ends + 1e-6]))
    leave_slope, meet_slope = (nearby[2:] - nearby[:2]) / 2e-6 * swing_time
    u = ((phase - gait.duty) / (1 - gait.duty)).clip(0, 1)[:, None]
    swinging = (
        (2 * u**3 - 3 * u**2 + 1) * leave
        + (u**3 - 2 * u**2 + u) * leave_slope
        + (3 * u**2 - 2 * u**3) * meet
        + (u**3 - u**2) * meet_slope
    )
    swinging[:, 2] += lift * np.sin(np.pi * u[:, 0]) ** 2
    return np.where(phase[:, None] < gait.duty, standing, swinging)


def _hop(gait: Gait, times: np.ndarray) -> np.ndarray:
    """Rise (T,) of the base where all feet leave the ground together: free fall, and a soft stance.

    The stance has the constant acceleration that turns the fall around, so the mean is kept.
    """
    if len(set(gait.phases)) > 1:
        return np.zeros_like(times)
    stance_time, flight = gait.duty * gait.period, (1 - gait.duty) * gait.period
    phase = (times / gait.period - gait.phases[0]) % 1.0
    down = phase * gait.period
    up = down - stance_time
    speed = 0.5 * GRAVITY * flight
    sunk = -speed * down * (1 - down / stance_time)
    risen = speed * up - 0.5 * GRAVITY * up**2
    return np.where(phase < gait.duty, sunk, risen)


def _movement(
    robot: Robot, name: str, motion: Motion
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same as `_cycle` for a motion with all feet standing."""
    if not (0.1 <= motion.seconds <= 60 and 0 <= motion.hold <= 60):
        raise ClipError(f"{name} needs seconds from 0.1 to 60 and hold from 0 to 60")
    scale = leg_scale(robot)
    home, height = stance(robot, motion.forward, motion.width)
    count = round((motion.seconds + motion.hold) * FRAMES)
    times = np.arange(count + 1) / FRAMES
    u = (times / motion.seconds).clip(0, 1)
    # minimum jerk: Flash and Hogan 1985, "The coordination of arm movements", equation 6
    share = u**3 * (10 - 15 * u + 6 * u**2)
    base = np.zeros((len(times), 3))
    rise = motion.start_height + share * (motion.end_height - motion.start_height)
    base[:, 2] = height + scale * rise
    pitch = motion.start_pitch + share * (motion.end_pitch - motion.start_pitch)
    quat = np.zeros((len(times), 4))
    quat[:, 1], quat[:, 3] = np.sin(0.5 * pitch), np.cos(0.5 * pitch)
    return times, base, quat, np.broadcast_to(home, (len(times), 4, 3))


def _joints(
    robot: Robot, name: str, root_pos: np.ndarray, root_quat: np.ndarray, feet: np.ndarray
) -> np.ndarray:
    """Joint angles (F, 12) that put the feet there.

    Raises:
        ClipError: a foot is out of reach, or a joint beyond its limit.
    """
    inside = rotate(conjugate(root_quat)[:, None], feet - root_pos[:, None])
    q, reachable = leg_angles(robot, inside)
    low, high = np.array(robot.lower), np.array(robot.upper)
    beyond = ((q < low) | (q > high)).any(0)
    if beyond.any():
        joint = int(beyond.argmax())
        raise ClipError(
            f"{name}: {robot.joints[joint]} would turn from {q[:, joint].min():.2f} to "
            f"{q[:, joint].max():.2f} rad, its limits are {low[joint]:.2f} to {high[joint]:.2f}: "
            "lower the swing, the speed or the period, or change the height"
        )
    if not reachable.all():
        raise ClipError(
            f"{name}: {robot.name}'s legs are too short for it: lower the speed, the period, "
            "the height or the swing"
        )
    return q
