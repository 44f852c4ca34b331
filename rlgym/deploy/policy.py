"""The policy of a bundle, ready to act: through onnxruntime, or in numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .bundle import GOLDEN, GRAPH, ONNX, Bundle
from .contract import check_contract
from .errors import BundleError, DeployError
from .graph import MASK, STATE, Graph
from .graph_check import check_graph
from .graph_file import load_graph
from .onnx_check import check_onnx, open_onnx
from .reference import run, to_world


class Policy:
    """A policy that proves itself before it acts.

    Args:
        bundle: opened, hence of right hashes.
        runtime: "onnx", "numpy", or "auto": onnxruntime where it is installed.
        replay: repeat the golden pairs at once; only who does so later leaves it out.

    Attributes:
        graph: what it computes.
        runtime: the one in use.
        golden_error: largest error over the golden pairs, as a share of the action's range.

    Raises:
        BundleError: its actions are not those that the trainer's policy took.
        DeployError: onnxruntime is asked for and not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: Literal["auto", "onnx", "numpy"] = "auto",
        *,
        replay: bool = True,
    ) -> None:
        self.graph = load_graph(bundle.read(GRAPH))
        check_contract(bundle.manifest, self.graph)
        self.runtime, self._session = runtime, None
        if runtime != "numpy":
            try:
                self._session = load_onnx(bundle, self.graph)
            except ModuleNotFoundError:
                if runtime == "onnx":
                    raise DeployError(
                        "onnxruntime is not installed: pip install onnxruntime"
                    ) from None
            self.runtime = "numpy" if self._session is None else "onnx"
        self._state: np.ndarray | None = None
        self.reset()
        self.golden_error = self._replay(bundle) if replay else float("nan")

    def reset(self) -> None:
        """Begin a new episode: forget the recurrent state."""
        if self.graph.state_size:
            self._state = np.zeros((1, self.graph.state_size), np.float32)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs of the graph for (B, *shape) inputs, state included; nothing is kept."""
        if self._session is None:
            with np.errstate(all="ignore"):  # what is not finite is a guard's business
                return run(self.graph, inputs)
        return run_onnx(self._session, self.graph, inputs)

    def act(self, obs: np.ndarray | Mapping[str, np.ndarray], mask: Any = None) -> Any:
        """Choose what the world is told for one observation; memory is carried on.

        Args:
            obs: (*shape), or a mapping of them by the inputs' names.
            mask: allowed choices, nonzero = allowed.

        Returns:
            An array (*shape), or a dict of them by the action space's keys.

        Raises:
            DeployError: an observation is missing or has another shape.
        """
        outputs = self.run(self.rows(obs, mask))
        if self._state is not None:
            self._state = outputs["next_state"]
        told = to_world(self.graph, outputs)
        return {key: value[0] for key, value in told.items()} if isinstance(told, dict) else told[0]

    def rows(
        self, obs: np.ndarray | Mapping[str, np.ndarray], mask: Any = None
    ) -> dict[str, np.ndarray]:
        """The graph's inputs, (1, *shape) each, for one observation."""
        given: dict[str, Any] = dict(obs) if isinstance(obs, Mapping) else {"obs": obs}
        if mask is not None:
            given[MASK] = mask
        inputs = {}
        for port in self.graph.inputs:
            if port.name == STATE:
                inputs[port.name] = self._state
            elif port.name in given:
                array = np.asarray(given[port.name], port.dtype)
                if array.shape != port.shape:
                    raise DeployError(
                        f"observation '{port.name}' has shape {list(array.shape)}, the policy "
                        f"takes {list(port.shape)}"
                    )
                inputs[port.name] = array[None]
            elif port.name != MASK:
                raise DeployError(f"the policy needs the observation '{port.name}'")
        return inputs

    def _replay(self, bundle: Bundle) -> float:
        """Repeat the golden pairs.

        Raises:
            BundleError: an action differs.
        """
        inputs, world = golden_pairs(bundle, self.graph)
        error = error_of(self.graph, self.run(inputs), world)
        allowed = float(bundle.manifest["golden"]["tolerance"])
        if not error <= allowed:
            raise BundleError(
                f"{bundle.path} does not do here what it did in the lab: its actions differ by "
                f"{error:.2g} of their range, {allowed:g} is allowed. Nothing will move"
            )
        return error


