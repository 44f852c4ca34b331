"""A graph computed in numpy: what every other format is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import graph as g
from .graph import Graph, Op

LAYER_NORM_EPSILON = 1e-5
"""torch's."""


def run(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute a graph's outputs.

    Args:
        graph: what `read_policy` gave.
        inputs: (B, *shape) by the names of `graph.inputs`; the mask may be left out (all allowed),
            and so may the state (zeros).

    Returns:
        The outputs by name, (B, *shape).
    """
    values = dict(inputs)
    rows = len(next(iter(inputs.values())))
    for port in graph.inputs:
        if port.name == g.MASK:
            values.setdefault(port.name, np.ones((rows, *port.shape), np.bool_))
        elif port.name == g.STATE:
            values.setdefault(port.name, np.zeros((rows, *port.shape), np.float32))
    for op, done in zip(graph.ops, graph.done, strict=True):
        values[op.output] = _COMPUTE[type(op)](op, *(values[name] for name in op.inputs))
        for name in done:
            del values[name]
    return {port.name: values[port.name] for port in graph.outputs}


def to_world(graph: Graph, outputs: Mapping[str, np.ndarray]) -> Any:
    """What the world is told: an array (B, *shape), or a dict of them by the actions' keys."""
    told = {}
    for action in graph.actions:
        value = outputs[action.output]
        if action.kind == "box":
            value = np.clip(action.offset + action.scale * value, action.low, action.high)
            value = value.astype(np.float32)
        told[action.key] = value.reshape(-1, *action.shape)
    return told[""] if list(told) == [""] else told


def _flatten(op: g.Flatten, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32)


def _normalize(op: g.Normalize, x: np.ndarray) -> np.ndarray:
    return np.clip((x - op.mean) * op.inv_std, -op.clip, op.clip)


def _one_hot(op: g.OneHot, x: np.ndarray) -> np.ndarray:
    columns = zip(x.T, op.sizes, op.start, strict=True)
    parts = [(column - start)[:, None] == np.arange(size) for column, size, start in columns]
    return np.concatenate(parts, 1).astype(np.float32)


def _concat(op: g.Concat, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, 1)


def _image(op: g.Image, x: np.ndarray) -> np.ndarray:
    if op.channels_last:
        x = x.transpose(0, 3, 1, 2)
    return x.astype(np.float32) / np.float32(255)


def _conv(op: g.Conv, x: np.ndarray) -> np.ndarray:
    pad = ((0, 0), (0, 0), (op.padding,) * 2, (op.padding,) * 2)
    kernel = op.weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, pad), kernel, axis=(2, 3))
    windows = windows[:, :, :: op.stride, :: op.stride]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*_grid(windows), -1)
    out = rows @ op.weight.reshape(len(op.weight), -1).T + op.bias
    return out.transpose(0, 3, 1, 2)


def _grid(windows: np.ndarray) -> tuple[int, int, int]:
    return windows.shape[0], windows.shape[2], windows.shape[3]


def _dense(op: g.Dense, x: np.ndarray) -> np.ndarray:
    return x @ op.weight.T + op.bias


def _layer_norm(op: g.LayerNorm, x: np.ndarray) -> np.ndarray:
    mean = x.mean(1, keepdims=True)
    variance = np.square(x - mean).mean(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + LAYER_NORM_EPSILON) * op.scale + op.shift


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (0.5 * np.tanh(0.5 * x) + 0.5).astype(np.float32)


_ACTIVATE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * _sigmoid(x),
}


def _activation(op: g.Activation, x: np.ndarray) -> np.ndarray:
    return _ACTIVATE[op.kind](x)


def _gru(op: g.GRU, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    r_x, z_x, n_x = np.split(x @ op.weight_input.T + op.bias_input, 3, 1)
    r_h, z_h, n_h = np.split(h @ op.weight_hidden.T + op.bias_hidden, 3, 1)
    z = _sigmoid(z_x + z_h)
    n = np.tanh(n_x + _sigmoid(r_x + r_h) * n_h)
    return (1 - z) * n + z * h


def _lstm(op: g.LSTM, x: np.ndarray, state: np.ndarray) -> np.ndarray:
    h, c = np.split(state, 2, 1)
    gates = x @ op.weight_input.T + op.bias_input + h @ op.weight_hidden.T + op.bias_hidden
    i, f, n, o = np.split(gates, 4, 1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(n)
    return np.concatenate([_sigmoid(o) * np.tanh(c), c], 1)


def _slice(op: g.Slice, x: np.ndarray) -> np.ndarray:
    return x[:, op.start : op.stop]


def _clip(op: g.Clip, x: np.ndarray) -> np.ndarray:
    return np.clip(x, op.low, op.high)


def _choose(op: g.Choose, logits: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    chosen, at = [], 0
    for size, start in zip(op.sizes, op.start, strict=True):
        own = logits[:, at : at + size]
        if mask is not None:
            allowed = mask[:, at : at + size] != 0
            allowed = allowed | ~allowed.any(1, keepdims=True)
            own = np.where(allowed, own, -np.inf)
        chosen.append(own.argmax(1) + start)
        at += size
    return np.stack(chosen, 1).astype(np.int64)


def _switch(op: g.Switch, x: np.ndarray) -> np.ndarray:
    return (x > 0).astype(np.int64)


_COMPUTE: dict[type[Op], Callable[..., np.ndarray]] = {
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
