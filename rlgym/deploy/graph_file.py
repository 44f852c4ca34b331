"""The graph as a file: arrays in an .npz, and which array belongs to what as JSON beside them."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np

from . import graph as g
from .errors import BundleError
from .graph import Action, Graph, Op, Port

OPS: dict[str, type[Op]] = {
    kind.__name__: kind
    for kind in (
        *(g.Flatten, g.Normalize, g.OneHot, g.Concat, g.Image, g.Conv, g.Dense, g.LayerNorm),
        *(g.Activation, g.GRU, g.LSTM, g.Slice, g.Clip, g.Choose, g.Switch),
    )
}
"""The operations that a file may name."""
MAX_OPS = 10_000
_LAYOUT = "layout"


def dump_graph(graph: Graph) -> bytes:
    """The file's bytes: one array per constant, and "layout", which is JSON."""
    arrays: dict[str, np.ndarray] = {}

    def plain(value: Any, label: str) -> Any:
        if isinstance(value, np.ndarray):
            arrays[label] = value
            return {"array": label}
        return list(value) if isinstance(value, tuple) else value

    def fields(item: Any, label: str) -> dict[str, Any]:
        found = dataclasses.fields(item)
        return {f.name: plain(getattr(item, f.name), f"{label}.{f.name}") for f in found}

    layout = {
        "inputs": [fields(port, "") for port in graph.inputs],
        "outputs": [fields(port, "") for port in graph.outputs],
        "ops": [
            {"op": type(op).__name__, **fields(op, f"op{i}")} for i, op in enumerate(graph.ops)
        ],
        "actions": [fields(action, f"action{i}") for i, action in enumerate(graph.actions)],
        "state_size": graph.state_size,
    }
    arrays[_LAYOUT] = np.frombuffer(json.dumps(layout).encode(), np.uint8)
    target = io.BytesIO()
    np.savez(target, **arrays)
    return target.getvalue()


def load_graph(data: bytes) -> Graph:
    """Read what `dump_graph` wrote; nothing in it is run.

    Raises:
        BundleError: the bytes are no such file, or name what is not there.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        layout = json.loads(arrays.pop(_LAYOUT).tobytes())
        if len(layout["ops"]) > MAX_OPS:
            raise BundleError(f"a graph of {len(layout['ops'])} operations is no policy's")
        graph = Graph(
            tuple(_build(Port, item, arrays) for item in layout["inputs"]),
            tuple(_build(OPS[item.pop("op")], item, arrays) for item in layout["ops"]),
            tuple(_build(Port, item, arrays) for item in layout["outputs"]),
            tuple(_build(Action, item, arrays) for item in layout["actions"]),
            int(layout["state_size"]),
        )
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"the graph cannot be read ({type(error).__name__}: {error}): export the policy again"
        ) from None
    _check(graph)
    return graph


def _build(kind: type, item: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    def value(entry: Any) -> Any:
        if isinstance(entry, dict):
            return arrays[entry["array"]]
        return tuple(entry) if isinstance(entry, list) else entry

    return kind(**{name: value(entry) for name, entry in item.items()})


def _check(graph: Graph) -> None:
    """Refuse arrays that are not finite, and names that are read before they are written."""
    known = {port.name for port in graph.inputs}
    for op in graph.ops:
        for name in op.inputs:
            if name not in known:
                raise BundleError(f"the graph reads '{name}' before anything gives it")
        if op.output in known:
            raise BundleError(f"the graph gives '{op.output}' twice")
        known.add(op.output)
        for name, array in g.constants(op).items():
            if isinstance(op, g.Clip):
                if np.isnan(array).any():
                    raise BundleError(f"a bound in the graph is not a number ({name})")
            elif not np.isfinite(array).all():
                raise BundleError(
                    f"weights of '{op.output}' are not finite ({name}): train again, or export an "
                    "earlier checkpoint"
                )
    for port in (*graph.outputs, *(Port(a.output, (), "") for a in graph.actions)):
        if port.name not in known:
            raise BundleError(f"the graph never gives its output '{port.name}'")
