"""A robot in MuJoCo: the loop, the guards and the policy with physics instead of motors.

The model is built from the same URDF as PyBullet's; its free joint is the base's frame with x
forward and z up, and its joints have the manifest's signs and zeros.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DeployError
from ..rotations import conjugate, rotate
from . import optional
from .robot import Clock, Settings
from .simulated import Simulated, State, silence

ROOT = "base frame"
"""The body of our base frame, into which the model's own base is welded."""
HARD_CONTACT = (0.005, 1.0)
"""`solref`, but with implicit servos: time constant, s, and damping ratio."""


class MujocoRobot(Simulated):
    """The bundle's robot on flat ground."""

    name = "mujoco"

    def __init__(self, manifest: Mapping[str, Any], clock: Clock, settings: Settings) -> None:
        super().__init__(manifest, clock, settings)
        with silence():
            self._mujoco: Any = optional("mujoco", "mujoco")
        if float(self.robot["model_scale"]) != 1.0:
            raise DeployError("the bundle's robot is scaled: use --robot bullet")
        self._servo: str = self.world["servo"]
        self._model = self._compile()
        self._data = self._mujoco.MjData(self._model)
        self._inertia = np.zeros(0)
        joints = [self._model.joint(name) for name in self.joints]
        self._at_q = np.array([int(joint.qposadr[0]) for joint in joints])
        self._at_v = np.array([int(joint.dofadr[0]) for joint in joints])
        height = float(self.world["start_height"])
        self.place(
            np.array([0.0, 0.0, height]),
            np.array([0.0, 0.0, 0.0, 1.0]),
            np.array(self.robot["default_joint_pos"], np.float64),
        )

    # ------------------------------------------------------------------ building
    def _compile(self) -> Any:
        mujoco = self._mujoco
        try:
            spec = mujoco.MjSpec.from_string(self._with_frame())
            base = spec.body(self.robot["base"])
            turn = np.array(self.robot["base_rotation"], np.float64)
            base.pos = -rotate(turn, np.array(self.robot["base_origin"], np.float64))
            base.quat = turn[[3, 0, 1, 2]]
            spec.body(ROOT).add_freejoint(name=ROOT)
            self._prepare_joints(spec)
            self._prepare_contacts(spec)
            option = spec.option
            option.timestep = self.time_step
            option.gravity = (0.0, 0.0, -float(self.world["gravity"]))
            kinds, implicit = mujoco.mjtIntegrator, self._servo == "implicit"
            option.integrator = kinds.mjINT_IMPLICITFAST if implicit else kinds.mjINT_EULER
            spec.compiler.fusestatic = True
            model = spec.compile()
        except (ValueError, ET.ParseError, OSError) as error:
            text = " ".join(str(error).split())
            raise DeployError(
                f"MuJoCo cannot read {self.model} ({text}): use --robot bullet"
            ) from None
        if self._servo != "implicit":
            model.geom_solref[:] = HARD_CONTACT
        if self._servo == "explicit":
            model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        if self.world["added_inertia"]:
            model.body_inertia[1:] += float(self.world["added_inertia"])
            mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def _with_frame(self) -> str:
        """The file's text with our base frame as its root."""
        root = ET.parse(self.model).getroot()
        settings = ET.Element("mujoco")
        compiler = {"strippath": "false", "fusestatic": "false", "discardvisual": "true"}
        compiler |= {"balanceinertia": "true", "meshdir": str(self.model.parent)}
        ET.SubElement(settings, "compiler", compiler)
        root.insert(0, settings)
        for joint in root.iter("joint"):
            for axis in joint.findall("axis")[1:]:
                joint.remove(axis)  # some of pybullet_data's robots say it twice
        ET.SubElement(root, "link", {"name": ROOT})
        weld = ET.SubElement(root, "joint", {"name": ROOT, "type": "fixed"})
        ET.SubElement(weld, "parent", {"link": ROOT})
        ET.SubElement(weld, "child", {"link": self.robot["base"]})
        return ET.tostring(root, encoding="unicode")

    def _prepare_joints(self, spec: Any) -> None:
        """Give the joints our signs, zeros and limits, and a servo each."""
        mujoco = self._mujoco
        unit = 180.0 / np.pi if spec.compiler.degree else 1.0
        for i, name in enumerate(self.joints):
            joint = spec.joint(name)
            if joint is None:
                raise DeployError(f"{self.model} has no joint '{name}'")
            joint.frictionloss, joint.armature = 0.0, 0.0
            joint.damping = 0.0 * np.asarray(joint.damping)
            joint.stiffness = 0.0 * np.asarray(joint.stiffness)
            joint.axis = self.sign[i] * np.array(joint.axis)
            joint.ref = -self.offset[i] * unit
            joint.limited = mujoco.mjtLimited.mjLIMITED_TRUE
            joint.range = (self.robot["lower"][i] * unit, self.robot["upper"][i] * unit)
            joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE
            servo = spec.add_actuator(
                name=f"servo {i}",
                target=name,
                trntype=mujoco.mjtTrn.mjTRN_JOINT,
                biastype=mujoco.mjtBias.mjBIAS_AFFINE,
                ctrllimited=mujoco.mjtLimited.mjLIMITED_FALSE,
            )
            if self.torque_limit is not None:
                servo.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
                servo.forcerange = (-self.torque_limit[i], self.torque_limit[i])

    def _prepare_contacts(self, spec: Any) -> None:
        """Let the links touch the ground that shall, and nothing else."""
        feet = set(self.robot["feet"])
        for body in spec.bodies:
            for geom in body.geoms if body.name != "world" else ():
                visual = geom.contype == 0 and geom.conaffinity == 0
                touches = not visual and (self.world["collide"] == "all" or body.name in feet)
                geom.contype, geom.conaffinity = 0, int(touches)
                geom.friction[0] = float(self.world["friction"])
                geom.priority = 1  # or MuJoCo would take the larger coefficient of the two
        kind = self._mujoco.mjtGeom.mjGEOM_PLANE
        spec.worldbody.add_geom(name="floor", type=kind, size=(0.0, 0.0, 0.05))

    # ------------------------------------------------------------------ moving
    def place(
        self,
        position: np.ndarray,
        orientation: np.ndarray,
        angles: np.ndarray,
        velocities: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Put the robot somewhere.

        Args:
            position: (3,) m of the base's origin.
            orientation: (4,) of the base, x forward and z up.
            angles: (n,) rad of the joints.
            velocities: of the base (3,) m/s and (3,) rad/s in the world, of the joints (n,) rad/s;
                None: it stands still.
        """
        linear, angular, rates = velocities or (np.zeros(3), np.zeros(3), np.zeros(len(angles)))
        data = self._data
        self._mujoco.mj_resetData(self._model, data)
        data.qpos[:3], data.qpos[3:7] = position, orientation[[3, 0, 1, 2]]
        data.qpos[self._at_q] = angles
        data.qvel[:3], data.qvel[3:6] = linear, rotate(conjugate(orientation), angular)
        data.qvel[self._at_v] = rates
        self._mujoco.mj_forward(self._model, data)
        self.begin()

    def advance(self, target: np.ndarray, stiffness: np.ndarray, damping: np.ndarray) -> None:
        """See `Simulated`."""
        model, data = self._model, self._data
        model.actuator_gainprm[:, 0] = stiffness
        model.actuator_biasprm[:, 1], model.actuator_biasprm[:, 2] = -stiffness, -damping
        if self._servo == "damped" and not np.array_equal(self._inertia, damping):
            # the damping at the end of a step, -kd * (v + dt * acceleration), as inertia dt * kd
            model.dof_armature[self._at_v] = self.time_step * damping
            self._mujoco.mj_setConst(model, self._mujoco.MjData(model))
            self._inertia = damping.copy()
        data.ctrl[:] = target
        self._mujoco.mj_step(model, data)

    def state(self) -> State:
        """See `Simulated`."""
        qpos, qvel = self._data.qpos, self._data.qvel
        return (
            qpos[:3].copy(),
            qpos[[4, 5, 6, 3]],
            qvel[3:6].copy(),
            qpos[self._at_q],
            qvel[self._at_v],
        )
