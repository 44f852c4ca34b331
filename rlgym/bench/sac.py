"""Environment steps per second of SAC at one update per step, against Stable-Baselines3's.

Both train with SB3's default network and batch (256-256, relu, batches of 256) on one world. What
no such training can be faster than is measured beside them: the float32 matrix products of an
update, of exactly these shapes, with everything else left out.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import torch

from rlgym.bench.harness import Case, Result, in_fresh_process, paired_case, say
from rlgym.device import Precision, arithmetic

WORLDS = ("HalfCheetah-v5", "Pendulum-v1")
HIDDEN = 256
"""Width of both hidden layers of the actor and of each critic."""
BATCH = 256
CRITICS = 2
RANDOM_STEPS = 100
"""Steps of random actions before the first update (SB3's default)."""
WARM_UP = 250
"""Environment steps before the clock starts."""
GOALS = {1: 1.0, 2: 2.0}
"""Torch threads -> bound of ours / SB3's. With one thread the limit leaves less than 2 to gain."""
OVERLAP_GOAL = 1.0
"""The same with worlds that step while the learner updates: an extra row, two threads."""
SHARE_OF_LIMIT = 0.55
"""Bound of our rate / that of the matrix products alone, with two threads."""
TIMEOUT = 1800.0


def bench_sac(
    *,
    world: tuple[str, ...] = WORLDS,
    threads: tuple[int, ...] = (1, 2),
    repeats: int = 5,
    steps: int = 1000,
    matmul_precision: Precision | None = None,
    quick: bool = False,
) -> Result:
    """Environment steps per second of SAC at one update per step, against SB3's.

    Args:
        world: worlds to train on.
        threads: numbers of torch threads, the same for both sides.
        repeats: repetitions of each side, taken in turn, each in a fresh process.
        steps: environment steps on the clock in each.
        matmul_precision: of float32 matrix products, the same for both sides and the limit.
        quick: one short repetition on one world, to see that everything works.
    """
    if quick:
        world, threads, repeats, steps = world[-1:], threads[:1], 1, 100
    cases: list[Case] = []
    for name in world:
        for count in threads:
            cases += _compare(name, count, repeats, steps, matmul_precision)
            for case in cases[-2:]:
                say(case.line())
    measured = (
        f"environment steps per second of training with one gradient step per step, {HIDDEN}-"
        f"{HIDDEN} networks and batches of {BATCH}, worlds and logs included, median of {repeats} "
        "interleaved"
    )
    return Result("sac", measured, tuple(cases), quick)


def _compare(
    world: str, threads: int, repeats: int, steps: int, precision: Precision | None
) -> list[Case]:
    """Measure one world at one number of threads, everything in turn."""
    overlapped = threads > 1
    found: dict[str, list[Any]] = {"limit": [], "ours": [], "sb3": [], "overlap": []}
    same = {"world": world, "threads": threads, "precision": precision}
    how = {**same, "steps": steps}
    for repeat in range(repeats):
        found["limit"].append(_fresh("matmul_limit", **same))
        found["ours"].append(_fresh("our_rate", seed=repeat, **how))
        found["sb3"].append(_fresh("sb3_rate", seed=repeat, **how))
        if overlapped:
            found["overlap"].append(_fresh("our_rate", seed=repeat, overlap=True, **how))
        rates = {name: runs[-1]["rate"] for name, runs in found.items() if runs}
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        say(f"{world}, {threads} thread(s), repetition {repeat}: {shown} steps/s")
    rates = {name: [run["rate"] for run in runs] for name, runs in found.items()}
    limit = statistics.median(rates["limit"])
    share = statistics.median(rates["ours"]) / limit
    details = {
        "threads": threads,
        "matmul_precision": precision,
        "limit_steps_per_second": limit,
        "limit_gflops_per_second": statistics.median(run["gflops"] for run in found["limit"]),
        "gflop_per_update": found["limit"][0]["gflop"],
        "share_of_limit": share,
        "milliseconds": _medians(found["ours"]),
    }
    conditions = {f"{SHARE_OF_LIMIT:.0%} of the matrix products' rate": share >= SHARE_OF_LIMIT}
    name = f"{world}, {threads} thread{'s' if threads > 1 else ''}"
    cases = [
        paired_case(
            name,
            "steps/s",
            rates["ours"],
            rates["sb3"],
            goal=GOALS.get(threads, GOALS[2]),
            goal_is="at least",
            conditions=conditions if threads > 1 else {},
            details=details,
        )
    ]
    if overlapped:
        cases.append(
            paired_case(
                f"{name}, overlap",
                "steps/s",
                rates["overlap"],
                rates["sb3"],
                goal=OVERLAP_GOAL,
                goal_is="at least",
                details={
                    "share_of_limit": statistics.median(rates["overlap"]) / limit,
                    "milliseconds": _medians(found["overlap"]),
                },
            )
        )
    return cases


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return each part's median over repetitions."""
    parts = [run["milliseconds"] for run in runs]
    return {name: statistics.median(part[name] for part in parts) for name in parts[0]}


def _fresh(function: str, **arguments: Any) -> Any:
    return in_fresh_process(f"rlgym.bench.sac:{function}", timeout=TIMEOUT, **arguments)


# ------------------------------------------------------------------ the matrix products alone
@dataclass(frozen=True)
class Product:
    """`count` products of (rows, inner) by (inner, columns) matrices, done together."""

    count: int
    rows: int
    inner: int
    columns: int
    transposed: str = ""
    """"left" or "right": that factor is stored transposed, as in a backward pass."""

    @property
    def flop(self) -> int:
        """Floating-point operations: a multiplication and an addition per term."""
        return 2 * self.count * self.rows * self.inner * self.columns


def products(obs: int, actions: int) -> list[Product]:
    """Return every matrix product of one SAC update.

    The actor runs once, on observations and next observations together. The critics run three
    times: as targets, on the batch, and on the actor's actions, where the backward pass goes
    through to the actions and leaves the parameters alone.

    Args:
        obs: numbers in an observation.
        actions: dimensions of an action.
    """

    def layers(inputs: int, outputs: int) -> list[tuple[int, int]]:
        return [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)]

    def forward(nets: int, rows: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(nets, rows, n, m) for n, m in sizes]

    def to_weights(nets: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(nets, n, BATCH, m, "left") for n, m in sizes]

    def to_inputs(nets: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(nets, BATCH, m, n, "right") for n, m in sizes]

    actor, critic = layers(obs, 2 * actions), layers(obs + actions, 1)
    return [
        *forward(1, 2 * BATCH, actor),
        *forward(CRITICS, BATCH, critic) * 3,
        *to_weights(CRITICS, critic),
        *to_inputs(CRITICS, critic[1:]),
        *to_inputs(CRITICS, critic[1:]),
        *to_inputs(CRITICS, [(actions, HIDDEN)]),  # the first layer, down to the actions alone
        *to_weights(1, actor),
        *to_inputs(1, actor[1:]),
    ]


