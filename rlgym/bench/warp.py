"""The imitation worlds of A1 in MuJoCo Warp: how fast they step, and how soon A1 trots.

On a GPU: whole steps of the task (actions, physics, rewards, observations, resets) for several
numbers of worlds, with physics as a captured graph and without; the training loop; seconds to a
trot, and to a policy of several clips, validated in PyBullet.

Without one, Warp's own CPU device (one core) shows what capturing is worth, and that its worlds are
MuJoCo's; these numbers say nothing of a GPU.
"""

import itertools
import time
from statistics import median
from typing import Any

from rlgym.bench.harness import Case, Result, in_fresh_process, say
from rlgym.bench.imitation import Promise, cases_of

HERE = "rlgym.bench.warp"
WORLD = "rlgym/Imitate-v0"
ON_CPU = 64
"""Worlds on Warp's CPU device."""
TRAINING = 8192
"""Worlds of the training loop."""
TROT = Promise("trot", {0.85: 30.0})
GAITS = Promise("trot,pace,bound,turn", {0.80: 300.0})


def bench_warp(
    *,
    device: str = "auto",
    worlds: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384),
    repeats: int = 5,
    steps: int = 100,
    seeds: tuple[int, ...] = (0, 1, 2),
    limit: float = 600.0,
    quick: bool = False,
) -> Result:
    """Env steps per second of A1 in MuJoCo Warp; on a GPU also training, and seconds to a trot.

    Args:
        device: "cuda", "cuda:1", "cpu"; "auto" is the first GPU, or the CPU.
        worlds: numbers of worlds that are stepped on a GPU.
        repeats: repetitions of each measurement.
        steps: control steps of each.
        seeds: of the training runs on a GPU.
        limit: seconds after which such a run ends.
        quick: one short repetition, to see that everything works.
    """
    from rlgym.device import resolve

    place = str(resolve(device))
    if quick:
        worlds, repeats, steps, seeds = worlds[:1], 1, 5, seeds[:1]
    on_gpu = place != "cpu"
    cases = []
    for count in worlds if on_gpu else (8 if quick else ON_CPU,):
        cases.append(_rate(place, count, repeats, steps))
        say(cases[-1].line())
    cases.append(_agreement(place, 10 if quick else 100))
    say(cases[-1].line())
    if on_gpu:
        cases.insert(0, _training(place, quick))
        for promise in (TROT, GAITS):
            cases += _promised(promise, seeds, limit, quick)
    measured = (
        f"env steps per second of A1's imitation in MuJoCo Warp on {place}, physics captured as a "
        f"graph against the same launched kernel by kernel, medians of {repeats} repetitions of "
        f"{steps} control steps; and the largest difference from MuJoCo"
    )
    return Result("warp", measured, tuple(cases), quick)


def _rate(place: str, count: int, repeats: int, steps: int) -> Case:
    found = in_fresh_process(
        f"{HERE}:measure_rates",
        device=place,
        count=count,
        repeats=repeats,
        steps=steps,
        timeout=3600.0,
    )
    ours, theirs = found["captured"], found["kernel by kernel"]
    return Case(
        f"{count} worlds",
        "steps/s",
        median(ours),
        2.0 if place == "cpu" else 1.0,
        "at least",
        "ratio",
        baseline=median(theirs),
        values=tuple(ours),
        baseline_values=tuple(theirs),
        details={"physics alone, steps/s": median(found["physics"])},
    )


def _agreement(place: str, steps: int) -> Case:
    found = in_fresh_process(f"{HERE}:measure_agreement", device=place, steps=steps, timeout=3600.0)
    name = f"joints and base against MuJoCo, after {steps} control steps"
    return Case(name, "rad or m", found["difference"], 1e-4, details=found)


def _training(place: str, quick: bool) -> Case:
    count = 256 if quick else TRAINING
    rates = in_fresh_process(
        f"{HERE}:measure_training",
        device=place,
        count=count,
        updates=4 if quick else 40,
        timeout=3600.0,
    )
    name = f"whole training loop, {count} worlds"
    return Case(name, "steps/s", median(rates), 200_000.0, "at least", values=tuple(rates))


