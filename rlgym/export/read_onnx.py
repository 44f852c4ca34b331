"""An ONNX of another trainer, read into the graph that every format is written from.

Networks of vectors: dense layers, elementwise arithmetic with constants (normalisers), the usual
activations, and the choice of the largest logit. The file is looked into before anything reads it;
nothing of it is run but standard operators on its own constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Action, Graph, Op, Port
from rlgym.deploy.graph_check import check_graph
from rlgym.deploy.onnx_check import check_onnx
from rlgym.deploy.reference import LAYER_NORM_EPSILON
from rlgym.errors import MissingExtraError, UserError

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError:
    raise MissingExtraError('ONNX needs onnx: pip install "rlgym-lab[export]"') from None

WIDEST = float(np.finfo(np.float32).max)
"""Bound of a normaliser that clips nothing."""
MAX_CONSTANT = 1 << 26
"""Numbers that a constant may come to which is computed from others, at the very most."""
ACTIONS = ("action", "actions", "continuous_actions")
"""Names of an output that are understood, where there are several."""
_SAME = {"Flatten", "Reshape", "Squeeze", "Identity", "Cast", "Unsqueeze"}


@dataclass(frozen=True)
class Model:
    """What an ONNX holds, beside what it computes."""

    metadata: dict[str, str]
    output: str
    """Name of the output that was taken for the action, in the file."""
    single: bool
    """The file takes one observation at a time."""
    data: bytes
    """The file without what its action does not depend on."""


def read_onnx(data: bytes, name: str, output: str | None = None) -> tuple[Graph, Model]:
    """Read the bytes of an ONNX.

    Args:
        data: of the file.
        name: for messages.
        output: which output is the action; None: the only one, or one of `ACTIONS`.

    Returns:
        The graph, whose output is "action" (and "logits" of a choice), and what else there is.

    Raises:
        UserError: it is no ONNX, holds more than arithmetic, or something that no graph has.
    """
    try:
        model = onnx.load_model_from_string(data)  # taken apart, and nothing more
        if not model.graph.node:
            raise UserError(f"{name} is no ONNX file, or one without operations")
        output = _output(model.graph, name, output)
        _prune(model, output)
        pruned = model.SerializeToString()
        check_onnx(pruned, name)
        onnx.checker.check_model(model)
        reader = _Reader(model, name)
        return reader.read(output), Model(reader.metadata(), output, reader.single, pruned)
    except BundleError as error:
        raise UserError(str(error)) from None
    except UserError:
        raise
    except Exception as error:  # protobuf's, onnx's and numpy's are no common family
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{name} cannot be read as a policy ({said})") from None


@dataclass
class _Reader:
    """Follows a model's nodes; knows each value as a constant, or as a row of some width."""

    model: Any
    name: str
    single: bool = False
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Name in the file -> name in the graph."""
    widths: dict[str, int] = field(default_factory=dict)
    """Name in the graph -> width."""
    ops: dict[str, Op] = field(default_factory=dict)
    """By what they write, in order."""
    sigmoids: dict[str, str] = field(default_factory=dict)
    """Name in the file of a sigmoid -> of what."""
    uses: dict[str, int] = field(default_factory=dict)
    """Name in the file -> how often it is read."""
    layers: dict[str, str] = field(default_factory=dict)
    """Name in the file of what a dense layer gives -> name in the graph."""

    def read(self, output: str) -> Graph:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.constants[tensor.name] = numpy_helper.to_array(tensor)
        ports = self._inputs(graph)
        for name in (output, *(source for node in graph.node for source in node.input)):
            self.uses[name] = self.uses.get(name, 0) + 1
        for node in graph.node:
            self._node(node)
        found = self._graph(ports, self._place(output))
        check_graph(found)
        return found

    def metadata(self) -> dict[str, str]:
        """The file's keys."""
        texts = [(entry.key, entry.value) for entry in self.model.metadata_props]
        # what is no UTF-8 comes as bytes
        return {k: v for k, v in texts if isinstance(k, str) and isinstance(v, str)}

    def _inputs(self, graph: Any) -> tuple[Port, ...]:
        ports = []
        for value in graph.input:
            if value.name in self.constants:
                continue
            kind = value.type.tensor_type
            sizes = [dim.dim_value for dim in kind.shape.dim]
            plain = kind.elem_type == onnx.TensorProto.FLOAT and len(sizes) == 2 and sizes[1] > 0
            if not plain:
                raise UserError(
                    f"{self.name} takes '{value.name}', {sizes} of type {kind.elem_type}: only "
                    "float32 vectors, (batch, n), can be read; export a policy without images, "
                    "memory or a motion inside"
                )
            self.single = self.single or sizes[0] == 1
            ports.append(Port(value.name, (sizes[1],), "float32"))
            self.places[value.name], self.widths[value.name] = value.name, sizes[1]
        return tuple(ports)

    def _node(self, node: Any) -> None:
        if all(not source or source in self.constants for source in node.input):
            self._fold(node)
            return
        if node.op_type in _SAME:
            if node.op_type == "Cast" and _attributes(node)["to"] != onnx.TensorProto.FLOAT:
                raise self._unknown(node)
            self.places[node.output[0]] = self._place(node.input[0])
            return
        if node.op_type not in _READ:
            raise self._unknown(node)
        _READ[node.op_type](self, node)

    def _fold(self, node: Any) -> None:
        """Compute what depends on constants alone."""
        given = {source: self.constants[source] for source in node.input if source}
        most = math.prod(max(value.size, 1) for value in given.values())
        if most > MAX_CONSTANT:  # a few rows and columns can come to more than memory holds
            raise UserError(f"{self.name} computes a constant of up to {most:,} numbers")
        opset = {entry.domain: entry.version for entry in self.model.opset_import}
        found: Any = ReferenceEvaluator(node, opsets=opset).run(None, given)
        for name, value in zip(node.output, found, strict=True):
            self.constants[name] = np.asarray(value)

    def _unknown(self, node: Any) -> UserError:
        return UserError(
            f"{self.name} uses {node.op_type} ('{node.output[0]}') in a way that rlgym does not "
            f"read: it knows dense layers, arithmetic with constants, and {', '.join(_KNOWN)}"
        )

    def _graph(self, ports: tuple[Port, ...], place: str) -> Graph:
        """Everything that the output depends on, the last operation writing "action"."""
        if place not in self.ops:
            raise UserError(f"{self.name} gives its input as its action")
        needed, kept = {place}, []
        for op in reversed(self.ops.values()):
            if op.output in needed:
                needed |= set(op.inputs)
                kept.append(op)
        kept.reverse()
        last, width = kept[-1], self.widths[place]
        kept[-1] = replace(last, output="action")
        inputs = tuple(port for port in ports if port.name in needed)
        if isinstance(last, g.Choose):
            (logits,) = last.inputs
            outputs = Port(logits, (self.widths[logits],), "float32"), Port("action", (1,), "int64")
            action = Action("", "action", "discrete", (), logits)
            return Graph(inputs, tuple(kept), outputs, (action,))
        one = np.ones(width, np.float32)
        low, high = -np.inf * one, np.inf * one
        if isinstance(last, g.Activation) and last.kind == "tanh":
            low, high = -one, one
        bound: Any = last
        while isinstance(bound, g.Clip):  # one side after the other, sometimes
            low, high = np.maximum(low, bound.low), np.minimum(high, bound.high)
            bound = self.ops.get(bound.inputs[0])
        action = Action("", "action", "box", (width,), "", one, 0 * one, low, high)
        return Graph(inputs, tuple(kept), (Port("action", (width,), "float32"),), (action,))

    # ------------------------------------------------------------------------ for readers

    def _place(self, name: str) -> str:
        if name in self.sigmoids and name not in self.places:  # one that is no part of a silu
            half = self.affine(self._place(self.sigmoids[name]), 0.0, 0.5)
            tanh = self.add(g.Activation, (half,), self.widths[half], kind="tanh")
            self.places[name] = self.affine(tanh, -1.0, 0.5)
        return self.places[name]

    def add(self, op: type[Op], inputs: tuple[str, ...], width: int, **rest: Any) -> str:
        """Append an operation; returns what it writes."""
        name = f"{op.__name__.lower()}_{len(self.ops) + 1}"
        while name in self.widths:
            name += "_"
        self.ops[name], self.widths[name] = op(name, inputs, **rest), width
        return name

    def affine(self, x: str, shift: Any, scale: Any) -> str:
        """(x - shift) * scale, each a number or one per column."""
        width = self.widths[x]
        mean, inv_std = (np.full(width, v, np.float32) for v in (shift, scale))
        return self.add(g.Normalize, (x,), width, mean=mean, inv_std=inv_std, clip=WIDEST)

    def row(self, node: Any, name: str, width: int) -> np.ndarray:
        """A constant as (width,) float32."""
        value = np.asarray(self.constants[name], np.float32)
        if value.size not in (1, width) or (value.ndim and value.shape[-1] != value.size):
            raise self._unknown(node)
        return np.broadcast_to(value.reshape(-1), (width,)).copy()

    def constant_of(self, node: Any, index: int) -> np.ndarray | None:
        """An input that must be a constant, or is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise self._unknown(node)
        return self.constants[node.input[index]]


def _output(graph: Any, file: str, wanted: str | None) -> str:
    """Name of the action among a model's outputs."""
    names = [value.name for value in graph.output]
    if wanted is None and len(names) == 1:
        return names[0]
    for name in (wanted,) if wanted is not None else ACTIONS:
        if name in names:
            return name
    raise UserError(
        f"{file} gives {', '.join(map(str, names)) or 'nothing'}: name the action's output in the "
        'manifest, as {"action": [{"output": "NAME"}]}'
    )


