"""A MuJoCo model of a robot of the table, compiled from the same file that PyBullet reads.

The model speaks our convention: its free joint is the canonical base frame, and a hinge's `qpos`
is our angle (sign and zero are in its axis and `ref`). Only the order of joints may differ.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache
from typing import Any

import mujoco as untyped_mujoco
import numpy as np

from rlgym.envs.imitation.joints import per_velocity
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.terrain import Terrain
from rlgym.envs.physics.urdf import (
    lacks_inertia,
    model_path,
    read_model,
    read_xml,
    rotate,
)
from rlgym.errors import WorldError

mujoco: Any = untyped_mujoco
"""Its names are made in C, where no type checker sees them."""
Spec = Any
"""A `mujoco.MjSpec`."""

ROOT = "rlgym root"
"""The link of the canonical base frame, into which the robot's own base is welded."""
FLOOR = "floor"
HARD_CONTACT = (0.005, 1.0)
"""MuJoCo's `solref`: time constant, s (its own is 0.02; at least two steps), damping ratio."""


@dataclass(frozen=True)
class Compiled:
    """A compiled model and where the robot's things are in it."""

    model: Any
    """`mujoco.MjModel`."""
    q_index: np.ndarray
    """(nq,) of each of our joint positions in `qpos`; a spherical joint's in the order xyzw."""
    v_index: np.ndarray
    """(nv,) of each of our joint velocities in `qvel`."""
    foot_geoms: np.ndarray
    """Geoms that touch the ground with `friction` of a randomization."""
    contact_sensors: int
    """Sensors of contacts, after those of torque: first all, then the allowed ones; 0: none."""


def compile_model(
    robot: Robot,
    actuation: Actuation,
    collide: str,
    terrain: Terrain,
    *,
    gravity: float,
    friction: float,
) -> Compiled:
    """Compile the robot on a terrain.

    Args:
        robot: A complete entry of the robot table.
        actuation: Time step and servo.
        collide: "feet": only feet touch the ground; "all": every link does. Links of a robot never
            touch each other.
        terrain: Ground.
        gravity: m/s^2, downwards.
        friction: Coefficient between the robot and the ground.

    Raises:
        WorldError: MuJoCo refuses the file, or the entry does not fit it.
    """
    spec = _load(robot)
    _prepare_joints(spec, robot)
    feet = _prepare_geoms(spec, robot, collide, friction)
    _add_ground(spec, terrain)
    _add_servos(spec, robot, actuation)
    allowed = _add_contact_sensors(spec, robot) if collide == "all" else 0
    _set_options(spec.option, actuation, gravity)
    spec.compiler.fusestatic = True  # toes and other fixed links become part of what carries them
    model = _compile(spec, robot)
    if actuation.servo != "implicit":
        model.geom_solref[:] = HARD_CONTACT
    if actuation.servo == "explicit":  # with a cone of friction feet move as in PyBullet
        model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    if robot.added_inertia:
        model.body_inertia[1:] += robot.added_inertia
        mujoco.mj_setConst(model, mujoco.MjData(model))
    q_index, v_index = _indices(model, robot)
    kd = np.array(per_velocity(robot, robot.kd))
    if robot.damped_joints:
        model.dof_damping[v_index] = kd
        model.actuator_biasprm[:, 2] = 0.0
    elif actuation.servo == "damped":
        # The damping at the end of a step, -kd * (v + dt * acceleration), as inertia dt * kd: then
        # contacts know of it, which "implicit" ones damp after they were solved
        model.dof_armature[v_index] = actuation.time_step * kd
        mujoco.mj_setConst(model, mujoco.MjData(model))
    feet = np.array([i for i in range(model.ngeom) if model.geom(i).name in feet], dtype=int)
    return Compiled(model, q_index, v_index, feet, allowed)


def _set_options(option: Any, actuation: Actuation, gravity: float) -> None:
    """Choose step, gravity, integrator and solver."""
    option.timestep = actuation.time_step
    option.gravity = (0.0, 0.0, -gravity)
    # Euler takes the servos' forces from the start of a step: torques that are computed outside
    integrators, implicit = mujoco.mjtIntegrator, actuation.servo == "implicit"
    option.integrator = integrators.mjINT_IMPLICITFAST if implicit else integrators.mjINT_EULER
    bits = mujoco.mjtDisableBit
    option.disableflags |= bits.mjDSBL_AUTORESET  # we see a blow-up ourselves
    # Newton's solver arrives at the same forces without these two, in 14 % less time per step
    option.disableflags |= bits.mjDSBL_WARMSTART | bits.mjDSBL_ISLAND


