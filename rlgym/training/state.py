"""Everything that a resume needs, as typed objects: what a run counts, and what it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import Tensor

from rlgym.errors import CheckpointError
from rlgym.rollout.collector import CollectStats
from rlgym.training.checkpoint import Checkpoint

MODEL = "model."
"""Prefix of the policy's tensors among the learner's."""
WINDOW = 100
"""Training episodes over which `rollout/*` is averaged, as in Stable-Baselines3."""


def _window() -> deque[float]:
    return deque(maxlen=WINDOW)


@dataclass
class RunState:
    """What a run has counted so far; saved as state.json."""

    env_steps: int = 0
    """Steps that worlds took, over all slots: the x axis of everything."""
    updates: int = 0
    """Iterations: rollouts that the learner has learned from."""
    owed: int = 0
    """Gradient steps that are due and not taken yet (off-policy)."""
    episodes: int = 0
    """Training episodes that ended."""
    seconds: float = 0.0
    """Wall time of training, without the pauses between runs."""
    evaluated_at: int = 0
    """`env_steps` at the last evaluation."""
    saved_at: int = 0
    """`env_steps` at the last checkpoint, or the last try."""
    score: float | None = None
    """Mean return of the last evaluation."""
    best_score: float | None = None
    """Highest score so far: of evaluations, or of training where none are made during the run."""
    health: dict[str, int] = field(default_factory=dict)
    """Counts of `health/*` from before the last resume."""
    returns: deque[float] = field(default_factory=_window)
    """Returns of the last 100 training episodes, undiscounted and unscaled."""
    lengths: deque[float] = field(default_factory=_window)
    """Their lengths in steps."""
    successes: deque[float] = field(default_factory=_window)
    """Their successes, where the world tells."""

    def count(self, stats: CollectStats) -> None:
        """Add a rollout."""
        self.env_steps += stats.env_steps
        self.episodes += len(stats.returns)
        self.returns.extend(stats.returns)
        self.lengths.extend(stats.lengths)
        self.successes.extend(stats.successes)

    def document(self) -> dict[str, Any]:
        """A copy that JSON can hold."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if isinstance(value, deque) else value
            for name, value in (values | {"health": dict(self.health)}).items()
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunState:
        """Read what `document` wrote.

        Raises:
            CheckpointError: an entry is missing or of another type.
        """
        state = cls()
        document = {"owed": 0, **document}  # runs from before SAC do not say it
        try:
            for item in fields(cls):
                value: Any = document[item.name]
                default = getattr(state, item.name)
                if isinstance(default, deque):
                    default.extend(float(number) for number in value)
                elif isinstance(default, dict):
                    state.health = {str(key): int(count) for key, count in value.items()}
                elif isinstance(default, int):
                    setattr(state, item.name, int(value))
                elif value is not None:
                    setattr(state, item.name, float(value))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"state.json of the checkpoint is not a run's ({error!r}): use another checkpoint"
            ) from None
        return state


@dataclass(frozen=True)
class Snapshot:
    """A run at the boundary between two iterations: what a checkpoint is made of."""

    state: dict[str, Any]
    """`RunState.document`."""
    learner: dict[str, Tensor]
    """Parameters, normalisers, optimizer and learning rate (`PPO.state_dict`)."""
    collector: dict[str, Tensor]
    """Noise generator, recurrent state and episode starts (`HostCollector.state`)."""
    shuffle: Tensor
    """State of the generator that draws minibatches."""
    worlds: dict[str, np.ndarray]
    """Each slot's episode (`VectorEnv.snapshot`); empty when it could not be had."""
    policy: dict[str, Any]
    """Algorithm, spaces and network of the policy, from which `load_policy` rebuilds it."""
    source: Checkpoint | None = None
    """Where it was read from, and where a replay buffer's rows still are."""

    def to_files(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Tensors and JSON documents by file name, for `checkpoint.save`."""
        model, rest = {}, {}
        for name, tensor in self.learner.items():
            if name.startswith(MODEL):  # a file of its own, named as the policy's modules are
                model[name.removeprefix(MODEL)] = tensor
            else:
                rest[name] = tensor
        tensors: dict[str, dict[str, Any]] = {
            "model": model,
            "optimizer": rest,
            "rng": {"shuffle": self.shuffle, **self.collector},
            "env": self.worlds,
        }
        return tensors, {"state": self.state, "policy": self.policy}

    @classmethod
    def from_files(cls, checkpoint: Checkpoint) -> Snapshot:
        """Read a checkpoint back.

        Raises:
            CheckpointError: a file is missing or was changed.
        """
        model = {MODEL + name: tensor for name, tensor in checkpoint.tensors("model").items()}
        rng = checkpoint.tensors("rng")
        if "shuffle" not in rng:
            raise CheckpointError(f"{checkpoint.path} holds no generator of minibatches")
        shuffle = rng.pop("shuffle")
        try:
            worlds = {key: value.numpy() for key, value in checkpoint.tensors("env").items()}
        except TypeError as error:  # numpy lacks some types of tensors, which no run saves there
            raise CheckpointError(f"{checkpoint.path}/env.safetensors: {error}") from None
        return cls(
            state=checkpoint.document("state"),
            learner={**model, **checkpoint.tensors("optimizer")},
            collector=rng,
            shuffle=shuffle,
            worlds=worlds,
            policy=checkpoint.document("policy"),
            source=checkpoint,
        )
