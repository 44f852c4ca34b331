"""Two processes never train into one folder; what a dead one left behind is in nobody's way."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlgym
from rlgym.errors import UserError
from rlgym.training.run_lock import LOCK, locked
from tests.training.runs import SMALL, StopAt, train

HOLD = """
import sys, time
from pathlib import Path
from rlgym.training.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """Hold the folder's lock in a process of its own."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_refused_with_the_first_ones_number_and_host(tmp_path):
    with hold(tmp_path) as holder:
        with pytest.raises(UserError) as caught, locked(tmp_path):
            pytest.fail("both hold it")
        said = str(caught.value)
        assert f"process {holder.pid} on {platform.node()} since 20" in said and "\n" not in said
        assert "(rlgym train --run-dir)" in said, "resume has no such flag"
        holder.communicate("")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with hold(tmp_path) as holder:
        holder.kill()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"\xff{", b'{"pid": "x"}', b"[" * 5000])
def test_whatever_a_free_lock_says_it_is_taken(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path), pytest.raises(UserError, match="is being trained"), locked(tmp_path):
        pass


def test_an_unreadable_owner_is_another_process(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).write_bytes(b"[" * 5000)
        with pytest.raises(UserError, match="trained by another process"), locked(tmp_path):
            pass


def test_a_disk_without_locks_is_used_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_nothing_came_of_is_gone_again(tmp_path):
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot be written .* --run-dir"),
        locked(tmp_path / "file"),
    ):
        pass


RACE = """
import sys, time
from pathlib import Path
from rlgym.errors import UserError
from rlgym.training.run_lock import locked
folder, inside = Path(sys.argv[1]), Path(sys.argv[1] + ".inside")
taken, end = 0, time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with locked(folder):
            inside.touch(exist_ok=False)  # fails when two are inside
            taken += 1
            inside.unlink()
    except UserError:
        pass
print(taken)
"""


def test_many_that_take_and_leave_it_are_never_inside_together(tmp_path):
    tmp_path.joinpath("run").mkdir()
    command = [sys.executable, "-c", RACE, str(tmp_path / "run")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(racer.communicate()[0]) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers) and sum(counts) > 100


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_in_progress_can_be_neither_resumed_nor_replaced(tmp_path):
    refused = pytest.raises(UserError, match="is being trained by process")
    with hold(tmp_path / "run"), refused:  # before anything else stands there
        train("CartPole-v1", tmp_path / "run", backend="sync", total_steps=100)
    train("CartPole-v1", tmp_path / "run", hooks=StopAt(300), backend="sync")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with hold(tmp_path / "run"):
        with pytest.raises(UserError, match="is being trained by process"):
            rlgym.resume(tmp_path / "run", console="off")
        with pytest.raises(UserError, match="is being trained by process"):
            train("CartPole-v1", tmp_path / "run", overwrite=True, backend="sync")
    assert {p: t for p, t in before.items() if p.is_file()} == {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and path.name != LOCK
    }
    assert rlgym.resume(tmp_path / "run", console="off").state.env_steps >= 1200
    assert not (tmp_path / "run" / LOCK).exists()


RUN = """
import json, sys
from tests.training.runs import train
train("CartPole-v1", sys.argv[1], backend="sync", total_steps=10**7, checkpoint={"every": 100})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_two_real_runs_in_one_folder(tmp_path, how):
    folder = Path(tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)])
    end = time.monotonic() + 60
    while not (folder / "latest.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            rlgym.resume(folder, console="off")
        process.send_signal(signal.Signals[how])
        process.wait(timeout=20)
    finally:
        process.kill()
    steps = json.loads((folder / "latest.json").read_text())["step"]
    run = rlgym.resume(folder, steps + SMALL["num_envs"] * 48, console="off")
    assert run.state.env_steps > steps and not (folder / LOCK).exists()
