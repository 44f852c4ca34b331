"""What a policy loses on its way out of the lab: accuracy, time, space, and whether guards hold.

One policy for all of it: A1 trots at 50 Hz, trained here in MuJoCo with the preset, or in a run
that is named. Times of a decision are those of a larger network with random weights.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rlgym.bench.harness import ROOT, Case, Result, in_fresh_process, say
from rlgym.deploy import graph as g
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.graph import Action, Graph, Port
from rlgym.deploy.policy import Policy, error_of, golden_pairs
from rlgym.deploy.reference import run, to_world

FLOATS = ("numpy", "onnx", "onnx, opset15", "c", "pt2", "tflite")
INT8_WEIGHTS = ("c-int8", "tflite-int8")
FULL_INT8 = ("tflite-full-int8",)
FORMATS = ("c", "c-int8", "pt2", "tflite", *INT8_WEIGHTS[1:], *FULL_INT8)
HERTZ = 50
WIDE = (160, 512, 256, 12)
"""Widths of the network that is timed."""
TRAINED = {"time_step": 0.005, "substeps": 4}
"""Actuation of 50 Hz; the preset's is 30 Hz."""
LEAST_SCORE = 0.8
"""Mean reward per step of a policy that trots: of another one nothing here would tell much."""
MB = 1e6


@dataclass(frozen=True)
class _Size:
    """How much of everything is measured."""

    pairs: int = 10_000
    """Recorded observations."""
    episodes: int = 32
    repeats: int = 5
    seconds: float = 2.0
    """Of each repetition of a decision."""
    minutes: float = 10.0
    """Of the deploy loop."""


def bench_export(
    *, run: str = "", seed: int = 0, minutes: float = 10.0, quick: bool = False
) -> Result:
    """Errors of all formats, times of a decision, the runtime's size, deadlines and guards.

    Args:
        run: folder of a run of A1 on a trot; empty: one is trained first, in a minute or two.
        seed: of that training.
        minutes: of the deploy loop, in real time.
        quick: little of everything, to see that it works.
    """
    size = _Size(64, 2, 1, 0.05, 5 / 60) if quick else _Size(minutes=minutes)
    with TemporaryDirectory() as folder:
        if not run:
            run = str(Path(folder, "run"))
            say("training a trot at 50 Hz")
            steps = 8192 if quick else 300_000
            where = "rlgym.bench.export:train"
            in_fresh_process(where, timeout=1800.0, folder=run, seed=seed, steps=steps)
        bundle = str(Path(folder, "trot.rlpolicy"))
        say(f"recording {size.pairs:,} observations, and writing {', '.join(FORMATS)}")
        _export(run, bundle, size.pairs)
        cases = [*_parity(bundle, size.pairs)]
        cases.append(_closed_loop(run, bundle, size.episodes))
        cases += _decisions(Path(folder), size)
        cases.append(_runtime(Path(folder), bundle))
        cases.append(_faults(bundle))
        say(f"running the deploy loop for {60 * size.minutes:.0f} s")
        cases.append(_deadlines(bundle, 60 * size.minutes))
    for case in cases:
        say(case.line())
    measured = (
        f"errors of each format on {size.pairs:,} observations recorded in the policy's world, as "
        f"a share of the action's range; returns of {size.episodes} episodes; one decision at a "
        f"time of a network {'-'.join(map(str, WIDE))} on one core, median of {size.repeats} "
        f"repetitions of {size.seconds:g} s; a virtual environment with rlgym-deploy; the deploy "
        f"loop in real time against PyBullet for {60 * size.minutes:.0f} s; eight injected faults"
    )
    return Result("export", measured, tuple(cases), quick)


def train(folder: str, seed: int, steps: int) -> None:
    """Train A1 to trot at 50 Hz with the preset (a fresh process)."""
    import rlgym

    env = {"robot": "a1", "clip": "trot", "actuation": TRAINED}
    world = "rlgym/Imitate-v0"
    rlgym.train(world, run_dir=folder, env=env, seed=seed, total_steps=steps, console="off")


def _export(run: str, bundle: str, pairs: int) -> None:
    from rlgym.cli.export import Options, export_run

    export_run(Options(run=run, out=bundle, steps=pairs), list(FORMATS))


# ------------------------------------------------------------------------------------- accuracy


def _parity(path: str, pairs: int) -> list[Case]:
    """Errors on all recorded observations, through each artefact's own runtime."""
    from rlgym.export import verify
    from rlgym.export.runners import Runner, open_artefacts

    bundle = Bundle(path)
    policy = Policy(bundle, "numpy", replay=False)
    golden = golden_pairs(bundle, policy.graph)
    case = verify.Case(bundle, policy, *golden, trust=True)
    errors: dict[str, float] = {}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for runner in open_artefacts(case, Path(folder)):
            if isinstance(runner, Runner):
                errors[runner.name] = error_of(policy.graph, runner.run(golden[0]), golden[1])
    kinds = (("float formats", FLOATS, 1e-5), ("int8 weights", INT8_WEIGHTS, 5e-3))
    kinds += (("full int8", FULL_INT8, 1e-2),)
    return [
        Case(
            name=f"largest error of {name}",
            unit="of the range",
            value=max((errors[kind] for kind in formats if kind in errors), default=float("nan")),
            goal=goal,
            conditions={"each format ran": set(formats) <= errors.keys()},
            details={"errors": {k: errors.get(k) for k in formats}, "observations": pairs},
        )
        for name, formats, goal in kinds
    ]


