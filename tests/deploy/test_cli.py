"""The command, and that it and all it imports live without torch, gymnasium and rlgym."""

import json
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import rlgym
import rlgym.deploy
from rlgym.deploy.cli import main
from rlgym.deploy.robots.dry_run import DryRun
from rlgym.deploy.robots.faulty import KINDS
from tests.deploy.bundles import follower, plain

SOURCE = Path(rlgym.deploy.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py") and "build" not in path.parts
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    follower(folder / "trot.rlpolicy")
    plain(folder / "plain.rlpolicy")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_dry_run_keeps_its_rate_and_reports(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--seconds", "0.5", "--ramp", "0.1", "--json")
    status, out, _ = run(capsys, str(folder / "trot.rlpolicy"), *words)
    report = json.loads(out)
    if status == 1:  # a machine busy elsewhere may miss deadlines; nothing else may be wrong
        assert report["fault"]["kind"] in ("overrun", "stale")
        return
    assert status == 0 and report["fault"] is None and report["robot"] == "dry-run"
    assert report["cycles"] + report["missed"] >= 20
    assert report["control_hz"] == pytest.approx(1 / 0.03)
    assert set(report["jitter_us"]) == {"p50", "p90", "p99", "max"}


def test_a_driver_that_does_not_close_takes_no_report_with_it(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: DryRun) -> None:
        raise OSError("the bus is gone")

    monkeypatch.setattr(DryRun, "close", close)
    words = ("--fast", "--seconds", "1", "--json")
    status, out, err = run(capsys, str(folder / "trot.rlpolicy"), *words)
    assert status == 0 and json.loads(out)["ended"] == "its time is over"
    assert err == "robot dry-run did not close (OSError: the bus is gone)\n"


def test_it_says_what_was_checked(folder: Path, capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(capsys, str(folder / "trot.rlpolicy"), "--fast", "--seconds", "3")
    assert status == 0
    assert "hashes and 40 golden pairs agree" in out and "its time is over" in out


@pytest.mark.parametrize("kind", KINDS)
def test_an_injected_fault_ends_with_status_1(
    folder: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    words = ("--fast", "--seconds", "9", "--inject", f"{kind}@1")
    status, out, _ = run(capsys, str(folder / "trot.rlpolicy"), *words)
    assert status == 1 and f"FAULT {kind}: " in out


REFUSALS = [
    ("plain", (), "does not say how often its policy acts: give --hz"),
    ("plain", ("--hz", "0"), "--hz must be above 0"),
    ("trot", ("--hz", "50"), "was trained at 33.333 Hz, not at 50"),
    ("trot", ("--clip", "pace"), "no clip 'pace'; it has trot"),
    ("trot", ("--robot", "spot"), "there is no robot 'spot': use dry-run"),
    ("trot", ("--robot", "no.such:Robot"), "cannot be loaded"),
    ("trot", ("--inject", "flood@1", "--fast"), "there is no fault 'flood': use stale"),
    ("trot", ("--inject", "tilt@x", "--fast"), "'x' is no number of seconds"),
    ("plain", ("--hz", "50", "--inject", "tilt", "--fast"), "which this robot lacks"),
    ("plain", ("--hz", "50", "--robot", "bullet"), "no robot that could be simulated"),
    ("trot", ("--robot", "udp", "--timeout", "0.1", "--address", "127.0.0.1:9"), "no READY"),
    ("trot", ("--seconds", "nan"), "--seconds is nan, and must be a number from 0 on"),
    ("trot", ("--rate-limit", "-1"), "--rate-limit is -1"),
    ("gone", (), "there is no such bundle"),
]


@pytest.mark.parametrize(("name", "words", "said"), REFUSALS, ids=[r[2] for r in REFUSALS])
def test_what_does_not_fit_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture, name: str, words: tuple[str, ...], said: str
) -> None:
    status, out, err = run(capsys, str(folder / f"{name}.rlpolicy"), *words)
    assert status == 2 and out.count("\n") <= 1
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_a_changed_file_moves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = tmp_path / "bad.rlpolicy"
    with zipfile.ZipFile(folder / "trot.rlpolicy") as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:-1] + b"\x01" if name == "policy.npz" else data)
    status, _, err = run(capsys, str(bad), "--fast", "--seconds", "1")
    assert status == 2 and "SHA-256 differs" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_a_process_that_is_told_to_end_damps_the_robot_first(folder: Path) -> None:
    words = ["-u", "-m", "rlgym.deploy", str(folder / "trot.rlpolicy"), "--ramp", "60"]
    root = SOURCE.parent.parent
    command = [sys.executable, *words]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "golden pairs agree" in process.stdout.readline()
        time.sleep(0.3)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    # a machine busy elsewhere may have been late before
    assert "stopped by hand" in out or "FAULT" in out
    assert process.returncode in (0, 1)


class Own:
    """A driver of somebody's own."""

    name = "own"
    joints = ()
    sensors = {"obs": 3}

    def __init__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_driver_of_ones_own_is_found_and_held_to_the_contract(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_driver", sys.modules[__name__])
    words = ("--robot", "own_driver:Own", "--hz", "50", "--fast")
    status, _, err = run(capsys, str(folder / "plain.rlpolicy"), *words)
    assert status == 2
    assert "needs the sensors obs (4); robot 'own' has obs (3)" in err
    words = ("--robot", "own_driver:Own", "--fast")
    monkeypatch.setattr(Own, "sensors", dict.fromkeys("ab", 1))
    status, _, err = run(capsys, str(folder / "trot.rlpolicy"), *words)
    assert status == 2 and "joint_angle (12)" in err and "a (1), b (1)" in err


# ----- Alone on a robot ---------------------------------------------------------------------------

ALONE = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "gymnasium", "yaml", "tyro", "rich", "safetensors",
                                  "pybullet", "mujoco", "onnx", "rlgym"} - set(allowed):
            raise ImportError("blocked: " + name)
allowed = sys.argv[3].split(",")
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[2])
package = sys.argv[1]
for module in sys.argv[4].split(","):
    importlib.import_module(package + "." + module)
