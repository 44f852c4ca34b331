"""How long one decision takes, for each artefact of a bundle on this machine.

First by our own clock: the call alone, one observation at a time, one thread. Then, if asked, by
MLPerf LoadGen's SingleStream scenario (github.com/mlcommons/inference, `mlcommons-loadgen`), which
sends the next query when the last one is answered. Its numbers are MLPerf-style, not a submission:
the policy is no MLPerf model, and a run is shorter than their rules ask.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.bundle import Bundle
from rlgym.deploy.policy import Policy, golden_pairs
from rlgym.errors import MissingExtraError
from rlgym.export.runners import Runner, Skipped, open_artefacts
from rlgym.export.verify import Case

ROWS = 64
"""Golden observations that take turns, so that no branch is learned by heart."""
WARM_UP = 50
"""Decisions before the clock starts."""
LABEL = "MLPerf-style, not a submission"
QUANTILES = (50, 90, 99)


@dataclass(frozen=True)
class Latency:
    """What one artefact took."""

    name: str
    where: str
    """What ran it; or, where it was not run, why."""
    decisions: int = 0
    microseconds: dict[str, float] | None = None
    """p50, p90, p99 and max; None where it was not run."""
    loadgen: dict[str, Any] | None = None
    """The same by LoadGen, with "valid" and "queries"; None where it was not asked for."""

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = {"name": self.name, "where": self.where, "decisions": self.decisions}
        found["microseconds"] = self.microseconds
        if self.loadgen is not None:
            found["loadgen"] = {"label": LABEL, **self.loadgen}
        return found

    def lines(self) -> list[str]:
        """The same for a person."""
        if self.microseconds is None:
            return [f"{self.name:<20} {self.where}"]
        lines = [f"{self.name:<20} {_numbers(self.microseconds)}  {self.where}"]
        if self.loadgen is not None:
            valid = "valid" if self.loadgen["valid"] else "INVALID: " + self.loadgen["why"]
            own = {name: self.loadgen[name] for name in self.microseconds}
            lines.append(f"{'  LoadGen':<20} {_numbers(own)}  {valid}")
        return lines


def _numbers(values: dict[str, float]) -> str:
    return " ".join(f"{value:>9,.1f}" for value in values.values())


def heading() -> str:
    """The line above a table of `Latency.lines`."""
    names = (*(f"p{share}" for share in QUANTILES), "max")
    return f"{'us per decision':<20} " + " ".join(f"{name:>9}" for name in names)


def measure_bundle(
    path: str | Path, seconds: float = 2.0, loadgen: bool = False, trust: bool = False
) -> list[Latency]:
    """Time every artefact of a bundle that can be run here.

    Args:
        path: the bundle.
        seconds: of each artefact, by each clock.
        loadgen: also let LoadGen measure.
        trust: compile and load what could run code, too.

    Raises:
        BundleError: it is not whole, not safe, or not readable.
        MissingExtraError: LoadGen is asked for and not installed.
    """
    if loadgen:
        _loadgen()
    bundle = Bundle(path)
    policy = Policy(bundle, "numpy")
    case = Case(bundle, policy, *golden_pairs(bundle, policy.graph), trust)
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for runner in open_artefacts(case, Path(folder)):
            if isinstance(runner, Skipped):
                found.append(Latency(runner.name, runner.reason))
                continue
            times = measure(runner, case.inputs, seconds)
            stated = run_loadgen(runner, case.inputs, seconds, times) if loadgen else None
            quantiles = quantiles_of(times)
            found.append(Latency(runner.name, runner.where, len(times), quantiles, stated))
    return found


def measure(runner: Runner, inputs: dict[str, np.ndarray], seconds: float) -> np.ndarray:
    """Seconds of each decision, (K,), in the order they were taken; at least `WARM_UP` of them."""
    decide = _bound(runner, inputs)
    for k in range(WARM_UP):
        decide[k % len(decide)]()
    clock, times = time.perf_counter_ns, []
    end = clock() + round(1e9 * seconds)
    begin = clock()
    while begin < end or len(times) < WARM_UP:
        call = decide[len(times) % len(decide)]
        begin = clock()
        call()
        times.append(clock() - begin)
    return np.array(times) * 1e-9


def quantiles_of(seconds: np.ndarray) -> dict[str, float]:
    """p50, p90, p99 and max of seconds, in microseconds."""
    found = {f"p{share}": float(1e6 * np.percentile(seconds, share)) for share in QUANTILES}
    return {**found, "max": float(1e6 * seconds.max())}


def _bound(runner: Runner, inputs: dict[str, np.ndarray]) -> list[Callable[[], Any]]:
    total = len(next(iter(inputs.values())))
    rows = np.unique(np.linspace(0, total - 1, min(ROWS, total)).astype(int))
    given = ({name: array[k : k + 1].copy() for name, array in inputs.items()} for k in rows)
    return [runner.bind(row) for row in given]


# ------------------------------------------------------------------------------------- LoadGen


def _loadgen() -> Any:
    """The library, imported here because it is an extra of its own.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError:
        raise MissingExtraError('LoadGen is an extra: pip install "rlgym-lab[latency]"') from None
    return mlperf_loadgen


def run_loadgen(
    runner: Runner, inputs: dict[str, np.ndarray], seconds: float, times: Sequence[float] | Any
) -> dict[str, Any]:
    """Let LoadGen send one query at a time for `seconds`.

    Args:
        runner: what answers.
        inputs: golden ones.
        seconds: least duration.
        times: by our clock, from which LoadGen is told what to expect: it makes its queries
            beforehand, and too few of them make a run too short, hence invalid.

    Returns:
        p50, p90, p99 and max in microseconds, "queries", "valid", and "why" not.
    """
    lg = _loadgen()
    decide = _bound(runner, inputs)

    def issue(queries: Any) -> None:
        for query in queries:
            decide[query.index]()
            lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
    settings.single_stream_expected_latency_ns = max(1000, round(5e8 * float(np.median(times))))
    settings.min_duration_ms, settings.min_query_count = round(1e3 * seconds), 100
    logs = lg.LogSettings()
    logs.enable_trace = False
    sut = lg.ConstructSUT(issue, lambda: None)
    samples = lg.ConstructQSL(len(decide), len(decide), lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        try:
            lg.StartTestWithLogSettings(sut, samples, settings, logs, "")
        finally:
            lg.DestroyQSL(samples)
            lg.DestroySUT(sut)
        summary = Path(folder, "mlperf_log_summary.txt").read_text(encoding="utf-8")
    return read_summary(summary)


def read_summary(text: str) -> dict[str, Any]:
    """Read LoadGen's summary of a SingleStream run; times become microseconds."""
    said = {}
    for line in text.splitlines():
        name, separator, value = line.partition(" : ")
        if separator:
            said[name.strip().removeprefix("* ")] = value.strip()
    wanted = {f"p{share}": f"{share}.00 percentile latency (ns)" for share in QUANTILES}
    wanted["max"] = "Max latency (ns)"
    found: dict[str, Any] = {name: float(said[label]) * 1e-3 for name, label in wanted.items()}
    failed = [name for name, value in said.items() if value == "NO"]
    rate = next(value for name, value in said.items() if name.startswith("QPS w/ "))
    found |= {"queries_per_second": float(rate), "valid": said["Result is"] == "VALID"}
    return {**found, "why": ", ".join(failed).lower()}