def matmul_limit(
    *, world: str, threads: int, precision: Precision | None = None, seconds: float = 1.0
) -> dict[str, float]:
    """Time the matrix products of an update in a row (a fresh process).

    Returns:
        "rate": updates per second that they would allow; "gflop" of an update; "gflops" per second.
    """
    env = gymnasium.make(world)
    obs, actions = (space.shape[0] for space in (env.observation_space, env.action_space))  # type: ignore[index]
    env.close()
    update = products(obs, actions)
    with torch.inference_mode(), arithmetic(threads, precision):
        calls = [_faster_form(product) for product in update]
        spent = _seconds_per_pass(calls, seconds)
    gflop = sum(product.flop for product in update) / 1e9
    return {"rate": 1.0 / spent, "gflop": gflop, "gflops": gflop / spent}


def _faster_form(product: Product) -> Callable[[], object]:
    """Return the product as one batched call or as a call per matrix, whichever is faster."""
    left = _matrices(product.count, product.rows, product.inner, product.transposed == "left")
    right = _matrices(product.count, product.inner, product.columns, product.transposed == "right")
    out = torch.empty(product.count, product.rows, product.columns)
    pairs = list(zip(left, right, out, strict=True))

    def batched() -> None:
        torch.bmm(left, right, out=out)

    def one_by_one() -> None:
        for a, b, c in pairs:
            torch.mm(a, b, out=c)

    return min((batched, one_by_one), key=lambda form: _seconds_per_pass([form], 0.02))


