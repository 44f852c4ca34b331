"""How much faster several processes train than one, each with as many worlds (weak scaling).

What runs is what a person runs: `torchrun ... -m rlgym train`, once with one process and once with
several. The rate is that of the run's own log, without the start, where imports and compilers are.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rlgym.bench.harness import (
    ROOT,
    THREAD_VARIABLES,
    FreshProcessError,
    Result,
    paired_case,
    say,
)
from rlgym.training.logging import read_metrics

SKIPPED = 0.25
"""Share of a run's lines before the rate is taken."""
GPU_GOAL = 1.9
"""Of two processes with an accelerator each."""
CPU_GOAL = 1.0
"""Processes that share a machine's cores: that they are not slower than one."""


def bench_scaling(
    *,
    world: str = "CartPole-v1",
    processes: int = 2,
    device: str = "cpu",
    total_steps: int = 200_000,
    repeats: int = 3,
    quick: bool = False,
) -> Result:
    """Env steps per second of training by several processes, against one.

    Args:
        world: what is trained, by its preset.
        processes: how many.
        device: the learner's; cuda gives each process a GPU of its own.
        total_steps: of a run of several; one process does its share of them.
        repeats: runs of each, in turn.
        quick: one short run of each, to see that everything works.
    """
    if quick:
        repeats, total_steps = 1, 30_000
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        ours.append(_rate(world, processes, device, total_steps))
        theirs.append(_rate(world, 1, device, total_steps // processes))
        say(f"{processes} processes {ours[-1]:.0f} steps/s, one {theirs[-1]:.0f}")
    on_accelerator = device != "cpu"
    case = paired_case(
        f"{world}, {processes} processes against 1, {device}",
        "steps/s",
        ours,
        theirs,
        goal=GPU_GOAL * processes / 2 if on_accelerator else CPU_GOAL,
        goal_is="at least",
        details={"cores": os.cpu_count()},
    )
    measured = (
        "env steps per second of whole training, collecting and learning, as the run's log counts "
        f"them after its first quarter, median of {repeats} runs in turn; each process has as many "
        "worlds and rows per minibatch as the single one"
    )
    return Result("scaling", measured, (case,), quick)


def _rate(world: str, processes: int, device: str, total_steps: int) -> float:
    """Env steps per second of one run.

    Raises:
        FreshProcessError: it failed.
    """
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        train = ["-m", "rlgym", "train", world, "--run-dir", str(run_dir), "--device", device]
        train += ["--total-steps", str(total_steps), "--console", "off", "--eval.every", "0"]
        environment = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
        done = subprocess.run(
            [sys.executable, *agent, *train],
            env=environment | {"PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise FreshProcessError(f"training by {processes} processes failed: {tail}")
        lines = [line for line in read_metrics(run_dir) if "time/time_elapsed" in line]
    first, last = lines[int(len(lines) * SKIPPED)], lines[-1]
    seconds = last["time/time_elapsed"] - first["time/time_elapsed"]
    return (last["step"] - first["step"]) / max(seconds, 1e-9)