def _load(robot: Robot) -> Spec:
    """Read the file into a spec whose base hangs on a free joint in the canonical frame."""
    model = read_model(robot)
    _, root = read_xml(robot)
    if robot.scale != 1.0:
        _scale(root, robot.scale)
    compiler = {"strippath": "false", "fusestatic": "false", "discardvisual": "true"}
    compiler |= {"balanceinertia": "true", "meshdir": str(model_path(robot).parent)}
    settings = ET.Element("mujoco")
    ET.SubElement(settings, "compiler", compiler)
    root.insert(0, settings)
    for joint in root.iter("joint"):
        for axis in joint.findall("axis")[1:]:
            joint.remove(axis)  # some of pybullet_data's robots say it twice
        if joint.get("type") == "spherical" and joint.find("axis") is None:
            ET.SubElement(joint, "axis", {"xyz": "1 0 0"})  # or urdfdom complains on stderr
    ET.SubElement(root, "link", {"name": ROOT})
    weld = ET.SubElement(root, "joint", {"name": ROOT, "type": "fixed"})
    ET.SubElement(weld, "parent", {"link": ROOT})
    ET.SubElement(weld, "child", {"link": robot.base})
    try:
        spec = mujoco.MjSpec.from_string(ET.tostring(root, encoding="unicode"))
    except ValueError as error:
        raise WorldError(f"robot '{robot.name}': MuJoCo cannot read it: {_line(error)}") from None
    base = spec.body(robot.base)
    turn = np.array(robot.base_rotation)
    base.pos = -rotate(turn, np.array(robot.base_origin))
    base.quat = turn[[3, 0, 1, 2]]
    spec.body(ROOT).add_freejoint(name=ROOT)
    for link in model.links.values():
        for geom in spec.body(link.name).geoms if link.mass == 0.0 else ():
            geom.mass = 0.0  # a link of which the file says no mass has none
    if lacks_inertia(model):
        for name, mass, com, quat, inertia in _bullet_inertia(robot):
            body = spec.body(name)
            body.explicitinertial, body.mass, body.inertia = True, mass, inertia
            body.fullinertia = np.full(6, np.nan)  # not given
            body.ipos, body.iquat = com, np.array(quat)[[3, 0, 1, 2]]
    return spec


def _scale(root: ET.Element, scale: float) -> None:
    """Scale all lengths of a URDF in place; masses stay, as PyBullet's globalScaling has it."""
    for element in root.iter():
        for key in ("xyz", "size", "radius", "length", "scale"):
            lengths = key != "xyz" or element.tag == "origin"
            if key in element.attrib and lengths:
                values = (float(v) * scale for v in element.attrib[key].split())
                element.attrib[key] = " ".join(map(repr, values))
        if element.tag == "mesh" and "scale" not in element.attrib:
            element.attrib["scale"] = f"{scale} {scale} {scale}"


@cache
def _bullet_inertia(robot: Robot) -> list[tuple[str, float, tuple, tuple, tuple]]:
    """Return (link, mass, centre of mass, its turn xyzw, inertia) as PyBullet computes them.

    It takes each link's inertia from its collision shapes where it is not told otherwise, which is
    what a file without inertias means.
    """
    from rlgym.envs.physics.bullet_model import connect, load
    from rlgym.envs.physics.quiet_pybullet import pybullet

    client = connect()
    try:
        body = load(robot, pybullet.URDF_IGNORE_VISUAL_SHAPES, client)
        links = []
        for i in range(-1, pybullet.getNumJoints(body, client)):
            info = pybullet.getDynamicsInfo(body, i, client)
            name = robot.base
            if i >= 0:
                name = pybullet.getJointInfo(body, i, client)[12].decode()
            if info[0] > 0.0:
                links.append((name, info[0], info[3], info[4], info[2]))
        return links
    finally:
        pybullet.disconnect(client)


def _prepare_joints(spec: Spec, robot: Robot) -> None:
    """Give the joints our sign, zero and limits, and take the file's friction from them."""
    unit = math.degrees(1.0) if spec.compiler.degree else 1.0  # what the file's angles are in
    limits = zip(robot.lower, robot.upper, robot.sign, robot.offset, strict=True)
    for name, spherical, (lower, upper, sign, offset) in zip(
        robot.joints, robot.is_spherical, limits, strict=True
    ):
        joint = spec.joint(name)
        if joint is None:
            raise WorldError(f"robot '{robot.name}': {robot.model} has no joint '{name}'")
        joint.frictionloss, joint.armature = 0.0, 0.0
        # numbers up to MuJoCo 3, coefficients of a polynomial since 4
        joint.damping = 0.0 * np.asarray(joint.damping)
        joint.stiffness = 0.0 * np.asarray(joint.stiffness)
        if spherical:
            joint.limited = mujoco.mjtLimited.mjLIMITED_FALSE
            continue
        joint.axis = sign * np.array(joint.axis)
        joint.ref = -offset * unit
        joint.limited = mujoco.mjtLimited.mjLIMITED_TRUE
        joint.range = (lower * unit, upper * unit)
        joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE


def _prepare_geoms(spec: Spec, robot: Robot, collide: str, friction: float) -> set[str]:
    """Let the links touch the ground that shall, and nothing else; return the feet's geoms."""
    feet = {foot.link for foot in robot.feet}
    names: set[str] = set()
    for body in spec.bodies:
        if body.name == "world":
            continue
        for i, geom in enumerate(body.geoms):
            visual = geom.contype == 0 and geom.conaffinity == 0
            touches = not visual and (collide == "all" or body.name in feet)
            geom.name = f"{body.name}/{i}"
            geom.contype, geom.conaffinity = 0, int(touches)
            geom.friction[0] = friction
            geom.priority = 1  # or MuJoCo would take the larger coefficient of robot and ground
            if touches and body.name in feet:
                names.add(geom.name)
    return names