def _closed_loop(run: str, bundle: str, episodes: int) -> Case:
    """Returns of whole episodes, of the trained policy and of each copy."""
    from rlgym.cli.verify import Options, closed_loop
    from rlgym.export.closed_loop import ALLOWED

    found = closed_loop(Options(bundle=bundle, run=run, episodes=episodes, closed_loop=True))
    copies = [check for check in found if check.name != "loop trained"]
    return Case(
        name="A1 trot, a copy's return against the trained policy's",
        unit="of the return",
        value=max((check.error or 0.0 for check in copies), default=float("nan")),
        goal=ALLOWED,
        conditions={f"it trots: {LEAST_SCORE} per step": _score(run) >= LEAST_SCORE},
        details={check.name: check.text for check in found},
    )


def _score(run: str) -> float:
    """Mean reward per step of a run's best evaluation."""
    lines = Path(run, "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return max((entry["mean"] / (10.0 * _hertz(run)) for entry in found), default=float("nan"))


def _hertz(run: str) -> float:
    from rlgym.cli.runs import read_run
    from rlgym.envs.imitation.spec import get_spec

    env = read_run(run, False).env
    changes = {name: env[name] for name in ("actuation",) if name in env}
    return 1.0 / get_spec(env.get("spec", "modern"), changes).actuation.control_dt


# --------------------------------------------------------------------------------------- time


def wide_policy(seed: int = 0) -> Graph:
    """A normaliser, two layers of tanh, bounded actions; random weights of a trained one's size."""
    draw = np.random.default_rng(seed).normal
    size, *hidden, joints = WIDE

    def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
        return draw(scale=scale, size=shape).astype(np.float32)

    spread = np.abs(numbers(size)) + 0.5
    ops: list[g.Op] = [g.Normalize("normal", ("flat",), numbers(size), spread, 10.0)]
    ops.insert(0, g.Flatten("flat", ("obs",)))
    x, width = "normal", size
    for k, units in enumerate(hidden):
        weight = numbers(units, width, scale=width**-0.5)
        ops.append(g.Dense(f"dense{k}", (x,), weight, numbers(units, scale=0.1)))
        ops.append(g.Activation(f"hidden{k}", (f"dense{k}",), "tanh"))
        x, width = f"hidden{k}", units
    weight = numbers(joints, width, scale=width**-0.5)
    ops.append(g.Dense("mean", (x,), weight, numbers(joints, scale=0.1)))
    ops.append(g.Activation("action", ("mean",), "tanh"))
    one = np.ones(joints, np.float32)
    action = Action("", "action", "box", (joints,), "", one, 0 * one, -one, one)
    ports = (Port("obs", (size,), "float32"),), (Port("action", (joints,), "float32"),)
    return Graph(ports[0], tuple(ops), ports[1], (action,))


def _decisions(folder: Path, size: _Size) -> list[Case]:
    """Median microseconds of one decision in onnxruntime and in C, repetitions taken in turn."""
    from rlgym.export import verify
    from rlgym.export.latency import measure, quantiles_of
    from rlgym.export.runners import Runner, open_artefacts

    path = folder / "wide.rlpolicy"
    _write_wide(path)
    bundle = Bundle(path)
    policy = Policy(bundle, "numpy")
    inputs, world = golden_pairs(bundle, policy.graph)
    case = verify.Case(bundle, policy, inputs, world, trust=True)
    home = folder / "wide"
    home.mkdir()
    opened = [r for r in open_artefacts(case, home) if isinstance(r, Runner)]
    found: dict[str, list[dict[str, float]]] = {runner.name: [] for runner in opened}
    for _ in range(size.repeats):
        for runner in opened:
            found[runner.name].append(quantiles_of(measure(runner, inputs, size.seconds)))
    goals = (("onnx", "onnxruntime", 100.0), ("c", "C, float32, -O2", 250.0))
    return [
        Case(
            name=f"one decision of {'-'.join(map(str, WIDE))} in {label}",
            unit="us",
            value=statistics.median([one["p50"] for one in found[name]] or [float("nan")]),
            goal=goal,
            values=tuple(one["p50"] for one in found[name]),
            details={kind: own[len(own) // 2] for kind, own in found.items()},
        )
        for name, label, goal in goals
        if name in found
    ]


def _write_wide(path: Path) -> None:
    from rlgym.export.bundle import write_bundle
    from rlgym.export.describe import describe
    from rlgym.export.golden import Golden

    graph = wide_policy()
    rows = np.random.default_rng(1).normal(size=(64, WIDE[0])).astype(np.float32)
    outputs = run(graph, {"obs": rows})
    golden = Golden({"obs": rows}, outputs, {"": to_world(graph, outputs)}, np.arange(64) == 0)
    write_bundle(path, graph, golden, describe(graph, {}, {"run": "wide"}), ("c",))


# -------------------------------------------------------------------------------- on the robot


def _runtime(folder: Path, bundle: str) -> Case:
    """Bytes of a virtual environment in which rlgym-deploy runs the bundle."""
    home = folder / "venv"
    details: dict[str, Any] = {}
    try:
        venv.create(home, with_pip=True)
        binary = home / ("Scripts" if os.name == "nt" else "bin")
        source = folder / "rlgym-deploy"  # a build leaves files beside its sources
        left = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT / "rlgym" / "deploy", source, ignore=left)
        pip = [str(binary / "python"), "-m", "pip"]
        _checked([*pip, "install", "--quiet", "--disable-pip-version-check", str(source)])
        said = _checked([*pip, "list", "--format", "json", "--disable-pip-version-check"])
        details["packages"] = {entry["name"]: entry["version"] for entry in json.loads(said)}
        command = [str(binary / "rlgym-deploy"), bundle, "--fast", "--seconds", "1", "--json"]
        details["ran"] = json.loads(_checked(command))["ended"]
    except (OSError, subprocess.SubprocessError) as error:
        details["failed"] = str(error)[:500]
    files = [file for file in home.rglob("*") if file.is_file() and not file.is_symlink()]
    size = sum(file.stat().st_size for file in files) / MB
    return Case(
        name="virtual environment of the runtime",
        unit="MB",
        value=size if "ran" in details else float("nan"),
        goal=200.0,
        conditions={"without torch": "torch" not in details.get("packages", {})},
        details=details,
    )


def _checked(command: list[str], timeout: float = 900.0) -> str:
    """Standard output of a command.

    Raises:
        SubprocessError: it fails or takes too long; the message has the last line it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise subprocess.SubprocessError(f"{Path(command[0]).name}: {tail}")
    return done.stdout


def _deadlines(bundle: str, seconds: float) -> Case:
    """Share of deadlines that the loop misses in real time, in a process of its own."""
    words = [bundle, "--robot", "bullet", "--seconds", f"{seconds:g}", "--json"]
    command = [sys.executable, "-m", "rlgym.deploy", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 300.0
    )
    lines = done.stdout.strip().splitlines()
    report: dict[str, Any] = (
        json.loads(lines[-1]) if lines else {"failed": done.stderr.strip()[-300:]}
    )
    wanted = seconds * report.get("control_hz", HERTZ)
    return Case(
        name=f"missed deadlines of the deploy loop, {seconds:g} s against PyBullet",
        unit="of all",
        value=report.get("miss_rate", float("nan")),
        goal=1e-3,
        conditions={
            "no guard trips": "failed" not in report and report["fault"] is None,
            f"at {HERTZ} Hz": abs(report.get("control_hz", 0.0) - HERTZ) < 1e-6,
            "to the end": report.get("cycles", 0) + report.get("missed", 0) >= wanted,
        },
        details=report,
    )


def _faults(path: str) -> Case:
    """Control cycles from each injected fault to its guard, against PyBullet; the largest."""
    from rlgym.deploy.robots.faulty import KINDS

    found = {kind: _cycles_to_trip(path, kind) for kind in KINDS}
    return Case(
        name=f"cycles until a guard trips, worst of {len(KINDS)} faults",
        unit="cycles",
        value=max(cycles for _, cycles in found.values()),
        goal=1.0 + 1e-6,
        conditions={"each trips its own": all(kind == own for own, (kind, _) in found.items())},
        details={own: {"tripped": kind, "cycles": n} for own, (kind, n) in found.items()},
    )


def _cycles_to_trip(path: str, kind: str) -> tuple[str, float]:
    from rlgym.deploy.controller import Controller
    from rlgym.deploy.guards import Guards
    from rlgym.deploy.loop import Loop, VirtualClock
    from rlgym.deploy.robots import make_robot
    from rlgym.deploy.robots.faulty import Faulty
    from rlgym.deploy.robots.robot import Settings

    bundle, clock, broken = Bundle(path), VirtualClock(), 0.7
    dt = bundle.manifest["timing"]["control_dt"]
    controller = Controller(bundle, Policy(bundle, "numpy", replay=False))
    guards = Guards(bundle.manifest, dt, controller.observer.needs)
    sound = make_robot("bullet", bundle.manifest, clock, Settings())
    try:
        robot = Faulty(sound, kind, broken, clock)
        report = Loop(robot, controller, guards, clock, dt, ramp=0.4).run(3.0)
    finally:
        sound.close()
    if report.fault is None:
        return "", float("nan")
    stalled = 1.0 if kind == "overrun" else 0.0  # which is how long that fault takes
    return report.fault.kind, round((report.fault.time - broken - stalled) / dt, 6)
