"""What a bundle says of its policy beside the network: the contract with whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgym.deploy.graph import MASK, STATE, Graph


def describe(
    graph: Graph, deployment: Mapping[str, Any], provenance: Mapping[str, Any], licence: str = ""
) -> dict[str, Any]:
    """Return the sections of a manifest that come from the run.

    Args:
        graph: what `read_policy` gave.
        deployment: what the vector env's `deployment()` gave: "terms" by the key of an observation,
            "robot", "timing", "safety", "targets", "simulation"; all optional.
        provenance: run, step, versions, and whatever tells where the policy comes from.
        licence: under which the policy may be passed on.
    """
    terms = deployment.get("terms", {})
    inputs = [port for port in graph.inputs if port.name not in (MASK, STATE)]
    return {
        "provenance": dict(provenance),
        "licence": licence,
        "observation": [
            {
                "name": port.name,
                "shape": list(port.shape),
                "dtype": port.dtype,
                "terms": terms.get(port.name) or [_whole(port.shape)],
            }
            for port in inputs
        ],
        "mask": next((port.shape[0] for port in graph.inputs if port.name == MASK), 0),
        "state": graph.state_size,
        "action": [_action(action) for action in graph.actions],
        "robot": deployment.get("robot"),
        "timing": deployment.get("timing"),
        "safety": deployment.get("safety"),
        "targets": deployment.get("targets"),
        "simulation": deployment.get("simulation"),
    }


def _whole(shape: tuple[int, ...]) -> dict[str, Any]:
    """One term for an observation of which nothing is known but its shape."""
    return {"name": "value", "size": int(np.prod(shape)), "units": "", "history": 1}


def _action(action: Any) -> dict[str, Any]:
    entry = {
        "key": action.key,
        "output": action.output,
        "kind": action.kind,
        "shape": list(action.shape),
        "logits": action.logits,
    }
    if action.kind == "box":
        for name in ("scale", "offset", "low", "high"):
            entry[name] = [_number(value) for value in getattr(action, name)]
    return entry


def _number(value: float) -> float | None:
    """A finite number, or None for a bound that is none: JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
