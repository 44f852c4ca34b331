"""Env steps per second of the imitation worlds: what physics costs, and what everything else does.

PyBullet's rates are whole steps of the task (actions, physics, rewards, observations, resets) in
one process, per second of its own processor time, so that a busy machine does not hide them. Their
baseline is the time inside `stepSimulation` alone, in the very same steps: no control loop around
it can be faster. MuJoCo's is the bare batch on two threads, by the wall's clock.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from rlgym.bench.harness import Case, Result, in_fresh_process, say

WORLDS = 16
"""Of PyBullet, in one process."""
BATCH, THREADS = 256, 2
"""Of MuJoCo."""
NOISE = 0.1
"""Standard deviation of the targets about the default pose, rad: feet move and contacts change."""
MERGED: dict[str, Any] = {"physics": {"bullet": {"merge": True}}}
HERE = "rlgym.bench.imitate_step"


def bench_imitate_step(*, repeats: int = 9, steps: int = 30, quick: bool = False) -> Result:
    """Env steps per second: Laikago and A1 in PyBullet per core, A1 in MuJoCo on two threads.

    Args:
        repeats: repetitions of each measurement.
        steps: control steps of each.
        quick: one short repetition, to see that everything works.
    """
    if quick:
        repeats, steps = 1, 3
    size = {"repeats": repeats, "steps": steps, "timeout": 1800.0}
    cases = []
    for case in (_laikago_cases, _a1_case, _mujoco_case):
        for found in case(size):
            cases.append(found)
            say(found.line())
    measured = (
        f"env steps per second: PyBullet, {WORLDS} worlds of the reference spec in one process, "
        "whole task steps per second of processor time, against the time in stepSimulation alone; "
        f"MuJoCo, {BATCH} worlds of the modern spec on {THREADS} threads, physics only, by the "
        f"wall's clock; medians of {repeats} repetitions of {steps} control steps"
    )
    return Result("imitate-step", measured, tuple(cases), quick)


def _laikago_cases(size: dict[str, Any]) -> list[Case]:
    """The original's robot and spec: all links collide, 33 torques of 1 ms per env step."""
    found = in_fresh_process(f"{HERE}:measure_bullet", robot="laikago", changes={}, **size)
    name, rates, alone = "PyBullet, laikago, reference spec", found["rates"], found["alone"]
    rate = Case(name, "steps/s/core", median(rates), 350.0, "at least", values=tuple(rates))
    share = Case(
        f"{name}, against stepSimulation alone",
        "steps/s/core",
        median(rates),
        0.7,
        "at least",
        "ratio",
        baseline=median(alone),
        values=tuple(rates),
        baseline_values=tuple(alone),
    )
    return [rate, share]


def _a1_case(size: dict[str, Any]) -> list[Case]:
    """A1 with links merged that are fixed to each other, and how far that is from the whole."""
    found = in_fresh_process(f"{HERE}:measure_bullet", robot="a1", changes=MERGED, **size)
    deviation = in_fresh_process(f"{HERE}:merged_deviation", timeout=600.0)
    case = Case(
        "PyBullet, a1, merged links",
        "steps/s/core",
        median(found["rates"]),
        600.0,
        "at least",
        values=tuple(found["rates"]),
        details={"stepSimulation alone": median(found["alone"]), **deviation},
    )
    return [case]


def _mujoco_case(size: dict[str, Any]) -> list[Case]:
    found = in_fresh_process(f"{HERE}:measure_mujoco", **size)
    case = Case(
        f"MuJoCo, a1, modern spec, batch of {BATCH}",
        f"steps/s on {THREADS} threads",
        median(found["wall"]),
        12_000.0,
        "at least",
        values=tuple(found["wall"]),
        details={f"per processor second, times {THREADS}": median(found["processor"])},
    )
    return [case]


# ----- Measured in fresh processes ---------------------------------------------------------------