def _matrices(count: int, rows: int, columns: int, transposed: bool) -> torch.Tensor:
    if transposed:
        return torch.rand(count, columns, rows).transpose(1, 2)
    return torch.rand(count, rows, columns)


def _seconds_per_pass(calls: list[Callable[[], object]], seconds: float) -> float:
    for call in calls:  # the first one sets things up
        call()
    passes, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for call in calls:
            call()
        passes += 1
    return spent / passes


# ------------------------------------------------------------------ whole trainings
PARTS: dict[str, tuple[str, ...]] = {
    "world": ("env.send", "env.recv"),
    "acting": ("policy.act",),
    "storing": ("replay.add",),
    "sampling": ("replay.sample",),
    "critic": ("learner.way.critic_gradient",),
    "actor": ("learner.way.begin", "learner.way.actor_gradient"),
    "optimizer": (
        *("learner.actor_optimizer.step", "learner.critic_optimizer.step"),
        "learner.temperature_optimizer.step",
    ),
    "boundary": ("mark",),
}
"""Part of an iteration -> methods of a run that it consists of, none of which calls another."""


class Clock:
    """Hook that times a training from step `WARM_UP` on, and the parts of an iteration."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, float]] = []
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def on_rollout(self, run: Any, buffer: Any) -> None:
        """Note the clock: between two notes lie as many updates as steps."""
        steps = run.state.env_steps
        if steps < WARM_UP:
            return
        if not self.notes:
            self._watch(run)
        self.notes.append((steps, time.perf_counter()))

    def _watch(self, run: Any) -> None:
        for part, paths in PARTS.items():
            for path in paths:
                *owners, method = path.split(".")
                owner = run
                for name in owners:
                    owner = getattr(owner, name)
                setattr(owner, method, self._timed(part, getattr(owner, method)))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - begin
            return result

        return timed

    def outcome(self) -> dict[str, Any]:
        """Return the rate, and the milliseconds of each part of an iteration."""
        (first, start), (last, end) = self.notes[0], self.notes[-1]
        scale = 1e3 / (last - first)
        parts = {part: seconds * scale for part, seconds in self.seconds.items()}
        whole = (end - start) * scale
        parts |= {"everything else": whole - sum(parts.values()), "all": whole}
        return {"rate": 1e3 / whole, "milliseconds": parts}


def our_rate(
    *,
    world: str,
    threads: int,
    steps: int,
    seed: int,
    precision: Precision | None = None,
    overlap: bool = False,
) -> dict[str, Any]:
    """Train with SB3's default settings of SAC and our normal loop, logs included.

    Returns:
        "rate", and "milliseconds" of the parts of an iteration (a fresh process).
    """
    import rlgym
    from rlgym.config import default_config

    clock = Clock()
    with TemporaryDirectory() as folder:
        rlgym.train(
            default_config(world, "sac"),
            run_dir=Path(folder) / "run",
            hooks=clock,
            seed=seed,
            total_steps=WARM_UP + steps,
            torch_threads=threads,
            matmul_precision=precision,
            backend="process" if overlap else "sync",
            algo={"learning_starts": RANDOM_STEPS, "batch_size": BATCH, "overlap": overlap},
            eval={"every": 0, "episodes": 1},
            checkpoint={"every": 10**12},
        )
    return clock.outcome()


def sb3_rate(
    *, world: str, threads: int, steps: int, seed: int, precision: Precision | None = None
) -> dict[str, Any]:
    """Train SB3's SAC with its default settings and return the rate (a fresh process)."""
    from rlgym.bench.baselines import AfterEachStep, ZooSettings, make_sb3

    total = WARM_UP + steps
    settings = ZooSettings(total_steps=total, algo={"learning_starts": RANDOM_STEPS})
    model = make_sb3(world, seed, algo="sac", settings=settings)
    times: dict[int, float] = {}

    def note(count: int) -> bool:
        times[count] = time.perf_counter()
        return True

    with arithmetic(threads, precision):
        model.learn(total, callback=AfterEachStep(note))
    return {"rate": steps / (times[total] - times[WARM_UP])}
