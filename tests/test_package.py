"""A wheel, and a wheel built from the sdist, install into an empty environment and train there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import rlgym
from tests.conftest import MAPPED

ROOT = Path(rlgym.__file__).resolve().parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout and return what it printed, or fail with it."""
    # PYTHONPATH and the like would lead back to the checkout and hide a missing file
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build each kind of wheel, from a copy: setuptools leaves build/ where it works."""
    room = tmp_path_factory.mktemp("build")
    copy = room / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in ("rlgym", *MAPPED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    # no isolation: the tools of the dev extra build it, and nothing is fetched
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--wheel", "--outdir", room / "direct", copy, cwd=room)
    run(*build, "--sdist", "--outdir", room / "sdist", copy, cwd=room)
    (archive,) = (room / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(room, filter="data")
    unpacked = room / archive.name.removesuffix(".tar.gz")
    run(*build, "--wheel", "--outdir", room / "from_sdist", unpacked, cwd=room)
    return {kind: next((room / kind).glob("*.whl")) for kind in ("direct", "from_sdist")}


@pytest.fixture(params=["direct", "from_sdist"])
def installed(request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path) -> Path:
    """Install one wheel into an environment of its own and return its folder of commands."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=os.name != "nt")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    # Downloading gigabytes of dependencies again would test the index, not the wheel. A line in a
    # .pth file lends this environment's packages, and behind the new environment's own; what .pth
    # files in the lent folder say is not followed, so an editable rlgym-lab there stays behind.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site.strip(), "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", "--ignore-installed", built[request.param], cwd=tmp_path)
    return scripts


def test_both_wheels_hold_the_same_files(built: dict[str, Path]) -> None:
    contents = []
    for wheel in built.values():
        with zipfile.ZipFile(wheel) as archive:
            contents.append(sorted(name for name in archive.namelist() if "dist-info" not in name))
    assert contents[0] == contents[1]
    names = contents[0]
    assert {name.split("/")[0] for name in names} == {"rlgym"}
    assert not [name for name in names if "__pycache__" in name]
    shipped = {
        (folder if folder == "rlgym" else f"rlgym/{folder}") + f"/{file.relative_to(ROOT / folder)}"
        for folder in ("rlgym", *MAPPED)
        for pattern in (
            "*.py",
            "*.yaml",
            "*.json",
            "py.typed",
            *(["*"] if folder == "assets" else []),
        )
        for file in (ROOT / folder).rglob(pattern)
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert set(names) == shipped


def test_an_installed_wheel_trains_for_ten_seconds(installed: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    where = "import rlgym.envs, rlgym.agents, rlgym.configs, rlgym.assets; print(rlgym.__file__)"
    found = run(installed / "python", "-c", where, cwd=away)
    assert str(tmp_path) in found, f"the environment sees another rlgym: {found}"
    for name in MAPPED:
        absent = f"from importlib.util import find_spec; assert find_spec({name!r}) is None"
        run(installed / "python", "-c", absent, cwd=away)

    rlgym_command = installed / "rlgym"
    train = ["train", "CartPole-v1", "--time-limit", "10", "--run-dir", away / "run"]
    run(rlgym_command, *train, cwd=away)
    assert [file for file in (away / "run").rglob("*.safetensors") if file.stat().st_size]
    run(rlgym_command, "eval", away / "run", "--episodes", "1", cwd=away)
