"""From a policy's action to targets of the joints: offset, low-pass filter, limits.

What comes after, interpolation over the physics steps and the bound of the distance from the
measured angles, is the engine's (`Actuation`). All is in the angles of `joints.to_angles`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from rlgym.envs.imitation.arrays import Array, choose_rows, constant, namespace, renewed
from rlgym.envs.imitation.joints import per_velocity, to_angles, to_positions
from rlgym.envs.imitation.spec import ActionSpec
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ConfigError


class FilterState(NamedTuple):
    """What a second-order filter remembers: inputs x and outputs y, one and two steps ago.

    Each is (B, nv), rad.
    """

    x1: Array
    x2: Array
    y1: Array
    y2: Array


def start_filter(angles: Array) -> FilterState:
    """Return the memory of a filter that has been fed `angles` (B, nv) for ever."""
    copy = namespace(angles).copy
    return FilterState(*(copy(angles) for _ in range(4)))


def renewed_filter(old: FilterState, new: FilterState) -> FilterState:
    """Return the memory `new`, as `arrays.renewed` has it."""
    if new is old:
        return new
    # what is two steps old now may lie where what is one step old was
    x2, y2 = renewed(old.x2, new.x2), renewed(old.y2, new.y2)
    return FilterState(renewed(old.x1, new.x1), x2, renewed(old.y1, new.y1), y2)


def reset_filter(memory: FilterState, mask: Array, angles: Array) -> FilterState:
    """Start anew from `angles` (B, nv) in the rows of `mask` (B,).

    A filter that began with zeros would pull the robot towards angle 0 in its first steps.
    """
    return FilterState(*(choose_rows(mask, angles, part) for part in memory))


class LowPass(NamedTuple):
    """Coefficients: y = b0 (x + 2 x1 + x2) - a1 y1 - a2 y2."""

    b0: float
    a1: float
    a2: float


@functools.lru_cache(maxsize=64)
def butterworth(cutoff: float, rate: float) -> LowPass:
    """Return a second-order Butterworth low-pass filter.

    The bilinear transform of 1 / (s^2 + sqrt(2) s + 1), with the cut-off prewarped: Oppenheim and
    Schafer, "Discrete-Time Signal Processing", section 7.1.2.

    Args:
        cutoff: Hz, where the gain is -3 dB.
        rate: samples a second.

    Raises:
        ConfigError: `cutoff` is not between 0 and half of `rate`.
    """
    if not 0 < cutoff < rate / 2:
        raise ConfigError(
            f"action.cutoff is {cutoff:g} Hz: at {rate:.3g} actions a second it must be above 0 "
            f"and below {rate / 2:.3g}, or null for no filter"
        )
    k = math.tan(math.pi * cutoff / rate)
    norm = 1 / (1 + math.sqrt(2) * k + k * k)
    return LowPass(k * k * norm, 2 * (k * k - 1) * norm, (1 - math.sqrt(2) * k + k * k) * norm)


def filter_angles(
    memory: FilterState, angles: Array, low_pass: LowPass
) -> tuple[Array, FilterState]:
    """Return filtered `angles` (B, nv), and the memory after them."""
    x1, x2, y1, y2 = memory
    b0, a1, a2 = low_pass
    out = b0 * (angles + 2 * x1 + x2) - a1 * y1 - a2 * y2
    return out, FilterState(angles, x1, out, y1)


def commanded_angles(action: Array, spec: ActionSpec, robot: Robot, offset: Array) -> Array:
    """Return the angles that actions ask for, (B, nv) rad, before filter and limits.

    Args:
        action: (B, nv).
        offset: (B, nq) or (1, nq) pose that a zero action asks for.
    """
    return to_angles(robot, offset) + spec.scale * action


def asking_for(positions: Array, spec: ActionSpec, robot: Robot, offset: Array) -> Array:
    """Return the actions, (B, nv), that ask for joint positions (B, nq): `commanded_angles` back.

    Args:
        positions: (B, nq).
        offset: as in `commanded_angles`.
    """
    return (to_angles(robot, positions) - to_angles(robot, offset)) / spec.scale


def act(
    memory: FilterState, action: Array, spec: ActionSpec, robot: Robot, offset: Array, dt: float
) -> tuple[Array, FilterState]:
    """Return targets of the joints, (B, nq), and the filter's memory after them.

    Args:
        memory: of the filter; passed through where `spec.cutoff` is None.
        action: (B, nv) of the policy.
        offset: (B, nq) or (1, nq) pose that a zero action asks for.
        dt: seconds of a control step.

    Raises:
        ConfigError: see `butterworth`.
    """
    angles = commanded_angles(action, spec, robot, offset)
    if spec.cutoff is not None:
        angles, memory = filter_angles(memory, angles, butterworth(spec.cutoff, 1 / dt))
    if spec.limit_margin is not None:
        lower, upper = limits(robot, spec.limit_margin)
        angles = namespace(angles).clip(angles, constant(lower, angles), constant(upper, angles))
    return to_positions(robot, angles), memory


@functools.lru_cache(maxsize=64)
def limits(robot: Robot, margin: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return lower and upper limits of the angles, `margin` wider than the robot's."""
    return (
        tuple(value - margin for value in per_velocity(robot, robot.lower)),
        tuple(value + margin for value in per_velocity(robot, robot.upper)),
    )