def _prune(model: Any, output: str) -> None:
    """Leave out of a model what an output does not depend on, such as a critic beside it."""
    graph = model.graph
    wanted, nodes = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.append(node)
    kept = {
        "node": nodes[::-1],
        "initializer": [entry for entry in graph.initializer if entry.name in wanted],
        "input": [entry for entry in graph.input if entry.name in wanted],
        "output": [entry for entry in graph.output if entry.name == output],
        "value_info": [],
    }
    for name, entries in kept.items():
        own = list(map(_copy, entries))
        del getattr(graph, name)[:]
        getattr(graph, name).extend(own)


def _copy(entry: Any) -> Any:
    own = type(entry)()
    own.CopyFrom(entry)
    return own


def _attributes(node: Any) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _gemm(r: _Reader, node: Any) -> None:
    own, weight, bias = _attributes(node), r.constant_of(node, 1), r.constant_of(node, 2)
    if own.get("transA") or weight is None or node.input[0] in r.constants:
        raise r._unknown(node)
    rows = weight if own.get("transB") else weight.T
    shift = np.zeros(len(rows)) if bias is None else np.broadcast_to(bias.ravel(), len(rows))
    rows, shift = own.get("alpha", 1.0) * rows, own.get("beta", 1.0) * shift
    _dense(r, node, rows, shift)


