"""A robot in a Bullet client: how it is built, which of its links are what, what a row holds.

Torch-free: worker processes import it.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rlgym.envs.gymnasium.bullet import hush, without_noise
from rlgym.envs.physics.bullet_merge import Part, find_parts, merged_urdf
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.quiet_pybullet import pybullet as p
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.urdf import is_urdf, lacks_inertia, model_path, read_model, read_xml
from rlgym.errors import WorldError

LONGEST_STEP = 0.001
"""Seconds. Torques of a PD servo that are held for longer make a robot of this size fall (at 2 ms)
or explode (at 4 ms); a longer time step is cut into equal ones that are not longer."""
_NOISE = (b"argv[", b"processing ", b"merge ", b"relink ", b"b3Warning[", b"urdfdom: ")
_NOISE += (b"Bad inertia tensor",)


@dataclass(frozen=True)
class Build:
    """How the robot and its world are made."""

    merge: bool = True
    """Make one link of links that are fixed to each other, with the same mass and inertia, and
    contacts hard: faster, and nearer to MuJoCo; else the file is simulated as it is."""
    collide: Literal["all", "feet"] = "all"
    """Which links touch the ground."""
    inertia: Literal["file", "shapes"] = "file"
    """Take rotational inertia from the model file, where it has any, or from collision shapes."""
    iterations: int = 50
    """Of the constraint solver."""
    gravity: float = 9.81
    """m/s^2."""
    contact_distance: float = 0.001
    """A link this near to the ground touches it, m; Bullet itself reports contacts up to .02."""
    friction: float | None = None
    """Lateral friction coefficient between feet and ground; None: the robot's."""
    cone_friction: bool = True
    """Bound friction by a cone, not a pyramid: alike in all directions, and nearer to MuJoCo's."""
    ground_friction: float = 1.0
    """The ground's own; Bullet multiplies the two."""
    stood_before: bool = False
    """The robot stood in its default pose until a reset, for readings that are older than it."""
    spacing: float = 0.1
    """m between the points of a height field."""


def layout(fields: dict[str, int]) -> tuple[dict[str, slice], int]:
    """Return where each field lies in a row, and how long the row is."""
    slices, end = {}, 0
    for name, size in fields.items():
        slices[name] = slice(end, end + size)
        end += size
    return slices, end


def reset_fields(robot: Robot) -> dict[str, int]:
    """Fields of a row that `BulletWorld.reset` reads, with their lengths."""
    fields = {"base_pos": 3, "base_quat": 4, "linvel": 3, "angvel": 3, "q": robot.nq}
    fields |= {"qd": robot.nv, "mass": 1, "inertia": 1, "friction": 1, "latency": 1}
    return fields | dict.fromkeys(("motor_strength", "kp", "kd", "viscous", "coulomb"), robot.nv)


def step_fields(robot: Robot) -> dict[str, int]:
    """Fields of a row that `BulletWorld.step` reads, with their lengths."""
    return {"previous": robot.nq, "target": robot.nq, "push": 3}


def state_fields(robot: Robot) -> dict[str, int]:
    """Fields of the row that `BulletWorld` writes, with their lengths."""
    feet = len(robot.feet)
    fields = {"base_pos": 3, "base_quat": 4, "linvel": 3, "angvel": 3, "q": robot.nq}
    fields |= {"qd": robot.nv, "foot_link_pos": 3 * feet, "foot_link_quat": 4 * feet}
    fields |= {"torque": robot.nv, "foot_contact": feet, "illegal_contact": 1, "power": 1}
    fields |= {"sensed_quat": 4, "sensed_angvel": 3, "sensed_q": robot.nq}
    return fields | {"sensed_qd": robot.nv, "broken": 1}


def split(actuation: Actuation, robot: Robot) -> tuple[float, int]:
    """Return the physics step, s, and how many of them make one control step."""
    if any(robot.spherical) and actuation.servo == "explicit":
        return actuation.time_step, actuation.substeps  # stable at any step, see bullet_balls.py
    parts = max(1, math.ceil(actuation.time_step / LONGEST_STEP - 1e-9))
    return actuation.time_step / parts, actuation.substeps * parts


