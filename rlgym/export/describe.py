"""What a bundle says of its policy beside the network: the contract with whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgym.deploy.graph import MASK, STATE, Graph
from rlgym.export.golden import Golden

RATE_MARGIN = 2.0
"""A disturbed robot reacts faster than one in the lab."""
MIN_RATE = 1.0
"""rad/s, where nothing moved there."""


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
                "terms": _terms(terms.get(port.name), port.shape),
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


def _terms(terms: list[dict[str, Any]] | None, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """The world's terms; one for the whole where it tells none, or a wrapper has changed it."""
    size = int(np.prod(shape))
    if terms and sum(term["size"] for term in terms) == size:
        return terms
    return [{"name": "value", "size": size, "units": "", "history": 1}]


def target_rate(golden: Golden, deployment: Mapping[str, Any]) -> list[float] | None:
    """How fast the joints' targets may move, rad/s: `RATE_MARGIN` times the lab's fastest.

    Args:
        golden: what was recorded.
        deployment: as in `describe`.

    Returns:
        One number per value of the action; None where the task drives no joints.
    """
    robot, timing = deployment.get("robot"), deployment.get("timing")
    largest = golden.largest_steps.get("")
    if robot is None or timing is None or largest is None:
        return None
    speeds = largest * np.abs(robot["action_scale"]) / timing["control_dt"]
    # the same for all joints: which one has to be fast depends on where the robot is pushed
    return [max(RATE_MARGIN * float(speeds.max()), MIN_RATE)] * len(speeds)


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
            entry[name] = [number(value) for value in getattr(action, name)]
    return entry


def number(value: float) -> float | None:
    """A finite number, or None for a bound that is none: JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
