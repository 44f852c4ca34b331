"""The graph as a file: arrays in an .npz, and which array belongs to what as JSON beside them."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np

from . import graph as g
from .arrays import read_arrays
from .errors import BundleError
from .graph import Action, Graph, Op, Port
from .graph_check import check_graph

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
    arrays: dict[str, Any] = {}

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
        arrays = read_arrays(data, "the graph")
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
        check_graph(graph)
    except BundleError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BundleError(f"the graph cannot be read ({said}): export the policy again") from None
    return graph


def _build(kind: type, item: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    def value(entry: Any) -> Any:
        if isinstance(entry, dict):
            return arrays[entry["array"]]
        return tuple(entry) if isinstance(entry, list) else entry

    return kind(**{name: value(entry) for name, entry in item.items()})