@dataclass(frozen=True)
class Model:
    """What Bullet makes of a robot's file: its numbers of the robot's parts."""

    flags: int
    """To load the file with."""
    urdf: str
    """The file's text with links merged; "" where none are."""
    links: int
    """How many there are besides the base."""
    joints: tuple[int, ...]
    """In the robot's order."""
    feet: tuple[int, ...]
    """Links that the feet are part of."""
    foot_points: tuple[tuple[float, ...], ...]
    """Of each foot in the frame of its link, m."""
    bare_feet: tuple[bool, ...]
    """Which feet are links of their own, so that whatever of one touches the ground is the foot."""
    may_touch: tuple[int, ...]
    """Links, besides those of the feet, that may touch the ground."""
    com_pos: tuple[float, ...]
    """Centre of mass of the base link in its frame, m."""
    com_quat: tuple[float, ...]
    """Its principal axes, xyzw."""
    masses: tuple[float, ...]
    """kg of the base, then of each link."""
    inertias: tuple[tuple[float, ...], ...]
    """kg m^2 of each about its principal axes."""


def inspect(robot: Robot, build: Build) -> Model:
    """Find out what Bullet makes of a robot's file.

    Raises:
        WorldError: the file cannot be read, or lacks a joint or a link that the robot table names.
    """
    file_has_inertia = build.inertia == "file" and not lacks_inertia(read_model(robot))
    flags, urdf = p.URDF_IGNORE_VISUAL_SHAPES, ""
    client = connect()
    try:
        if file_has_inertia:
            flags |= p.URDF_USE_INERTIA_FROM_FILE
            body = load(robot, flags | p.URDF_IGNORE_COLLISION_SHAPES, client)
        else:
            body = load(robot, flags, client)
        masses, inertias = _inertias(body, client)
        built = whole = _Names(body, client)
        if file_has_inertia:
            inertias = _with_refused(robot, whole, inertias)
        masses, inertias = _without_invented(robot, build, whole, masses, inertias)
        if build.merge and whole.fixed:
            urdf = merged_urdf(robot, whole.parts(masses, inertias))
            flags |= p.URDF_USE_INERTIA_FROM_FILE
            body = load(robot, flags | p.URDF_IGNORE_COLLISION_SHAPES, client, urdf)
            masses, inertias = _inertias(body, client)
            built = _Names(body, client)
        inertias = tuple(
            own if link in built.fixed else tuple(x + robot.added_inertia for x in own)
            for link, own in enumerate(inertias, start=-1)
        )
        return _describe(robot, whole, built, flags, urdf, masses, inertias)
    finally:
        p.disconnect(client)


def connect() -> int:
    """Begin an empty world; returns its number."""
    hush()
    return p.connect(p.DIRECT)


def load(robot: Robot, flags: int, client: int, urdf: str = "") -> int:
    """Load a robot into a client; returns the body's number.

    Args:
        robot: whose file to load.
        flags: Bullet's.
        client: to load it into.
        urdf: text to load instead of the file's.

    Raises:
        WorldError: the file cannot be read.
    """
    path = model_path(robot)
    if not urdf and not is_urdf(robot):
        urdf = read_xml(robot)[0]
    with contextlib.ExitStack() as stack:
        if urdf:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlgym-")))
            path = folder / f"{path.stem}.urdf"
            path.write_text(urdf, encoding="utf-8")
        stack.enter_context(without_noise(*_NOISE))
        try:
            return p.loadURDF(
                str(path), flags=flags, globalScaling=robot.scale, physicsClientId=client
            )
        except p.error as error:
            text = f"robot '{robot.name}': Bullet cannot read {robot.model}: {error}: mend the file"
            raise WorldError(text) from None