cli = importlib.import_module(package + ".cli")
print(cli.main([sys.argv[5], "--fast", "--seconds", "1", "--runtime", sys.argv[6]]))
assert not {"torch", "gymnasium"} & set(sys.modules)
"""


def alone(package: str, path: Path, allowed: str, bundle: Path, runtime: str) -> str:
    words = ["-c", ALONE, package, str(path), allowed, ",".join(MODULES), str(bundle), runtime]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("runtime", ("onnx", "numpy"))
def test_both_names_import_and_run_without_torch_and_gymnasium(
    folder: Path, tmp_path: Path, runtime: str
) -> None:
    bundle = folder / "trot.rlpolicy"
    root = SOURCE.parent.parent
    assert alone("rlgym.deploy", root, "rlgym", bundle, runtime).strip().endswith("0")
    (tmp_path / "rlgym_deploy").symlink_to(SOURCE, target_is_directory=True)
    assert alone("rlgym_deploy", tmp_path, "", bundle, runtime).strip().endswith("0")


def test_its_distribution_says_what_it_needs() -> None:
    about = tomllib.loads((SOURCE / "pyproject.toml").read_text("utf-8"))
    assert about["project"]["version"] == rlgym.__version__
    needs = [line.split(">")[0] for line in about["project"]["dependencies"]]
    assert needs == ["numpy", "onnxruntime"]
    packages = {
        ".".join(["rlgym_deploy", *path.parent.relative_to(SOURCE).parts])
        for path in SOURCE.rglob("__init__.py")
        if "build" not in path.parts
    }
    assert packages == set(about["tool"]["setuptools"]["packages"])
    assert (SOURCE / "LICENSE").read_bytes() == (SOURCE.parent.parent / "LICENSE").read_bytes()


def test_its_source_is_python_3_10() -> None:
    import ast

    for path in SOURCE.rglob("*.py"):
        ast.parse(path.read_text("utf-8"), feature_version=(3, 10))


@pytest.mark.slow
def test_the_wheel_runs_from_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    import shutil

    source, wheels = tmp_path / "source", tmp_path / "wheels"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(wheels), str(source)], check=True, capture_output=True)
    (wheel,) = wheels.glob("rlgym_deploy-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        assert any(name.endswith("entry_points.txt") for name in archive.namelist())
    text = alone("rlgym_deploy", tmp_path / "site", "", folder / "trot.rlpolicy", "onnx")
    assert text.strip().endswith("0")


def test_golden_pairs_of_the_fixture_are_not_all_the_same(folder: Path) -> None:
    with zipfile.ZipFile(folder / "trot.rlpolicy") as archive, archive.open("golden.npz") as file:
        world = np.load(file)["world/"]
    assert world.std(0).min() > 0.1