def _promised(promise: Promise, seeds: tuple[int, ...], limit: float, quick: bool) -> list[Case]:
    """Train every seed on the GPU, and validate it in PyBullet."""
    runs = []
    for seed in seeds:
        clips = promise.clip.split(",")
        runs.append(
            in_fresh_process(
                "rlgym.bench.imitation:train_and_validate",
                timeout=limit + 1800.0,
                clip=clips if len(clips) > 1 else promise.clip,
                levels=sorted(promise.levels),
                seed=seed,
                limit=limit,
                episodes=2 if quick else 32,
                modules=[],
                quick=quick,
                with_baselines=False,
                env={"engine": "warp"},
            )
        )
    return cases_of(promise, runs, limit)


# ----- Measured in fresh processes ----------------------------------------------------------------


def measure_rates(device: str, count: int, repeats: int, steps: int) -> dict[str, list[float]]:
    """Step the task with random actions; returns steps per second, captured and not.

    Args:
        device: of the worlds.
        count: worlds.
        repeats: repetitions, of which the two kinds take turns.
        steps: control steps of each.
    """
    import torch

    import rlgym
    from rlgym.device import synchronize

    kinds = {"captured": True, "kernel by kernel": False}
    envs: dict[str, Any] = {}
    for name, capture in kinds.items():
        physics = {"warp": {"capture": capture}}
        envs[name] = rlgym.make_vec(
            WORLD, count, device=device, env_kwargs={"engine": "warp", "physics": physics}
        )
        envs[name].reset(seed=0)
    place = envs["captured"].device
    noise = torch.Generator(place).manual_seed(0)
    actions = 0.3 * torch.randn(steps, count, 12, generator=noise, device=place)
    rates: dict[str, list[float]] = {name: [] for name in (*kinds, "physics")}
    for repeat in range(repeats + 1):
        for name in rates:
            env = envs.get(name, envs["captured"])
            step = env.batch.task.engine.launch if name == "physics" else None
            synchronize(place)
            begin = time.perf_counter()
            for action in actions:
                env.step(action) if step is None else step()
            synchronize(place)
            if repeat:  # the first one warms up
                rates[name].append(count * steps / (time.perf_counter() - begin))
            if step is not None:
                env.step(actions[0])  # begins anew in the worlds that physics alone has thrown over
    for env in envs.values():
        env.close()
    return rates


def measure_agreement(device: str, steps: int) -> dict[str, float]:
    """Play one trot's targets in Warp and in MuJoCo; how far apart the robots are at the end.

    Args:
        device: of Warp's worlds.
        steps: control steps.
    """
    import numpy as np
    import torch

    from rlgym.envs.imitation.spec import SPECS
    from rlgym.envs.physics import make_engine

    actuation, rng = SPECS["modern"].actuation, np.random.default_rng(0)
    engines = [
        make_engine("warp", "a1", actuation, 4, device=device),
        make_engine("mujoco", "a1", actuation, 4, num_threads=1),
    ]
    pose = np.tile(engines[0].robot.default_pose, (4, 1))
    states: list[Any] = []
    for _ in range(steps):
        target = pose + 0.05 * rng.normal(size=pose.shape)
        tensor = torch.as_tensor(target, dtype=torch.float32, device=device)
        states = [engines[0].step(tensor, tensor), engines[1].step(target, target)]
    ours, theirs = states
    apart = {
        name: float(np.abs(getattr(ours, name).numpy(force=True) - getattr(theirs, name)).max())
        for name in ("root_pos", "root_quat", "q")
    }
    return {"difference": max(apart.values()), **apart}


def measure_training(device: str, count: int, updates: int) -> list[float]:
    """Train with the preset; returns env steps per second of the updates after the first ten.

    Args:
        device: of worlds and learner.
        count: worlds.
        updates: rollouts, each with its update.
    """
    from tempfile import TemporaryDirectory

    import rlgym

    stamps: list[tuple[float, int]] = []

    class Clock:
        def on_update(self, run: Any, scalars: Any) -> None:
            stamps.append((time.perf_counter(), run.state.env_steps))

    with TemporaryDirectory() as folder:
        rlgym.train(
            WORLD,
            env={"engine": "warp"},
            num_envs=count,
            device=device,
            total_steps=count * 16 * updates,
            eval={"every": 0},
            run_dir=folder,
            overwrite=True,
            hooks=Clock(),
            console="off",
        )
    pairs = itertools.pairwise(stamps)
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs]
    return rates[min(10, len(rates) // 2) :]