class _Names:
    """Links and joints of a body by name.

    Attributes:
        links: number of each link by its name; the base is -1.
        joints: number of each joint by its name.
        parents: number of each link's parent.
        fixed: which links are fixed to their parent.
    """

    def __init__(self, body: int, client: int) -> None:
        self.body, self.client = body, client
        self.links = {p.getBodyInfo(body, client)[0].decode(): -1}
        self.joints: dict[str, int] = {}
        self.parents: dict[int, int] = {}
        self.fixed: set[int] = set()
        for index in range(p.getNumJoints(body, client)):
            info = p.getJointInfo(body, index, client)
            self.joints[info[1].decode()] = index
            self.links[info[12].decode()] = index
            self.parents[index] = info[16]
            if info[2] == p.JOINT_FIXED:
                self.fixed.add(index)

    def name(self, link: int) -> str:
        """Return the name of a link."""
        return next(name for name, index in self.links.items() if index == link)

    def frame(self, link: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pose of a link's frame: position (3,), rotation matrix (3, 3)."""
        if link < 0:
            pos, quat = p.getBasePositionAndOrientation(self.body, self.client)
            info = p.getDynamicsInfo(self.body, -1, self.client)
            pos, quat = p.multiplyTransforms(pos, quat, *p.invertTransform(info[3], info[4]))
        else:
            pos, quat = p.getLinkState(self.body, link, 0, 1, self.client)[4:6]
        return np.array(pos), np.array(p.getMatrixFromQuaternion(quat)).reshape(3, 3)

    def home(self, link: str) -> tuple[str, np.ndarray, np.ndarray]:
        """Find what a link is fixed to, if to anything.

        Returns:
            The name of that link, or of this one; position (3,) and rotation (3, 3) of this link
            in its frame.
        """
        index = self.links[link]
        while index in self.fixed:
            index = self.parents[index]
        pos, rot = self.frame(self.links[link])
        root_pos, root_rot = self.frame(index)
        return self.name(index), root_rot.T @ (pos - root_pos), root_rot.T @ rot

    def parts(
        self, masses: tuple[float, ...], inertias: tuple[tuple[float, ...], ...]
    ) -> dict[str, Part]:
        """Return what links become when they are merged; arguments in Bullet's order."""
        names = [self.name(link) for link in range(-1, len(self.parents))]
        infos = [p.getDynamicsInfo(self.body, self.links[name], self.client) for name in names]
        coms = [
            (np.array(info[3]), np.array(p.getMatrixFromQuaternion(info[4])).reshape(3, 3))
            for info in infos
        ]
        return find_parts(self.home, names, masses, inertias, coms)


def _inertias(body: int, client: int) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Return masses and principal moments of inertia of the base and all links."""
    links = range(-1, p.getNumJoints(body, client))
    found = [p.getDynamicsInfo(body, link, client) for link in links]
    return tuple(info[0] for info in found), tuple(info[2] for info in found)


def _with_refused(
    robot: Robot, whole: _Names, inertias: tuple[tuple[float, ...], ...]
) -> tuple[tuple[float, ...], ...]:
    """Fill in inertias that Bullet takes for zero, because no body of positive mass has such.

    MuJoCo's way (`balanceinertia`): about every axis the mean of the file's three.
    """
    means = {}
    for link in read_xml(robot)[1].findall("link"):
        inertia = link.find("inertial/inertia")
        if inertia is not None:
            trace = sum(float(inertia.get(axis, "0")) for axis in ("ixx", "iyy", "izz"))
            means[whole.links[link.attrib["name"]]] = trace / 3
    return tuple(
        own if any(own) else (means.get(link, 0.0),) * 3
        for link, own in enumerate(inertias, start=-1)
    )


def _without_invented(
    robot: Robot,
    build: Build,
    names: _Names,
    masses: tuple[float, ...],
    inertias: tuple[tuple[float, ...], ...],
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Take away the 1 kg that Bullet gives a link of which the file says no mass.

    Raises:
        WorldError: there is such a link, and it is not merged into another one.
    """
    links = read_model(robot).links
    bare = [links[names.name(i)].mass == 0.0 for i in range(-1, len(names.parents))]
    if any(bare) and not build.merge:
        name = names.name(bare.index(True) - 1)
        raise WorldError(
            f"robot '{robot.name}': Bullet takes link '{name}', which has no mass, for 1 kg: "
            "give it an <inertial>, or merge links (merge=True)"
        )
    return (
        tuple(0.0 if none else mass for none, mass in zip(bare, masses, strict=True)),
        tuple((0.0,) * 3 if none else own for none, own in zip(bare, inertias, strict=True)),
    )


def _describe(
    robot: Robot,
    whole: _Names,
    built: _Names,
    flags: int,
    urdf: str,
    masses: tuple[float, ...],
    inertias: tuple[tuple[float, ...], ...],
) -> Model:
    """Look up the robot table's names in a body and in the one with all links apart."""
    feet, points = [], []
    for foot in robot.feet:
        home, pos, rot = foot.link, np.zeros(3), np.eye(3)
        if home not in built.links:
            home, pos, rot = whole.home(home)
        feet.append(built.links[home])
        points.append(tuple((pos + rot @ np.array(foot.point)).tolist()))
    touching = [name if name in built.links else whole.home(name)[0] for name in robot.may_touch]
    info = p.getDynamicsInfo(built.body, -1, built.client)
    return Model(
        flags=flags,
        links=len(built.parents),
        joints=tuple(built.joints[name] for name in robot.joints),
        urdf=urdf,
        feet=tuple(feet),
        foot_points=tuple(points),
        bare_feet=tuple(foot.link in built.links for foot in robot.feet),
        may_touch=tuple(built.links[name] for name in touching),
        com_pos=info[3],
        com_quat=info[4],
        masses=masses,
        inertias=inertias,
    )
