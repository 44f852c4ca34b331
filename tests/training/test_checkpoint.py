"""A save that is stopped anywhere leaves a whole checkpoint: by errors, by exits, by SIGKILL."""

import builtins
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgym.errors import CheckpointError
from rlgym.training import checkpoint


def save(folder, step, keep=3, size=1000):
    """Save a checkpoint whose files all say which step they are of."""
    tensors = {"model": {"w": torch.full((size,), step)}, "env": {"x": np.array([step])}}
    return checkpoint.save(folder, step, tensors, {"state": {"step": step}}, keep)


def assert_whole(found, step=None):
    """Assert that the files of a checkpoint are all of one step."""
    assert step is None or found.step == step
    assert set(found.tensors("model")["w"].tolist()) == {found.step}
    assert found.tensors("env")["x"].tolist() == [found.step]
    assert found.document("state") == {"step": found.step}


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- what is saved comes back ---------------------------------------------------------------------


def test_tensors_and_documents_come_back_as_they_were(tmp_path):
    shared = torch.randn(4, 6)
    tensors = {
        "view": shared[1:3],
        "transposed": shared.t(),
        "parameter": torch.nn.Parameter(shared[0]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "flags": np.array([True, False]),
        "words": np.array([2**63, 1], dtype=np.uint64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.zeros(0, 3),
    }
    document = {"best": float("-inf"), "names": ["a", "ü"], "nested": {"a": None}}
    saved = checkpoint.save(tmp_path, 12, {"model": tensors, "empty": {}}, {"state": document})
    for found in (saved, checkpoint.newest(tmp_path)):
        loaded = found.tensors("model.safetensors")
        assert sorted(loaded) == sorted(tensors)
        for name, tensor in loaded.items():
            expected = torch.as_tensor(tensors[name])
            assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
        assert found.tensors("empty") == {}
        assert found.document("state.json") == document
    loaded["view"].add_(1)  # what was loaded may be written to


def test_a_saved_tensor_is_a_copy(tmp_path):
    weights = torch.zeros(3)
    saved = checkpoint.save(tmp_path, 1, {"model": {"w": weights}}, {})
    weights += 1
    assert saved.tensors("model")["w"].tolist() == [0, 0, 0]


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None


def test_the_newest_are_kept_and_the_best_always(tmp_path):
    for step in (10, 20, 30, 40, 50):
        saved = save(tmp_path, step, keep=2)
        if step == 20:
            checkpoint.mark_best(saved, 1.5)
    assert names(tmp_path) == ["step-000000020", "step-000000040", "step-000000050"]
    assert_whole(checkpoint.newest(tmp_path), 50)
    assert_whole(checkpoint.best(tmp_path), 20)
    latest = json.loads((tmp_path / "latest.json").read_text())
    assert latest == {"checkpoint": "step-000000050", "step": 50}
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"checkpoint": "step-000000020", "step": 20, "score": 1.5}


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (999_999_999, 1_000_000_000):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path).step == 1_000_000_000


def test_saving_a_step_again_replaces_nothing(tmp_path):
    first = save(tmp_path, 10)
    second = checkpoint.save(tmp_path, 10, {}, {"state": "again"})
    assert first.path != second.path and first.document("state") == {"step": 10}
    assert checkpoint.newest(tmp_path).document("state") == "again"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no replay\.safetensors: it has env\.safe"):
        save(tmp_path, 1).tensors("replay")


# --- what was damaged is reported and left alone --------------------------------------------------


