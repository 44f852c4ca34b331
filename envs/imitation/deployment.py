"""What a robot's runtime must know of an imitation task: plain data, written into the bundle.

The words are those of the code that trains: each term as `observation.py` composes it, targets of
the joints as `action.py` makes them, the reference as `clips.py` samples it. docs/bundle.md
describes every field. All angles are ours (see `rlgym.envs.physics.robots`):
`model angle = sign * (our angle + offset)`.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from rlgym.envs.imitation.action import limits
from rlgym.envs.imitation.clips import Clip
from rlgym.envs.imitation.joints import to_angles
from rlgym.envs.imitation.observation import PRESENT, term_sizes
from rlgym.envs.imitation.spec import ObservationSpec
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.physics.robots import LEG_NAMES, Robot

STALE_STEPS = 2.0
"""Control steps after which a sensor's reading is too old to act on."""
MISSED_DEADLINES = 3
"""Late control steps in a row after which motors are only damped."""
RAMP_SECONDS = 2.0
"""Over which a robot is brought from where it stands into the pose that it starts in."""
TILT = 1.0
"""Radians from the vertical, where the task itself sets no limit."""
_LEG_JOINTS = ("abduction", "hip", "knee")

_TERMS: dict[str, tuple[str, str]] = {
    "imu": ("rad, rad, rad/s, rad/s", "roll and pitch of the base; its rates about x and y"),
    "gravity": ("1", "base"),
    "angular_velocity": ("rad/s", "base"),
    "joint_angle": ("rad", "joints, wrapped to [-pi, pi)"),
    "joint_velocity": ("rad/s", "joints"),
    "last_action": ("", ""),
    "linear_velocity": ("m/s", "base"),
    "targets": ("m, quaternion xyzw, rad", "heading of the base"),
}
"""Units and frame of each term."""


def deployment(task: ImitationTask) -> dict[str, Any]:
    """Describe a task to whoever runs its policy on a robot.

    Returns:
        Sections of a bundle's manifest, JSON but for "motion": the arrays of the clips whose
        licence lets them be shipped, named "0/root_pos" (F, 3) m, "0/root_quat" (F, 4) xyzw and
        "0/q" (F, nq) rad, 0 being the clip's place in `targets["clips"]`.
    """
    spec, robot = task.spec, task.robot
    key = "policy" if spec.observation.privileged else "obs"
    return {
        "terms": {key: _terms(spec.observation, robot)},
        "robot": _robot(task),
        "timing": _timing(task),
        "safety": _safety(task),
        "targets": _targets(task),
        "simulation": _simulation(task),
        "motion": {
            f"{i}/{name}": np.asarray(getattr(clip, name), np.float64)
            for i, clip in enumerate(task.clips.clips)
            if clip.may_ship
            for name in ("root_pos", "root_quat", "q")
        },
    }


def fingerprint(clip: Clip) -> str:
    """SHA-256, hex, of what a clip makes the robot do, to 1e-6 m and rad.

    Of whole numbers (little-endian, 64 bits): the rounded millionths of frame time, root_pos,
    root_quat and q, row by row. Names and licences do not count.
    """
    parts = (np.array([clip.dt]), clip.root_pos, clip.root_quat, clip.q)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.rint(np.asarray(part, np.float64) * 1e6).astype("<i8").tobytes())
    return digest.hexdigest()


# ----- Observation --------------------------------------------------------------------------------


def _terms(spec: ObservationSpec, robot: Robot) -> list[dict[str, Any]]:
    """The terms of the policy's observation, in order."""
    found = []
    for name, size in term_sizes(spec, robot).items():
        units, frame = _TERMS[name]
        term: dict[str, Any] = {
            "name": name,
            "size": size,
            "width": size if name in PRESENT else size // spec.history,
            "units": units,
            "frame": frame,
            "history": 1 if name in PRESENT else spec.history,
            "order": "newest first",
            "scale": 1.0,
            "clip": None,
        }
        if name == "last_action":
            as_target = spec.last_action == "target"
            term |= {
                "units": "rad" if as_target else "action",
                "frame": "joints",
                "meaning": "action_offset + action_scale * action" if as_target else "action",
            }
        if name not in PRESENT:
            term["start"] = spec.history_start
        found.append(term)
    return found


