"""A graph as C99 source without dependencies, for whatever has a C compiler and an FPU.

Two files, NAME.h and NAME.c, and with golden pairs a third, NAME_test.c, a program that checks them
where they will run. One call of `NAME_step` is one decision; memory is static, nothing is
allocated, and no header but the C library's is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.graph import Graph, Op
from rlgym.deploy.reference import LAYER_NORM_EPSILON
from rlgym.errors import UserError
from rlgym.export import c99_text as c

PER_LINE = 8
"""Numbers on a line of an array."""
Weights = Literal["float32", "int8"]


def write_c99(
    graph: Graph,
    folder: str | Path,
    name: str = "policy",
    weights: Weights = "float32",
    golden: tuple[np.ndarray, np.ndarray] | None = None,
    tolerance: float = 1e-5,
) -> list[Path]:
    """Write a policy as C99.

    Args:
        graph: what `read_policy` gave.
        folder: where the files go; it exists.
        name: of the files, and first word of every public name.
        weights: "float32", or "int8": dense weights in bytes with one scale per row, a quarter of
            the size, with float32 arithmetic.
        golden: (K, inputs) observations and (K, outputs) actions for the test program.
        tolerance: that the test program allows.

    Returns:
        The files.

    Raises:
        UserError: the name is no C identifier, or the policy sees images.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UserError(f"'{name}' cannot name C functions: use letters, digits and _")
    if any(isinstance(op, (g.Image, g.Conv)) for op in graph.ops):
        raise UserError("C holds policies that see vectors, and this one sees images: use onnx")
    writer = _Writer(graph, name, weights)
    files = {f"{name}.h": writer.header(), f"{name}.c": writer.source()}
    if golden is not None:
        files[f"{name}_test.c"] = _test_program(writer, *golden, tolerance)
    for file, text in files.items():
        Path(folder, file).write_text(text, encoding="ascii")
    return [Path(folder, file) for file in files]


