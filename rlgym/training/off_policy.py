"""The off-policy loop: step, store, learn from the past, log, evaluate, save; until done."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from rlgym.config import SACConfig
from rlgym.rollout.collector import CollectStats

if TYPE_CHECKING:
    from rlgym.training.session import Run

LOG_EVERY = 1000
"""Environment steps between two lines of scalars."""
TURN = 16
"""Gradient steps that a signal may have to wait for."""


def learn(run: Run) -> None:
    """Train until there is a reason to stop; `run.stopped` then says which.

    Environment steps make gradient steps due (`state.owed`). They are taken before the worlds'
    next step, or with `algo.overlap` while the worlds take it, from what was stored before that.
    Either way nothing is pending at an iteration's end: a boundary, as in the on-policy loop.

    Raises:
        Interrupted: a signal came while worlds were stepping; the step is dropped. With
            `algo.overlap` it is waited for, because the learner has moved on meanwhile.
    """
    state, algo, replay = run.state, run.config.algo, run.replay
    assert isinstance(algo, SACConfig) and replay is not None
    since, metrics = CollectStats(), {}
    run.mark()
    run.call_hooks("on_start")
    while True:
        if not algo.overlap:
            metrics |= _take_due_steps(run)
        log_due = state.env_steps // LOG_EVERY > (state.env_steps - since.env_steps) // LOG_EVERY
        if (run.find_reason_to_stop() and since.env_steps) or log_due:
            run.stop_if(run.call_hooks("on_update", run.log(since, metrics)))
            since, run.learn_seconds = CollectStats(), 0.0
        if run.evaluation_due():
            run.evaluate()
        if run.save_due():
            run.save()
        if run.stopped:
            break

        run.policy.random = state.env_steps < algo.learning_starts
        with run.signals.interruptible():
            run.collector.begin()
            stats = None if algo.overlap else run.collector.finish()
        if stats is None:
            metrics |= _take_due_steps(run)
            stats = run.collector.finish()
        before = state.env_steps
        state.count(stats)
        state.owed += _due(algo, state.env_steps) - _due(algo, before)
        state.updates += 1
        since.add(stats)
        replay.add(run.buffer)
        run.policy.update_normalizer(run.buffer)
        run.stop_if(run.call_hooks("on_rollout", run.buffer))
        run.mark()
    run.finish()


def _due(algo: SACConfig, env_steps: int) -> int:
    """Gradient steps that so many environment steps make due."""
    return int(algo.updates_per_step * max(env_steps - algo.learning_starts, 0))


def _take_due_steps(run: Run) -> dict[str, Any]:
    """Take the gradient steps that are due; in sequence, each turn of them ends at a boundary."""
    state, metrics, begin = run.state, {}, perf_counter()
    progress = min(state.env_steps / run.config.total_steps, 1.0)
    while state.owed:
        count = min(state.owed, TURN)
        metrics = run.learner.update(run.replay, count, progress, run.shuffle)
        state.owed -= count
        if not run.config.algo.overlap:
            run.mark()
            with run.signals.interruptible():
                pass  # here a signal is heard
    run.learn_seconds += perf_counter() - begin
    return metrics
