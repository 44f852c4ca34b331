"""Does a manifest agree with itself and with its graph? Each disagreement is one line.

Types and bounds of single values are the schema's business; here two places are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .bundle import GOLDEN, GRAPH, MOTION, ONNX
from .errors import BundleError
from .graph import MASK, STATE, Action, Graph

NEAR = 1e-9
"""Relative difference of two numbers that should be one."""
POSE = 7
"""Values of a target frame before the joints': position and orientation."""


def check_contract(manifest: Mapping[str, Any], graph: Graph) -> None:
    """Compare a manifest with its graph, and its sections with each other.

    Args:
        manifest: of the schema's form.
        graph: the bundle's own.

    Raises:
        BundleError: the first disagreement.
    """
    faults = (
        *(_observations(manifest, graph), _actions(manifest, graph), _robot(manifest)),
        *(_timing(manifest), _targets(manifest), _artefacts(manifest)),
    )
    for found in faults:
        for fault in found:
            raise BundleError(f"the bundle contradicts itself: {fault}: export the policy again")


def _observations(manifest: Mapping[str, Any], graph: Graph) -> Iterator[str]:
    ports = [port for port in graph.inputs if port.name not in (MASK, STATE)]
    listed = manifest["observation"]
    wanted, found = [entry["name"] for entry in listed], [port.name for port in ports]
    if wanted != found:
        yield f"its manifest lists the observations {wanted}, its policy takes {found}"
        return
    for entry, port in zip(listed, ports, strict=True):
        if (tuple(entry["shape"]), entry["dtype"]) != (port.shape, port.dtype):
            yield (
                f"observation '{port.name}' is {entry['dtype']} {entry['shape']} in the manifest, "
                f"{port.dtype} {list(port.shape)} in the policy"
            )
        total = sum(term["size"] for term in entry["terms"])
        if total != math.prod(port.shape):
            yield (
                f"the terms of observation '{port.name}' have {total} values, the policy takes "
                f"{math.prod(port.shape)}"
            )
        names = [term["name"] for term in entry["terms"]]
        if len(set(names)) != len(names):
            yield f"observation '{port.name}' has a term twice"
        for term in entry["terms"]:
            if term["size"] != term.get("width", term["size"] // term["history"]) * term["history"]:
                yield f"term '{term['name']}' has {term['size']} values, not history times width"
    sizes = {port.name: math.prod(port.shape) for port in graph.inputs}
    for name, words in ((MASK, "mask"), (STATE, "state")):
        if manifest[words] != sizes.get(name, 0):
            yield f"its {words} has {manifest[words]} values, the policy's {sizes.get(name, 0)}"


def _actions(manifest: Mapping[str, Any], graph: Graph) -> Iterator[str]:
    listed = manifest["action"]
    if [entry["key"] for entry in listed] != [action.key for action in graph.actions]:
        yield "the manifest lists other actions than the policy gives"
        return
    for entry, action in zip(listed, graph.actions, strict=True):
        for name in ("output", "kind"):
            if entry[name] != getattr(action, name):
                yield f"{name} of action '{action.key}' is '{entry[name]}' in the manifest only"
        if tuple(entry["shape"]) != tuple(action.shape):
            yield (
                f"action '{action.key}' has the shape {entry['shape']} in the manifest, "
                f"{list(action.shape)} in the policy"
            )
        if action.kind == "box":
            yield from _ranges(entry, action)


def _ranges(entry: Mapping[str, Any], action: Action) -> Iterator[str]:
    for name in ("scale", "offset", "low", "high"):
        array, listed = np.asarray(getattr(action, name)), entry.get(name) or []
        infinite = -np.inf if name == "low" else np.inf
        values = np.array([infinite if value is None else value for value in listed], np.float64)
        with np.errstate(over="ignore"):
            same = np.array_equal(values.astype(np.float32), array)
        if not same:
            yield f"'{name}' of action '{action.key}' is not the policy's"


def _robot(manifest: Mapping[str, Any]) -> Iterator[str]:
    robot = manifest.get("robot")
    if robot is None:
        return
    names = robot["joint_names"]
    balls = robot.get("spherical") or [False] * len(names)
    joints, nq, nv = len(names), len(names) + 3 * sum(balls), len(names) + 2 * sum(balls)
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        yield f"joint '{twins[0]}' is named twice"
    sizes = dict.fromkeys(
        ("names", "spherical", "sign", "offset", "stiffness", "damping", "torque_limit"), joints
    )
    sizes |= {"lower": joints, "upper": joints, "default_joint_pos": nq}
    sizes |= dict.fromkeys(("action_scale", "action_offset", "target_lower", "target_upper"), nv)
    for field, size in sizes.items():
        found = robot.get(field)
        if found is not None and len(found) != size:
            yield f"robot.{field} has {len(found)} values for {joints} joints, not {size}"
    rate = (manifest.get("safety") or {}).get("target_rate")
    if rate is not None and len(rate) != nv:
        yield f"safety.target_rate has {len(rate)} values, the robot takes {nv}"
    for low, high in (("lower", "upper"), ("target_lower", "target_upper")):
        for name, a, b in zip(names, robot.get(low) or (), robot.get(high) or (), strict=False):
            if not a < b:
                yield f"joint '{name}' has the limits {a} and {b}"
    turn = robot.get("base_rotation", (0.0, 0.0, 0.0, 1.0))
    if abs(math.hypot(*turn) - 1.0) > 1e-3:
        yield "robot.base_rotation is no unit quaternion"
    boxes = [entry for entry in manifest["action"] if entry["kind"] == "box"]
    if len(boxes) == 1 and math.prod(boxes[0]["shape"]) != nv:
        size = math.prod(boxes[0]["shape"])
        yield f"the policy gives {size} values, the robot's joints take {nv}"
    for entry in manifest["observation"]:
        for term in entry["terms"]:
            if term["name"].startswith("joint_") and term["size"] != nv * term["history"]:
                yield f"term '{term['name']}' has {term['size']} values for {nv} joint angles"


def _timing(manifest: Mapping[str, Any]) -> Iterator[str]:
    timing = manifest.get("timing")
    if timing is None:
        return
    dt, rate = timing["control_dt"], timing["control_hz"]
    if abs(dt * rate - 1.0) > NEAR:
        yield f"timing.control_hz is {rate}, timing.control_dt is {dt}"
    whole = timing.get("physics_dt", dt) * timing.get("decimation", 1)
    if {"physics_dt", "decimation"} <= timing.keys() and abs(whole / dt - 1.0) > NEAR:
        yield f"timing.decimation steps of timing.physics_dt are {whole} s, not {dt} s"
    cutoff = (manifest.get("robot") or {}).get("cutoff")
    if cutoff is not None and not cutoff < rate / 2:
        yield f"robot.cutoff is {cutoff} Hz, which {rate} actions a second cannot filter"


def _targets(manifest: Mapping[str, Any]) -> Iterator[str]:
    terms = [term for entry in manifest["observation"] for term in entry["terms"]]
    shown = [term for term in terms if term["name"] == "targets"]
    targets, robot = manifest.get("targets"), manifest.get("robot")
    if not shown:
        return
    if targets is None or robot is None:
        yield "its policy sees targets, and nothing says of which motion"
        return
    nq = len(robot["default_joint_pos"])
    if shown[0]["size"] != len(targets["steps"]) * (POSE + nq):
        yield (
            f"term 'targets' has {shown[0]['size']} values for {len(targets['steps'])} frames of "
            f"{POSE + nq}"
        )
    for clip in targets["clips"]:
        offset = clip.get("action_offset", robot["action_offset"])
        if len(offset) != len(robot["action_offset"]):
            yield f"action_offset of clip '{clip['name']}' has {len(offset)} values"
        if clip["shipped"] and MOTION not in manifest["files"]:
            yield f"clip '{clip['name']}' is said to be there, and there is no {MOTION}"


def _artefacts(manifest: Mapping[str, Any]) -> Iterator[str]:
    formats = [entry["format"] for entry in manifest["artefacts"]]
    if len(set(formats)) != len(formats):
        yield "a format is listed twice"
    for entry in manifest["artefacts"]:
        for name in entry["files"]:
            if name not in manifest["files"]:
                yield f"{entry['format']} names {name}, which is no file of the bundle"
    # what is acted on must be what is verified, whatever else the list says
    named = {entry["format"]: entry["files"] for entry in manifest["artefacts"]}
    if named.get("numpy") != [GRAPH]:
        yield f"its list of artefacts does not name {GRAPH}, and it alone, as numpy"
    if ONNX not in named.get("onnx", ()):
        yield f"its list of artefacts does not name {ONNX} as onnx"
    known = {GOLDEN, MOTION}.union(*named.values())
    for name in sorted(manifest["files"].keys() - known):
        yield f"it holds {name}, and its list of artefacts does not say what that is"
