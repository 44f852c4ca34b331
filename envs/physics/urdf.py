"""Reading a robot's URDF: joint tree, masses, limits, and the check that its table entry fits.

Only what kinematics and checks need; the engines read shapes themselves. A file is data: entities
are refused, nothing that it names is opened here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlgym.errors import MissingExtraError, WorldError
from rlgym.settings import suggest

if TYPE_CHECKING:
    from rlgym.envs.physics.robots import Robot

MAX_BYTES = 16 << 20
"""Of a model file; the largest robot in pybullet_data has 0.1 MB."""


@dataclass(frozen=True)
class Link:
    """A rigid body of a URDF; lengths in m, scaled."""

    name: str
    mass: float
    """kg; 0 where the file says nothing."""
    com: np.ndarray
    """(3,) centre of mass in the link's frame."""
    has_inertia: bool
    """The file gives a rotational inertia that is not zero, for the lengths that we use."""
    num_shapes: int
    """Collision shapes."""


@dataclass(frozen=True)
class Joint:
    """A joint of a URDF; `lower`, `upper` and `effort` are None where the file does not say."""

    name: str
    kind: str
    """"revolute", "continuous", "spherical", "fixed", ..."""
    parent: str
    child: str
    pos: np.ndarray
    """(3,) m, in the parent link's frame."""
    quat: np.ndarray
    """(4,) xyzw."""
    axis: np.ndarray
    """(3,) unit vector in the joint's frame."""
    lower: float | None
    upper: float | None
    effort: float | None


@dataclass(frozen=True)
class Model:
    """The links and joints of a URDF, by name."""

    links: Mapping[str, Link]
    joints: Mapping[str, Joint]

    def joint_above(self, link: str) -> Joint | None:
        """Return the joint that carries a link; None for the root link."""
        return next((joint for joint in self.joints.values() if joint.child == link), None)


@dataclass(frozen=True)
class Tree:
    """Where joints sit in each other, in the robot's canonical convention; J joints, F feet.

    The frame of joint j, seen from the frame of joint `parent[j]` after that one's turn (from the
    canonical base frame where it is -1), is at `pos[j]` and turned by `quat[j]` and then by our
    angle about `axis[j]`, or by our quaternion where the joint is spherical. Fixed links, signs,
    offsets and the base's rotation are in these numbers already.
    """

    order: tuple[int, ...]
    """The joints, parents first."""
    parent: tuple[int, ...]
    """Of each joint, -1 = base: also the last row of `mass` and `com`."""
    pos: np.ndarray
    """(J, 3) m."""
    quat: np.ndarray
    """(J, 4) xyzw."""
    axis: np.ndarray
    """(J, 3) unit vectors; 0 for spherical joints."""
    spherical: tuple[bool, ...]
    mass: np.ndarray
    """(J + 1,) kg of what moves with each joint, without the joints below; last the base."""
    com: np.ndarray
    """(J + 1, 3) its centre of mass in the joint's frame; last the base, in the canonical frame."""
    foot_parent: tuple[int, ...]
    """The joint that moves each foot."""
    foot_pos: np.ndarray
    """(F, 3) m, in that joint's frame."""


def model_path(robot: Robot) -> Path:
    """Return the robot's model file.

    Raises:
        WorldError: there is no such file.
    """
    path = Path(robot.model)
    if not path.is_absolute():
        import pybullet_data

        path = Path(pybullet_data.getDataPath()) / path
    if not path.is_file():
        raise WorldError(
            f"robot '{robot.name}': there is no model file {path}: give a path inside "
            f"pybullet_data or an absolute one"
        )
    return path


def read_xml(robot: Robot) -> tuple[str, ET.Element]:
    """Return text and root element of the robot's URDF; an MJCF is written as one.

    Raises:
        WorldError: the file is too large, is no XML, or declares entities.
        MissingExtraError: the file is an MJCF, and MuJoCo is not installed.
    """
    text, root = _parse(model_path(robot))
    if root.tag == "mujoco":
        try:
            from rlgym.envs.physics.mjcf import to_urdf
        except ModuleNotFoundError:
            raise MissingExtraError(
                f"robot '{robot.name}': reading an MJCF needs MuJoCo: "
                f"pip install 'rlgym-lab[mujoco]'"
            ) from None
        text = to_urdf(model_path(robot), robot.base)
        root = ET.fromstring(text)
    return text, root


def is_urdf(robot: Robot) -> bool:
    """Say whether the robot's model file is a URDF; it is an MJCF otherwise."""
    return _parse(model_path(robot))[1].tag == "robot"


