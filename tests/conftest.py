"""What every test runs under."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch, and inherited by child processes: the tests run in parallel, and
# small networks lose time when several processes' thread pools fight over the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# Shared machines make a time limit per example flaky, and a red build must be red twice.
settings.register_profile("rlgym", deadline=None, derandomize=True)
settings.load_profile("rlgym")

MAPPED = ("envs", "agents", "configs", "assets")


def bare_imports(modules: Iterable[str]) -> list[str]:
    """Return the modules that were imported past `rlgym.`, each a second copy of its classes."""
    return sorted(name for name in modules if name.split(".")[0] in MAPPED)


@pytest.fixture(scope="session", autouse=True)
def _no_bare_imports() -> Iterator[None]:
    """Fail the last test of a process in which something imported `envs` and not `rlgym.envs`."""
    yield
    found = bare_imports(sys.modules)
    assert not found, f"imported by their bare names: {found}; write rlgym.{found[0]}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a mounted file system of 4 MB, to be filled."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, with the reason, where torch sees no accelerator."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only now: most selections have no such test, and torch takes seconds

    if not torch.accelerator.is_available():
        skip = pytest.mark.skip(reason="torch sees no accelerator on this machine")
        for item in marked:
            item.add_marker(skip)