def _matmul(r: _Reader, node: Any) -> None:
    weight = r.constant_of(node, 1)
    if weight is None or weight.ndim != 2:
        raise r._unknown(node)
    _dense(r, node, weight.T, np.zeros(weight.shape[1]))


def _dense(r: _Reader, node: Any, weight: np.ndarray, bias: np.ndarray) -> None:
    arrays = {"weight": np.ascontiguousarray(weight, np.float32), "bias": np.float32(bias)}
    x = r._place(node.input[0])
    r.places[node.output[0]] = r.add(g.Dense, (x,), len(weight), **arrays)
    r.layers[node.output[0]] = r.places[node.output[0]]


def _arithmetic(r: _Reader, node: Any) -> None:
    left, right = node.input
    if left not in r.constants and right not in r.constants:
        for gate, x in ((left, right), (right, left)):
            if node.op_type == "Mul" and r.sigmoids.get(gate) == x:
                place = r._place(x)
                silu = r.add(g.Activation, (place,), r.widths[place], kind="silu")
                r.places[node.output[0]] = silu
                return
        raise r._unknown(node)
    flipped = left in r.constants
    name, fixed = (right, left) if flipped else (left, right)
    x = r._place(name)
    value = r.row(node, fixed, r.widths[x])
    op = r.ops.get(x)
    alone = r.layers.get(name) == x and r.uses[name] == 1
    if node.op_type == "Add" and alone and isinstance(op, g.Dense):
        r.ops[x] = replace(op, bias=op.bias + value)  # a layer whose bias is added for itself
        r.places[node.output[0]] = x
        return
    if node.op_type == "Div" and flipped:
        raise r._unknown(node)
    with np.errstate(all="ignore"):
        shift, scale = {
            "Add": (-value, 1.0),
            "Sub": (value, -1.0 if flipped else 1.0),
            "Mul": (0.0, value),
            "Div": (0.0, 1.0 / value),
        }[node.op_type]
    r.places[node.output[0]] = r.affine(x, shift, scale)


def _activation(r: _Reader, node: Any) -> None:
    own, kind = _attributes(node), node.op_type.lower()
    if own.get("alpha", 1.0) != 1.0:
        raise r._unknown(node)
    x = r._place(node.input[0])
    r.places[node.output[0]] = r.add(g.Activation, (x,), r.widths[x], kind=kind)


def _sigmoid(r: _Reader, node: Any) -> None:
    r.sigmoids[node.output[0]] = node.input[0]


