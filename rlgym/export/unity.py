"""A trained policy as the ONNX that Unity's ML-Agents package loads: drag it onto a Behavior.

The names, shapes and types are those of ML-Agents' own files (model version 3, packages 2.0 and
later), with the normaliser, the squashing and the action's bounds inside:

    obs_0, obs_1, ...   (batch, *shape) float32: one per sensor; pictures (batch, C, H, W) in [0, 1]
    action_masks        (batch, choices) float32, 1 = allowed: with discrete actions only
    recurrent_in        (batch, 1, m): with memory only

    version_number, memory_size, continuous_action_output_shape, discrete_action_output_shape
                        constants; Unity reads them as float32 and throws on whole numbers
    continuous_actions  (batch, n) float32
    discrete_actions    (batch, branches) int64: Unity reads whole numbers and throws on floats
    deterministic_...   the same again: the policy's mode is taken whether the box "Deterministic
                        Inference" is ticked or not
    recurrent_out       (batch, 1, m)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.graph import MASK, STATE, Action, Graph, Op, Port
from rlgym.deploy.onnx_check import open_onnx
from rlgym.errors import UserError
from rlgym.export.onnx import IR_VERSION, Writer, describe

OPSET = 9
"""What ML-Agents' own files have, for every package since 1.0. Barracuda (packages up to 2.x)
promises no more; Sentis (3.x, 4.x) takes 7 to 15."""
OPSETS = tuple(opset for opset in IR_VERSION if opset <= 15)
MODEL_VERSION = 3.0
"""ML-Agents' number for inputs named obs_0, obs_1, ...; packages before 2.0 know only 2."""
MASKS = "action_masks"
RECURRENT = "recurrent_in", "recurrent_out"
CONTINUOUS = "continuous_actions"
DISCRETE = "discrete_actions"
LARGEST = np.finfo(np.float32).max


def to_unity(graph: Graph, opset: int = OPSET, metadata: Mapping[str, Any] | None = None) -> Any:
    """Build the model.

    Args:
        graph: what `read_policy` gave.
        opset: 9 to 15.
        metadata: text by key; whatever is not text is written as JSON.

    Raises:
        UserError: for spaces that no Unity behaviour has, or another opset.
    """
    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not for Unity: choose from {min(OPSETS)} to 15")
    _check(graph)
    writer = Writer(opset)
    inputs = [_value(name, shape) for name, shape in _sensors(graph).values()]
    if branches(graph):
        inputs.append(_value(MASKS, (sum(branches(graph)),)))
    outputs = [_constant(writer, "version_number", [MODEL_VERSION])]
    outputs.append(_constant(writer, "memory_size", [graph.state_size]))
    if graph.state_size:
        inputs.append(_value(RECURRENT[0], (1, graph.state_size)))
        writer.write(g.Flatten(STATE, (RECURRENT[0],)))
    for op in _operations(graph):
        writer.write(op)
    outputs += _actions(writer, graph)
    if graph.state_size:
        op = Op(RECURRENT[1], ("next_state",))
        shape = writer.constant(op, "shape", [-1, 1, graph.state_size], np.int64)
        writer.node("Reshape", op, "", "next_state", shape)
        outputs.append(_value(RECURRENT[1], (1, graph.state_size)))
    return writer.model(inputs, outputs, metadata)


def branches(graph: Graph) -> tuple[int, ...]:
    """Number of choices of each discrete action, as the scene's Behavior Parameters state them."""
    chosen = {op.output: op.sizes for op in graph.ops if isinstance(op, g.Choose)}
    return tuple(n for action in graph.actions for n in chosen.get(action.output, ()))