def _parse(path: Path) -> tuple[str, ET.Element]:
    if os.path.getsize(path) > MAX_BYTES:
        raise WorldError(f"{path} is larger than {MAX_BYTES >> 20} MB: this is no robot's model")
    # pybullet_data's humanoid ends with a NUL, which only PyBullet's own reader overlooks
    text = path.read_text("utf-8", errors="replace").rstrip("\0 \t\r\n")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise WorldError(f"{path} declares entities, which are not read: remove its <!DOCTYPE>")
    try:
        return text, ET.fromstring(text)
    except ET.ParseError as error:
        raise WorldError(f"{path} is not XML ({error}): give a URDF or an MJCF file") from None


@cache
def read_model(robot: Robot) -> Model:
    """Return the links and joints of the robot's file, checked against its table entry.

    Raises:
        WorldError: the file cannot be read, lacks a name of the entry, or has a link that moves and
            has no mass or neither inertia nor shape.
    """
    _, root = read_xml(robot)
    where = f"robot '{robot.name}': {robot.model}"
    if root.tag != "robot":
        raise WorldError(f"{where} is neither a URDF nor an MJCF but <{root.tag}>")
    try:
        links = {link.name: link for link in (_link(e, robot.scale) for e in root.findall("link"))}
        joints = {j.name: j for j in (_joint(e, robot.scale) for e in root.findall("joint"))}
    except (KeyError, ValueError) as error:
        raise WorldError(f"{where} has a link or joint that cannot be read: {error}") from None
    model = Model(links, joints)
    for kind, wanted, known in (
        ("joint", robot.joints, joints),
        ("link", (robot.base, *(f.link for f in robot.feet), *robot.may_touch), links),
    ):
        for name in wanted:
            if name not in known:
                raise WorldError(f"{where} has no {kind} '{name}': {suggest(name, known)}")
    above = model.joint_above(robot.base)
    if above is not None:
        raise WorldError(f"{where}: the base '{robot.base}' hangs on '{above.name}': name the root")
    for joint in joints.values():
        if joint.child not in links or joint.parent not in links:
            raise WorldError(f"{where}: joint '{joint.name}' joins links that are not there")
        if joint.kind != "fixed" and joint.name not in robot.joints:
            raise WorldError(
                f"{where}: joint '{joint.name}' moves and is not in the entry's joints"
            )
    for name in robot.joints:
        _check_inertia(model, joints[name], where)
    return model


def _check_inertia(model: Model, joint: Joint, where: str) -> None:
    """Refuse a link that an engine could not move: no mass, or no extent."""
    group = [model.links[name] for name in _welded(model, joint.child)]
    if sum(link.mass for link in group) <= 0.0:
        raise WorldError(f"{where}: link '{joint.child}' has no mass: add an <inertial> to it")
    if not any(link.has_inertia or link.num_shapes for link in group):
        raise WorldError(
            f"{where}: link '{joint.child}' has neither inertia nor a collision shape to compute "
            f"it from: add <inertia> to it"
        )


def _welded(model: Model, link: str) -> list[str]:
    """Return the link and all that fixed joints hang on it."""
    names = [link]
    for name in names:
        names += [j.child for j in model.joints.values() if j.kind == "fixed" and j.parent == name]
    return names


def complete(robot: Robot) -> Robot:
    """Fill in limits that the entry leaves empty, from the robot's URDF.

    Raises:
        WorldError: the URDF does not have them either.
    """
    if robot.lower and robot.upper and robot.torque_limit:
        return robot
    model = read_model(robot)
    lower, upper, effort = [], [], []
    for name, sign, offset in zip(robot.joints, robot.sign, robot.offset, strict=True):
        joint = model.joints[name]
        if not robot.torque_limit and not joint.effort:
            raise _unlimited(robot, name, "effort", "torque_limit")
        if not (robot.lower and robot.upper) and (joint.lower is None or joint.upper is None):
            raise _unlimited(robot, name, "lower and upper limits", "lower and upper")
        effort.append(joint.effort)
        ends = sorted(sign * (end or 0.0) - offset for end in (joint.lower, joint.upper))
        lower.append(ends[0])
        upper.append(ends[1])
    return dataclasses.replace(
        robot,
        lower=robot.lower or tuple(lower),
        upper=robot.upper or tuple(upper),
        torque_limit=robot.torque_limit or tuple(effort),
    )


def _unlimited(robot: Robot, joint: str, what: str, field: str) -> WorldError:
    return WorldError(
        f"robot '{robot.name}': {robot.model} has no {what} for joint '{joint}': "
        f"give {field} in the robot's entry"
    )


def lacks_inertia(model: Model) -> bool:
    """Say whether a link has mass but no inertia, so that engines must compute it from shapes."""
    return any(link.mass > 0.0 and not link.has_inertia for link in model.links.values())


