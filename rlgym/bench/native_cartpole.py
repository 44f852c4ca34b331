"""PPO in CartPole worlds that are tensors, against Stable-Baselines3 in Gymnasium's objects.

First the wall time to the world's threshold: ours by `rlgym.train` with the shipped preset for
tensor worlds, SB3 with rl-zoo's tuned settings, taken in turn in fresh processes. The clock starts
after imports and before worlds and networks are built; nothing is compiled. Our policies are scored
in Gymnasium's own world.

Then environment steps per second of whole training loops, with as many passes over each rollout:
1,024 worlds and minibatches of 2,048 here, rl-zoo's eight worlds and minibatches of 256 there, the
same network (two of 64 and 64, tanh) in both, two threads where they help. More passes mean less of
a difference: at twenty, the zoo's own number, nine tenths of our time are the network's arithmetic.
"""

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgym.bench.harness import Case, Result, in_fresh_process, paired_case, say
from rlgym.bench.ppo_cartpole import THRESHOLD, WORLD, line_of

PRESET = "cartpole-device-ppo"
GOAL = 0.05
"""Ours / SB3's, of median seconds to the threshold."""
SPEED_GOAL = 20.0
"""Ours / SB3's, of environment steps per second of the loop."""
WORLDS, STEPS, MINIBATCH = 1024, 32, 2048
"""Of our loop in the second comparison."""
THREADS = min(2, os.cpu_count() or 1)
"""Torch threads of our loop there; SB3 has one or two, whichever is faster."""


def bench_native_cartpole(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    threads: int | None = None,
    limit: float = 120.0,
    episodes: int = 100,
    epochs: int = 4,
    repeats: int = 3,
    quick: bool = False,
) -> Result:
    """Seconds until PPO solves CartPole in tensor worlds, and steps per second of the loop.

    Args:
        seeds: seeds of the runs; none of them was used to tune the preset.
        threads: torch threads of SB3; by default whichever of 1 and 2 is faster here.
        limit: seconds after which a run counts as `limit` and as failed.
        episodes: deterministic episodes that each policy plays in Gymnasium's world afterwards.
        epochs: passes over a rollout of both loops in the second comparison.
        repeats: repetitions of it.
        quick: one seed for 2,048 steps, to see that everything works.
    """
    steps = None
    if quick:
        seeds, threads, episodes, steps, repeats = seeds[:1], threads or 1, 1, 2048, 1
    timeout = limit + 300.0
    there = "rlgym.bench.ppo_cartpole"
    ours_needs = in_fresh_process(f"{there}:imports_of_ours", timeout=timeout, preset=PRESET)
    theirs_needs = in_fresh_process(f"{there}:imports_of_sb3", timeout=timeout)
    if threads is None:
        tried = in_fresh_process("rlgym.bench.baselines:fastest", timeout=timeout, env_id=WORLD)
        threads = tried["threads"]
        say(f"SB3 is faster with {threads} torch thread(s) here: {tried['steps_per_second']}")
    ours, theirs = [], []
    for seed in seeds:  # A B A B: whatever slows the machine for a while slows both
        common = {"seed": seed, "limit": limit, "episodes": episodes, "steps": steps}
        common["timeout"] = timeout
        ours.append(
            in_fresh_process(f"{there}:time_ours", modules=ours_needs, preset=PRESET, **common)
        )
        say(f"seed {seed}: rlgym {line_of(ours[-1])}")
        common |= {"modules": theirs_needs, "threads": threads}
        theirs.append(in_fresh_process(f"{there}:time_sb3", **common))
        say(f"seed {seed}: SB3   {line_of(theirs[-1])}")
    reached = paired_case(
        f"{WORLD}, seconds to {THRESHOLD:.0f}",
        "s",
        [run["seconds"] for run in ours],
        [run["seconds"] for run in theirs],
        goal=GOAL,
        conditions={
            "each of our policies scores 475 or more": all(r["score"] >= THRESHOLD for r in ours)
        },
        details={"seeds": list(seeds), "sb3_threads": threads, "ours": ours, "sb3": theirs},
    )
    speed = _speed_case(epochs, threads or 1, repeats, timeout, quick)
    measured = (
        f"wall seconds until the mean of the last 100 training episodes is {THRESHOLD:.0f} on "
        f"tensor worlds, against SB3 PPO with rl-zoo's settings, median of {len(seeds)} seeds, "
        f"building worlds counted, imports not; and steps/s of both loops at {epochs} epochs"
    )
    return Result("native-cartpole", measured, (reached, speed), quick)


def _speed_case(epochs: int, threads: int, repeats: int, timeout: float, quick: bool) -> Case:
    here = "rlgym.bench.native_cartpole"
    common = {"epochs": epochs, "quick": quick, "timeout": timeout}
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(in_fresh_process(f"{here}:our_speed", threads=THREADS, **common))
        theirs.append(in_fresh_process(f"{here}:sb3_speed", threads=threads, **common))
        say(f"{epochs} epochs: rlgym {ours[-1]:,.0f} steps/s, SB3 {theirs[-1]:,.0f}")
    return paired_case(
        f"{WORLD}, steps/s of the loop at {epochs} epochs",
        "steps/s",
        ours,
        theirs,
        goal=SPEED_GOAL,
        goal_is="at least",
        details={
            "epochs": epochs,
            "worlds": WORLDS,
            "steps": STEPS,
            "minibatch": MINIBATCH,
            "threads": {"ours": THREADS, "sb3": threads},
        },
    )


class _Notes:
    """Hook that notes the clock after each update."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_update(self, run: Any, metrics: Any) -> None:
        """Note it."""
        self.at.append(time.perf_counter())


def our_speed(*, epochs: int, threads: int, quick: bool) -> float:
    """Steps per second of our loop, logs included, by the median update (a fresh process)."""
    import rlgym

    notes = _Notes()
    updates = 4 if quick else 30
    with TemporaryDirectory() as folder:
        rlgym.train(
            WORLD,
            preset=None,
            run_dir=Path(folder) / "run",
            hooks=notes,
            backend="device",
            device="cpu",
            num_envs=WORLDS,
            torch_threads=threads,
            total_steps=updates * WORLDS * STEPS,
            algo={"num_steps": STEPS, "minibatch_size": MINIBATCH, "epochs": epochs},
            eval={"every": 0, "episodes": 1},
            checkpoint={"every": 10**12},
        )
    gaps = [after - before for before, after in zip(notes.at, notes.at[1:], strict=False)]
    return WORLDS * STEPS / statistics.median(gaps)


def sb3_speed(*, epochs: int, threads: int, quick: bool) -> float:
    """Steps per second of SB3's loop with the zoo's settings and these epochs (fresh process)."""
    import torch

    from rlgym.bench.baselines import make_sb3, settings_of

    torch.set_num_threads(threads)
    settings = settings_of(WORLD)
    settings = replace(settings, algo={**settings.algo, "n_epochs": epochs})
    model = make_sb3(WORLD, 0, settings=settings)
    model.learn(1024)  # the first update pays for lazy set-up
    steps = 1024 if quick else 16_384
    start = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)