def unity_inputs(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What Unity would feed: the arrays (B, *shape) of a graph's inputs under Unity's names."""
    rows = len(next(iter(inputs.values())))
    pictures = _pictures(graph)
    fed = {}
    for key, (name, shape) in _sensors(graph).items():
        array = inputs[key].astype(np.float32)
        if key in pictures:
            array = array / np.float32(255)
            array = array.transpose(0, 3, 1, 2) if pictures[key].channels_last else array
        fed[name] = array.reshape(rows, *shape)
    if branches(graph):
        everything = np.ones((rows, sum(branches(graph))), np.float32)
        fed[MASKS] = inputs[MASK].astype(np.float32) if MASK in inputs else everything
    if graph.state_size:
        zeros = np.zeros((rows, graph.state_size), np.float32)
        fed[RECURRENT[0]] = inputs.get(STATE, zeros)[:, None, :]
    return fed


def world_actions(graph: Graph, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The world's actions (B, *shape) by key, of what the model's outputs tell a scene."""
    told, at = {}, {CONTINUOUS: 0, DISCRETE: 0}
    starts = {op.output: op.start for op in graph.ops if isinstance(op, g.Choose)}
    for action in graph.actions:
        name = CONTINUOUS if action.kind == "box" else DISCRETE
        begin = at[name]
        at[name] += int(np.prod(action.shape))
        columns = outputs[name][:, begin : at[name]]
        if action.output in starts:
            columns = columns + np.array(starts[action.output])
        told[action.key] = columns.reshape(-1, *action.shape)
    return told


def run_unity(data: bytes, graph: Graph, inputs: Mapping[str, np.ndarray]) -> Any:
    """What a scene would be told, by key of the action space.

    Args:
        data: the file; a stranger's is looked into first (`rlgym.deploy.onnx_check`).
        graph: the one that it was written from.
        inputs: (B, *shape) by the graph's names.

    Raises:
        UserError: it cannot be run, or does not take and give what the graph's own file does.
    """
    try:
        session = open_onnx(data)
        names = [item.name for item in session.get_outputs()]
        found: Any = session.run(names, unity_inputs(graph, inputs))
        return world_actions(graph, dict(zip(names, found, strict=True)))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # onnxruntime's errors have no common family
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the ONNX for Unity cannot be run ({said}): export it again") from None


# ------------------------------------------------------------------------------------- details


def _check(graph: Graph) -> None:
    for action in graph.actions:
        if action.kind == "multi_binary":
            raise UserError(
                f"action '{action.key or 'space'}' is MultiBinary, which no Unity behaviour has: "
                "train with MultiDiscrete([2, ...]) to take the policy to Unity"
            )
    for port in _observations(graph):
        if len(port.shape) > 3:
            raise UserError(
                f"observation '{port.name}' has {len(port.shape)} axes, and a Unity sensor at most "
                "3: flatten it in the world"
            )


def _observations(graph: Graph) -> list[Port]:
    return [port for port in graph.inputs if port.name not in (MASK, STATE)]


def _pictures(graph: Graph) -> dict[str, g.Image]:
    return {op.inputs[0]: op for op in graph.ops if isinstance(op, g.Image)}


def _sensors(graph: Graph) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Unity's name and shape for each observation.

    The observations of a Unity world say which sensor they are; others are counted through.
    """
    ports, pictures = _observations(graph), _pictures(graph)
    if all(re.fullmatch(r"obs_\d+", port.name) for port in ports):
        ports = sorted(ports, key=lambda port: int(port.name[4:]))
        names = [port.name for port in ports]
    else:
        names = [f"obs_{k}" for k in range(len(ports))]
    found = {}
    for name, port in zip(names, ports, strict=True):
        if port.name in pictures and pictures[port.name].channels_last:
            height, width, channels = port.shape
            found[port.name] = name, (channels, height, width)
        else:
            found[port.name] = name, port.shape or (1,)
    return found


def _operations(graph: Graph) -> list[Op]:
    """The graph's operations on what Unity feeds, up to the normalised actions."""
    sensors, pictures = _sensors(graph), _pictures(graph)
    names = {key: name for key, (name, _) in sensors.items()} | {MASK: MASKS}
    # Unity divides a picture by 255 and puts channels first, as the operation would
    names |= {op.output: sensors[key][0] for key, op in pictures.items()}
    masked = any(port.name == MASK for port in graph.inputs)
    done: list[Op] = []
    at = 0
    for op in graph.ops:
        if isinstance(op, g.Image):
            continue
        op = replace(op, inputs=tuple(names.get(name, name) for name in op.inputs))
        if isinstance(op, g.Choose):
            if not masked:
                end = at + sum(op.sizes)
                done.append(g.Slice(f"mask_{at}", (MASKS,), at, end))
                op, at = replace(op, inputs=(*op.inputs, f"mask_{at}")), end
            op = replace(op, start=(0,) * len(op.sizes))  # a scene counts its choices from 0
        if isinstance(op, g.Clip):  # a reader may not know infinity
            op = replace(op, low=_finite(op.low), high=_finite(op.high))
        done.append(op)
    return done


def _finite(bounds: Any) -> np.ndarray:
    return np.clip(np.asarray(bounds, np.float32), -LARGEST, LARGEST)


def _actions(writer: Writer, graph: Graph) -> list[Any]:
    """Write the outputs that have to do with actions; returns their descriptions."""
    outputs = []
    boxes = [action for action in graph.actions if action.kind == "box"]
    if boxes:
        parts = [_world_units(writer, action) for action in boxes]
        size = sum(int(np.prod(action.shape)) for action in boxes)
        shape = _constant(writer, "continuous_action_output_shape", [size])
        outputs += _twice(writer, CONTINUOUS, parts, (size,), "float32", shape)
    if branches(graph):
        parts = [action.output for action in graph.actions if action.kind != "box"]
        shape = _constant(writer, "discrete_action_output_shape", [branches(graph)])
        outputs += _twice(writer, DISCRETE, parts, (len(branches(graph)),), "int64", shape)
    return outputs


def _world_units(writer: Writer, action: Action) -> str:
    """A box's normalised action as the world is told it; returns its name."""
    scale, offset = (np.asarray(v, np.float32)[None] for v in (action.scale, action.offset))
    if np.all(scale == 1) and np.all(offset == 0):
        return action.output  # clipped to its bounds already, or squashed to [-1, 1]
    op = Op(f"{action.output}/world", (action.output,))
    scaled = writer.node("Mul", op, "scaled", *op.inputs, writer.constant(op, "scale", scale))
    moved = writer.node("Add", op, "moved", scaled, writer.constant(op, "offset", offset))
    low = writer.constant(op, "low", _finite(action.low)[None])
    above = writer.node("Max", op, "above", moved, low)
    return writer.node(
        "Min", op, "", above, writer.constant(op, "high", _finite(action.high)[None])
    )


def _twice(
    writer: Writer, name: str, parts: list[str], shape: tuple[int, ...], dtype: str, size: Any
) -> list[Any]:
    """Write actions as the sample and as the deterministic action, in ML-Agents' order."""
    for output in (name, f"deterministic_{name}"):
        writer.node("Concat", Op(output, tuple(parts)), "", *parts, axis=1)
    return [_value(name, shape, dtype), size, _value(f"deterministic_{name}", shape, dtype)]


def _constant(writer: Writer, name: str, value: Any) -> Any:
    """Make a constant an output, as in ML-Agents' files: an initializer of that name."""
    array = np.asarray(value, np.float32)
    writer.array(name, array)
    return describe(Port(name, array.shape, "float32"), batch=False)


def _value(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return describe(Port(name, shape, dtype))
