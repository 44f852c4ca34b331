"""A graph as ONNX: standard operators only, one file, any batch size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.agents.distributions import FORBIDDEN
from rlgym.deploy import graph as g
from rlgym.deploy.graph import Graph, Op
from rlgym.deploy.reference import LAYER_NORM_EPSILON
from rlgym.errors import MissingExtraError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    raise MissingExtraError('ONNX needs onnx: pip install "rlgym-lab[export]"') from None

OPSETS = (15, 18)
"""Of a bundle: 15 is what older readers take; 18 is the one that is checked first."""
IR_VERSION = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}
"""Opsets that can be written, and the version of the file format: the oldest that knows the opset,
for readers that are old too."""
_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def to_onnx(graph: Graph, opset: int = 18, metadata: Mapping[str, Any] | None = None) -> Any:
    """Build the model; inputs and outputs have the graph's names and a free batch axis.

    Args:
        graph: what `read_policy` gave.
        opset: one of `IR_VERSION`.
        metadata: text by key; whatever is not text is written as JSON.
    """
    writer = Writer(opset)
    for op in graph.ops:
        writer.write(op)
    inputs, outputs = (
        [describe(port) for port in ports] for ports in (graph.inputs, graph.outputs)
    )
    return writer.model(inputs, outputs, metadata)


def write_onnx(
    graph: Graph, path: str | Path, opset: int = 18, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write one self-contained file; see `to_onnx`."""
    Path(path).write_bytes(to_onnx(graph, opset, metadata).SerializeToString())


def describe(port: g.Port, batch: bool = True) -> Any:
    """ONNX's description of an input or output; without `batch` it has no batch axis."""
    shape = ["batch", *port.shape] if batch else list(port.shape)
    return helper.make_tensor_value_info(port.name, _TYPES[port.dtype], shape)


class Writer:
    """Turns operations into nodes, and their arrays into initializers."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def write(self, op: Op) -> None:
        """Append the nodes of one operation."""
        _WRITE[type(op)](self, op)

    def model(
        self, inputs: list[Any], outputs: list[Any], metadata: Mapping[str, Any] | None = None
    ) -> Any:
        """Close the file: what was written, between these inputs and outputs, checked."""
        model = helper.make_model(
            helper.make_graph(self.nodes, "policy", inputs, outputs, self.constants),
            opset_imports=[helper.make_opsetid("", self.opset)],
            producer_name="rlgym",
            ir_version=IR_VERSION[self.opset],
        )
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
        helper.set_model_props(model, texts)
        onnx.checker.check_model(model, full_check=True)
        return model

    def constant(self, op: Op, name: str, array: Any, dtype: Any = np.float32) -> str:
        """Add an array under a name of its operation."""
        return self.array(f"{op.output}.{name}", np.asarray(array, dtype))

    def array(self, name: str, array: np.ndarray) -> str:
        """Add an array under a name of its own."""
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, op: Op, step: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; `step` names what it gives, and "" is the operation's own output."""
        output = f"{op.output}.{step}" if step else op.output
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output


def _flatten(w: Writer, op: g.Flatten) -> None:
    cast = w.node("Cast", op, "cast", op.inputs[0], to=TensorProto.FLOAT)
    w.node("Flatten", op, "", cast, axis=1)


def _normalize(w: Writer, op: g.Normalize) -> None:
    centred = w.node("Sub", op, "centred", op.inputs[0], w.constant(op, "mean", op.mean))
    scaled = w.node("Mul", op, "scaled", centred, w.constant(op, "inv_std", op.inv_std))
    # Max and Min: Clip has its bounds in another place before opset 11
    above = w.node("Max", op, "above", scaled, w.constant(op, "low", -op.clip))
    w.node("Min", op, "", above, w.constant(op, "high", op.clip))


def _one_hot(w: Writer, op: g.OneHot) -> None:
    # one column per choice: which component it belongs to, and which value it stands for
    component = np.repeat(np.arange(len(op.sizes)), op.sizes)
    value = np.concatenate([np.arange(n) + s for n, s in zip(op.sizes, op.start, strict=True)])
    column = w.constant(op, "component", component, np.int64)
    whole = w.node("Cast", op, "whole", op.inputs[0], to=TensorProto.INT64)
    spread = w.node("Gather", op, "spread", whole, column, axis=1)
    # whole numbers: floats can be compared from opset 11 on
    equal = w.node("Equal", op, "equal", spread, w.constant(op, "value", value[None], np.int64))
    w.node("Cast", op, "", equal, to=TensorProto.FLOAT)


