"""What mjlab and its kin write into an ONNX, in our words.

Keys, lists separated by commas: joint_names, joint_stiffness, joint_damping, default_joint_pos,
action_scale, observation_names, command_names, run_path (exporter_utils.py of mjlab). Numbers have
three decimals there; sizes of terms, limits and rates are not there at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgym.deploy.graph import Graph
from rlgym.errors import UserError

TERMS = {
    "base_ang_vel": ("angular_velocity", "rad/s", 3),
    "projected_gravity": ("gravity", "1", 3),
    "base_lin_vel": ("base_lin_vel", "m/s", 3),
    "joint_pos": ("joint_angle", "rad", None),
    "joint_vel": ("joint_velocity", "rad/s", None),
    "actions": ("last_action", "", None),
    "last_action": ("last_action", "", None),
}
"""Their name: ours, units, and size; None: one per joint. Others keep their names, and come from
the robot as sensors."""
COMMAND = 3
"""Values of a velocity command, where another term's size is not known either."""


def from_mjlab(
    metadata: Mapping[str, str], graph: Graph, given: Mapping[str, Any], name: str
) -> tuple[list[dict[str, Any]], dict[str, Any], np.ndarray | None]:
    """Read the keys.

    Args:
        metadata: of the ONNX.
        graph: of the policy.
        given: what a person says; terms that stand there are not read here.
        name: of the file, for messages.

    Returns:
        Terms of the observation, the robot's section, and what is taken off an observation of
        ours before it is theirs (joint angles are measured from the default pose there), or None.

    Raises:
        UserError: keys contradict each other or the network.
    """
    joints = _words(metadata, "joint_names")
    count = len(joints)
    robot: dict[str, Any] = {"joint_names": joints}
    keys = ("stiffness", "joint_stiffness"), ("damping", "joint_damping")
    for ours, theirs in (*keys, *((k, k) for k in ("default_joint_pos", "action_scale"))):
        if theirs in metadata:
            robot[ours] = _numbers(metadata, theirs, count, name)
    if len(graph.inputs) != 1:
        takes = ", ".join(port.name for port in graph.inputs)
        raise UserError(f"{name} takes {takes}: only policies of one observation are understood")
    if given.get("observation"):
        return [], robot, None
    names = _words(metadata, "observation_names")
    sizes = _sizes(names, count, graph.inputs[0].shape[0], name)
    terms, shift, at = [], np.zeros(graph.inputs[0].shape[0], np.float32), 0
    for theirs, size in zip(names, sizes, strict=True):
        ours, units, _ = TERMS.get(theirs, (theirs, "", None))
        term = {"name": ours, "size": size, "width": size, "units": units, "history": 1}
        term |= {"order": "newest first", "start": "state"}
        terms.append(term | ({"meaning": "action"} if ours == "last_action" else {}))
        if theirs == "joint_pos" and "default_joint_pos" in robot:
            shift[at : at + size] = robot["default_joint_pos"]
        at += size
    return terms, robot, shift if shift.any() else None


def _sizes(names: list[str], joints: int, total: int, name: str) -> list[int]:
    """Sizes of terms: known ones, and one that takes what is left."""
    known: dict[str, int] = {}
    for own in names:
        if own in TERMS:
            known[own] = TERMS[own][2] or joints
    unknown = [own for own in names if own not in known]
    if len(unknown) > 1 and "command" in unknown:
        known["command"] = COMMAND
        unknown.remove("command")
    rest = total - sum(known.values())
    if len(unknown) == 1 and rest > 0:
        known[unknown[0]] = rest
    if set(known) != set(names) or len(names) != len(known) or sum(known.values()) != total:
        raise UserError(
            f"{name} takes {total} values, and how many are of each of {', '.join(names)} is not "
            "said: list them with --manifest in observation, each with name and size"
        )
    return [known[own] for own in names]


def _words(metadata: Mapping[str, str], key: str) -> list[str]:
    return [word.strip() for word in metadata.get(key, "").split(",") if word.strip()]


def _numbers(metadata: Mapping[str, str], key: str, count: int, name: str) -> list[float]:
    try:
        found = [float(word) for word in _words(metadata, key)]
    except ValueError:
        found = []
    found = found * count if len(found) == 1 else found
    if len(found) != count or not np.isfinite(found).all():
        raise UserError(f"'{key}' in {name} is not {count} numbers, one per joint")
    return found
