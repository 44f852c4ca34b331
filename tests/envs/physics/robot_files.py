"""A small four-legged robot as a URDF and as an MJCF, made here; and its entry of the table."""

from __future__ import annotations

from pathlib import Path

from rlgym.envs.physics.robots import Foot, Leg, Robot

LEGS = {"FR": (0.2, -0.1), "FL": (0.2, 0.1), "RR": (-0.2, -0.1), "RL": (-0.2, 0.1)}
PARTS = ("abduction", "hip", "knee")
THIGH, SHANK, SIDE, RADIUS = 0.15, 0.14, 0.05, 0.02


def urdf(limits: str = '<limit lower="-2" upper="2.5" effort="12" velocity="20"/>') -> str:
    """Return the robot as a URDF; the hips turn about -y there, which the entry's sign mends."""
    body = _link("body", 4.0, '<box size="0.4 0.2 0.08"/>', (0.03, 0.02, 0.04))
    parts = [body]
    for leg, (x, y) in LEGS.items():
        side = SIDE if y > 0 else -SIDE
        parts += [
            _link(f"{leg}_side", 0.3, '<sphere radius="0.03"/>', (2e-4,) * 3),
            _link(f"{leg}_thigh", 0.4, '<sphere radius="0.02"/>', (1e-3, 1e-3, 1e-4)),
            _link(f"{leg}_shank", 0.1, '<sphere radius="0.01"/>', (3e-4, 3e-4, 1e-5)),
            _link(f"{leg}_foot", 0.03, f'<sphere radius="{RADIUS}"/>', (5e-6,) * 3),
            _joint(f"{leg}_abduction", "body", f"{leg}_side", (x, y, 0), "1 0 0", limits),
            _joint(f"{leg}_hip", f"{leg}_side", f"{leg}_thigh", (0, side, 0), "0 -1 0", limits),
            _joint(f"{leg}_knee", f"{leg}_thigh", f"{leg}_shank", (0, 0, -THIGH), "0 1 0", limits),
            f'<joint name="{leg}_toe" type="fixed"><parent link="{leg}_shank"/>'
            f'<child link="{leg}_foot"/><origin xyz="0 0 {-SHANK}"/></joint>',
        ]
    return '<?xml version="1.0"?>\n<robot name="tiny">' + "\n".join(parts) + "</robot>"


def _link(name: str, mass: float, shape: str, inertia: tuple[float, ...]) -> str:
    ixx, iyy, izz = inertia
    return (
        f'<link name="{name}"><inertial><mass value="{mass}"/>'
        f'<inertia ixx="{ixx}" iyy="{iyy}" izz="{izz}" ixy="0" ixz="0" iyz="0"/></inertial>'
        f"<visual><geometry>{shape}</geometry></visual>"
        f"<collision><geometry>{shape}</geometry></collision></link>"
    )


def _joint(name: str, parent: str, child: str, xyz: tuple, axis: str, limits: str) -> str:
    place = " ".join(map(str, xyz))
    return (
        f'<joint name="{name}" type="revolute"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{place}"/><axis xyz="{axis}"/>{limits}</joint>'
    )


def mjcf() -> str:
    """Return the same robot as an MJCF, told as differently as that format allows.

    Angles in degrees, limits in a default class, and shanks whose frames are turned by a quarter
    about x and lie 5 cm below the knee; it has a floor and motors of its own, too.
    """
    legs, motors = [], []
    for leg, (x, y) in LEGS.items():
        side = SIDE if y > 0 else -SIDE
        legs.append(
            f'<body name="{leg}_side" pos="{x} {y} 0"><joint name="{leg}_abduction" axis="1 0 0"/>'
            f'{_mass(0.3, (2e-4,) * 3)}<geom type="sphere" size=".03"/>'
            f'<body name="{leg}_thigh" pos="0 {side} 0"><joint name="{leg}_hip" axis="0 -1 0"/>'
            f'{_mass(0.4, (1e-3, 1e-3, 1e-4))}<geom type="sphere" size=".02"/>'
            f'<body name="{leg}_shank" pos="0 0 {-THIGH - 0.05}" euler="90 0 0">'
            f'<joint name="{leg}_knee" axis="0 0 -1" pos="0 .05 0"/>'
            f"{_mass(0.1, (3e-4, 1e-5, 3e-4), '0 .05 0')}"
            '<geom type="sphere" size=".01" pos="0 .05 0"/>'
            f'<body name="{leg}_foot" pos="0 {0.05 - SHANK} 0">{_mass(0.03, (5e-6,) * 3)}'
            f'<geom type="sphere" size="{RADIUS}"/></body></body></body></body>'
        )
        motors += [f'<position joint="{leg}_{part}" forcerange="-12 12"/>' for part in PARTS]
    return (
        '<mujoco model="tiny"><default><joint range="-114.59155902616465 143.2394487827058"/>'
        '</default><worldbody><geom name="ground" type="plane" size="5 5 .1"/>'
        '<body name="body" pos="0 0 1"><freejoint name="free"/>'
        f'{_mass(4.0, (0.03, 0.02, 0.04))}<geom type="box" size=".2 .1 .04"/>'
        + "".join(legs)
        + f"</body></worldbody><actuator>{''.join(motors)}</actuator></mujoco>"
    )


def _mass(mass: float, inertia: tuple[float, ...], pos: str = "0 0 0") -> str:
    diagonal = " ".join(map(str, inertia))
    return f'<inertial pos="{pos}" mass="{mass}" diaginertia="{diagonal}"/>'


def entry(path: Path, **changes) -> Robot:
    """Return the robot's entry of the table."""
    fields = {
        "name": "tiny",
        "model": str(path),
        "base": "body",
        "joints": tuple(f"{leg}_{part}" for leg in LEGS for part in PARTS),
        "sign": (1.0, -1.0, 1.0) * 4,
        "offset": (0.0,) * 12,
        "default_pose": (0.0, 0.7, -1.4) * 4,
        "kp": (40.0,) * 12,
        "kd": (1.0,) * 12,
        "torque_limit": (12.0,) * 12,
        "lower": (-1.0, -1.0, -2.5) * 4,
        "upper": (1.0, 2.5, -0.3) * 4,
        "init_height": 0.243,
        "feet": tuple(Foot(f"{leg}_foot", radius=RADIUS) for leg in LEGS),
        "legs": tuple(
            Leg((x, y, 0.0), SIDE if y > 0 else -SIDE, THIGH, SHANK) for x, y in LEGS.values()
        ),
    }
    return Robot(**(fields | changes))