def _bounds(r: _Reader, node: Any) -> None:
    own = _attributes(node)  # where Clip had them before opset 11
    x = r._place(next(name for name in node.input if name and name not in r.constants))
    low, high = own.get("min", -np.inf), own.get("max", np.inf)
    if node.op_type == "Clip":
        given = r.constant_of(node, 1), r.constant_of(node, 2)
        low = low if given[0] is None else given[0]
        high = high if given[1] is None else given[1]
    else:
        (fixed,) = (r.row(node, name, r.widths[x]) for name in node.input if name in r.constants)
        low, high = (fixed, high) if node.op_type == "Max" else (low, fixed)
    arrays = {n: np.full(r.widths[x], v, np.float32) for n, v in (("low", low), ("high", high))}
    r.places[node.output[0]] = r.add(g.Clip, (x,), r.widths[x], **arrays)


def _layer_norm(r: _Reader, node: Any) -> None:
    own, x = _attributes(node), r._place(node.input[0])
    width, scale = r.widths[x], r.constant_of(node, 1)
    near = abs(own.get("epsilon", 1e-5) - LAYER_NORM_EPSILON) < 1e-9
    if not near or own.get("axis", -1) not in (-1, 1) or scale is None or len(node.output) > 1:
        raise r._unknown(node)
    shift = r.row(node, node.input[2], width) if len(node.input) > 2 else np.zeros(width)
    arrays = {"scale": r.row(node, node.input[1], width), "shift": np.float32(shift)}
    r.places[node.output[0]] = r.add(g.LayerNorm, (x,), width, **arrays)


def _concat(r: _Reader, node: Any) -> None:
    if _attributes(node)["axis"] not in (1, -1) or any(n in r.constants for n in node.input):
        raise r._unknown(node)
    parts = tuple(r._place(name) for name in node.input)
    r.places[node.output[0]] = r.add(g.Concat, parts, sum(r.widths[part] for part in parts))


def _slice(r: _Reader, node: Any) -> None:
    start, stop, axes, steps = (r.constant_of(node, k) for k in range(1, 5))
    x = r._place(node.input[0])
    columns = axes is not None and axes.tolist() in ([1], [-1])
    if start is None or stop is None or not columns or (steps is not None and steps.item() != 1):
        raise r._unknown(node)
    first, last, _ = slice(int(start.item()), int(stop.item())).indices(r.widths[x])
    r.places[node.output[0]] = r.add(g.Slice, (x,), last - first, start=first, stop=last)


def _split(r: _Reader, node: Any) -> None:
    own, x, sizes = _attributes(node), r._place(node.input[0]), r.constant_of(node, 1)
    count = len(node.output)
    widths = own.get("split", [r.widths[x] // count] * count) if sizes is None else sizes.tolist()
    if own.get("axis", 0) not in (1, -1) or sum(widths) != r.widths[x]:
        raise r._unknown(node)
    at = 0
    for name, width in zip(node.output, widths, strict=True):
        r.places[name] = r.add(g.Slice, (x,), width, start=at, stop=at + width)
        at += width


def _gather(r: _Reader, node: Any) -> None:
    """Columns in another order: exactly a layer of ones and zeros."""
    index, x = r.constant_of(node, 1), r._place(node.input[0])
    if _attributes(node).get("axis", 0) not in (1, -1) or index is None or index.ndim != 1:
        raise r._unknown(node)
    _dense(r, node, np.eye(r.widths[x])[index], np.zeros(len(index)))


def _arg_max(r: _Reader, node: Any) -> None:
    own, x = _attributes(node), r._place(node.input[0])
    if own.get("axis", 0) not in (1, -1) or own.get("select_last_index", 0):
        raise r._unknown(node)
    chosen = r.add(g.Choose, (x,), 1, sizes=(r.widths[x],), start=(0,))
    r.places[node.output[0]] = chosen


_READ: dict[str, Callable[[_Reader, Any], None]] = {
    **{"Gemm": _gemm, "MatMul": _matmul, "Sigmoid": _sigmoid, "Concat": _concat},
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Tanh", "Relu", "Elu"), _activation),
    **dict.fromkeys(("Clip", "Min", "Max"), _bounds),
    **{"LayerNormalization": _layer_norm, "Slice": _slice, "Split": _split, "Gather": _gather},
    "ArgMax": _arg_max,
}
_KNOWN = ("Tanh", "Relu", "Elu", "Sigmoid", "SiLU", "Clip", "LayerNormalization", "ArgMax")