def _concat(w: Writer, op: g.Concat) -> None:
    w.node("Concat", op, "", *op.inputs, axis=1)


def _image(w: Writer, op: g.Image) -> None:
    x = op.inputs[0]
    if op.channels_last:
        x = w.node("Transpose", op, "planes", x, perm=[0, 3, 1, 2])
    x = w.node("Cast", op, "cast", x, to=TensorProto.FLOAT)
    w.node("Div", op, "", x, w.constant(op, "largest", 255.0))


def _conv(w: Writer, op: g.Conv) -> None:
    arrays = w.constant(op, "weight", op.weight), w.constant(op, "bias", op.bias)
    strides, pads = [op.stride] * 2, [op.padding] * 4
    kernel = list(op.weight.shape[2:])
    w.node("Conv", op, "", op.inputs[0], *arrays, strides=strides, pads=pads, kernel_shape=kernel)


def _dense(w: Writer, op: g.Dense) -> None:
    arrays = w.constant(op, "weight", op.weight), w.constant(op, "bias", op.bias)
    w.node("Gemm", op, "", op.inputs[0], *arrays, transB=1)


def _layer_norm(w: Writer, op: g.LayerNorm) -> None:
    # spelled out: the operator of that name is younger than opset 15
    count = w.constant(op, "count", op.scale.size)
    mean = w.node("Div", op, "mean", _sum(w, op, "sum", op.inputs[0]), count)
    centred = w.node("Sub", op, "centred", op.inputs[0], mean)
    square = w.node("Mul", op, "square", centred, centred)
    variance = w.node("Div", op, "variance", _sum(w, op, "squares", square), count)
    safe = w.node("Add", op, "safe", variance, w.constant(op, "epsilon", LAYER_NORM_EPSILON))
    unit = w.node("Div", op, "unit", centred, w.node("Sqrt", op, "std", safe))
    scaled = w.node("Mul", op, "scaled", unit, w.constant(op, "scale", op.scale))
    w.node("Add", op, "", scaled, w.constant(op, "shift", op.shift))


def _sum(w: Writer, op: Op, step: str, x: str) -> str:
    """Sum of each row, (B, 1); of all reductions this one reads alike from opset 13 on."""
    if w.opset < 13:
        return w.node("ReduceSum", op, step, x, axes=[1])
    return w.node("ReduceSum", op, step, x, w.constant(op, f"{step}_axes", [1], np.int64))


def _activation(w: Writer, op: g.Activation) -> None:
    x = op.inputs[0]
    if op.kind == "silu":
        w.node("Mul", op, "", x, w.node("Sigmoid", op, "sigmoid", x))
    else:
        w.node(op.kind.capitalize(), op, "", x)


def _gates(w: Writer, op: g.GRU | g.LSTM, hidden: str, names: str) -> list[tuple[str, str]]:
    """For each gate: what the input gives, and what the state gives."""
    size = op.weight_hidden.shape[1]
    sides = (("input", op.inputs[0], op.weight_input, op.bias_input),)
    sides += (("hidden", hidden, op.weight_hidden, op.bias_hidden),)
    found = []
    for side, x, weight, bias in sides:
        arrays = w.constant(op, f"weight_{side}", weight), w.constant(op, f"bias_{side}", bias)
        gates = w.node("Gemm", op, f"gates_{side}", x, *arrays, transB=1)
        columns = range(0, len(bias), size)
        found.append(
            [
                _columns(w, op, f"{n}_{side}", gates, at, at + size)
                for n, at in zip(names, columns, strict=True)
            ]
        )
    return list(zip(*found, strict=True))


def _gru(w: Writer, op: g.GRU) -> None:
    h = op.inputs[1]
    (r_x, r_h), (z_x, z_h), (n_x, n_h) = _gates(w, op, h, "rzn")
    r = w.node("Sigmoid", op, "r", w.node("Add", op, "r_sum", r_x, r_h))
    z = w.node("Sigmoid", op, "z", w.node("Add", op, "z_sum", z_x, z_h))
    reset = w.node("Mul", op, "reset", r, n_h)
    n = w.node("Tanh", op, "n", w.node("Add", op, "n_sum", n_x, reset))
    # n + z * (h - n), which is (1 - z) * n + z * h
    step = w.node("Mul", op, "step", z, w.node("Sub", op, "gap", h, n))
    w.node("Add", op, "", n, step)


