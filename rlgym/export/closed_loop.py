"""A bundle's policy in its own world: does what was rounded still do what was trained?

Golden pairs say that single actions agree; whole episodes say what small differences add up to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.deploy import graph as g
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.graph import MASK, STATE, Graph
from rlgym.deploy.policy import Policy, golden_pairs
from rlgym.deploy.reference import run, to_world
from rlgym.errors import UserError
from rlgym.export.c99 import to_int8
from rlgym.spaces import tree_items

ALLOWED = 0.02
"""Share of the return that a copy may lose or gain."""
Outputs = dict[str, np.ndarray]


class Copy:
    """A graph that acts on batches as the trainer's policy does, for an evaluation.

    Args:
        graph: what the copy computes.
        compute: outputs for (B, *shape) inputs by the graph's names.
    """

    device = torch.device("cpu")

    def __init__(
        self, graph: Graph, compute: Callable[[Mapping[str, np.ndarray]], Outputs]
    ) -> None:
        self.graph, self.compute = graph, compute

    def initial_state(self, num_envs: int) -> Tensor | None:
        """Zeros (num_envs, state), or None without memory."""
        return torch.zeros(num_envs, self.graph.state_size) if self.graph.state_size else None

    def act(
        self, obs: Any, *, state: Tensor | None, start: Tensor, mask: Tensor | None, **_: Any
    ) -> tuple[Any, None, Tensor | None]:
        """Choose actions for a batch; see `ActorCritic.act`."""
        given = {key or "obs": value.numpy() for key, value in tree_items(obs)}
        inputs = {p.name: given[p.name] for p in self.graph.inputs if p.name in given}
        if mask is not None and any(port.name == MASK for port in self.graph.inputs):
            inputs[MASK] = mask.numpy()
        if state is not None:
            inputs[STATE] = (state * (~start).unsqueeze(1)).numpy()
        outputs = self.compute(inputs)
        told = to_world(self.graph, outputs)
        if isinstance(told, dict):
            actions: Any = {key: torch.from_numpy(value) for key, value in told.items()}
        else:
            actions = torch.from_numpy(told)
        return actions, None, None if state is None else torch.from_numpy(outputs["next_state"])


def copies(bundle: Bundle) -> dict[str, Copy]:
    """The bundle's policies by format: in float, and rounded as in C and LiteRT.

    Raises:
        BundleError: the policy is not what the manifest says.
    """
    policy = Policy(bundle)
    graph = policy.graph
    found = {policy.runtime: Copy(graph, policy.run)}
    if any(entry["format"] == "c-int8" for entry in bundle.manifest["artefacts"]):
        rounded = round_weights(graph)
        found["c-int8"] = Copy(rounded, lambda inputs: run(rounded, inputs))
    formats = {entry["format"] for entry in bundle.manifest["artefacts"]}
    for name in sorted(formats & {"tflite-int8", "tflite-full-int8"}):
        from rlgym.export import tflite

        inputs, _ = golden_pairs(bundle, graph)
        data = tflite.to_tflite(graph, tflite.KINDS[name][0], inputs)
        found[name] = Copy(graph, tflite.LiteRT(data, graph).run)
    return found


def round_weights(graph: Graph) -> Graph:
    """The graph with the weights that C keeps in bytes as these bytes say them."""
    ops = []
    for op in graph.ops:
        names = [name for name in g.constants(op) if name.startswith("weight")]
        if isinstance(op, (g.Dense, g.GRU, g.LSTM)):
            op = replace(op, **{name: _rounded(getattr(op, name)) for name in names})
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def _rounded(weight: np.ndarray) -> np.ndarray:
    steps, scale = to_int8(weight)
    return steps.astype(np.float32) * scale[:, None]


def check_world(manifest: Mapping[str, Any], deployment: Mapping[str, Any]) -> None:
    """Refuse a world that is another contract than the policy's.

    Args:
        manifest: of the bundle.
        deployment: what the world's vector env says of itself.

    Raises:
        UserError: lists both sides, by name.
    """
    for entry in manifest["observation"]:
        terms = deployment.get("terms", {}).get(entry["name"])
        if terms is not None:
            _same("observation terms", _named(entry["terms"]), _named(terms))
    robot, own = manifest.get("robot"), deployment.get("robot")
    if robot is not None and own is not None:
        _same("joints, in order,", robot["joint_names"], own["joint_names"])
    timing, own = manifest.get("timing"), deployment.get("timing")
    if timing is not None and own is not None:
        _same("control step", [f"{timing['control_dt']:g} s"], [f"{own['control_dt']:g} s"])


def _named(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{term['name']} ({term['size']})" for term in terms]


def _same(what: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    if list(wanted) != list(found):
        raise UserError(
            f"the world is not the policy's: its {what} are {', '.join(found)}; the policy's are "
            f"{', '.join(wanted)}"
        )


def closeness(reference: Sequence[float], returns: Sequence[float]) -> float:
    """How far the mean of returns is from the reference's, as a share of it.

    Returns whose mean is near zero are measured in their spread instead.
    """
    mean, spread = float(np.mean(reference)), float(np.std(reference))
    return abs(float(np.mean(returns)) - mean) / max(abs(mean), spread, 1e-9)
