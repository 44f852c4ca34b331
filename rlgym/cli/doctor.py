"""`rlgym doctor`: look at this machine, a world, a run, a NaN dump, a lost world's report."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import rlgym
from rlgym.cli.arguments import parse, require_at_least
from rlgym.cli.diagnosis import advice, diagnose, read_crash, read_metrics, series, shares
from rlgym.cli.runs import is_run, no_run
from rlgym.config import ALGOS, load_config
from rlgym.errors import CheckpointError, UserError, WorldError
from rlgym.settings import short
from rlgym.training.folder import CRASHES
from rlgym.vector.check.trial import Finding

DISTRIBUTION = "rlgym-lab"
COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Options:
    """Check a world (its id), a run (its folder), this machine, or a file that a run named.

    Such a file is a dump of the NaN guard, or the report of a world or worker that was lost.

    A world is stepped at random in a process of its own; what it does wrong is told with the fix.
    The exit status is 1 when something must be corrected.
    """

    target: Positional[str] = ""
    """World id ("module:id" imports a module), run folder or file; nothing: this machine."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world, as YAML: --env "{length: 3}"."""
    steps: int = 200
    """Steps of the longest test of a world."""
    seed: int = 0
    """Seed of the world and of the actions."""
    timeout: float = 60.0
    """Seconds after which a world that gives no answer counts as hanging."""
    trust: bool = False
    """Let a dump import the module that it names."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> int:
    """Look at the target."""
    options = parse(Options, argv, "rlgym doctor", ("target",))
    require_at_least(options, steps=1, seed=0, timeout=1)
    if not options.target:
        report, findings = machine()
    elif is_run(options.target):
        report, findings = of_run(Path(options.target))
    elif options.target.endswith(".json"):
        report, findings = of_file(Path(options.target), options.trust)
    elif Path(options.target).is_dir():
        raise no_run(options.target)
    else:
        report, findings = of_world(options)
    if options.json:
        print(json.dumps({**report, "findings": [asdict(finding) for finding in findings]}))
    else:
        show(report, findings)
    return int(any(finding.severity == "error" for finding in findings))


def show(report: dict[str, Any], findings: list[Finding]) -> None:
    """Print the facts, then the findings."""
    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
        facts.add_row(f"[bold]{name.replace('_', ' ')}", str(value).replace("[", r"\["))
    console.print(facts)
    if all(finding.severity == "note" for finding in findings):
        console.print("[green]nothing wrong was found")
    if not findings:
        return
    table = Table(box=None, padding=(0, 2), show_header=False)
    for finding in findings:
        color = COLORS[finding.severity]
        message = finding.message.replace("[", r"\[")
        table.add_row(f"[{color}]{finding.severity}", finding.rule, message)
    console.print(table)


# ---------------------------------------------------------------------- this machine
def machine() -> tuple[dict[str, Any], list[Finding]]:
    """Facts of this machine and of the installation."""
    import torch

    from rlgym.cli.hardware import look, used, why_not_more

    hardware = look()
    report: dict[str, Any] = {
        "rlgym": f"{rlgym.__version__} in {Path(rlgym.__file__).parent}",
        "python": f"{platform.python_version()} in {sys.prefix}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": "{} of {} usable".format(*hardware.cores),
        "memory": _memory(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "devices": ", ".join(
            f"{name} ({what})" if what != name else name for name, what in hardware.devices.items()
        ),
        "used": "; ".join(f"{part}: {what}" for part, what in used(hardware).items()),
        "packages": _versions(_requirements().get("", [])),
        "extras": _extras(),
    }
    findings = why_not_more(hardware)
    absent = [name for name, version in report["packages"].items() if version == "absent"]
    if absent:
        fix = f'pip install "{DISTRIBUTION}"'
        findings.insert(0, Finding("error", "packages", f"{', '.join(absent)} absent: {fix}"))
    return report, findings


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _requirements() -> dict[str, list[str]]:
    """Extra ("" for the base) -> packages, as the installed distribution declares them."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        lines = ["gymnasium", "numpy", "torch", "tensorboard", "tyro", "rich", "safetensors"]
    found: dict[str, list[str]] = {"": []}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name and not name[0].startswith(DISTRIBUTION):
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _versions(names: list[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _extras() -> dict[str, str]:
    """Extra -> "installed", or what is absent."""
    told = {}
    for extra, names in _requirements().items():
        absent = [name for name, version in _versions(names).items() if version == "absent"]
        if extra and names:
            told[extra] = f"lacks {' '.join(absent)}" if absent else "installed"
    return told


# ---------------------------------------------------------------------- a world
def of_world(options: Options) -> tuple[dict[str, Any], list[Finding]]:
    """Test a world in a process of its own, which may hang or die.

    Raises:
        UserError: for an unknown id or a wrong argument.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        question = {
            "world": options.target,
            "kwargs": options.env,
            "steps": options.steps,
            "seed": options.seed,
            "seconds": min(10.0, options.timeout / 4),
            "answer": str(answer),
        }
        code = "import sys; from rlgym.cli.doctor import answer; answer(sys.argv[1])"
        paths = os.pathsep.join([os.getcwd(), *(path for path in sys.path if path)])
        try:
            child = subprocess.run(
                [sys.executable, "-c", code, json.dumps(question)],
                timeout=options.timeout,
                env={**os.environ, "PYTHONPATH": paths},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            fix = "reset() or step() hangs; or the world is slow: raise --timeout or lower --steps"
            text = f"no answer in {options.timeout:g} s: {fix}"
            return {"world": options.target}, [Finding("error", "hang", text)]
        if not answer.is_file():
            last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
            text = f"the world ended its process with status {child.returncode}: {last}"
            return {"world": options.target}, [Finding("error", "exit", text)]
        told = json.loads(answer.read_text())
    if "error" in told:
        unknown = told["error"].startswith("unknown world") and "did you mean" not in told["error"]
        if unknown and _is_path(options.target):
            raise no_run(options.target)
        raise UserError(told["error"])
    return told["report"], [Finding(**finding) for finding in told["findings"]]


def _is_path(word: str) -> bool:
    """Tell whether a word that names no world looks as if it were to name a folder."""
    has_version = re.search(r"-v\d+$", word) is not None
    return re.search(r"[/\\]", word) is not None and ":" not in word and not has_version


def answer(question: str) -> None:
    """Test the world that `question` names and write what was found to its answer file."""
    asked = json.loads(question)
    told: dict[str, Any]
    try:
        report, findings = _look(asked)
        told = {"report": report, "findings": [asdict(finding) for finding in findings]}
    except UserError as error:
        told = {"error": str(error)}
    Path(asked["answer"]).write_text(json.dumps(told))


def _look(asked: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Describe the world that is asked for, and what is wrong with it."""
    from rlgym.registry import WorldSpec, choose_backend, is_scene
    from rlgym.vector.check.conformance import check

    if is_scene(asked["world"]):
        return _look_at_scene(asked)
    spec = WorldSpec(asked["world"], asked["kwargs"])
    world = spec()
    limit = world.spec.max_episode_steps if world.spec else None
    report: dict[str, Any] = {
        "world": spec.name,
        "observation": " ".join(str(world.observation_space).split()),
        "action": " ".join(str(world.action_space).split()),
        "time_limit": limit or "none",
    }
    world.close()
    findings = check(
        spec,
        steps=asked["steps"],
        seconds=asked["seconds"],
        seed=asked["seed"],
        raise_on_failure=False,
    )
    if not any(finding.severity == "error" for finding in findings):
        backend, reason = choose_backend(spec, 8)
        report["backend_for_8"] = f"{backend}: {reason}"
    return report, findings


def _look_at_scene(asked: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The same for a Unity scene, whose player is started once."""
    from rlgym.registry import make_vec
    from rlgym.vector.check.conformance import check

    env: Any = make_vec(asked["world"], env_kwargs=asked["kwargs"], seed=asked["seed"])
    try:
        report = {
            "world": asked["world"],
            "behaviour": env.behavior,
            "agents": env.num_envs,
            "decisions": "all agents at once" if env.world.everyone else "when an agent likes",
            "observation": " ".join(str(env.single_observation_space).split()),
            "action": " ".join(str(env.single_action_space).split()),
        }
        told = {name: asked[name] for name in ("steps", "seconds", "seed")}
        return report, check(env, **told, raise_on_failure=False)
    finally:
        env.close()


# ---------------------------------------------------------------------- a run, a dump
def of_run(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Say where a run's time went and what looks wrong in its numbers."""
    lines = read_metrics(folder)
    parts = shares(lines)
    report: dict[str, Any] = {"run": str(folder), "steps": int(lines[-1].get("step", 0))}
    for name, scalar in {"return": "rollout/ep_rew_mean", "steps_per_second": "time/fps"}.items():
        values = series(lines, scalar)
        if values:
            report[name] = f"{values[-1]:.4g}"
    report["time"] = {part: f"{share:.0%}" for part, share in parts.items()}
    algo = load_config(folder / "config.yaml").algo
    report["advice"] = advice(parts, next(n for n, kind in ALGOS.items() if type(algo) is kind))
    return report, [*_checkpoints(folder), *diagnose(lines), *_crashes(folder / CRASHES)]


def _checkpoints(folder: Path) -> list[Finding]:
    """Verify the checkpoints of a run, and that those which its pointers name are there."""
    from rlgym.training import checkpoint

    broken, whole = [], []
    for path in sorted((folder / "checkpoints").glob("step-*")):
        if ".tmp-" in path.name or ".old-" in path.name:
            continue  # being saved or deleted at this moment, or when a process was killed
        try:
            whole.append(checkpoint.read(path).path.name)
        except CheckpointError as error:
            if path.exists():  # a run in progress deletes the oldest
                broken.append(str(error))
    severity, rest = "warning", f"{len(whole)} whole ones are left"
    if not whole:
        severity, rest = "error", "no whole one is left, train again"
    found = [
        Finding(severity, "checkpoints", f"{error}: bring it back or delete it; {rest}")
        for error in broken
    ]
    latest = _latest(folder)
    if not whole:
        return found or [_none_left(folder, latest)]
    if not broken and latest is not None and latest not in whole:
        text = f"{short(latest)}, which latest.json names, is gone: resume goes on from {whole[-1]}"
        found += [Finding("warning", "latest", text)]
    try:
        checkpoint.best(folder)
    except CheckpointError as error:
        found += [Finding("error", "best", str(error))]
    return found


def _latest(folder: Path) -> Any:
    """The name in latest.json, None where there is none."""
    try:
        return json.loads((folder / "latest.json").read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _none_left(folder: Path, latest: Any) -> Finding:
    if latest is None:
        text = "none was saved yet: let the run go on, or lower checkpoint.every"
        return Finding("warning", "checkpoints", text)
    text = (
        f"{folder / 'checkpoints'} holds none, though one was saved: bring it back or train again"
    )
    return Finding("error", "checkpoints", text)


def _crashes(folder: Path) -> list[Finding]:
    """Name the newest report of a lost world or worker, and how many there are."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return []
    newest = paths[-1]
    try:
        what = read_crash(newest)["what"]
    except UserError as error:
        what = str(error)
    text = f"{len(paths)} in {folder}, the newest: {what}; more: rlgym doctor {newest}"
    return [Finding("warning", "crashes", text)]


def of_crash(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Show what a lost world or worker was doing."""
    facts = read_crash(path)
    text = f"{facts.pop('what')}: correct the world, or raise timeout where it is only slow"
    return {"report": str(path), **facts}, [Finding("error", "crash", text)]


def of_file(path: Path, trust: bool) -> tuple[dict[str, Any], list[Finding]]:
    """Look at the report of a lost world, or at a dump of the NaN guard.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there: give a file that a run named")
    try:
        return of_crash(path)
    except UserError:
        return of_dump(path, trust)


def of_dump(path: Path, trust: bool) -> tuple[dict[str, Any], list[Finding]]:
    """Run the episode of a dump again."""
    from rlgym.vector.guard import replay_dump

    try:
        replay = replay_dump(path, rlgym.make, trust=trust)
    except WorldError as error:
        if "stay finite" not in str(error):
            raise
        return {"dump": str(path)}, [Finding("warning", "replay", str(error))]
    report = {
        "dump": str(path),
        "step": replay.step,
        "observation": str(replay.obs),
        "reward": replay.reward,
    }
    text = f"the {replay.what} is not finite at step {replay.step}: correct the world"
    return report, [Finding("error", "nan", text)]