def _targets(task: ImitationTask) -> dict[str, Any] | None:
    """What comes next of the motion, and how the robot sees it; None where it does not."""
    spec, episode = task.spec.observation, task.spec.episode
    if "targets" not in spec.terms:
        return None
    return {
        "steps": list(spec.target_steps),
        "origin": spec.target_origin,
        "convention": spec.target_convention,
        "start_axis": episode.start_axis,
        "hold_first_step": episode.hold_first_step,
        "sync_position": episode.sync_position,
        "warm_up": episode.warm_up if episode.reference_start < 1.0 else 0.0,
        "clips": [_clip(task, index) for index in range(len(task.clips.clips))],
    }


def _clip(task: ImitationTask, index: int) -> dict[str, Any]:
    clip = task.clips.clips[index]
    return {
        "name": clip.name,
        "licence": clip.licence,
        "source": clip.source,
        "sha256": fingerprint(clip),
        "shipped": clip.may_ship,
        "frames": clip.num_frames,
        "dt": clip.dt,
        "loop": clip.loop,
        "cycle_position": clip.cycle_position,
        "cycle_heading": clip.cycle_heading,
        "action_offset": _offset(task, index),
    }


# ----- Robot --------------------------------------------------------------------------------------


def _robot(task: ImitationTask) -> dict[str, Any]:
    robot, spec = task.robot, task.spec.action
    bounds = None
    if spec.limit_margin is not None:
        bounds = [list(values) for values in limits(robot, spec.limit_margin)]
    own = os.path.isabs(robot.model)
    return {
        "name": robot.name,
        "model": os.path.basename(robot.model) if own else robot.model,
        "model_source": "file" if own else "pybullet_data",
        "model_scale": robot.scale,
        "model_licence": robot.licence,
        "base": robot.base,
        "base_rotation": list(robot.base_rotation),
        "base_origin": list(robot.base_origin),
        "init_height": robot.init_height,
        "joint_names": list(robot.joints),
        "names": _our_names(robot),
        "spherical": list(robot.is_spherical),
        "sign": list(robot.sign),
        "offset": list(robot.offset),
        "default_joint_pos": list(robot.default_pose),
        "stiffness": list(robot.kp),
        "damping": list(robot.kd),
        "torque_limit": list(robot.torque_limit),
        "lower": list(robot.lower),
        "upper": list(robot.upper),
        "action_scale": [spec.scale] * robot.nv,
        "action_offset": _offset(task, 0),
        "action_bound": spec.bound,
        "limit_margin": spec.limit_margin,
        "target_lower": None if bounds is None else bounds[0],
        "target_upper": None if bounds is None else bounds[1],
        "cutoff": spec.cutoff,
        "feet": [foot.link for foot in robot.feet],
    }


def _our_names(robot: Robot) -> list[str]:
    """Names that mean the same on every robot with four legs; else those of the model file."""
    if len(robot.legs) == len(LEG_NAMES) and len(robot.joints) == 12:
        return [f"{leg}_{joint}" for leg in LEG_NAMES for joint in _LEG_JOINTS]
    return list(robot.joints)


def _offset(task: ImitationTask, index: int) -> list[float]:
    """The angles (nv), rad, that an action of zero asks for while a clip is imitated."""
    angles = to_angles(task.robot, task.offsets[index : index + 1])
    return angles[0].tolist()


def _timing(task: ImitationTask) -> dict[str, Any]:
    actuation = task.spec.actuation
    return {
        "control_hz": 1.0 / actuation.control_dt,
        "control_dt": actuation.control_dt,
        "physics_dt": actuation.time_step,
        "decimation": actuation.substeps,
        "interpolate": actuation.interpolate,
        "target_clip": actuation.target_clip,
    }


def _safety(task: ImitationTask) -> dict[str, Any]:
    ending = task.spec.termination
    tilts = [value for value in (ending.tilt, ending.rotation) if value is not None]
    return {
        "on_nan": "hold",
        "stale_seconds": STALE_STEPS * task.control_dt,
        "missed_deadlines": MISSED_DEADLINES,
        "tilt_limit": min(tilts, default=TILT),
        "start_ramp_seconds": RAMP_SECONDS,
    }


def _simulation(task: ImitationTask) -> dict[str, Any]:
    """What a simulated robot needs besides; a real one has its own."""
    robot, physics, actuation = task.robot, task.spec.physics, task.spec.actuation
    return {
        "engine": task.engine.name,
        "gravity": physics.gravity,
        "friction": robot.friction if physics.friction is None else physics.friction,
        "collide": physics.collide,
        "servo": actuation.servo,
        "limit_torque": actuation.limit_torque,
        "latency": actuation.latency,
        "added_inertia": robot.added_inertia,
        "damped_joints": robot.damped_joints,
        "start_height": robot.init_height + task.spec.episode.lift,
    }