def _lstm(w: Writer, op: g.LSTM) -> None:
    size = op.weight_hidden.shape[1]
    h = _columns(w, op, "h", op.inputs[1], 0, size)
    c = _columns(w, op, "c", op.inputs[1], size, 2 * size)
    sums = [
        w.node("Add", op, f"{name}_sum", *pair)
        for name, pair in zip("ifgo", _gates(w, op, h, "ifgo"), strict=True)
    ]
    i, f, o = (w.node("Sigmoid", op, n, sums[k]) for n, k in (("i", 0), ("f", 1), ("o", 3)))
    new = w.node("Mul", op, "new", i, w.node("Tanh", op, "g", sums[2]))
    cell = w.node("Add", op, "cell", w.node("Mul", op, "kept", f, c), new)
    hidden = w.node("Mul", op, "hidden", o, w.node("Tanh", op, "squashed", cell))
    w.node("Concat", op, "", hidden, cell, axis=1)


def _columns(w: Writer, op: Op, step: str, x: str, start: int, stop: int) -> str:
    if w.opset < 10:
        return w.node("Slice", op, step, x, starts=[start], ends=[stop], axes=[1])
    name = step or "columns"
    ends = (("start", start), ("stop", stop), ("axis", 1))
    return w.node(
        "Slice", op, step, x, *(w.constant(op, f"{name}_{n}", [v], np.int64) for n, v in ends)
    )


def _slice(w: Writer, op: g.Slice) -> None:
    _columns(w, op, "", op.inputs[0], op.start, op.stop)


def _clip(w: Writer, op: g.Clip) -> None:
    # Clip itself takes one bound for all columns
    above = w.node("Max", op, "above", op.inputs[0], w.constant(op, "low", op.low[None]))
    w.node("Min", op, "", above, w.constant(op, "high", op.high[None]))


def _choose(w: Writer, op: g.Choose) -> None:
    chosen, at = [], 0
    for k, size in enumerate(op.sizes):
        own = _columns(w, op, f"logits_{k}", op.inputs[0], at, at + size)
        if len(op.inputs) == 2:
            flags = _columns(w, op, f"mask_{k}", op.inputs[1], at, at + size)
            own = _allow(w, op, k, own, flags)
        chosen.append(w.node("ArgMax", op, f"index_{k}", own, axis=1, keepdims=1))
        at += size
    index = w.node("Concat", op, "index" if any(op.start) else "", *chosen, axis=1)
    if any(op.start):
        w.node("Add", op, "", index, w.constant(op, "first", [op.start], np.int64))


def _allow(w: Writer, op: Op, k: int, logits: str, flags: str) -> str:
    """Sink the logits of what is not allowed (flag 0, not 1); where nothing is, all stay."""
    one = w.constant(op, f"one_{k}", 1.0)
    some = w.node("Min", op, f"some_{k}", _sum(w, op, f"count_{k}", flags), one)
    allowed = w.node("Max", op, f"kept_{k}", flags, w.node("Sub", op, f"none_{k}", one, some))
    # an allowed logit is left as it is, to the last bit: 0 is added to it
    depth = w.constant(op, f"depth_{k}", -FORBIDDEN)
    sunk = w.node("Mul", op, f"sunk_{k}", w.node("Sub", op, f"gap_{k}", allowed, one), depth)
    return w.node("Add", op, f"masked_{k}", logits, sunk)


def _switch(w: Writer, op: g.Switch) -> None:
    above = w.node("Greater", op, "above", op.inputs[0], w.constant(op, "zero", 0.0))
    w.node("Cast", op, "", above, to=TensorProto.INT64)


_WRITE: dict[type[Op], Callable[[Writer, Any], None]] = {
    g.Flatten: _flatten,
    g.Normalize: _normalize,
    g.OneHot: _one_hot,
    g.Concat: _concat,
    g.Image: _image,
    g.Conv: _conv,
    g.Dense: _dense,
    g.LayerNorm: _layer_norm,
    g.Activation: _activation,
    g.GRU: _gru,
    g.LSTM: _lstm,
    g.Slice: _slice,
    g.Clip: _clip,
    g.Choose: _choose,
    g.Switch: _switch,
}
