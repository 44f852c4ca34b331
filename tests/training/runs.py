"""Small runs for the training tests, and how two of them are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import rlgym
from rlgym.training.logging import read_metrics

SMALL = {
    "num_envs": 4,
    "num_groups": 2,
    "total_steps": 1200,
    "seed": 3,
    "algo": {"num_steps": 24, "minibatch_size": 32, "epochs": 2},
    "network": {"hidden": (16, 16)},
    "eval": {"every": 500, "episodes": 2},
    "checkpoint": {"every": 400},
}
"""12 iterations of 96 steps, evaluations at 576 and 1056, and at the end."""


class StopAt:
    """Hook that ends a run at the first boundary at or after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_update(self, run, metrics) -> bool:
        return run.state.env_steps >= self.steps


def settings(**changes):
    """SMALL with changes; sections are merged."""
    merged = dict(SMALL)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def train(world, run_dir, hooks=None, **changes):
    """Train quietly from plain defaults and SMALL."""
    changes = settings(**changes)
    return rlgym.train(world, run_dir=run_dir, preset=None, console="off", hooks=hooks, **changes)


def digest(run) -> str:
    """SHA-256 of parameters, normalisers, optimizer and generators."""
    state = dict(run.learner.state_dict())
    state["shuffle"] = run.shuffle.get_state()
    state["noise"] = run.collector.generator.get_state()
    return digest_of(state)


def digest_of(tensors) -> str:
    """SHA-256 of named tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode() + tensor.numpy(force=True).tobytes())
    return sha.hexdigest()


def scalars(run_dir, but=("time", "perf")) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = read_metrics(Path(run_dir))
    return [
        {n: v for n, v in line.items() if n != "time" and n.partition("/")[0] not in but}
        for line in lines
    ]


def evaluations(run_dir) -> list[dict]:
    """The lines of evaluations.jsonl."""
    path = Path(run_dir) / "evaluations.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
