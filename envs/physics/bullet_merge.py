"""Making one link of links that are fixed to each other, which saves a third of Bullet's time.

Bullet has a flag for it, URDF_MERGE_FIXED_LINKS, which gets centres of mass and inertias wrong: A1
with it has its centre of mass 10 mm too far behind, and its shanks a quarter less inertia. So the
URDF is written anew, from what Bullet itself says of the robot with all links apart.

Springs and anchors that a file gives to contacts, which no other engine reads, are left out: with
them Laikago's and mini-cheetah's feet are soft, and slide less than in MuJoCo.
Torch-free: worker processes import it.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.urdf import model_path, read_xml


@dataclass(frozen=True)
class Part:
    """A link, as it lies in the frame of the link that it becomes part of."""

    home: str
    """Name of that link; its own where it stays."""
    pos: np.ndarray
    """(3,) m of its frame."""
    rot: np.ndarray
    """(3, 3) of its frame."""
    mass: float
    """kg."""
    com: np.ndarray
    """(3,) m, its centre of mass."""
    inertia: np.ndarray
    """(3, 3) kg m^2 about that, along the axes of the home's frame."""


def merged_urdf(robot: Robot, parts: dict[str, Part]) -> str:
    """Return a URDF in which each link has become part of its home, without visual shapes.

    Args:
        robot: whose file to merge.
        parts: each link by name.
    """
    _, root = read_xml(robot)
    links = {link.attrib["name"]: link for link in root.findall("link")}
    folder = model_path(robot).parent
    for name, link in links.items():
        for visual in link.findall("visual"):
            link.remove(visual)
        for contact in link.findall("contact"):
            for nature in list(contact):
                if nature.tag != "lateral_friction":
                    contact.remove(nature)
        for mesh in link.iter("mesh"):
            path = folder / mesh.attrib["filename"]
            if path.is_file():
                mesh.set("filename", str(path))
        part = parts[name]
        if part.home != name:
            _move(link, links[part.home], part, robot.scale)
            root.remove(link)
    for joint in root.findall("joint"):
        child = joint.find("child")
        if child is not None and parts[child.attrib["link"]].home != child.attrib["link"]:
            root.remove(joint)
            continue
        parent = joint.find("parent")
        if parent is not None and parts[parent.attrib["link"]].home != parent.attrib["link"]:
            part = parts[parent.attrib["link"]]
            _place(joint, part, robot.scale)
            parent.set("link", part.home)
    for home in {part.home for part in parts.values()}:
        group = [part for part in parts.values() if part.home == home]
        _set_inertial(links[home], group, robot.scale)
    ET.indent(root)  # Bullet cannot read lines of more than 8191 characters
    return ET.tostring(root, "unicode")


def _move(link: ET.Element, home: ET.Element, part: Part, scale: float) -> None:
    """Hand a link's shapes on to its home."""
    for collision in link.findall("collision"):
        _place(collision, part, scale)
        home.append(collision)


def _place(element: ET.Element, part: Part, scale: float) -> None:
    """Give an element of a link its place in the link's home."""
    origin = element.find("origin")
    if origin is None:
        origin = ET.SubElement(element, "origin")
    pos = _numbers(origin.get("xyz", "0 0 0"))
    rot = part.rot @ _from_rpy(_numbers(origin.get("rpy", "0 0 0")))
    _set(origin, "xyz", part.pos / scale + part.rot @ pos)
    _set(origin, "rpy", _to_rpy(rot))


def _set_inertial(link: ET.Element, group: list[Part], scale: float) -> None:
    """Write mass, centre of mass and inertia of several rigid bodies that are one."""
    for old in link.findall("inertial"):
        link.remove(old)
    mass = sum(part.mass for part in group)
    com = sum((part.mass * part.com for part in group), np.zeros(3)) / (mass or 1.0)
    inertia = np.zeros((3, 3))
    for part in group:
        arm = part.com - com
        inertia += part.inertia + part.mass * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    inertial = ET.SubElement(link, "inertial")
    _set(ET.SubElement(inertial, "origin", rpy="0 0 0"), "xyz", com / scale)
    ET.SubElement(inertial, "mass", value=repr(float(mass)))
    names = ("ixx", "ixy", "ixz", "iyy", "iyz", "izz")
    values = inertia[np.triu_indices(3)].tolist()
    ET.SubElement(inertial, "inertia", dict(zip(names, map(repr, values), strict=True)))


def find_parts(
    homes: Callable[[str], tuple[str, np.ndarray, np.ndarray]],
    names: list[str],
    masses: tuple[float, ...],
    inertias: tuple[tuple[float, ...], ...],
    coms: list[tuple[np.ndarray, np.ndarray]],
) -> dict[str, Part]:
    """Return the parts that links become.

    Args:
        homes: of a link's name: its home's name, place and turn of its frame there.
        names: of the links.
        masses: of each, kg.
        inertias: of each about its principal axes, kg m^2.
        coms: place (3,) of each one's centre of mass and turn (3, 3) of its principal axes, in its
            own frame.
    """
    parts = {}
    for name, mass, moments, (com, axes) in zip(names, masses, inertias, coms, strict=True):
        home, pos, rot = homes(name)
        turn = rot @ axes
        inertia = turn @ np.diag(moments) @ turn.T
        parts[name] = Part(home, pos, rot, mass, pos + rot @ com, inertia)
    return parts


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


def _set(element: ET.Element, name: str, values: np.ndarray) -> None:
    element.set(name, " ".join(map(repr, values.tolist())))


def _from_rpy(rpy: np.ndarray) -> np.ndarray:
    """Return the matrix of turns about the fixed axes x, then y, then z."""
    (a, b, c), (d, e, f) = np.cos(rpy), np.sin(rpy)
    x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return z @ y @ x


def _to_rpy(rot: np.ndarray) -> np.ndarray:
    """Return the turns of `_from_rpy`; the one about z is 0 where it is not unique."""
    level = math.hypot(rot[0, 0], rot[1, 0])
    pitch = math.atan2(-rot[2, 0], level)
    if level < 1e-9:
        return np.array([math.atan2(-rot[1, 2], rot[1, 1]), pitch, 0.0])
    roll, yaw = math.atan2(rot[2, 1], rot[2, 2]), math.atan2(rot[1, 0], rot[0, 0])
    return np.array([roll, pitch, yaw])
