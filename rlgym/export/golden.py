"""Golden pairs: what the trained policy saw and did in its own world, for every copy to repeat."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from rlgym.deploy.graph import MASK, STATE, Graph
from rlgym.deploy.policy import error_of
from rlgym.deploy.reference import run
from rlgym.errors import UserError
from rlgym.spaces import Tree, map_tree, tree_items

STEPS = 200
"""Length of the recorded trace; each of its steps is one golden pair."""
TOLERANCE = 1e-5
"""Largest error of a float format, as a share of the action's range."""


@torch.no_grad()
def record(policy: Any, env: Any, graph: Graph, steps: int = STEPS, seed: int = 0) -> Golden:
    """Let the trainer's policy act in its own world and write down each step.

    Args:
        policy: the trainer's network, on the CPU.
        env: a vector env as the policy was trained in; its first slot is recorded.
        graph: what `read_policy` gave for this policy.
        steps: how many.
        seed: of the world.

    Raises:
        UserError: the graph does not do what the policy does; this is a fault of rlgym.
    """
    obs, info = env.reset(seed=seed)
    slots = env.num_envs
    state, start = policy.initial_state(slots), torch.ones(slots, dtype=torch.bool)
    rows: list[dict[str, np.ndarray]] = []
    told: list[Tree[np.ndarray]] = []
    starts: list[bool] = []
    for _ in range(steps):
        row = {key or "obs": value[:1].numpy().copy() for key, value in tree_items(obs)}
        mask = info.get("action_mask")
        if mask is not None:
            row[MASK] = mask[:1].numpy().copy()
        if state is not None:
            state = state * (~start).unsqueeze(1)  # what a graph is given where an episode starts
            row[STATE] = state[:1].numpy().copy()
        actions, _, state = policy.act(obs, state=state, start=start, mask=mask, deterministic=True)
        rows.append(row)
        starts.append(bool(start[0]))
        told.append(map_tree(lambda t: t[:1].numpy().copy(), actions))
        obs, _, terminated, truncated, info = env.step(actions)
        start = terminated | truncated
    names = [port.name for port in graph.inputs]
    inputs = {name: np.concatenate([row[name] for row in rows]) for name in names}
    world = {
        key: np.concatenate([dict(tree_items(action))[key] for action in told])
        for key, _ in tree_items(told[0])
    }
    golden = Golden(inputs, run(graph, inputs), world, np.array(starts))
    error = golden.world_error(graph, golden.outputs)
    if not error <= TOLERANCE:
        raise UserError(
            f"the exported graph differs from the policy by {error:.2g} of the action's range: "
            "please report this, with the run's config.yaml"
        )
    return golden


class Golden:
    """Inputs and outputs of a graph, and what the trainer's policy told the world.

    Attributes:
        inputs: (K, *shape) by the graph's names.
        outputs: (K, *shape) by the graph's names, computed by the numpy reference.
        world: (K, *shape) by key of the action space: the trainer's own actions.
        starts: (K,) bool: an episode begins there.
    """

    def __init__(
        self,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, np.ndarray],
        world: dict[str, np.ndarray],
        starts: np.ndarray,
    ) -> None:
        self.inputs, self.outputs, self.world, self.starts = inputs, outputs, world, starts

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def spread(self, count: int) -> np.ndarray:
        """Rows of at most `count` pairs, from the first to the last."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self)))
        return np.unique(rows.astype(int))

    @property
    def largest_steps(self) -> dict[str, np.ndarray]:
        """(n,) by key: how far each value of an action moved at most from one step to the next."""
        found = {}
        for key, actions in self.world.items():
            flat = actions.reshape(len(actions), -1).astype(np.float64)
            steps = np.abs(np.diff(flat, axis=0))[~self.starts[1:]]
            found[key] = steps.max(0, initial=0.0)
        return found

    def dump(self) -> bytes:
        """The bytes of golden.npz: inputs/NAME, outputs/NAME and world/KEY."""
        named: dict[str, Any] = {f"inputs/{name}": array for name, array in self.inputs.items()}
        named |= {f"outputs/{name}": array for name, array in self.outputs.items()}
        named |= {f"world/{key}": array for key, array in self.world.items()}
        target = io.BytesIO()
        np.savez_compressed(target, **named)
        return target.getvalue()

    def world_error(self, graph: Graph, outputs: dict[str, np.ndarray]) -> float:
        """Largest difference from the trainer's actions, as a share of each action's range.

        A discrete action that differs counts as 1.
        """
        return error_of(graph, outputs, self.world)
