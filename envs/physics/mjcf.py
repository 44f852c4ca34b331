"""Writing an MJCF's robot as a URDF, so that every reader of robots needs to know one format.

MuJoCo itself reads the MJCF, with its defaults, included files and ways to say a rotation; what is
written comes from the compiled model. Angles count from the pose that the file draws. Left behind
are the ground, cameras, tendons, and all of a joint but its axis and limits: engines set the rest.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import mujoco as untyped_mujoco
import numpy as np

from rlgym.errors import WorldError

mujoco: Any = untyped_mujoco
"""Its names are made in C, where no type checker sees them."""


@cache
def to_urdf(path: Path, base: str) -> str:
    """Return the URDF of the robot whose top body is `base`.

    Raises:
        WorldError: MuJoCo refuses the file, there is no such body, or it has joints that a URDF
            cannot say.
    """
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        spec.compiler.fusestatic, spec.compiler.discardvisual = False, False
        model = spec.compile()
    except ValueError as error:
        raise WorldError(f"{path}: MuJoCo cannot read it: {' '.join(str(error).split())}") from None
    top = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, base)
    if top < 0 or model.body_parentid[top] != 0:
        raise WorldError(f"{path} has no body '{base}' at its top: name the robot's own top body")
    robot = ET.Element("robot", {"name": path.stem})
    bodies = [top]
    for body in bodies:
        bodies += np.flatnonzero(model.body_parentid == body).tolist()
        _Body(path, spec, model, body, top).write(robot)
    ET.indent(robot)  # PyBullet cannot read lines of more than 8191 characters
    return ET.tostring(robot, encoding="unicode")


class _Body:
    """One body of a compiled model, to be written as a link and the joint that carries it.

    A URDF's link has its origin in its joint; `shift` is where that is in the body's frame.
    """

    def __init__(self, path: Path, spec: Any, model: Any, body: int, top: int) -> None:
        self.path, self.spec, self.model, self.body, self.top = path, spec, model, body, top
        self.shift = self._shift(body)

    def _shift(self, body: int) -> np.ndarray:
        if body == self.top or self.model.body_jntnum[body] == 0:
            return np.zeros(3)
        return self.model.jnt_pos[self.model.body_jntadr[body]]

    def _name(self, body: int) -> str:
        return self.model.body(body).name or f"body {body}"

    def write(self, robot: ET.Element) -> None:
        """Append link and joint to the URDF."""
        m, body = self.model, self.body
        link = ET.SubElement(robot, "link", {"name": self._name(body)})
        if m.body_mass[body] > 0.0:
            self._write_inertia(link)
        geoms = [g for g in range(m.ngeom) if m.geom_bodyid[g] == body]
        touching = [g for g in geoms if m.geom_contype[g] or m.geom_conaffinity[g]]
        for geom in touching:
            self._write_shape(ET.SubElement(link, "collision"), geom)
        for geom in [g for g in geoms if g not in touching] or touching:
            self._write_shape(ET.SubElement(link, "visual"), geom)
        if body != self.top:
            self._write_joint(robot)

    def _write_inertia(self, link: ET.Element) -> None:
        m, body = self.model, self.body
        turn = _matrix(m.body_iquat[body])
        inertia = turn @ np.diag(m.body_inertia[body]) @ turn.T
        inertial = ET.SubElement(link, "inertial")
        _origin(inertial, m.body_ipos[body] - self.shift)
        ET.SubElement(inertial, "mass", {"value": repr(float(m.body_mass[body]))})
        parts = {f"i{'xyz'[i]}{'xyz'[j]}": inertia[i, j] for i in range(3) for j in range(i, 3)}
        ET.SubElement(inertial, "inertia", {k: repr(float(v)) for k, v in parts.items()})

    def _write_joint(self, robot: ET.Element) -> None:
        m, body = self.model, self.body
        count, at = int(m.body_jntnum[body]), int(m.body_jntadr[body])
        kinds = {mujoco.mjtJoint.mjJNT_HINGE: "revolute", mujoco.mjtJoint.mjJNT_BALL: "spherical"}
        kind = kinds.get(mujoco.mjtJoint(int(m.jnt_type[at]))) if count == 1 else "fixed"
        if count > 1 or kind is None:
            raise WorldError(
                f"{self.path}: body '{self._name(body)}' moves by other than one hinge or ball "
                f"joint: give each joint a body of its own, and leave out sliding ones"
            )
        name = m.joint(at).name if count else f"{self._name(body)} weld"
        if kind == "revolute" and not m.jnt_limited[at]:
            kind = "continuous"
        joint = ET.SubElement(robot, "joint", {"name": name, "type": kind})
        parent = int(m.body_parentid[body])
        ET.SubElement(joint, "parent", {"link": self._name(parent)})
        ET.SubElement(joint, "child", {"link": self._name(body)})
        turn = _matrix(m.body_quat[body])
        _origin(joint, m.body_pos[body] + turn @ self.shift - self._shift(parent), turn)
        if kind in ("revolute", "continuous"):
            ET.SubElement(joint, "axis", {"xyz": _words(m.jnt_axis[at])})
            limit = {"velocity": "100", "effort": repr(self._effort(at))}
            if kind == "revolute":
                ends = m.jnt_range[at] - m.qpos0[m.jnt_qposadr[at]]
                limit |= {"lower": repr(float(ends[0])), "upper": repr(float(ends[1]))}
            ET.SubElement(joint, "limit", limit)

    def _effort(self, joint: int) -> float:
        """Return the largest torque of a joint, N m; 0 where the file does not bound it."""
        m = self.model
        if m.jnt_actfrclimited[joint]:
            return float(m.jnt_actfrcrange[joint, 1])
        for i in range(m.nu):
            own = m.actuator_trntype[i] == mujoco.mjtTrn.mjTRN_JOINT
            if own and m.actuator_trnid[i, 0] == joint and m.actuator_forcelimited[i]:
                return float(m.actuator_forcerange[i, 1] * abs(m.actuator_gear[i, 0]))
        return 0.0

    def _write_shape(self, element: ET.Element, geom: int) -> None:
        m, kinds = self.model, mujoco.mjtGeom
        pos, turn, size = m.geom_pos[geom], _matrix(m.geom_quat[geom]), m.geom_size[geom]
        kind, shape = m.geom_type[geom], ET.SubElement(element, "geometry")
        if kind == kinds.mjGEOM_SPHERE:
            ET.SubElement(shape, "sphere", {"radius": repr(float(size[0]))})
        elif kind in (kinds.mjGEOM_CYLINDER, kinds.mjGEOM_CAPSULE):
            name = "cylinder" if kind == kinds.mjGEOM_CYLINDER else "capsule"
            sizes = {"radius": repr(float(size[0])), "length": repr(float(2 * size[1]))}
            ET.SubElement(shape, name, sizes)
        elif kind == kinds.mjGEOM_MESH and (file := self._mesh_file(geom)) is not None:
            mesh = int(m.geom_dataid[geom])
            # the compiler moved the mesh into its own principal axes; go back
            turn = turn @ _matrix(m.mesh_quat[mesh]).T
            pos = pos - turn @ m.mesh_pos[mesh]
            scale = _words(self.spec.mesh(m.mesh(mesh).name).scale)
            ET.SubElement(shape, "mesh", {"filename": str(file), "scale": scale})
        elif kind == kinds.mjGEOM_BOX:
            ET.SubElement(shape, "box", {"size": _words(2 * size)})
        else:  # the box around whatever else it is
            pos = pos + turn @ m.geom_aabb[geom, :3]
            ET.SubElement(shape, "box", {"size": _words(2 * m.geom_aabb[geom, 3:])})
        _origin(element, pos - self.shift, turn)

    def _mesh_file(self, geom: int) -> Path | None:
        mesh = self.spec.mesh(self.model.mesh(int(self.model.geom_dataid[geom])).name)
        file = self.path.parent / self.spec.meshdir / mesh.file
        return file.resolve() if mesh.file and file.is_file() else None


def _origin(element: ET.Element, pos: np.ndarray, turn: np.ndarray | None = None) -> None:
    """Say where an element is; `turn` (3, 3) becomes turns about the fixed axes x, y, z."""
    attributes = {"xyz": _words(pos)}
    if turn is not None:
        level = math.hypot(turn[0, 0], turn[1, 0])
        if level > 1e-9:
            roll, yaw = (
                math.atan2(turn[2, 1], turn[2, 2]),
                math.atan2(turn[1, 0], turn[0, 0]),
            )
        else:  # x points up or down: only the sum of roll and yaw is determined
            roll, yaw = math.atan2(-turn[1, 2], turn[1, 1]), 0.0
        attributes["rpy"] = _words((roll, math.atan2(-turn[2, 0], level), yaw))
    ET.SubElement(element, "origin", attributes)


def _words(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)


def _matrix(quat: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3) of a quaternion wxyz."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)