def pack_inputs(graph: Graph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """(B, *shape) inputs by name as the (B, NUM_INPUTS) floats that NAME_step takes."""
    ports = [port for port in graph.inputs if port.name != g.STATE]
    rows = [inputs[port.name].reshape(len(inputs[port.name]), -1) for port in ports]
    return np.concatenate(rows, 1).astype(np.float32)


def pack_actions(graph: Graph, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Outputs by name as the (B, NUM_ACTIONS) floats that NAME_step gives."""
    columns = [outputs[action.output] for action in graph.actions]
    return np.concatenate(columns, 1).astype(np.float32)


def to_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (rows, columns) as int8 steps, and the size of a step in each row, float32."""
    scale = np.abs(weight).max(1) / 127.0
    scale = np.where(scale == 0.0, 1.0, scale).astype(np.float32)
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8), scale


@dataclass
class _Writer:
    """Collects arrays, buffers and statements while it walks through the operations."""

    graph: Graph
    name: str
    weights: Weights
    arrays: list[str] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)
    """Names of static arrays of floats, with their sizes."""
    place: dict[str, str] = field(default_factory=dict)
    """Graph's name of an array -> the C expression of its first element."""
    size: dict[str, int] = field(default_factory=dict)
    """Graph's name of an array -> its number of floats."""
    own: set[str] = field(default_factory=set)
    """Graph's names of arrays that are no part of another array."""
    body: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = 0
        for port in self.graph.inputs:
            self.size[port.name] = int(np.prod(port.shape))
            if port.name == g.STATE:
                self.place[port.name] = "state"
                continue
            self.place[port.name] = f"input + {at}" if at else "input"
            at += self.size[port.name]
        self.num_inputs = at
        self.num_actions = sum(self._width(action) for action in self.graph.actions)
        self.uses: dict[str, int] = {}
        for op in self.graph.ops:
            for name in op.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1
        for op in self.graph.ops:
            _EMIT[type(op)](self, op)

    def _width(self, action: g.Action) -> int:
        return next(
            int(np.prod(port.shape)) for port in self.graph.outputs if port.name == action.output
        )

    # ------------------------------------------------------------------------- for emitters

    def array(self, op: Op, name: str, values: Any) -> str:
        """Declare a constant array and return its name."""
        label = f"{_identifier(op.output)}_{name}"
        self.arrays.append(_declare(label, np.asarray(values)))
        return label

    def buffer(self, op: Op, size: int, of: str | None = None) -> str:
        """Where an operation writes: into the array `of` it reads, if nobody else reads that."""
        self.size[op.output] = size
        if of in self.own and self.uses[of] == 1:
            self.place[op.output] = self.place[of]
        else:
            label = _identifier(op.output)
            self.buffers[label] = size
            self.place[op.output] = label
        self.own.add(op.output)
        return self.place[op.output]

    def dense(self, op: Op, label: str, weight: np.ndarray, bias: np.ndarray, x: str, y: str):
        """Emit y = weight x + bias."""
        rows, columns = weight.shape
        offsets = self.array(op, f"{label}bias", bias)
        if self.weights == "int8":
            steps, scale = to_int8(weight)
            arrays = f"{self.array(op, f'{label}weight', steps.reshape(-1))}, "
            arrays += self.array(op, f"{label}scale", scale)
        else:
            arrays = self.array(op, f"{label}weight", weight.reshape(-1))
        self.body.append(f"dense({arrays}, {offsets}, {x}, {y}, {rows}, {columns});")

    # ------------------------------------------------------------------------------- the files

    def header(self) -> str:
        """The text of NAME.h."""
        upper, name = self.name.upper(), self.name
        inputs = "".join(f"\n *   {self._line(port)}" for port in self.graph.inputs)
        actions = "".join(
            f"\n *   {action.output} ({self._width(action)})" for action in self.graph.actions
        )
        return c.HEADER.format(
            upper=upper,
            name=name,
            inputs=inputs,
            actions=actions,
            num_inputs=self.num_inputs,
            num_actions=self.num_actions,
        )

    def _line(self, port: g.Port) -> str:
        kept = ", kept inside, not passed" if port.name == g.STATE else ""
        return f"{port.name} ({self.size[port.name]}{kept})"

    def source(self) -> str:
        """The text of NAME.c."""
        statics = [f"static float {label}[{size}];" for label, size in self.buffers.items()]
        if self.graph.state_size:
            statics.append(f"static float state[{self.graph.state_size}];")
        check, finish, at = [], [], 0
        for action in self.graph.actions:
            width, source = self._width(action), self.place[action.output]
            check.append(f"if (!all_finite({source}, {width}))")
            check.append(f"    return {self.name.upper()}_BAD_ACTION;")
            finish.append(f"memcpy(action + {at}, {source}, {width} * sizeof(float));")
            at += width
        if self.graph.state_size:
            finish.append(f"memcpy(state, {self.place['next_state']}, sizeof state);")
        used = "\n".join(self.body)
        functions = [text for word, text in c.FUNCTIONS.items() if f"{word}(" in used]
        functions.append(c.DENSE if self.weights == "float32" else c.DENSE_INT8)
        reset = "    memset(state, 0, sizeof state);" if self.graph.state_size else ""
        return c.SOURCE.format(
            name=self.name,
            upper=self.name.upper(),
            arrays="\n".join(self.arrays),
            statics="\n".join(statics),
            functions="\n".join(functions).replace(
                "LAYER_NORM_EPSILON", _float(LAYER_NORM_EPSILON)
            ),
            body=_indent(self.body),
            check=_indent(check),
            finish=_indent(finish),
            reset=reset,
        )


def _test_program(
    writer: _Writer, inputs: np.ndarray, actions: np.ndarray, tolerance: float
) -> str:
    arrays = (_declare("golden_input", inputs), _declare("golden_action", actions))
    return c.TEST.format(
        name=writer.name,
        upper=writer.name.upper(),
        pairs=len(inputs),
        arrays="\n".join(arrays),
        tolerance=_float(tolerance),
    )