def golden_pairs(
    bundle: Bundle, graph: Graph
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Recorded inputs by the graph's names, and the trainer's actions by key.

    Raises:
        BundleError: they are not of the graph's names, types and sizes, or too many at once.
    """
    arrays = bundle.arrays(GOLDEN)
    inputs = {n.removeprefix("inputs/"): a for n, a in arrays.items() if n.startswith("inputs/")}
    world = {n.removeprefix("world/"): a for n, a in arrays.items() if n.startswith("world/")}
    pairs = bundle.manifest["golden"]["pairs"]
    check_graph(graph, pairs)
    wanted = {port.name: (pairs, *port.shape) for port in graph.inputs}
    if wanted != {name: array.shape for name, array in inputs.items()}:
        raise BundleError(f"{GOLDEN} does not hold {pairs} inputs of the policy: export it again")
    for port in graph.inputs:
        if inputs[port.name].dtype != port.dtype:
            raise BundleError(f"{GOLDEN} has '{port.name}' in another type: export it again")
    if {action.key for action in graph.actions} != world.keys() or any(
        world[action.key].size != pairs * math.prod(action.shape) for action in graph.actions
    ):
        raise BundleError(f"{GOLDEN} does not hold {pairs} actions of the policy: export it again")
    return inputs, world


def error_of(
    graph: Graph, outputs: Mapping[str, np.ndarray], world: Mapping[str, np.ndarray]
) -> float:
    """Largest difference between a graph's outputs and actions, as a share of the actions' range.

    The range of an action without bounds is that of what was recorded, at least 1. A discrete
    action that differs counts as 1; NaN counts as infinite.
    """
    return action_error(graph, to_world(graph, outputs), world)


def action_error(graph: Graph, told: Any, world: Mapping[str, np.ndarray]) -> float:
    """Largest difference between what the world is told and actions, as `error_of` measures it."""
    worst = 0.0
    for action in graph.actions:
        own = told[action.key] if isinstance(told, dict) else told
        wanted = world[action.key].reshape(own.shape)
        if action.kind == "box":
            span = np.asarray(action.high, np.float64) - np.asarray(action.low, np.float64)
            seen = np.maximum(1.0, np.abs(wanted).max()) if wanted.size else 1.0
            span = np.where(np.isfinite(span) & (span > 0), span, seen).reshape(own.shape[1:])
            differences = np.abs(own.astype(np.float64) - wanted) / span
        else:
            differences = (own != wanted).astype(np.float64)
        if differences.size:
            worst = max(worst, float(np.where(np.isnan(differences), np.inf, differences).max()))
    return worst


def load_onnx(bundle: Bundle, graph: Graph, name: str = ONNX) -> Any:
    """Return an onnxruntime session of a bundle's ONNX, which is looked into before it is loaded.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        BundleError: the file is more than arithmetic, or of other inputs and outputs than `graph`.
    """
    data = bundle.read(name)
    check_onnx(data, name)
    try:
        session = open_onnx(data)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # onnxruntime's errors have no common family
        said = " ".join(str(error).split())[:200]
        raise BundleError(f"{name} cannot be loaded ({said}): export the policy again") from None
    found = {item.name for item in session.get_inputs()}, {i.name for i in session.get_outputs()}
    wanted = {port.name for port in graph.inputs}, {port.name for port in graph.outputs}
    if found != wanted:
        raise BundleError(
            f"{name} takes {sorted(found[0])} and gives {sorted(found[1])}, the policy takes "
            f"{sorted(wanted[0])} and gives {sorted(wanted[1])}: export it again"
        )
    return session


def run_onnx(session: Any, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a session gives for (B, *shape) inputs; mask and state may be left out.

    Raises:
        BundleError: it cannot be computed, or its outputs are not (B, *shape).
    """
    full = dict(inputs)
    rows = len(next(iter(full.values())))
    for port in graph.inputs:
        if port.name == MASK:
            full.setdefault(port.name, np.ones((rows, *port.shape), np.bool_))
        if port.name == STATE:
            full.setdefault(port.name, np.zeros((rows, *port.shape), np.float32))
    names = [port.name for port in graph.outputs]
    try:
        found = dict(zip(names, session.run(names, full), strict=True))
    except Exception as error:  # onnxruntime's errors have no common family
        said = " ".join(str(error).split())[:200]
        raise BundleError(f"the ONNX cannot be computed ({said}): export it again") from None
    for port in graph.outputs:
        shape = found[port.name].shape
        if shape != (rows, *port.shape):
            wanted = f"{[rows, *port.shape]}"
            raise BundleError(f"the ONNX gives '{port.name}' as {list(shape)}, not {wanted}")
    return found