def _add_ground(spec: Spec, terrain: Terrain) -> None:
    if terrain.is_flat:
        spec.worldbody.add_geom(name=FLOOR, type=mujoco.mjtGeom.mjGEOM_PLANE, size=(0.0, 0.0, 0.05))
        return
    heights = terrain.heights
    low, high = float(heights.min()), float(heights.max())
    half = [0.5 * terrain.spacing * (n - 1) for n in heights.shape]
    spec.add_hfield(
        name=FLOOR,
        size=(half[1], half[0], max(high - low, 1e-6), 1.0),
        nrow=heights.shape[0],
        ncol=heights.shape[1],
        userdata=((heights - low) / max(high - low, 1e-6)).astype(np.float32).ravel(),
    )
    spec.worldbody.add_geom(
        name=FLOOR,
        type=mujoco.mjtGeom.mjGEOM_HFIELD,
        hfieldname=FLOOR,
        pos=(0.0, 0.0, low),
    )


def _add_servos(spec: Spec, robot: Robot, actuation: Actuation) -> None:
    """Add a position servo and a torque sensor per degree of freedom, in our order.

    With `target_clip`, a servo is two actuators: one of bounded position error, one of damping;
    all of the first kind come before all of the second.
    """
    axes = [
        (i, gear)
        for i, spherical in enumerate(robot.is_spherical)
        for gear in (np.eye(6)[:3] if spherical else np.eye(6)[:1])
    ]
    clip = actuation.target_clip
    parts = ("servo",) if clip is None else ("position", "velocity")
    for part in parts:
        for number, (i, gear) in enumerate(axes):
            kp, kd = robot.kp[i] * (part != "velocity"), robot.kd[i] * (part != "position")
            limit = np.inf
            if clip is not None and part == "position":
                limit = kp * clip
            elif clip is None and actuation.limit_torque:
                limit = robot.torque_limit[i]
            name = f"{part} {number}"
            servo = spec.add_actuator(
                name=name,
                target=robot.joints[i],
                trntype=mujoco.mjtTrn.mjTRN_JOINT,
                gear=gear,
                biastype=mujoco.mjtBias.mjBIAS_AFFINE,
                ctrllimited=mujoco.mjtLimited.mjLIMITED_FALSE,
            )
            servo.gainprm[0] = kp
            servo.biasprm[1:3] = (-kp, -kd)
            if np.isfinite(limit):
                servo.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
                servo.forcerange = (-limit, limit)
            spec.add_sensor(
                name=name,
                type=mujoco.mjtSensor.mjSENS_ACTUATORFRC,
                objtype=mujoco.mjtObj.mjOBJ_ACTUATOR,
                objname=name,
            )
    if clip is not None and actuation.limit_torque:  # the sum of both parts, at the joint
        for i, spherical in enumerate(robot.is_spherical):
            if not spherical:
                joint = spec.joint(robot.joints[i])
                joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_TRUE
                joint.actfrcrange = (-robot.torque_limit[i], robot.torque_limit[i])


def _add_contact_sensors(spec: Spec, robot: Robot) -> int:
    """Count contacts with the ground: of the whole robot, then of each geom that may touch it."""
    may_touch = {*(foot.link for foot in robot.feet), *robot.may_touch}
    wanted = [(mujoco.mjtObj.mjOBJ_XBODY, spec.worldbody.bodies[0].name)]
    for body in spec.bodies:
        if body.name in may_touch:
            wanted += [(mujoco.mjtObj.mjOBJ_GEOM, g.name) for g in body.geoms if g.conaffinity]
    for kind, name in wanted:
        spec.add_sensor(
            name=f"contact {name}",
            type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=kind,
            objname=name,
            reftype=mujoco.mjtObj.mjOBJ_GEOM,
            refname=FLOOR,
            intprm=(1 << mujoco.mjtConDataField.mjCONDATA_FOUND.value, 0, 1),
        )
    return len(wanted)


def _compile(spec: Spec, robot: Robot) -> Any:
    try:
        return spec.compile()
    except ValueError as error:
        raise WorldError(
            f"robot '{robot.name}': MuJoCo cannot compile {robot.model}: {_line(error)}"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _indices(model: Any, robot: Robot) -> tuple[np.ndarray, np.ndarray]:
    """Return where our joint positions and velocities are in `qpos` and `qvel`."""
    q, v = [], []
    for name, spherical in zip(robot.joints, robot.is_spherical, strict=True):
        joint = model.joint(name)
        q0, v0 = int(joint.qposadr[0]), int(joint.dofadr[0])
        q += [q0 + 1, q0 + 2, q0 + 3, q0] if spherical else [q0]
        v += [v0, v0 + 1, v0 + 2] if spherical else [v0]
    return np.array(q), np.array(v)