def _indent(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _identifier(name: str) -> str:
    return "v_" + re.sub(r"\W", "_", name)


def _declare(label: str, values: np.ndarray) -> str:
    kind = {"i": "signed char" if values.dtype == np.int8 else "int"}.get(
        values.dtype.kind, "float"
    )
    flat = values.reshape(-1).tolist()
    texts = [_float(value) for value in flat] if kind == "float" else [str(v) for v in flat]
    lines = [", ".join(texts[i : i + PER_LINE]) for i in range(0, len(texts), PER_LINE)]
    return f"static const {kind} {label}[{len(flat)}] = {{\n" + ",\n".join(lines) + "};"


def _float(value: float) -> str:
    if np.isinf(value):  # a bound that is none
        return "FLT_MAX" if value > 0 else "-FLT_MAX"
    text = f"{np.float32(value):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


# ------------------------------------------------------------------------------------ emitters


def _flatten(w: _Writer, op: g.Flatten) -> None:
    w.place[op.output], w.size[op.output] = w.place[op.inputs[0]], w.size[op.inputs[0]]


def _normalize(w: _Writer, op: g.Normalize) -> None:
    x, n = op.inputs[0], w.size[op.inputs[0]]
    source, target = w.place[x], w.buffer(op, n, x)
    arrays = f"{w.array(op, 'mean', op.mean)}, {w.array(op, 'inv_std', op.inv_std)}"
    w.body.append(f"normalize({source}, {arrays}, {_float(op.clip)}, {target}, {n});")


def _one_hot(w: _Writer, op: g.OneHot) -> None:
    target, at = w.buffer(op, sum(op.sizes)), 0
    for k, (size, start) in enumerate(zip(op.sizes, op.start, strict=True)):
        w.body.append(f"one_hot({w.place[op.inputs[0]]} + {k}, {start}, {target} + {at}, {size});")
        at += size


def _concat(w: _Writer, op: g.Concat) -> None:
    target, at = w.buffer(op, sum(w.size[name] for name in op.inputs)), 0
    for name in op.inputs:
        n = w.size[name]
        w.body.append(f"memcpy({target} + {at}, {w.place[name]}, {n} * sizeof(float));")
        at += n


def _dense(w: _Writer, op: g.Dense) -> None:
    target = w.buffer(op, len(op.bias))
    w.dense(op, "", op.weight, op.bias, w.place[op.inputs[0]], target)


def _layer_norm(w: _Writer, op: g.LayerNorm) -> None:
    n = op.scale.size
    source, target = w.place[op.inputs[0]], w.buffer(op, n, op.inputs[0])
    arrays = f"{w.array(op, 'scale', op.scale)}, {w.array(op, 'shift', op.shift)}"
    w.body.append(f"layer_norm({source}, {arrays}, {target}, {n});")


def _activation(w: _Writer, op: g.Activation) -> None:
    n = w.size[op.inputs[0]]
    source, target = w.place[op.inputs[0]], w.buffer(op, n, op.inputs[0])
    w.body.append(f"activate_{op.kind}({source}, {target}, {n});")


def _recurrent(w: _Writer, op: g.GRU | g.LSTM) -> None:
    size = op.weight_hidden.shape[1]
    gates = len(op.bias_input)
    label = _identifier(op.output)
    sides = (
        ("input", op.inputs[0], op.weight_input, op.bias_input),
        ("hidden", op.inputs[1], op.weight_hidden, op.bias_hidden),
    )
    for side, x, weight, bias in sides:
        w.buffers[f"{label}_{side}"] = gates
        w.dense(op, f"{side}_", weight, bias, w.place[x], f"{label}_{side}")
    kind, width = ("gru", size) if isinstance(op, g.GRU) else ("lstm", 2 * size)
    target = w.buffer(op, width)
    state = w.place[op.inputs[1]]
    w.body.append(f"{kind}({label}_input, {label}_hidden, {state}, {target}, {size});")


def _slice(w: _Writer, op: g.Slice) -> None:
    source = w.place[op.inputs[0]]
    w.size[op.output] = op.stop - op.start
    w.place[op.output] = f"{source} + {op.start}" if op.start else source


def _clip(w: _Writer, op: g.Clip) -> None:
    n = op.low.size
    target = w.buffer(op, n)
    arrays = f"{w.array(op, 'low', op.low)}, {w.array(op, 'high', op.high)}"
    w.body.append(f"clip({w.place[op.inputs[0]]}, {arrays}, {target}, {n});")


def _choose(w: _Writer, op: g.Choose) -> None:
    target, at = w.buffer(op, len(op.sizes)), 0
    mask = f"{w.place[op.inputs[1]]}" if len(op.inputs) == 2 else "NULL"
    for k, (size, start) in enumerate(zip(op.sizes, op.start, strict=True)):
        flags = mask if mask == "NULL" else f"{mask} + {at}"
        logits = f"{w.place[op.inputs[0]]} + {at}"
        w.body.append(f"{target}[{k}] = (float)(choose({logits}, {flags}, {size}) + {start});")
        at += size


def _switch(w: _Writer, op: g.Switch) -> None:
    n = w.size[op.inputs[0]]
    target = w.buffer(op, n)
    w.body.append(f"switches({w.place[op.inputs[0]]}, {target}, {n});")


_EMIT: dict[type[Op], Callable[[_Writer, Any], None]] = {
    g.Flatten: _flatten,
    g.Normalize: _normalize,
    g.OneHot: _one_hot,
    g.Concat: _concat,
    g.Dense: _dense,
    g.LayerNorm: _layer_norm,
    g.Activation: _activation,
    g.GRU: _recurrent,
    g.LSTM: _recurrent,
    g.Slice: _slice,
    g.Clip: _clip,
    g.Choose: _choose,
    g.Switch: _switch,
}
