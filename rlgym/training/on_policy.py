"""The on-policy loop: collect a rollout, learn from it, log, evaluate, save; until done."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlgym.training.session import Run


def learn(run: Run) -> None:
    """Train until there is a reason to stop; `run.stopped` then says which.

    An iteration's end is a boundary: `run.mark` remembers it, and whatever interrupts the next
    iteration goes back to it. Evaluating and saving stand first in the loop, so that a run which
    resumes at a boundary does what was due there.

    Raises:
        Interrupted: a signal came while worlds were stepping; the rollout is dropped.
    """
    config, state = run.config, run.state
    run.mark()
    run.call_hooks("on_start")
    while True:
        if run.evaluation_due():
            run.evaluate()
        if run.save_due():
            run.save()
        if run.stopped or run.find_reason_to_stop():
            break

        progress = min(state.env_steps / config.total_steps, 1.0)  # schedules count env steps
        with run.signals.interruptible():
            stats = run.collector.collect()
        stats = run.gather(stats)
        state.count(stats)
        run.call_hooks("on_rollout", run.buffer)

        begin = perf_counter()
        with run.signals.interruptible(run.holds_learner):
            metrics = run.learner.update(run.buffer, progress, run.shuffle)
        run.learn_seconds = perf_counter() - begin
        state.updates += 1
        run.mark()

        run.log(stats, metrics, run.learn_seconds)
    run.finish()
