"""Demonstrations of a run: where they are read from, and what a policy learns from them first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlgym.agents.cloning import Cloning
from rlgym.agents.sac import SAC
from rlgym.registry import recording
from rlgym.rollout.demonstrations import Demonstrations, from_arrays, load
from rlgym.spaces import Layout

if TYPE_CHECKING:
    from rlgym.training.session import Run


def read_demonstrations(path: str | Path, obs: Layout, actions: Layout) -> Demonstrations:
    """Read transitions: our own files, a run's replay buffer, or what a kind of worlds records.

    Args:
        path: a file or a folder.
        obs: layout of the world's observations.
        actions: layout of its actions.

    Raises:
        UserError: there is nothing, or it does not fit the world.
    """
    arrays = recording(path, obs, actions)
    if arrays is None:
        return load(path, obs, actions)
    return from_arrays(path, arrays, obs, actions)


def doubts(path: str | Path, shown: Demonstrations, actions: Layout) -> str:
    """A warning where what was shown can hardly be meant for this world; "" where all is well."""
    share = shown.share_outside(actions)
    if not share:
        return ""
    return (
        f"warning: {share:.1%} of the actions in {path} lie outside the world's bounds: are they "
        "in its units?"
    )


def start_cloning(run: Run, new: bool) -> list[str]:
    """Give the learner what was demonstrated; a new run's policy learns from it before all else.

    Args:
        run: with its learner built, but nothing written yet: what does not fit leaves no folder.
        new: the run begins; one that is resumed has done so already.

    Returns:
        What came of it, to be shown.

    Raises:
        UserError: the demonstrations cannot be read, or do not fit the world.
    """
    cfg = run.config.clone
    if cfg.demonstrations is None or not (new or cfg.coef):
        return []
    shown = read_demonstrations(cfg.demonstrations, run.env.obs_layout, run.env.action_layout)
    learner = run.learner
    optimizer = learner.actor_optimizer if isinstance(learner, SAC) else learner.optimizer
    cloning = Cloning(run.policy, optimizer, shown, cfg)
    if cfg.coef:
        learner.cloning = cloning
    if new:
        cloning.normalize()
    notes = [doubts(cfg.demonstrations, shown, run.env.action_layout)]
    if new and cfg.steps:
        before, after = cloning.pretrain(run.shuffle)
        notes.append(
            f"cloned {cloning.size:,} demonstrated steps in {cfg.steps:,} gradient steps: "
            f"loss {before:.3g}, then {after:.3g}"
        )
    return notes
