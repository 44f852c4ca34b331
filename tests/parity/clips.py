"""Synthetic clips in the dialect of motion_imitation, which the recorded numbers belong to.

Laikago in its URDF's convention: y up and z forward, so that a level robot that faces x has the
quaternion (.5, .5, .5, .5); joints front right, front left, rear right, rear left.
"""

import math
from typing import Any

FRAMES, FRAME_TIME = 41, 0.0175


def clip(kind: str) -> dict[str, Any]:
    """Return "walk" (goes on ahead), "turn" (goes on in its new heading) or "rise" (ends)."""
    return {
        "LoopMode": "Clamp" if kind == "rise" else "Wrap",
        "FrameDuration": FRAME_TIME,
        "EnableCycleOffsetPosition": True,
        "EnableCycleOffsetRotation": kind == "turn",
        "Frames": [frame(kind, i / (FRAMES - 1)) for i in range(FRAMES)],
    }


def frame(kind: str, phase: float) -> list[float]:
    """Return the 19 values of a frame, `phase` from 0 to 1 through the clip."""
    wave = [math.sin(2 * math.pi * (phase + shift)) for shift in (0.0, 0.25, 0.5, 0.75)]
    ahead = {"walk": 0.25, "turn": 0.1, "rise": 0.0}[kind] * phase
    height = 0.44 + 0.006 * wave[1] if kind != "rise" else 0.40 + 0.05 * phase
    yaw = 0.3 + (0.7 * phase if kind == "turn" else 0.02 * wave[0])
    root = (1.0 + ahead * math.cos(0.3), -2.0 + ahead * math.sin(0.3), height)
    pitch, roll = 0.03 * wave[1], 0.04 * wave[0]
    quat = product(product(about(2, yaw), product(about(1, pitch), about(0, roll))), (0.5,) * 4)
    joints: list[float] = []
    for leg, sign in enumerate((-1.0, 1.0, -1.0, 1.0)):
        swing = wave[0] if leg in (0, 3) else wave[2]
        bend = 0.5 + 0.5 * (wave[1] if leg in (0, 3) else wave[3])
        angles = (0.03 * wave[1], 0.72 + 0.15 * swing, -1.33 - 0.15 * bend)
        for angle, offset, turn in zip(angles, (0.0, -0.6, 0.66), (sign, 1.0, 1.0), strict=True):
            joints.append((angle + offset) * turn)
    return [*root, *quat, *joints]


def action(step: int) -> list[float]:
    """Return the action that is taken in a step, rad around the default pose."""
    return [0.12 * math.sin(0.45 * step + 1.7 * joint) for joint in range(12)]


def about(axis: int, angle: float) -> tuple[float, ...]:
    """Return the quaternion xyzw of a turn about the axis x, y or z of that number."""
    vector = [0.0, 0.0, 0.0]
    vector[axis] = math.sin(angle / 2)
    return (*vector, math.cos(angle / 2))


def product(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """Return the rotation b followed by a."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )
