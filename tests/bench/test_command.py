"""`rlgym bench`: the list, the last line, the exit status, the table."""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from rlgym import bench
from rlgym.bench.harness import (
    Case,
    FreshProcessError,
    Result,
    commit,
    import_all,
    in_fresh_process,
    loaded_modules,
    machine,
    paired_case,
)
from rlgym.errors import UserError

KEYS = {
    *("name", "measured", "case", "value", "unit", "baseline", "ratio", "goal", "met", "quick"),
    *("busy", "load", "cases", "machine", "versions", "commit", "date"),
}


def toy(*, seconds: float = 1.0, quick: bool = False) -> Result:
    """A benchmark whose number is given.

    Args:
        seconds: ours; the goal is at most half of the baseline's 4.
        quick: a smoke test.
    """
    return Result("toy", "how long", (paired_case("a", "s", [seconds], [4.0], goal=0.5),), quick)


@pytest.fixture
def toy_bench(monkeypatch):
    module = types.ModuleType("rlgym.bench.toy")
    module.bench_toy = toy
    monkeypatch.setitem(sys.modules, "rlgym.bench.toy", module)
    monkeypatch.setattr(bench, "BENCHES", {"toy": ("toy", "nothing at all")})


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_name_it_lists_the_benchmarks(words, capsys):
    assert bench.run(words) == 0
    text = capsys.readouterr().out
    for name in ("ppo-cartpole", "ppo-update", "vector", "memory", "learning"):
        assert name in text


def test_listing_imports_no_torch():
    code = (
        "import sys, json\nfrom rlgym import bench\nbench.listing()\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_name_has_its_module_and_function():
    for name, (module, line) in bench.BENCHES.items():
        assert module == name.replace("-", "_")
        assert line
        function = getattr(__import__(f"rlgym.bench.{module}", fromlist=["x"]), f"bench_{module}")
        assert callable(function)


@pytest.mark.usefixtures("toy_bench")
@pytest.mark.parametrize(("seconds", "met"), [(2.0, True), (2.1, False)])
def test_exit_status_is_zero_exactly_when_the_goal_is_met(seconds, met, capsys):
    status = bench.run(["toy", "--seconds", str(seconds)])
    outcome = last_line(capsys)
    assert status == (0 if met else 1)
    assert outcome["met"] is met
    assert set(outcome) == KEYS
    assert (outcome["value"], outcome["baseline"]) == (seconds, 4.0)
    assert outcome["ratio"] == pytest.approx(seconds / 4.0)
    assert outcome["goal"] == {"on": "ratio", "is": "at most", "bound": 0.5}


@pytest.mark.usefixtures("toy_bench")
def test_json_prints_one_line_and_nothing_else(capsys):
    bench.run(["toy", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["name"] == "toy"


@pytest.mark.usefixtures("toy_bench")
def test_a_quick_run_never_meets_its_goal(capsys):
    assert bench.run(["toy", "--quick"]) == 1
    assert last_line(capsys)["met"] is False


@pytest.mark.usefixtures("toy_bench")
def test_all_is_met_when_all_are(capsys):
    assert bench.run(["--all", "--json"]) == 0
    outcome = last_line(capsys)
    assert outcome["met"] is True
    assert [result["name"] for result in outcome["results"]] == ["toy"]


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ppo-cartpole'"):
        bench.run(["ppo-cartpol"])
    with pytest.raises(UserError, match="ppo-update"):
        bench.run(["xyz"])


@pytest.mark.usefixtures("toy_bench")
def test_unknown_option_has_exit_status_two():
    with pytest.raises(SystemExit) as stop:
        bench.run(["toy", "--no-such-option"])
    assert stop.value.code == 2


def test_one_missed_case_decides_and_misses_the_whole():
    good = Case("good", "s", value=1.0, goal=2.0)
    bad = Case("bad", "s", value=3.0, goal=2.0)
    result = Result("x", "y", (good, bad))
    assert not result.met
    assert result.to_json({"busy": False})["case"] == "bad"
    assert Result("x", "y", (good,)).met
    assert not Result("x", "y", ()).met


def test_a_condition_that_fails_misses_the_goal():
    assert Case("x", "s", value=1.0, goal=2.0, conditions={"score": True}).met
    missed = Case("x", "s", value=1.0, goal=2.0, conditions={"score": False})
    assert not missed.met
    assert "score, which fails" in missed.line()


def test_at_least_and_missing_numbers():
    assert Case("x", "", value=3.0, goal=2.0, goal_is="at least").met
    assert not Case("x", "", value=1.0, goal=2.0, goal_is="at least").met
    nothing = Case("x", "", value=float("nan"), goal=2.0)
    assert not nothing.met
    outcome = Result("x", "y", (nothing,)).to_json({"busy": False})
    assert outcome["value"] is None
    json.dumps(outcome, allow_nan=False)
    assert not Case("x", "", value=1.0, goal=2.0, goal_on="ratio").met  # no baseline


def test_paired_case_compares_medians():
    case = paired_case("x", "s", [1.0, 9.0, 2.0], [10.0, 20.0, 90.0], goal=0.1)
    assert (case.value, case.baseline, case.ratio) == (2.0, 20.0, 0.1)
    assert case.values == (1.0, 9.0, 2.0)
    assert case.met


def test_fresh_process_returns_the_value_and_tells_of_failure():
    assert in_fresh_process("json:loads", timeout=60, s="[1, 2]") == [1, 2]
    with pytest.raises(FreshProcessError, match="No module named"):
        in_fresh_process("no_such_module:f", timeout=60)
    with pytest.raises(FreshProcessError, match="more than 1 s"):
        in_fresh_process(
            "timeit:timeit", timeout=1, stmt="sleep(30)", setup="from time import sleep"
        )


def start_and_wait(path: str) -> None:
    """Start a process that outlives its parent unless it is stopped; write its number to a file."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(path).write_text(str(child.pid))
    child.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_what_a_stopped_process_started_is_stopped_with_it(tmp_path):
    file = tmp_path / "pid"
    with pytest.raises(FreshProcessError, match="more than 4 s"):
        in_fresh_process(f"{__name__}:start_and_wait", timeout=4, path=str(file))
    wait_for_the_end_of(int(file.read_text()))


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 5.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_a_benchmark_that_is_told_to_end_stops_what_it_measures(tmp_path):
    file = tmp_path / "pid"
    call = f"in_fresh_process('{__name__}:start_and_wait', timeout=60, path={str(file)!r})"
    script = f"from rlgym.bench.harness import in_fresh_process; {call}"
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60.0
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    wait_for_the_end_of(int(file.read_text()))


def test_imports_of_another_process_can_be_repeated():
    found = in_fresh_process("rlgym.bench.harness:loaded_modules", timeout=60)
    assert "rlgym.bench.harness" in found
    assert "__main__" not in found
    import_all([*found, "no_such_module", "no.such.package"])
    assert set(found) - {"encodings.ascii"} <= set(loaded_modules()) | set(sys.modules)


def test_machine_and_commit():
    here = machine()
    assert here["cpu"]
    assert here["cores"] >= 1
    revision = commit()
    assert revision is None or len(revision.removesuffix("+changes")) == 40


def test_table_of_saved_results(tmp_path, capsys, toy_bench):
    bench.run(["toy", "--json"])
    (tmp_path / "toy.json").write_text(capsys.readouterr().out)
    assert bench.run(["table", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| toy: a | 1 s | 4 s | 0.25 | ratio at most 0.5 | yes |" in text
    assert machine()["cpu"] in text


def test_the_table_names_the_condition_that_a_goal_was_missed_for(tmp_path, capsys, toy_bench):
    bench.run(["toy", "--json"])
    result = json.loads(capsys.readouterr().out)
    result["cases"][0] |= {"met": False, "conditions": {"nobody falls": False, "it ends": True}}
    (tmp_path / "toy.json").write_text(json.dumps(result))
    bench.run(["table", str(tmp_path)])
    assert "| ratio at most 0.5 | no: nobody falls |" in capsys.readouterr().out


def test_table_of_an_empty_folder_or_a_wrong_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="rlgym bench NAME --json"):
        bench.run(["table", str(tmp_path)])
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match="is not a saved result"):
        bench.run(["table", str(tmp_path)])


def test_a_benchmark_whose_process_fails_is_not_met_and_says_why(monkeypatch, capsys):
    def bench_broken() -> Result:
        in_fresh_process("no_such_module:f", timeout=60)
        raise AssertionError("not reached")

    module = types.ModuleType("rlgym.bench.broken")
    module.bench_broken = bench_broken
    monkeypatch.setitem(sys.modules, "rlgym.bench.broken", module)
    monkeypatch.setattr(bench, "BENCHES", {"broken": ("broken", "fails")})
    assert bench.run(["broken", "--json"]) == 1
    outcome = last_line(capsys)
    assert set(outcome) == KEYS
    assert outcome["met"] is False
    assert "No module named" in outcome["measured"]


def test_picture_draws_every_curve_or_says_what_is_missing(tmp_path, toy_bench, capsys):
    bench.run(["toy", "--json"])
    result = json.loads(capsys.readouterr().out)
    source, target = tmp_path / "result.json", tmp_path / "deep" / "curves.png"
    source.write_text(json.dumps(result))
    with pytest.raises(UserError, match="has no curves"):
        bench.run(["picture", str(source), str(target)])
    with pytest.raises(UserError, match=r"RESULT\.json"):
        bench.run(["picture", str(source)])
    curve = {"curve": [[0.5, 20.0], [1.0, 475.0]]}
    result["cases"][0]["details"] = {"ours": [curve] * 2, "sb3": [curve]}
    source.write_text(json.dumps(result))
    assert bench.run(["picture", str(source), str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")

    target.unlink()
    result["cases"][0]["details"] = {"curves": [[[1000, -900.0], [2000, -150.0]], []]}
    source.write_text(json.dumps(result))
    assert bench.run(["picture", str(source), str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
