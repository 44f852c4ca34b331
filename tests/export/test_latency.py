"""Every artefact is opened, agrees, and is timed; nothing that could run code is, without trust."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlgym.cli.main import main
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.policy import Policy, error_of, golden_pairs
from rlgym.deploy.reference import run, to_world
from rlgym.export import latency
from rlgym.export.bundle import write_bundle
from rlgym.export.describe import describe
from rlgym.export.golden import Golden
from rlgym.export.latency import Latency, measure, measure_bundle, quantiles_of, read_summary
from rlgym.export.read import read_policy
from rlgym.export.runners import RUNNERS, Runner, Skipped, open_artefacts
from rlgym.export.verify import CHECKS, Case
from tests.export.bundles import make_bundle, manifest_of, members, pack, sealed
from tests.export.policies import make_policy, observations

FORMATS = ("c", "c-int8", "tflite", "tflite-full-int8")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("ai_edge_litert")
    return make_bundle(tmp_path_factory.mktemp("bundles") / "hop.rlpolicy", FORMATS)


def opened(path: str | Path, folder: Path, trust: bool) -> tuple[Case, dict[str, Runner | Skipped]]:
    bundle = Bundle(path)
    policy = Policy(bundle, "numpy")
    case = Case(bundle, policy, *golden_pairs(bundle, policy.graph), trust)
    return case, {found.name: found for found in open_artefacts(case, folder)}


def test_each_artefact_that_is_timed_is_the_policy(bundle: str, tmp_path: Path) -> None:
    case, found = opened(bundle, tmp_path, trust=True)
    allowed = {"c-int8": 5e-3, "tflite-full-int8": 1e-2}
    for name, runner in found.items():
        if isinstance(runner, Skipped):
            assert name in ("c", "c-int8") and shutil.which("cc") is None
            continue
        error = error_of(case.policy.graph, runner.run(case.inputs), case.world)
        assert error <= allowed.get(name, 1e-5), name
        assert runner.bind({key: array[3:4] for key, array in case.inputs.items()})() is not None
    assert set(found) == {"numpy", "onnx", "onnx, opset15", *FORMATS}
    if "c-int8" in found and isinstance(found["c-int8"], Runner):
        assert error_of(case.policy.graph, found["c-int8"].run(case.inputs), case.world) > 1e-6


def with_memory(path: Path) -> Path:
    """A bundle whose golden pairs are one trace of two episodes."""
    graph = read_policy(make_policy("gru"))
    rows = observations("gru", 40).numpy()
    starts, state, inputs = np.arange(40) % 20 == 0, np.zeros((1, graph.state_size), np.float32), []
    for row, start in zip(rows, starts, strict=True):
        inputs.append({"obs": row[None], "state": state * (not start)})
        state = run(graph, inputs[-1])["next_state"]
    joined = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
    outputs = run(graph, joined)
    golden = Golden(joined, outputs, {"": to_world(graph, outputs)}, starts)
    write_bundle(path, graph, golden, describe(graph, {}, {}), ("c",))
    return path


@needs_cc
def test_c_keeps_its_memory_from_row_to_row(tmp_path: Path) -> None:
    path = with_memory(tmp_path / "gru.rlpolicy")
    case, found = opened(path, tmp_path, trust=True)
    runner = found["c"]
    assert isinstance(runner, Runner)
    assert error_of(case.policy.graph, runner.run(case.inputs), case.world) <= 1e-5
    shuffled = {name: array[::-1].copy() for name, array in case.inputs.items()}
    wrong = {key: array[::-1] for key, array in case.world.items()}
    assert error_of(case.policy.graph, runner.run(shuffled), wrong) > 1e-3


def test_without_trust_nothing_is_compiled_or_loaded(bundle: str, tmp_path: Path) -> None:
    _, found = opened(bundle, tmp_path, trust=False)
    skipped = {name for name, entry in found.items() if isinstance(entry, Skipped)}
    assert skipped == {"c", "c-int8"}
    assert not list(tmp_path.iterdir())


def test_a_tflite_that_is_not_what_we_write_is_left_alone(bundle: str, tmp_path: Path) -> None:
    files = members(bundle)
    files["extras/tflite/policy.tflite"] = files["extras/tflite-full-int8/policy.tflite"]
    changed = pack(tmp_path / "x.rlpolicy", sealed(files, manifest_of(files)))
    _, found = opened(changed, tmp_path, trust=False)
    assert isinstance(found["tflite"], Skipped)
    assert isinstance(found["tflite-full-int8"], Runner)


@pytest.mark.slow
@pytest.mark.timeout(600)  # aoti compiles C++
@pytest.mark.parametrize("name", ["pt2", "openvino", "aoti"])
def test_what_needs_more_packages(name: str, tmp_path: Path) -> None:
    if name == "aoti" and shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    if name == "openvino":
        pytest.importorskip("openvino")
    path = make_bundle(tmp_path / "hop.rlpolicy", (name,))
    assert isinstance(opened(path, tmp_path, trust=False)[1][name], Skipped)
    case, found = opened(path, tmp_path, trust=True)
    runner = found[name]
    assert isinstance(runner, Runner)
    assert error_of(case.policy.graph, runner.run(case.inputs), case.world) <= 1e-5
    assert measure_bundle(path, 0.05, trust=True)[-1].name == name


def test_every_format_that_is_verified_by_running_is_timed_too() -> None:
    assert set(RUNNERS) <= {"numpy", *CHECKS}


def test_a_slow_decision_is_seen(tmp_path: Path) -> None:
    import time

    calls = []

    def bind(row: dict[str, np.ndarray]):
        def decide() -> None:
            calls.append(float(row["obs"][0, 0]))
            time.sleep(2e-3)

        return decide

    runner = Runner("slow", "here", lambda x: x, bind)
    times = measure(runner, {"obs": np.arange(5.0)[:, None]}, 0.1)
    found = quantiles_of(times)
    assert len(times) >= latency.WARM_UP and set(calls) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert 2000.0 <= found["p50"] <= found["p90"] <= found["p99"] <= found["max"]


SUMMARY = """\
90.0th percentile latency (ns) : 61
Result is : {result}
  Min duration satisfied : {duration}
  Min queries satisfied : Yes
