"""Growth of resident memory over a million training steps.

A training of `rlgym.train` runs in a fresh process per backend. After each update a hook notes
the resident memory of the process and of its workers. The slope of the least-squares line through
the notes of the last four fifths (the first fifth fills caches) is the result.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgym.bench.harness import Case, Result, in_fresh_process, say
from rlgym.bench.stats import slope
from rlgym.errors import MissingExtraError

WORLD = "CartPole-v1"
GOAL = 5.0
"""Growth in MB per million steps: below what an hour's run would notice."""
WARM_UP = 0.2
"""Share of the steps whose notes are not used."""


def bench_memory(
    *,
    steps: int = 1_000_000,
    backends: tuple[str, ...] = ("sync", "process"),
    goal: float = GOAL,
    quick: bool = False,
) -> Result:
    """Growth of resident memory over a million steps of CartPole training.

    Args:
        steps: environment steps per backend.
        backends: backends to run, one after another.
        goal: bound in MB per million steps.
        quick: 20,000 steps with the first backend, to see that everything works.
    """
    if quick:
        steps, backends = 20_000, backends[:1]
    cases = []
    for backend in backends:
        notes = in_fresh_process(
            "rlgym.bench.memory:train_and_note", timeout=3600.0, backend=backend, steps=steps
        )
        cases.append(case_of(backend, notes, steps, goal))
        say(cases[-1].line())
    measured = (
        f"slope of resident memory (workers included) over {steps:,} steps of PPO on {WORLD}, "
        f"least squares over the last {1 - WARM_UP:.0%}"
    )
    return Result("memory", measured, tuple(cases), quick)


def case_of(name: str, notes: list[list[float]], steps: int, goal: float) -> Case:
    """Return the case of one backend.

    Args:
        name: the backend.
        notes: pairs (environment steps, resident MB), in order.
        steps: steps of the whole run.
        goal: bound in MB per million steps.
    """
    kept = [note for note in notes if note[0] >= WARM_UP * steps]
    growth = slope([step / 1e6 for step, _ in kept], [megabytes for _, megabytes in kept])
    return Case(
        name=name,
        unit="MB per million steps",
        value=growth,
        goal=goal,
        details={"first_mb": kept[0][1], "last_mb": kept[-1][1], "notes": len(kept)},
    )


class NoteMemory:
    """Hook that notes the memory of this process and its children about 200 times."""

    def __init__(self, steps: int) -> None:
        try:
            import psutil
        except ImportError as error:
            raise MissingExtraError(
                "bench memory needs psutil: pip install 'rlgym-lab[dev]', or psutil alone"
            ) from error
        self.process = psutil.Process(os.getpid())
        self.every = steps / 200
        self.notes: list[list[float]] = []

    def on_update(self, run: Any, metrics: Any) -> bool:
        """Add one note when it is due; never stops the run."""
        step = run.state.env_steps
        if not self.notes or step - self.notes[-1][0] >= self.every:
            everyone = [self.process, *self.process.children(recursive=True)]
            self.notes.append([step, sum(p.memory_info().rss for p in everyone) / 1e6])
        return False


def train_and_note(*, backend: str, steps: int) -> list[list[float]]:
    """Train and return the notes (a fresh process)."""
    import rlgym

    hook = NoteMemory(steps)
    with TemporaryDirectory() as folder:
        rlgym.train(
            WORLD,
            run_dir=Path(folder) / "run",
            hooks=hook,
            backend=backend,
            num_envs=16,
            total_steps=steps,
            algo={"num_steps": 128, "minibatch_size": 1024, "epochs": 2},
        )
    return hook.notes