def damage_truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_edit(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def damage_remove(path):
    (path / "state.json").unlink()


def damage_manifest(path):
    (path / "manifest.json").write_text("{")


def damage_no_manifest(path):
    (path / "manifest.json").unlink()


def damage_link(path):
    (path / "state.json").rename(path.parent.parent / "elsewhere.json")
    (path / "state.json").symlink_to(path.parent.parent / "elsewhere.json")


DAMAGE = {
    damage_truncate: "model.safetensors has",
    damage_edit: "model.safetensors was changed after it was saved",
    damage_remove: "state.json is missing",
    damage_manifest: "not a JSON file",
    damage_no_manifest: "was not saved completely",
    damage_link: "not a plain file",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, damage, capsys):
    save(tmp_path, 10)
    damage(save(tmp_path, 20).path)
    reports = []
    assert_whole(checkpoint.newest(tmp_path, reports.append), 10)
    assert len(reports) == 1 and DAMAGE[damage] in reports[0] and "step-000000020" in reports[0]
    checkpoint.newest(tmp_path)
    assert capsys.readouterr().err == f"warning: {reports[0]}\n"
    assert "step-000000020" in names(tmp_path), "it is for the person to delete"
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "checkpoints" / "step-000000020")


def test_damaged_ones_do_not_push_whole_ones_out(tmp_path):
    save(tmp_path, 10)
    for step in (20, 30, 40):
        damage_truncate(save(tmp_path, step).path)
    save(tmp_path, 15, keep=2)
    assert {"step-000000010", "step-000000015"} <= set(names(tmp_path))
    assert_whole(checkpoint.newest(tmp_path, lambda line: None), 15)


def test_only_damaged_ones_is_an_error_that_says_why(tmp_path):
    damage_edit(save(tmp_path, 10).path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* was changed"):
        checkpoint.newest(tmp_path)


def test_a_damaged_best_checkpoint_is_an_error_that_names_the_way_out(tmp_path):
    best = save(tmp_path, 10)
    checkpoint.mark_best(best, 1.0)
    damage_edit(best.path)
    with pytest.raises(CheckpointError, match=r"was changed .* use the last one instead"):
        checkpoint.best(tmp_path)


def test_a_file_that_changes_after_it_was_verified_is_refused(tmp_path):
    found = save(tmp_path, 10)
    damage_edit(found.path)
    with pytest.raises(CheckpointError, match="was changed"):
        found.tensors("model")


def test_a_broken_best_pointer_is_an_error_and_deletes_nothing(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=1 if step < 30 else 3)
    (tmp_path / "best.json").write_text("nothing")
    save(tmp_path, 40, keep=1)
    assert "step-000000030" in names(tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.json: not a JSON file"):
        checkpoint.best(tmp_path)


def test_remains_of_a_killed_save_are_swept(tmp_path):
    save(tmp_path, 10)
    store = tmp_path / "checkpoints"
    for name in ("step-000000020.tmp-123", "step-000000005.old-99"):
        (store / name).mkdir()
        (store / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "latest.json.tmp-7").write_text("{")
    (store / "my-notes.tmp").write_text("mine")
    save(tmp_path, 30)
    assert names(tmp_path) == ["my-notes.tmp", "step-000000010", "step-000000030"]
    assert not (tmp_path / "latest.json.tmp-7").exists()


# --- kill points ----------------------------------------------------------------------------------

CALLS = ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "rmdir"), (os, "unlink"))


@contextmanager
def interrupted(at, happen):
    """Run `happen(write)` instead of the `at`-th change to the disk; `write` does half of it."""
    count = 0
    originals = [(module, name, getattr(module, name)) for module, name in CALLS]

    def wrap(call):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                happen()
            return call(*args, **kwargs)

        return counted

    def open_counted(path, mode="r", *args, **kwargs):
        file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115
        if "x" in mode:
            nonlocal count
            count += 2
            if count - 1 == at:
                happen()
            if count == at:
                file.write(b"half of what")
                file.flush()
                happen()
        return file

    for module, name, call in originals:
        setattr(module, name, wrap(call))
    checkpoint.open = open_counted
    try:
        yield lambda: count
    finally:
        del checkpoint.open
        for module, name, call in originals:
            setattr(module, name, call)


