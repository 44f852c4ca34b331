"""What every benchmark shares: its result, fresh processes, and the machine it ran on.

A benchmark is one file with one function `bench_<name>(**options) -> Result`. Its `Result` holds
one or more cases, each with its own goal; the goal is met when every case meets its own.
"""

import contextlib
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "pybullet", "mujoco", "mujoco-warp")
"""Packages whose versions are part of every result, when they are installed."""
ROOT = Path(__file__).resolve().parents[2]
"""Folder that contains the package `rlgym`."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Removed from the environment of a measured process, which sets its own threads."""


@dataclass(frozen=True)
class Case:
    """One number and the bound that it was promised to keep."""

    name: str
    """What varies between the cases of a benchmark, such as the network or the world."""
    unit: str
    """Unit of `value` and `baseline`."""
    value: float
    """Ours: the median of `values` unless the benchmark says otherwise."""
    goal: float
    """Bound of the value, or of value / baseline when `goal_on` is "ratio"."""
    goal_is: Literal["at most", "at least"] = "at most"
    """Side on which the goal lies."""
    goal_on: Literal["value", "ratio"] = "value"
    """The number that the goal bounds."""
    baseline: float | None = None
    """Theirs, measured in the same run."""
    values: tuple[float, ...] = ()
    """Every repetition of ours, in the order it was taken."""
    baseline_values: tuple[float, ...] = ()
    """Every repetition of theirs, interleaved with ours."""
    conditions: dict[str, bool] = field(default_factory=dict)
    """What else must hold, such as the score of the policy that was trained."""
    details: dict[str, Any] = field(default_factory=dict)
    """Anything that helps to judge the number."""

    @property
    def ratio(self) -> float | None:
        """Value / baseline, or None without a baseline."""
        return None if not self.baseline else self.value / self.baseline

    @property
    def met(self) -> bool:
        """Whether the goal and all conditions hold; a number that is missing meets nothing."""
        number = self.value if self.goal_on == "value" else self.ratio
        if number is None or math.isnan(number):
            return False
        inside = number <= self.goal if self.goal_is == "at most" else number >= self.goal
        return inside and all(self.conditions.values())

    def to_json(self) -> dict[str, Any]:
        """Return all fields, the ratio and the verdict."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "goal": {"on": self.goal_on, "is": self.goal_is, "bound": self.goal},
            "met": self.met,
            "values": list(self.values),
            "baseline_values": list(self.baseline_values),
            "conditions": self.conditions,
            "details": self.details,
        }

    def line(self) -> str:
        """Return one line for a person."""
        text = f"{self.name}: {self.value:.4g} {self.unit}"
        if self.baseline is not None:
            text += f" against {self.baseline:.4g}"
        if self.ratio is not None:
            text += f" (ratio {self.ratio:.3g})"
        text += f"; goal: {self.goal_on} {self.goal_is} {self.goal:.4g}"
        missing = [name for name, holds in self.conditions.items() if not holds]
        text += f" and {', '.join(missing)}, which fails" if missing else ""
        return f"{text}: {'met' if self.met else 'NOT met'}"


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    name: str
    """Name as in `rlgym bench NAME`."""
    measured: str
    """One sentence: what was timed or counted, and what was not."""
    cases: tuple[Case, ...]
    """The numbers; the first is the headline."""
    quick: bool = False
    """Whether this was a smoke test, whose numbers mean nothing and whose goal is never met."""

    @property
    def met(self) -> bool:
        """Whether every case met its goal."""
        return bool(self.cases) and not self.quick and all(case.met for case in self.cases)

    def to_json(self, load: dict[str, Any]) -> dict[str, Any]:
        """Return the object that a benchmark prints as its last line.

        Args:
            load: what `LoadWatch.stop` returned.

        Returns:
            The deciding case's numbers (the first that missed its goal, else the first), all
            cases, the machine, the versions and the commit.
        """
        missed = [case for case in self.cases if not case.met]
        deciding = (missed or list(self.cases))[0].to_json() if self.cases else {}
        picked = ("value", "unit", "baseline", "ratio", "goal")
        outcome = {
            "name": self.name,
            "measured": self.measured,
            "case": deciding.get("name"),
            **{key: deciding.get(key) for key in picked},
            "met": self.met,
            "quick": self.quick,
            "busy": load["busy"],
            "load": load,
            "cases": [case.to_json() for case in self.cases],
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return _without_nan(outcome)


def _without_nan(value: Any) -> Any:
    """Return nested values with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def paired_case(
    name: str,
    unit: str,
    ours: list[float],
    theirs: list[float],
    *,
    goal: float,
    goal_is: Literal["at most", "at least"] = "at most",
    conditions: dict[str, bool] | None = None,
    details: dict[str, Any] | None = None,
) -> Case:
    """Return the case that compares the medians of two interleaved series.

    Args:
        name: what varies between cases.
        unit: unit of both series.
        ours: our repetitions.
        theirs: the baseline's, taken in turn with ours.
        goal: bound of the ratio of medians.
        goal_is: side on which the goal lies.
        conditions: what else must hold.
        details: anything that helps to judge the number.
    """
    return Case(
        name=name,
        unit=unit,
        value=statistics.median(ours),
        baseline=statistics.median(theirs),
        goal=goal,
        goal_is=goal_is,
        goal_on="ratio",
        values=tuple(ours),
        baseline_values=tuple(theirs),
        conditions=conditions or {},
        details=details or {},
    )


