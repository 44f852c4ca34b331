"""Bundles made in a moment: a policy that follows its clip open loop, and one of a plain world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.graph import Action, Clip, Dense, Graph, Port
from rlgym.deploy.reference import run, to_world
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.deployment import deployment
from rlgym.envs.imitation.spec import get_spec
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.physics.robots import get_robot
from rlgym.export.bundle import write_bundle
from rlgym.export.describe import describe
from rlgym.export.golden import Golden
from tests.envs.imitation.puppet import Puppet

STEP = {"time_step": 0.005, "substeps": 6, "servo": "implicit"}
DT = 0.03
"""Seconds of a control step of `follower`."""


def puppet_task(
    robot: str, clip: str, spec: str = "modern", engine: type[Puppet] = Puppet, **changes: Any
) -> ImitationTask:
    """An imitation task of one world without physics."""
    table, chosen = get_robot(robot), get_spec(spec, changes)
    worlds: Any = engine(table, chosen.actuation, 1, np.zeros(1))
    return ImitationTask(worlds, ClipSet([load_clip(clip, table)], table), chosen, np.array([3]))


def linear(weight: np.ndarray, bias: np.ndarray, bound: float, name: str = "obs") -> Graph:
    """action = clip(weight @ obs + bias)."""
    outputs, inputs = weight.shape
    limit = np.full(outputs, bound, np.float32)
    ops = (
        Dense("raw", (name,), weight.astype(np.float32), bias.astype(np.float32)),
        Clip("action", ("raw",), -limit, limit),
    )
    one, zero = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
    action = Action("", "action", "box", (outputs,), "", one, zero, -limit, limit)
    port = Port(name, (inputs,), "float32")
    return Graph((port,), ops, (Port("action", (outputs,), "float32"),), (action,))


def seal(path: Path, graph: Graph, described: dict[str, Any], rows: int = 40) -> Path:
    """Write a graph as a bundle, with golden pairs of random observations."""
    rng = np.random.default_rng(0)
    inputs = {
        port.name: rng.normal(size=(rows, *port.shape)).astype(port.dtype) for port in graph.inputs
    }
    outputs = run(graph, inputs)
    golden = Golden(inputs, outputs, {"": to_world(graph, outputs)}, np.arange(rows) == 0)
    motion = described.get("motion")
    write_bundle(path, graph, golden, describe(graph, described, {}), ("onnx",), motion)
    return path


def follower(path: Path, robot: str = "a1", clip: str = "trot", **settings: Any) -> Path:
    """A bundle whose policy asks for the joints of the next target frame, and sees nothing else."""
    task = puppet_task(robot, clip, **{"actuation": STEP, **settings})
    described = deployment(task)
    described["simulation"] = {**described["simulation"], "engine": "mujoco"}
    ((name, terms),) = described["terms"].items()
    start = sum(term["size"] for term in terms[:-1]) + 7
    scale = task.spec.action.scale
    weight = np.zeros((task.robot.nv, sum(term["size"] for term in terms)))
    weight[np.arange(task.robot.nv), start + np.arange(task.robot.nv)] = 1 / scale
    bias = -np.array(described["robot"]["action_offset"]) / scale
    return seal(path, linear(weight, bias, task.spec.action.bound, name), described)


def plain(path: Path) -> Path:
    """A bundle of a world that says nothing of itself: two of four values, turned round."""
    return seal(path, linear(-np.eye(4)[:2], np.zeros(2), 1.0), {})
