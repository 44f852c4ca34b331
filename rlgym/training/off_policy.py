"""The off-policy loop: step, store, learn from the past, log, evaluate, save; until done."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from rlgym.config import SACConfig
from rlgym.training.logging import Interval

if TYPE_CHECKING:
    from rlgym.training.session import Run

TURN = 16
"""Gradient steps that a signal may have to wait for."""


def learn(run: Run) -> None:
    """Train until there is a reason to stop; `run.stopped` then says which.

    Gradient steps that are due (`state.owed`) are taken before the worlds' next step, or while they
    take it with `algo.overlap`. Nothing is pending at an iteration's end: a boundary, as with PPO.

    Raises:
        Interrupted: a signal came while worlds were stepping; the step is dropped (with
            `algo.overlap` waited for: the learner has moved on meanwhile).
    """
    state, algo, replay = run.state, run.config.algo, run.replay
    assert isinstance(algo, SACConfig) and replay is not None
    interval = Interval()
    run.mark()
    run.call_hooks("on_start")
    while True:
        if not algo.overlap:
            _learn_what_is_due(run, interval, may_stop=True)
        done = run.find_reason_to_stop() and interval.stats.env_steps
        if done or interval.due(state.env_steps):
            run.log(interval.stats, interval.metrics, interval.seconds)
            interval.clear()
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
            _learn_what_is_due(run, interval, may_stop=False)
            stats = run.collector.finish()
        run.policy.random = False
        stats, before = run.gather(stats), state.env_steps
        state.count(stats)
        state.owed += algo.updates_due(state.env_steps) - algo.updates_due(before)
        state.updates += 1
        interval.stats.add(stats)
        replay.add(run.buffer)
        run.policy.update_normalizer(run.buffer)
        run.stop_if(run.call_hooks("on_rollout", run.buffer))
        if algo.overlap or not state.owed:
            run.mark()
    run.finish()


def _learn_what_is_due(run: Run, interval: Interval, may_stop: bool) -> None:
    """Take the gradient steps that are due; where it may stop, each turn ends at a boundary."""
    state, progress = run.state, min(run.state.env_steps / run.config.total_steps, 1.0)
    run.replay.anneal(progress)
    while state.owed:
        begin, count = perf_counter(), min(state.owed, TURN)
        state.owed -= count  # first: an update that breaks off leaves no boundary behind it
        metrics = run.learner.update(run.replay, count, progress, run.shuffle)
        interval.learned(metrics, perf_counter() - begin)
        if may_stop:
            run.mark()
            with run.signals.interruptible():
                pass
