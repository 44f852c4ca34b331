"""What differs between worlds and episodes, drawn from the ranges of a spec: pure functions.

Each quantity is drawn from the slot's seed and the episode's (or step's) counter, so slots do not
depend on each other and a resumed run draws what the first would have drawn.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from rlgym.envs.imitation.arrays import Array, namespace
from rlgym.envs.imitation.joints import to_angles, to_positions
from rlgym.envs.imitation.random import normal, uniform
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply
from rlgym.envs.imitation.spec import RandomizeSpec
from rlgym.envs.physics.engine import Randomization, Sensed
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ConfigError

QUANTITIES = tuple(field.name for field in fields(Randomization))
"""Names of what is drawn once an episode."""
PER_JOINT = frozenset({"motor_strength", "kp", "kd", "viscous", "coulomb"})

_FIRST = 1000
"""Number of the first draw here; the episode's own draws are below it."""
_STRIDE = 200
"""Draws kept for each quantity: more than any robot here has joints."""
_PUSH = _FIRST + _STRIDE * len(QUANTITIES)
_NOISE = _PUSH + _STRIDE


def check_ranges(spec: RandomizeSpec, engine: Any) -> None:
    """Make sure that the engine can do what the ranges ask for.

    Raises:
        ConfigError: names what it cannot, or a range that is none.
    """
    wanted = [name for name in QUANTITIES if getattr(spec, name)]
    for name in wanted:
        values = getattr(spec, name)
        if len(values) != 2 or values[0] > values[1] or values[0] < 0.0:
            raise ConfigError(
                f"randomize.{name} is {list(values)}: give [low, high], both at least 0"
            )
    wanted += ["push"] * (spec.push > 0.0)
    unable = [name for name in wanted if name not in engine.capabilities]
    if unable:
        able = ", ".join(sorted(engine.capabilities)) or "nothing"
        raise ConfigError(
            f"the engine '{engine.name}' cannot randomize {', '.join(unable)}: leave it out, or "
            f"use another engine (it can do {able})"
        )
    actuation = engine.actuation
    limit = 2.0 * actuation.control_dt - actuation.time_step
    if spec.latency and spec.latency[1] > limit:
        raise ConfigError(
            f"randomize.latency goes up to {spec.latency[1]} s, which is longer than engines "
            f"remember: use at most {limit:.4g}"
        )


def draw(spec: RandomizeSpec, seed: Array, counter: Array, num_joints: int) -> Randomization | None:
    """Draw what one episode of each world is simulated with; None where nothing varies.

    Args:
        spec: ranges.
        seed: (B,) int64.
        counter: (B,) int64 of the episodes.
        num_joints: joint velocities of the robot, nv.
    """
    values: dict[str, Array] = {}
    for number, name in enumerate(QUANTITIES):
        span = getattr(spec, name)
        if not span:
            continue
        first = _FIRST + _STRIDE * number
        which = range(first, first + num_joints) if name in PER_JOINT else first
        values[name] = span[0] + (span[1] - span[0]) * uniform(seed, counter, which)
    return Randomization(**values) if values else None


def push(spec: RandomizeSpec, seed: Array, counter: Array, control_dt: float) -> Array | None:
    """Draw this step's pushes: now and then, each along x and y; None where there are never any.

    Args:
        spec: size and mean interval.
        seed: (B,) int64.
        counter: (B,) int64 of the steps.
        control_dt: seconds of one step.

    Returns:
        (B, 3) change of the base's velocity, m/s.
    """
    if not spec.push:
        return None
    xp = namespace(seed)
    draws = uniform(seed, counter, (_PUSH, _PUSH + 1, _PUSH + 2))
    hit = draws[:, :1] < control_dt / spec.push_seconds
    planar = xp.where(hit, (2.0 * draws[:, 1:] - 1.0) * spec.push, 0.0 * draws[:, 1:])
    return xp.concatenate([planar, 0.0 * draws[:, :1]], -1)


def noisy(spec: RandomizeSpec, seed: Array, counter: Array, sensed: Sensed, robot: Robot) -> Sensed:
    """Add this step's noise to the readings; the same object where there is none.

    A spherical joint's noise is added to its rotation vector.
    """
    scales = (spec.noise_angle, spec.noise_velocity, spec.noise_rotation, spec.noise_rate)
    if not any(scales):
        return sensed
    xp = namespace(sensed.q)
    nv = sensed.qd.shape[1]
    draws = normal(seed, counter, range(_NOISE, _NOISE + 2 * nv + 6))
    draws = xp.astype(draws, sensed.q)
    angle, rate = draws[:, 2 * nv : 2 * nv + 3], draws[:, 2 * nv + 3 :]
    angles = to_angles(robot, sensed.q) + spec.noise_angle * draws[:, :nv]
    return replace(
        sensed,
        q=to_positions(robot, angles),
        qd=sensed.qd + spec.noise_velocity * draws[:, nv : 2 * nv],
        root_quat=multiply(sensed.root_quat, from_rotation_vector(spec.noise_rotation * angle)),
        root_angvel=sensed.root_angvel + spec.noise_rate * rate,
    )
