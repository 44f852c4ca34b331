"""Files that checkpoints share: linked or copied, not hashed again, gone with the last of them."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from rlgym.errors import CheckpointError
from rlgym.training import checkpoint
from rlgym.training.checkpoint import Linked
from rlgym.training.tensor_file import TensorFile

SEGMENT = "replay-000000001.safetensors"


def first(folder, step=10, size=1000):
    """A checkpoint with a segment."""
    tensors = {"replay-000000001": {"x": torch.arange(size)}, "model": {"w": torch.zeros(2)}}
    return checkpoint.save(folder, step, tensors, {"state": {"step": step}})


def linking(folder, step, older, keep=3):
    """A checkpoint that links the segment of an older one."""
    links = {SEGMENT: older.linked(SEGMENT)}
    tensors = {"model": {"w": torch.full((2,), step)}}
    return checkpoint.save(folder, step, tensors, {"state": {"step": step}}, keep, links)


def inode(saved):
    return (saved.path / SEGMENT).stat().st_ino


def no_links(monkeypatch, code=errno.EPERM):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)


def python(code, *arguments):
    """Run code in a process of its own; what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- links ----------------------------------------------------------------------------------------


def test_a_linked_file_is_one_file_with_two_names(tmp_path):
    older = first(tmp_path)
    newer = linking(tmp_path, 20, older)
    assert inode(newer) == inode(older)
    assert newer.files[SEGMENT] == older.files[SEGMENT]
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found.step == 20 and found.files == newer.files
    assert found.tensors(SEGMENT)["x"].tolist() == list(range(1000))
    listed = json.loads((newer.path / "manifest.json").read_text())["files"][SEGMENT]
    assert listed == {"bytes": older.files[SEGMENT][0], "sha256": older.files[SEGMENT][1]}


def test_a_linked_file_outlives_the_checkpoint_that_wrote_it(tmp_path):
    saved = first(tmp_path)
    for step in (20, 30, 40):
        saved = linking(tmp_path, step, saved, keep=1)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [saved.path.name]
        assert (saved.path / SEGMENT).stat().st_nlink == 1
    assert checkpoint.newest(tmp_path, pytest.fail).tensors(SEGMENT)["x"].sum() == 499_500
    checkpoint.save(tmp_path, 50, {}, {}, keep=1)
    assert not list(tmp_path.rglob(SEGMENT)), "the last name frees the room"


def test_where_links_do_not_work_the_file_is_copied(tmp_path, monkeypatch):
    older = first(tmp_path)
    no_links(monkeypatch)
    newer = linking(tmp_path, 20, older)
    assert inode(newer) != inode(older)
    assert checkpoint.newest(tmp_path, pytest.fail).step == 20
    (older.path / SEGMENT).write_bytes(b"")  # now they share nothing
    assert checkpoint.read(newer.path).tensors(SEGMENT)["x"].sum() == 499_500


