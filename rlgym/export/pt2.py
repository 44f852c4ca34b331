"""A graph as a `torch.export` program (.pt2): for torch users, and a door to torch's compilers.

The program takes the graph's inputs in order, any batch size, and gives its outputs in order.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgym.deploy import graph as g
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Graph, Op
from rlgym.deploy.reference import LAYER_NORM_EPSILON

_ROWS = 2
"""Batch of the example; 1 would make the batch axis a constant."""


def write_pt2(graph: Graph) -> bytes:
    """Return the bytes of a .pt2 file."""
    target = io.BytesIO()
    torch.export.save(to_program(graph), target)
    return target.getvalue()


def to_program(graph: Graph, one: bool = False) -> torch.export.ExportedProgram:
    """Trace a graph.

    Args:
        graph: what `read_policy` gave.
        one: a batch of exactly one, for compilers that fix all shapes; else any batch.
    """
    rows = 1 if one else _ROWS
    inputs = {port.name: np.zeros((rows, *port.shape), port.dtype) for port in graph.inputs}
    batch = torch.export.Dim("batch", min=1)
    free = None if one else (tuple({0: batch} for _ in graph.inputs),)
    with torch.no_grad():
        module = GraphModule(graph).eval()
        return torch.export.export(module, tensors_of(graph, inputs), dynamic_shapes=free)


def run_pt2(data: bytes, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Load a .pt2 of ours and run it; torch can run code out of such a file, so never a stranger's.

    Args:
        data: what `write_pt2` gave.
        graph: that it was written from.
        inputs: (B, *shape) by the graph's names.

    Raises:
        BundleError: torch cannot load it, or it gives something else.
    """
    return run_program(load_pt2(data), graph, inputs)


def load_pt2(data: bytes) -> Any:
    """The program of a .pt2 of ours, as a module; see `run_pt2`."""
    try:
        return torch.export.load(io.BytesIO(data)).module()
    except Exception as error:
        raise _failed(error) from None


def run_program(
    program: Any, graph: Graph, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What a loaded program gives; see `run_pt2`."""
    try:
        with torch.no_grad():
            outputs = program(*tensors_of(graph, inputs))
        named = zip(graph.outputs, outputs, strict=True)
        return {port.name: value.numpy() for port, value in named}
    except Exception as error:
        raise _failed(error) from None


def _failed(error: Exception) -> BundleError:
    said = " ".join(str(error).split())[:200]
    return BundleError(f"the .pt2 cannot be run ({said}): export the policy again")


def tensors_of(graph: Graph, inputs: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    """A program's arguments, in order."""
    return tuple(torch.from_numpy(np.ascontiguousarray(inputs[p.name])) for p in graph.inputs)


class GraphModule(nn.Module):
    """A graph as a module: forward(*inputs) gives a tuple of its outputs, in the graph's order."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        for i, op in enumerate(graph.ops):
            for name, array in g.constants(op).items():
                self.register_buffer(f"op{i}_{name}", torch.from_numpy(array.copy()))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute all operations."""
        values = dict(zip((port.name for port in self.graph.inputs), inputs, strict=True))
        for i, op in enumerate(self.graph.ops):
            arrays = {name: getattr(self, f"op{i}_{name}") for name in g.constants(op)}
            given = [values[name] for name in op.inputs]
            values[op.output] = _COMPUTE[type(op)](op, arrays, *given)
        return tuple(values[port.name].clone() for port in self.graph.outputs)


Arrays = dict[str, Tensor]


def _flatten(op: g.Flatten, _: Arrays, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1).float()  # also where a value has no axis of its own


def _normalize(op: g.Normalize, a: Arrays, x: Tensor) -> Tensor:
    return ((x - a["mean"]) * a["inv_std"]).clamp(-op.clip, op.clip)


def _one_hot(op: g.OneHot, _: Arrays, x: Tensor) -> Tensor:
    columns = zip(x.unbind(1), op.sizes, op.start, strict=True)
    parts = [(x - start).unsqueeze(1) == torch.arange(n) for x, n, start in columns]
    return torch.cat(parts, 1).float()


def _concat(op: g.Concat, _: Arrays, *parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def _image(op: g.Image, _: Arrays, x: Tensor) -> Tensor:
    return (x.permute(0, 3, 1, 2) if op.channels_last else x).float() / 255


def _conv(op: g.Conv, a: Arrays, x: Tensor) -> Tensor:
    return F.conv2d(x, a["weight"], a["bias"], op.stride, op.padding)


def _dense(op: g.Dense, a: Arrays, x: Tensor) -> Tensor:
    return F.linear(x, a["weight"], a["bias"])


def _layer_norm(op: g.LayerNorm, a: Arrays, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[1],), a["scale"], a["shift"], LAYER_NORM_EPSILON)


def _activation(op: g.Activation, _: Arrays, x: Tensor) -> Tensor:
    return getattr(torch if op.kind == "tanh" else F, op.kind)(x)


def _gru(op: g.GRU, a: Arrays, x: Tensor, h: Tensor) -> Tensor:
    r_x, z_x, n_x = F.linear(x, a["weight_input"], a["bias_input"]).chunk(3, 1)
    r_h, z_h, n_h = F.linear(h, a["weight_hidden"], a["bias_hidden"]).chunk(3, 1)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (1 - z) * n + z * h


def _lstm(op: g.LSTM, a: Arrays, x: Tensor, state: Tensor) -> Tensor:
    h, c = state.chunk(2, 1)
    gates = F.linear(x, a["weight_input"], a["bias_input"])
    i, f, n, o = (gates + F.linear(h, a["weight_hidden"], a["bias_hidden"])).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(n)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)


def _slice(op: g.Slice, _: Arrays, x: Tensor) -> Tensor:
    return x[:, op.start : op.stop]


def _clip(op: g.Clip, a: Arrays, x: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, a["low"]), a["high"])


def _choose(op: g.Choose, _: Arrays, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    chosen, at = [], 0
    for size, start in zip(op.sizes, op.start, strict=True):
        own = logits[:, at : at + size]
        if mask is not None:
            allowed = mask[:, at : at + size] != 0
            allowed = allowed | ~allowed.any(1, keepdim=True)
            own = own.masked_fill(~allowed, -torch.inf)
        chosen.append(own.argmax(1) + start)
        at += size
    return torch.stack(chosen, 1)


def _switch(op: g.Switch, _: Arrays, x: Tensor) -> Tensor:
    return (x > 0).long()


_COMPUTE: dict[type[Op], Callable[..., Any]] = {
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