def say(text: str) -> None:
    """Tell a person how far the benchmark is; standard output is kept for the result."""
    print(text, file=sys.stderr, flush=True)


class FreshProcessError(RuntimeError):
    """A measured process that failed; the message ends with the last lines it wrote."""


def in_fresh_process(function: str, *, timeout: float, **arguments: Any) -> Any:
    """Call a function in a new interpreter, so that no run warms the next one's caches.

    Args:
        function: "module:name"; it takes and returns what JSON can hold.
        timeout: seconds after which the process is stopped.
        **arguments: passed to the function.

    Raises:
        FreshProcessError: when the process fails or takes too long.
    """
    script = (
        "import importlib, json, sys\n"
        "module, name = sys.argv[1].split(':')\n"
        "result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))\n"
        "json.dump(result, open(sys.argv[3], 'w'))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with TemporaryDirectory() as folder, _leaving_on_sigterm():
        # An answer in a file: engines write to standard output too. Output in a file: a pipe would
        # be waited for as long as some worker of a process that was stopped holds it open.
        answer, output = Path(folder) / "answer.json", Path(folder) / "output.txt"
        command = [sys.executable, "-c", script, function, json.dumps(arguments), str(answer)]
        with output.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise FreshProcessError(f"{function} took more than {timeout:.0f} s") from error
            finally:
                _stop(process)
        if status or not answer.is_file():
            said = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            tail = " | ".join(said[-3:])
            raise FreshProcessError(f"{function} ended with status {status}: {tail}")
        return json.loads(answer.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind this process, so that the one it measures is stopped too."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen) -> None:
    """Stop a process, and what it started where the system knows process groups."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def loaded_modules() -> list[str]:
    """Return the names of all modules that this process has loaded and another could import."""
    found = []
    for name, module in list(sys.modules.items()):
        if name != "__main__" and getattr(module, "__spec__", None) is not None:
            found.append(name)
    return sorted(found)


def import_all(names: list[str]) -> None:
    """Import modules before a clock starts; those that cannot be imported alone are left out."""
    for name in names:
        try:
            if importlib.util.find_spec(name) is not None:
                import_module(name)
        except Exception:
            continue


def machine() -> dict[str, Any]:
    """Return the processor, its cores, memory's size, the accelerator and the system."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # Windows and macOS have no affinity mask
        usable = os.cpu_count() or 1
    return {
        "cpu": _cpu_model(),
        "cores": usable,
        "gpu": _gpu_model(),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    from rlgym.device import available  # imports torch: slow, and a listing needs none of it

    device = available()[0]
    if device == "cpu":
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return device
    return done.stdout.strip().splitlines()[0]


def versions() -> dict[str, str]:
    """Return the versions of Python, of rlgym and of the packages that a number depends on."""
    from rlgym import __version__

    found = {"python": platform.python_version(), "rlgym": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the checkout's commit, with "+changes" if files differ; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
