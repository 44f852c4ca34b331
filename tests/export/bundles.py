"""A small, sound bundle of a robot with three joints, and ways to change what is in it."""

from __future__ import annotations

import copy
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.bundle import MANIFEST
from rlgym.deploy.graph import Action, Graph, Port
from rlgym.deploy.reference import run, to_world
from rlgym.export.bundle import write_bundle
from rlgym.export.describe import describe
from rlgym.export.golden import Golden

JOINTS = 3
SIZE = 2 * JOINTS + 2 * (7 + JOINTS)
NAMES = ["hip", "knee", "ankle"]


def make_graph(seed: int = 0) -> Graph:
    """26 values, a layer of 8, three bounded values."""
    draw = np.random.default_rng(seed).normal

    def numbers(*shape: int) -> np.ndarray:
        return draw(size=shape).astype(np.float32)

    low, high = np.full(JOINTS, -8, np.float32), np.full(JOINTS, 8, np.float32)
    ops = (
        g.Flatten("flat", ("obs",)),
        g.Normalize("normal", ("flat",), numbers(SIZE), np.abs(numbers(SIZE)) + 0.1, 10.0),
        g.Dense("hidden", ("normal",), numbers(8, SIZE) / 5, numbers(8)),
        g.Activation("tanh", ("hidden",), "tanh"),
        g.Dense("mean", ("tanh",), numbers(JOINTS, 8), numbers(JOINTS)),
        g.Clip("action", ("mean",), low, high),
    )
    one, zero = np.ones(JOINTS, np.float32), np.zeros(JOINTS, np.float32)
    action = Action("", "action", "box", (JOINTS,), "", one, zero, low, high)
    ports = (Port("obs", (SIZE,), "float32"),), (Port("action", (JOINTS,), "float32"),)
    return Graph(ports[0], ops, ports[1], (action,))


def make_golden(graph: Graph, rows: int = 40) -> Golden:
    """Pairs of a graph's own."""
    draw = np.random.default_rng(1).normal
    inputs = {p.name: draw(size=(rows, *p.shape)).astype(p.dtype) for p in graph.inputs}
    outputs = run(graph, inputs)
    starts = np.arange(rows) % 20 == 0
    return Golden(inputs, outputs, {"": to_world(graph, outputs)}, starts)


def make_deployment() -> dict[str, Any]:
    """What the robot's world would say of it."""
    half = [0.5] * JOINTS
    term = {"units": "rad", "history": 1, "order": "newest first", "scale": 1.0, "clip": None}
    clip = {"name": "hop", "licence": "own", "sha256": "0" * 64, "shipped": True, "frames": 9}
    return {
        "terms": {
            "obs": [
                {"name": "joint_angle", "size": JOINTS, "width": JOINTS, **term},
                {"name": "joint_velocity", "size": JOINTS, "width": JOINTS, **term},
                {"name": "targets", "size": 2 * (7 + JOINTS), **term},
            ]
        },
        "robot": {
            "name": "hopper",
            "joint_names": NAMES,
            "sign": [1.0, -1.0, 1.0],
            "offset": [0.0, 0.25, 0.0],
            "default_joint_pos": [0.0, 0.5, -0.5],
            "stiffness": [40.0] * JOINTS,
            "damping": [1.0] * JOINTS,
            "torque_limit": [20.0] * JOINTS,
            "lower": [-1.0] * JOINTS,
            "upper": [1.0] * JOINTS,
            "action_scale": [0.25] * JOINTS,
            "action_offset": half,
            "target_lower": [-1.5] * JOINTS,
            "target_upper": [1.5] * JOINTS,
            "cutoff": 4.0,
            "base_rotation": [0.0, 0.0, 0.0, 1.0],
        },
        "timing": {
            "control_hz": 50.0,
            "control_dt": 0.02,
            "physics_dt": 0.005,
            "decimation": 4,
            "interpolate": False,
            "target_clip": None,
        },
        "safety": {"on_nan": "hold", "stale_seconds": 0.04, "target_rate": [30.0] * JOINTS},
        "targets": {
            "steps": [1, 2],
            "origin": "reference",
            "convention": "canonical",
            "clips": [{**clip, "dt": 0.1, "loop": True, "action_offset": half}],
        },
        "motion": {"0/q": np.zeros((9, JOINTS))},
    }


def make_bundle(path: str | Path, formats: tuple[str, ...] = (), graph: Graph | None = None) -> str:
    """Write the bundle; a path that ends in "/" becomes a folder."""
    graph = make_graph() if graph is None else graph
    deployment = make_deployment()
    description = describe(graph, deployment, {"run": "hop", "step": 7}, "Apache-2.0")
    write_bundle(path, graph, make_golden(graph), description, formats, deployment["motion"])
    return str(path)


def members(path: str | Path) -> dict[str, bytes]:
    """The files of a zipped bundle."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def manifest_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Its manifest, to be changed."""
    return copy.deepcopy(json.loads(files[MANIFEST]))


def sealed(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Files with a manifest whose hashes are theirs: what a careful forger would send."""
    kept = {name: data for name, data in files.items() if name != MANIFEST}
    prints = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in kept.items()
    }
    return {**kept, MANIFEST: json.dumps({**manifest, "files": prints}).encode()}


def pack(path: str | Path, files: Mapping[str, bytes]) -> Path:
    """Zip files as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return Path(path)