@cache
def read_tree(robot: Robot) -> Tree:
    """Return the joint tree of the robot's URDF in the canonical convention.

    Raises:
        WorldError: see `read_model`.
    """
    model = read_model(robot)
    # The canonical base frame seen from the base link's frame, and the reverse
    turn = np.array(robot.base_rotation)
    back = turn, -rotate(turn, np.array(robot.base_origin))
    index = {name: i for i, name in enumerate(robot.joints)}
    count = len(robot.joints)
    parent, order = [-1] * count, []
    pos, quat, axis = np.zeros((count, 3)), np.zeros((count, 4)), np.zeros((count, 3))
    mass, com = np.zeros(count + 1), np.zeros((count + 1, 3))
    place: dict[str, tuple[int, np.ndarray, np.ndarray]] = {robot.base: (-1, back[1], back[0])}
    queue = [robot.base]
    for name in queue:
        at, p, r = place[name]
        link = model.links[name]
        mass[at] += link.mass
        com[at] += link.mass * (p + rotate(r, link.com))
        for joint in (j for j in model.joints.values() if j.parent == name):
            where, how = p + rotate(r, joint.pos), multiply(r, joint.quat)
            if joint.kind == "fixed":
                place[joint.child] = (at, where, how)
            else:
                j = index[joint.name]
                parent[j], pos[j] = at, where
                if not robot.is_spherical[j]:
                    axis[j] = robot.sign[j] * joint.axis
                    how = multiply(how, from_axis_angle(axis[j], robot.offset[j]))
                quat[j] = how
                order.append(j)
                place[joint.child] = (j, np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
            queue.append(joint.child)
    feet = [(place[foot.link], np.array(foot.point)) for foot in robot.feet]
    return Tree(
        order=tuple(order),
        parent=tuple(parent),
        pos=pos,
        quat=quat,
        axis=axis,
        spherical=robot.is_spherical,
        mass=mass,
        com=com / np.maximum(mass, 1e-12)[:, None],
        foot_parent=tuple(at for (at, _, _), _ in feet),
        foot_pos=np.array([p + rotate(r, point) for (_, p, r), point in feet]),
    )


# ----- Elements and quaternions ------------------------------------------------------------------


def _link(element: ET.Element, scale: float) -> Link:
    inertial = element.find("inertial")
    mass, com, has_inertia = 0.0, np.zeros(3), False
    if inertial is not None:
        com = scale * _origin(inertial)[0]
        mass = float(_attribute(inertial, "mass", "value") or 0.0)
        inertia = inertial.find("inertia")
        if inertia is not None:
            given = any(float(inertia.get(k, "0")) > 0.0 for k in ("ixx", "iyy", "izz"))
            has_inertia = given and scale == 1.0  # a file's inertia is that of the file's lengths
    return Link(element.attrib["name"], mass, com, has_inertia, len(element.findall("collision")))


def _joint(element: ET.Element, scale: float) -> Joint:
    pos, quat = _origin(element)
    axis = _vector(_attribute(element, "axis", "xyz") or "1 0 0")
    kind = element.attrib["type"]
    limits = kind == "revolute"
    lower, upper, effort = (_attribute(element, "limit", k) for k in ("lower", "upper", "effort"))
    return Joint(
        name=element.attrib["name"],
        kind=kind,
        parent=_attribute(element, "parent", "link") or "",
        child=_attribute(element, "child", "link") or "",
        pos=scale * pos,
        quat=quat,
        axis=axis / (np.linalg.norm(axis) or 1.0),
        lower=float(lower) if limits and lower else None,
        upper=float(upper) if limits and upper else None,
        effort=float(effort) if effort else None,
    )


def _attribute(element: ET.Element, child: str, key: str) -> str | None:
    found = element.find(child)
    return None if found is None else found.get(key)


def _origin(element: ET.Element) -> tuple[np.ndarray, np.ndarray]:
    """Return an element's place (3,) and turn (4,) xyzw in its parent's frame."""
    roll, pitch, yaw = _vector(_attribute(element, "origin", "rpy") or "0 0 0")
    turns = ((roll, (1, 0, 0)), (pitch, (0, 1, 0)), (yaw, (0, 0, 1)))
    x, y, z = (from_axis_angle(np.array(axis, float), angle) for angle, axis in turns)
    return _vector(_attribute(element, "origin", "xyz") or "0 0 0"), multiply(z, multiply(y, x))


def _vector(text: str) -> np.ndarray:
    values = np.array([float(value) for value in text.split()])
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ValueError(f"'{text}' is not three numbers")
    return values


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the quaternion (4,) xyzw of turning by `b` and then by `a`."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return np.array(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the vector (3,) turned by the quaternion (4,) xyzw."""
    t = 2.0 * np.cross(q[:3], v)
    return v + q[3] * t + np.cross(q[:3], t)


def from_axis_angle(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the quaternion (4,) xyzw of a turn about a unit axis (3,)."""
    return np.array([*(math.sin(angle / 2) * axis), math.cos(angle / 2)])