def count_points(folder):
    save(folder, 10, keep=1)
    with interrupted(0, lambda: None) as count:
        save(folder, 20, keep=1)
    return count()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_dies_at_any_point_leaves_a_whole_checkpoint(tmp_path):
    points = count_points(tmp_path / "count")
    assert points > 20
    left = []
    for point in range(1, points + 1):
        folder = tmp_path / str(point)
        checkpoint.mark_best(save(folder, 5), 1.0)
        save(folder, 10, keep=1)
        pid = os.fork()
        if pid == 0:
            with interrupted(point, lambda: os._exit(9)):
                save(folder, 20, keep=1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        found = checkpoint.newest(folder, pytest.fail)
        assert_whole(found)
        left.append(found.step)
        assert_whole(checkpoint.best(folder), 5)
        save(folder, 30, keep=1)
        assert names(folder) == ["step-000000005", "step-000000030"], "remains were swept"
    assert set(left) == {10, 20} and left == sorted(left), "one instant divides old from new"


def test_an_error_at_any_point_leaves_a_whole_checkpoint_and_says_so(tmp_path):
    def fail():
        raise OSError(code, os.strerror(code))

    points = count_points(tmp_path / "count")
    for point in range(1, points + 1):
        code = (errno.ENOSPC, errno.EIO)[point % 2]
        folder = tmp_path / str(point)
        save(folder, 10, keep=1)
        message = ""
        try:
            with interrupted(point, fail):
                save(folder, 20, keep=1)
        except CheckpointError as error:
            message = str(error)
            assert os.strerror(code) in message and "what was saved before is intact" in message
        # pathlib forgives a mkdir that fails where the folder is there: the first point
        assert message or point == 1
        found = checkpoint.newest(folder, pytest.fail)
        assert_whole(found)
        assert ("was not saved" in message) == (found.step == 10)
        save(folder, 30, keep=1)
        assert names(folder) == ["step-000000030"], "saving goes on, remains were swept"


SAVER = """
import sys
import torch
from rlgym.training import checkpoint
step = 10
print("ready", flush=True)
while True:
    tensors = {f"file{i}": {"w": torch.full((100_000,), step)} for i in range(4)}
    saved = checkpoint.save(sys.argv[1], step, tensors, {"state": {"step": step}}, keep=2)
    print(step, flush=True)
    step += 10
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize(
    "kills", [3, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_sigkill_at_a_random_time_leaves_a_whole_checkpoint(tmp_path, kills):
    clock = random.Random(0)
    for kill in range(kills):
        folder = tmp_path / str(kill)
        command = [sys.executable, "-c", SAVER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
            assert saver.stdout.readline() == "ready\n"
            saver.stdout.readline()
            time.sleep(clock.uniform(0, 0.1))
            saver.kill()
            last = ("10\n" + saver.stdout.read()).split()[-1]
        found = checkpoint.newest(folder, pytest.fail)
        assert found.step >= int(last), "a checkpoint that was reported as saved is gone"
        for name in range(4):
            assert set(found.tensors(f"file{name}")["w"].tolist()) == {found.step}
        shutil.rmtree(folder)


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_saved(small_disk):
    saved = save(small_disk, 10, size=50_000)
    checkpoint.mark_best(saved, 0.0)
    (small_disk / "filler").write_bytes(bytes(2_600_000))
    with pytest.raises(CheckpointError, match=r"1\.\d MB are needed and .* MB are free"):
        save(small_disk, 20, size=50_000)
    assert_whole(checkpoint.newest(small_disk, pytest.fail), 10)
    assert names(small_disk) == ["step-000000010"]
    (small_disk / "filler").unlink()
    save(small_disk, 20, size=50_000)
    assert_whole(checkpoint.newest(small_disk, pytest.fail), 20)


def test_a_disk_that_fills_while_saving_keeps_what_was_saved(small_disk, monkeypatch):
    save(small_disk, 10, size=50_000)
    monkeypatch.setattr(checkpoint, "_check_space", lambda store, needed: None)
    (small_disk / "filler").write_bytes(bytes(3_550_000))
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(small_disk, 20, size=50_000)
    assert_whole(checkpoint.newest(small_disk, pytest.fail), 10)
    assert names(small_disk) == ["step-000000010"], "what was half written gave its room back"


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="was not saved"):
        save(tmp_path, 10)
    assert Path(tmp_path / "checkpoints").read_text() == "a file in the way"