QPS w/ loadgen overhead         : 3644.5
Min latency (ns)                : 20000
Max latency (ns)                : 9000000
50.00 percentile latency (ns)   : 61000
90.00 percentile latency (ns)   : 88000
99.00 percentile latency (ns)   : 167000
"""


def test_loadgens_summary_is_read() -> None:
    found = read_summary(SUMMARY.format(result="VALID", duration="Yes"))
    assert (found["p50"], found["p90"], found["p99"], found["max"]) == (61.0, 88.0, 167.0, 9000.0)
    assert found["valid"] and found["queries_per_second"] == 3644.5
    found = read_summary(SUMMARY.format(result="INVALID", duration="NO"))
    assert not found["valid"] and found["why"] == "min duration satisfied"


def test_loadgen_measures_too(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    path = make_bundle(tmp_path / "hop.rlpolicy")
    found = measure_bundle(path, seconds=0.1, loadgen=True)
    assert [entry.name for entry in found] == ["numpy", "onnx", "onnx, opset15"]
    for entry in found:
        document = entry.document()
        assert document["loadgen"]["label"] == "MLPerf-style, not a submission"
        assert 0.0 < document["loadgen"]["p50"] <= document["loadgen"]["max"]
        ours = document["microseconds"]["p50"]
        assert document["loadgen"]["p50"] < 20 * ours + 200.0
        assert len(entry.lines()) == 2


def test_without_loadgen_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert main(["latency", str(tmp_path / "none.rlpolicy"), "--loadgen"]) == 2
    assert 'pip install "rlgym-lab[latency]"' in capsys.readouterr().err


def test_the_command_prints_a_table_and_a_document(
    bundle: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["latency", bundle, "--seconds", "0.05"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[-4:] == ["p50", "p90", "p99", "max"]
    assert any(line.startswith("onnx ") for line in said)
    assert any(line.startswith("c-int8") and "--trust" in line for line in said)
    assert main(["latency", bundle, "--seconds", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in found["latency"]} >= {"numpy", "onnx", "tflite", "c"}
    assert found["machine"]["cores"] and "busy" in found


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_a_time_that_makes_no_sense_is_refused(seconds: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["latency", "x.rlpolicy", "--seconds", seconds]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_lines_of_what_was_not_run() -> None:
    assert Latency("pt2", "not run: add --trust").lines() == [
        f"{'pt2':<20} not run: add --trust",
    ]
