"""Is a graph out of a file one that can be computed? Sizes are followed through every operation.

What is refused here is refused in one line; else numpy would complain in the middle of a control
step, or take all memory for a padding of a billion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import graph as g
from .errors import BundleError
from .graph import Graph, Op, Port

MAX_VALUES = 1 << 28
"""Numbers that a graph may hold at once, of all rows that it computes together: 1 GiB."""
MAX_PADDING = 64
_KINDS = {"box", "discrete", "multi_discrete", "multi_binary"}
_ACTIVATIONS = {"tanh", "relu", "elu", "silu"}
Shape = tuple[int, ...]


def check_graph(graph: Graph, rows: int = 1) -> None:
    """Follow sizes from the inputs to the outputs.

    Args:
        graph: out of a file.
        rows: observations that will be computed together.

    Raises:
        BundleError: something is of the wrong type or size, not finite, or read before it is given;
            or so many rows of it take too much memory.
    """
    shapes: dict[str, Shape] = {}
    for port in graph.inputs:
        _check_port(port, shapes)
    held = sum(map(math.prod, shapes.values()))
    for op, done in zip(graph.ops, graph.done, strict=True):
        _check_op(op, shapes)
        held += math.prod(shapes[op.output])
        _check_memory(held + _meanwhile(op, shapes), rows)
        held -= sum(math.prod(shapes[name]) for name in done)
    for port in graph.outputs:
        if port.name not in shapes:
            raise BundleError(f"the graph never gives its output '{port.name}'")
        if math.prod(shapes[port.name]) != math.prod(_shape(port.shape)):
            raise BundleError(
                f"output '{port.name}' has {math.prod(shapes[port.name])} values, its port says "
                f"{math.prod(port.shape)}"
            )
    for action in graph.actions:
        _check_action(action, shapes)
    state = next((port for port in graph.inputs if port.name == g.STATE), None)
    if graph.state_size != (0 if state is None else math.prod(state.shape)):
        raise BundleError(
            f"the graph's state has {graph.state_size} values, its input another size"
        )
    if not graph.inputs or not graph.actions:
        raise BundleError("the graph has no inputs, or gives no action")


def _check_port(port: Port, shapes: dict[str, Shape]) -> None:
    if not isinstance(port.name, str) or port.name in shapes:
        raise BundleError(f"the graph has two inputs '{port.name}'")
    try:
        kind = np.dtype(port.dtype).kind
    except TypeError:
        kind = "?"
    if kind not in "biuf":
        raise BundleError(
            f"input '{port.name}' is of the type {port.dtype!r}, which is no number's"
        )
    shapes[port.name] = _shape(port.shape)


def _shape(shape: Any) -> Shape:
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > MAX_VALUES:
        raise BundleError(f"the graph has an array of the shape {list(shape)}")
    return tuple(shape)


def _check_op(op: Op, shapes: dict[str, Shape]) -> None:
    given = []
    for name in op.inputs:
        if name not in shapes:
            raise BundleError(f"the graph reads '{name}' before anything gives it")
        given.append(shapes[name])
    if op.output in shapes:
        raise BundleError(f"the graph gives '{op.output}' twice")
    for name, array in g.constants(op).items():
        _check_numbers(op, name, array)
    try:
        shapes[op.output] = _shape(_GIVES[type(op)](op, *given))
    except BundleError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise BundleError(
            f"'{op.output}' ({type(op).__name__}) cannot be computed ({said}): export the policy "
            "again"
        ) from None


def _meanwhile(op: Op, shapes: dict[str, Shape]) -> int:
    """Numbers that an operation holds while it computes, beside what it reads and writes."""
    if isinstance(op, g.Conv):
        planes, *sides = shapes[op.inputs[0]]
        padded = planes * math.prod(n + 2 * op.padding for n in sides)
        windows = math.prod(op.weight.shape[1:]) * math.prod(shapes[op.output][1:])
        return padded + windows
    if isinstance(op, (g.GRU, g.LSTM)):
        return len(op.bias_input) + len(op.bias_hidden)
    return 0


def _check_memory(values: int, rows: int) -> None:
    if values * rows > MAX_VALUES:
        raise BundleError(
            f"the graph holds {values * rows:,} numbers at once for {rows} observations, and "
            f"{MAX_VALUES:,} are allowed: export with fewer steps, or a smaller network"
        )


def _check_numbers(op: Op, name: str, array: np.ndarray) -> None:
    if isinstance(op, g.Clip):
        if np.isnan(array).any():
            raise BundleError(f"a bound in the graph is not a number ({name})")
    elif not np.isfinite(array).all():
        raise BundleError(
            f"weights of '{op.output}' are not finite ({name}): train again, or export an earlier "
            "checkpoint"
        )


def _check_action(action: g.Action, shapes: dict[str, Shape]) -> None:
    if action.output not in shapes:
        raise BundleError(f"the graph never gives its output '{action.output}'")
    if action.kind not in _KINDS:
        raise BundleError(f"an action is of the kind {action.kind!r}: use {', '.join(_KINDS)}")
    size = math.prod(shapes[action.output])
    if math.prod(_shape(action.shape)) != size:
        raise BundleError(
            f"'{action.output}' has {size} values, its action has the shape {list(action.shape)}"
        )
    if action.kind == "box":
        for name in ("scale", "offset", "low", "high"):
            array = getattr(action, name)
            if not isinstance(array, np.ndarray) or array.shape != (size,):
                raise BundleError(f"'{name}' of '{action.output}' is not {size} numbers")
            if np.isnan(array).any():
                raise BundleError(f"'{name}' of '{action.output}' is not a number somewhere")


# ----- What each operation makes of sizes; a mismatch raises --------------------------------------


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(what)


def _row(x: Shape) -> int:
    _need(len(x) == 1, f"it takes rows, and gets {list(x)}")
    return x[0]


def _array(array: Any, *shape: int | None) -> None:
    is_array = isinstance(array, np.ndarray) and array.ndim == len(shape)
    fits = is_array and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
    _need(fits, f"an array must be {list(shape)}, is {list(np.shape(array))}")


def _counts(op: Any) -> int:
    _need(
        len(op.sizes) == len(op.start) and all(type(n) is int for n in (*op.sizes, *op.start)),
        "sizes and starts are not whole numbers, one each per component",
    )
    _need(all(n > 0 for n in op.sizes), "a component has no choices")
    return sum(op.sizes)


def _flatten(op: g.Flatten, x: Shape) -> Shape:
    return (math.prod(x),)


def _normalize(op: g.Normalize, x: Shape) -> Shape:
    _array(op.mean, _row(x))
    _array(op.inv_std, _row(x))
    _need(type(op.clip) in (int, float) and 0 < op.clip < math.inf, f"its clip is {op.clip!r}")
    return x


def _one_hot(op: g.OneHot, x: Shape) -> Shape:
    _need(_row(x) == len(op.sizes), f"{_row(x)} values for {len(op.sizes)} components")
    return (_counts(op),)


def _concat(op: g.Concat, *parts: Shape) -> Shape:
    return (sum(_row(part) for part in parts),)


def _image(op: g.Image, x: Shape) -> Shape:
    _need(len(x) == 3, f"it takes pictures, and gets {list(x)}")
    return (x[2], x[0], x[1]) if op.channels_last else x


def _conv(op: g.Conv, x: Shape) -> Shape:
    _need(len(x) == 3, f"it takes planes, and gets {list(x)}")
    _array(op.weight, None, x[0], None, None)
    filters, _, *kernel = op.weight.shape
    _array(op.bias, filters)
    _need(type(op.stride) is int and op.stride > 0, f"its stride is {op.stride!r}")
    _need(type(op.padding) is int and 0 <= op.padding <= MAX_PADDING, f"padding {op.padding!r}")
    sides = [(n + 2 * op.padding - k) // op.stride + 1 for n, k in zip(x[1:], kernel, strict=True)]
    _need(all(k > 0 for k in kernel) and min(sides) > 0, "its kernel is larger than the picture")
    return (filters, *sides)


def _dense(op: g.Dense, x: Shape) -> Shape:
    _array(op.weight, None, _row(x))
    _array(op.bias, len(op.weight))
    return (len(op.weight),)


def _layer_norm(op: g.LayerNorm, x: Shape) -> Shape:
    _array(op.scale, _row(x))
    _array(op.shift, _row(x))
    return x


def _activation(op: g.Activation, x: Shape) -> Shape:
    _need(op.kind in _ACTIVATIONS, f"there is no activation {op.kind!r}")
    return x


def _gru(op: g.GRU, x: Shape, h: Shape) -> Shape:
    return _cell(op, x, h, 3, 1)


def _lstm(op: g.LSTM, x: Shape, state: Shape) -> Shape:
    return _cell(op, x, state, 4, 2)


def _cell(op: g.GRU | g.LSTM, x: Shape, state: Shape, gates: int, parts: int) -> Shape:
    size, rest = divmod(_row(state), parts)
    _need(not rest, "the state is of an odd size")
    _array(op.weight_input, gates * size, _row(x))
    _array(op.weight_hidden, gates * size, size)
    _array(op.bias_input, gates * size)
    _array(op.bias_hidden, gates * size)
    return state


def _slice(op: g.Slice, x: Shape) -> Shape:
    ends = op.start, op.stop
    _need(
        all(type(n) is int for n in ends) and 0 <= op.start < op.stop <= _row(x),
        f"columns {op.start!r} to {op.stop!r} of {_row(x)}",
    )
    return (op.stop - op.start,)


def _clip(op: g.Clip, x: Shape) -> Shape:
    _array(op.low, _row(x))
    _array(op.high, _row(x))
    return x


def _choose(op: g.Choose, logits: Shape, mask: Shape | None = None) -> Shape:
    total = _counts(op)
    _need(_row(logits) == total, f"{_row(logits)} logits for {total} choices")
    _need(mask is None or _row(mask) == total, f"the mask does not have {total} values")
    return (len(op.sizes),)


def _switch(op: g.Switch, x: Shape) -> Shape:
    return (_row(x),)


_GIVES: dict[type[Op], Callable[..., Shape]] = {
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