def test_a_linked_file_is_neither_read_nor_written(tmp_path):
    """An audit hook sees every file that is opened; it cannot be removed: a process of its own."""
    code = """
import sys
from tests.training.test_checkpoint_links import first, linking, SEGMENT
older = first(sys.argv[1])
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
linking(sys.argv[1], 20, older)
assert any("model.safetensors" in name for name in opened)
assert not [name for name in opened if SEGMENT in name], opened
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["missing", "truncated", "link"])
def test_a_file_that_cannot_be_linked_is_named_and_nothing_is_saved(tmp_path, damage):
    older = first(tmp_path)
    linked, file = older.linked(SEGMENT), older.path / SEGMENT
    assert linked.whole
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        os.truncate(file, 100)
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    assert not linked.whole
    with pytest.raises(CheckpointError, match=f"{SEGMENT} (is missing|has 100 bytes instead of)"):
        linking(tmp_path, 20, older)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000010"]


def test_an_edited_linked_file_is_found_on_reading(tmp_path):
    older = first(tmp_path)
    newer = linking(tmp_path, 20, older)
    content = bytearray((newer.path / SEGMENT).read_bytes())
    content[-1] ^= 1
    (newer.path / SEGMENT).write_bytes(content)
    with pytest.raises(CheckpointError, match="was changed after it was saved"):
        checkpoint.read(newer.path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used"):
        checkpoint.newest(tmp_path)
    policy = checkpoint.newest(tmp_path, pytest.fail, needed=("model.safetensors",))
    assert policy.step == 20 and policy.tensors("model")["w"].tolist() == [20, 20]
    with pytest.raises(CheckpointError, match="was changed"):
        policy.tensors(SEGMENT)


@pytest.mark.parametrize("name", ["../x.safetensors", "manifest.json", "model.safetensors", "x"])
def test_a_link_cannot_take_another_name(tmp_path, name):
    linked = first(tmp_path).linked(SEGMENT)
    with pytest.raises(CheckpointError, match="cannot name a file"):
        checkpoint.save(tmp_path, 20, {"model": {}}, {}, links={name: linked})


def test_who_needs_the_policy_needs_no_replay(tmp_path):
    saved = first(tmp_path)
    checkpoint.mark_best(saved, 1.0)
    (saved.path / SEGMENT).unlink()
    assert checkpoint.best(tmp_path, needed=("model.safetensors",)).step == 10
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.best(tmp_path)


# --- room on the disk -----------------------------------------------------------------------------


def test_links_take_no_room(small_disk):
    saved = first(small_disk, size=300_000)  # 2.4 of 4 MB
    for step in (20, 30, 40):
        saved = linking(small_disk, step, saved)
    assert checkpoint.newest(small_disk, pytest.fail).step == 40


def test_copies_do_and_are_counted_before_anything_is_written(small_disk, monkeypatch):
    saved = first(small_disk, size=300_000)
    no_links(monkeypatch)
    with pytest.raises(CheckpointError, match=r"3\.4 MB are needed and 1\.\d MB are free"):
        linking(small_disk, 20, saved)
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-000000010"]


# --- the file format ------------------------------------------------------------------------------


def test_the_library_reads_what_is_written_in_pieces(monkeypatch):
    monkeypatch.setattr("rlgym.training.tensor_file._PIECE", 7)
    base = torch.randn(4, 6)
    tensors = {
        "view": base[1:3],
        "transposed": base.t(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "flags": np.array([True, False, True]),
        "words": np.array([2**63, 1], dtype=np.uint64),
        "short": torch.arange(-3, 3, dtype=torch.int16),
        "none": torch.zeros(0, 3),
        "ü": torch.zeros(1, dtype=torch.uint8),
    }
    file = TensorFile(tensors)
    content = b"".join(bytes(piece) for piece in file)
    assert len(content) == file.size
    loaded = safetensors.torch.load(content)
    assert sorted(loaded) == sorted(tensors)
    for name, tensor in loaded.items():
        expected = torch.as_tensor(tensors[name])
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), name
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0, "aligned, as the library aligns"
    for entry in header.values():
        assert entry["data_offsets"][0] % (8 if entry["dtype"] in ("F64", "U64") else 1) == 0


def test_no_tensors_make_a_file_too():
    assert safetensors.torch.load(b"".join(map(bytes, TensorFile({})))) == {}


def test_a_type_that_no_file_holds_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"'z' is torch\.complex64"):
        checkpoint.save(tmp_path, 1, {"model": {"z": torch.zeros(1, dtype=torch.complex64)}}, {})
    assert not (tmp_path / "checkpoints").exists()


def test_saving_a_large_tensor_copies_no_more_than_a_piece(tmp_path):
    """The peak of a process of its own, beside 256 MB of tensors."""
    code = """
import resource, sys
import torch
from rlgym.training import checkpoint
small = {"x": torch.zeros(1000)}
checkpoint.save(sys.argv[1], 1, {"warm": small}, {})
large = {f"x{i}": torch.zeros(16_000_000) for i in range(4)}  # 256 MB
for tensor in large.values():
    tensor += 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
saved = checkpoint.save(sys.argv[1], 2, {"large": large}, {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, saved.files)
"""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[0]) // (1024 if sys.platform == "darwin" else 1)
    assert grown < 32_000, f"{grown} kB more for 256 MB of tensors"


def test_size_and_hash_of_the_manifest_are_those_of_the_file(tmp_path):
    saved = first(tmp_path, size=700_000)  # more than one piece
    for name, (size, digest) in saved.files.items():
        content = (saved.path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    assert saved.linked(SEGMENT) == Linked(saved.path / SEGMENT, *saved.files[SEGMENT])