def measure_bullet(
    robot: str, changes: dict[str, Any], repeats: int, steps: int
) -> dict[str, list[float]]:
    """Step the reference task in this process; returns rates, whole and of stepSimulation alone.

    Args:
        robot: to simulate.
        changes: to the reference spec.
        repeats: repetitions.
        steps: control steps of each.
    """
    from rlgym.envs.imitation.build import build_task
    from rlgym.envs.physics.quiet_pybullet import pybullet

    task = build_task(
        WORLDS, engine="bullet", robot=robot, spec="reference", num_workers=0, **changes
    )
    shape = (WORLDS, task.robot.nq)
    plain, inside = pybullet.stepSimulation, _Clock(pybullet.stepSimulation)
    rates, alone = [], []
    try:
        for repeat in range(repeats + 1):
            times = []
            for function in (plain, inside):
                pybullet.stepSimulation = function
                inside.seconds, rng = 0.0, np.random.default_rng(repeat)
                task.reset()
                begin = time.process_time()
                for _ in range(steps):
                    task.step(NOISE * rng.normal(size=shape))
                times.append(time.process_time() - begin)
            if repeat:  # the first one warms up
                rates.append(WORLDS * steps / times[0])
                alone.append(WORLDS * steps / inside.seconds)
    finally:
        pybullet.stepSimulation = plain
        task.close()
    return {"rates": rates, "alone": alone}


class _Clock:
    """A function that adds up the processor time spent in it, without that of looking.

    Args:
        function: to call.
    """

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function = function
        self.seconds = 0.0
        looks = [time.process_time_ns() for _ in range(2001)]
        self._look = (looks[-1] - looks[0]) * 1e-9 / 2000

    def __call__(self, client: int) -> None:
        begin = time.process_time_ns()
        self._function(client)
        self.seconds += (time.process_time_ns() - begin) * 1e-9 - self._look


def merged_deviation() -> dict[str, float]:
    """Play a trot in open loop for 3 s with links merged and apart; how far they end up."""
    from rlgym.envs.imitation.build import build_task

    paths = []
    for merge in (False, True):
        bullet = {"merge": merge}
        task = build_task(
            1, engine="bullet", spec="reference", num_workers=0, physics={"bullet": bullet}
        )
        engine, clips = task.engine, task.clips
        dt, first = engine.actuation.control_dt, np.zeros(1, int)
        ref = clips.sample(first, np.full(1, 0.2))
        engine.reset(
            np.ones(1, np.bool_),
            ref.root_pos * [0.0, 0.0, 1.0],
            ref.root_quat,
            ref.root_linvel,
            ref.root_angvel,
            ref.q,
            ref.qd,
        )
        previous, path = ref.q.copy(), []
        for step in range(round(3.0 / dt)):
            target = clips.sample(first, np.full(1, 0.2 + (step + 1) * dt)).q.copy()
            state = engine.step(previous, target)
            previous = target
            path.append(np.concatenate((state.q[0], state.root_pos[0])))
        task.close()
        paths.append(np.array(path))
    apart = paths[1] - paths[0]
    return {
        "joint RMS against links apart, rad": float(np.sqrt(np.mean(apart[:, :-3] ** 2))),
        "distance after 3 s against links apart, m": float(np.linalg.norm(apart[-1, -3:])),
    }


def measure_mujoco(repeats: int, steps: int) -> dict[str, list[float]]:
    """Step MuJoCo's bare batch; returns rates by the wall and by the processor's clock.

    Args:
        repeats: repetitions.
        steps: control steps of each.
    """
    from rlgym.envs.imitation.spec import SPECS
    from rlgym.envs.physics import make_engine

    spec = SPECS["modern"]
    engine = make_engine(
        "mujoco",
        "a1",
        spec.actuation,
        BATCH,
        num_threads=THREADS,
        collide=spec.physics.collide,
        gravity=spec.physics.gravity,
    )
    robot = engine.robot
    pose = np.tile(robot.default_pose, (BATCH, 1))
    start = (
        np.tile([0.0, 0.0, robot.init_height], (BATCH, 1)),
        np.tile([0.0, 0.0, 0.0, 1.0], (BATCH, 1)),
        np.zeros((BATCH, 3)),
        np.zeros((BATCH, 3)),
        pose,
        np.zeros((BATCH, robot.nv)),
    )
    rates: dict[str, list[float]] = {"wall": [], "processor": []}
    for repeat in range(repeats + 1):
        rng = np.random.default_rng(repeat)
        targets = [pose + NOISE * rng.normal(size=pose.shape) for _ in range(steps)]
        engine.reset(np.ones(BATCH, np.bool_), *start)
        wall, processor = time.perf_counter(), time.process_time()
        for target in targets:
            engine.step(target, target)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        if repeat:
            rates["wall"].append(BATCH * steps / wall)
            rates["processor"].append(THREADS * BATCH * steps / processor)
    engine.close()
    return rates
