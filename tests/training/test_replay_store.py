"""Replay buffers in checkpoints: written once, linked ever after, restored to the bit."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.errors import CheckpointError
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.priorities import Prioritized
from rlgym.rollout.replay import ReplayBuffer
from rlgym.spaces import Layout
from rlgym.training import checkpoint, replay_store
from rlgym.training.replay_store import ReplayStore
from tests.rollout.test_replay import ONE, PAIR, History
from tests.training.runs import digest_of

IMAGE = Layout(spaces.Box(0, 255, (64, 64, 3), np.uint8))
TAIL = "replay-tail.safetensors"


def segment(number):
    return f"replay-{number:09d}.safetensors"


def save(folder, store, step, keep=3):
    """Save what a run would of its buffer."""
    links, tensors = store.segments()
    saved = checkpoint.save(folder, step, tensors, {"state": {"step": step}}, keep, links)
    store.saved(saved)
    return saved


def restored(folder, replay):
    """Fill an empty buffer from the newest checkpoint; its store."""
    store = ReplayStore(replay, pytest.fail)
    store.restore(checkpoint.newest(folder, pytest.fail))
    return store


def digest(replay):
    """What a buffer holds, and what it would draw."""
    batch = replay.sample(256, torch.Generator().manual_seed(5))
    state = replay.state()
    rows = {f"rows/{name}": field for name, field in replay._fields.items()}
    drawn = {name: getattr(batch, name) for name in ("obs", "actions", "rewards", "weights")}
    return digest_of({**state, **drawn, **(rows if replay.num_envs == 1 else {})})


@pytest.fixture
def small(monkeypatch):
    """Segments of a few rows; a row of PAIR and ONE has 17 bytes."""
    monkeypatch.setattr(replay_store, "SEGMENT_BYTES", 400)


def names(saved):
    return sorted(name for name in saved.files if name.startswith("replay"))


# --- what a checkpoint holds ----------------------------------------------------------------------


def test_few_rows_are_a_tail_and_many_become_segments(tmp_path, small):
    history, replay = History(1, 0), ReplayBuffer(1000, 1, PAIR, ONE)
    store = ReplayStore(replay)
    assert names(save(tmp_path, store, 1)) == ["replay.safetensors"], "nothing yet"
    replay.add(history.rollout(5))
    assert names(save(tmp_path, store, 2)) == [TAIL, "replay.safetensors"]
    replay.add(history.rollout(5))
    second = save(tmp_path, store, 3)
    assert names(second) == [TAIL, "replay.safetensors"]
    assert second.tensors(TAIL)["count"].item() > 10, "the tail is written anew"
    replay.add(history.rollout(30))
    third = save(tmp_path, store, 4)
    assert names(third) == [segment(1), "replay.safetensors"]
    again = save(tmp_path, store, 5)
    assert names(again) == names(third), "nothing new: a link, and no tail"
    replay.add(history.rollout(3))
    assert names(save(tmp_path, store, 6)) == [segment(1), TAIL, "replay.safetensors"]
    replay.add(history.rollout(30))
    last = save(tmp_path, store, 7)
    assert names(last) == [segment(1), segment(2), "replay.safetensors"]
    assert (third.path / segment(1)).exists() is False, "deleted with its checkpoint"
    assert (last.path / segment(1)).stat().st_nlink == 3, "and there in the three that are kept"


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("prioritized", [None, Prioritized()])
def test_a_buffer_that_is_cut_again_and_again_goes_on_alike(tmp_path, small, num_envs, prioritized):
    """Five times around the ring, with a restored buffer in place of the old one at random."""

    def build():
        return ReplayBuffer(60 * num_envs, num_envs, PAIR, ONE, prioritized=prioritized)

    whole, cut = build(), build()
    store, most = ReplayStore(cut), 0
    histories = History(num_envs, 1, 0.1), History(num_envs, 1, 0.1)
    random = np.random.default_rng(0)
    for step in range(60):
        count = int(random.integers(1, 12))
        for replay, history in zip((whole, cut), histories, strict=True):
            replay.add(history.rollout(count))
            batch = replay.sample(16, torch.Generator().manual_seed(step))
            replay.set_priorities(batch.index, batch.rewards)
        if random.random() < 0.5:
            saved = save(tmp_path, store, step + 1)
            most = max(most, len(names(saved)))
            if random.random() < 0.6:
                cut = build()
                store = restored(tmp_path, cut)
                assert digest(cut) == digest(whole)
                assert cut.unsaved_bytes == 0, "a resumed run links what it was resumed from"
        assert digest(cut) == digest(whole)
    assert 4 < most < 20, "segments are dropped when their rows are gone"


def test_a_resumed_run_links_the_files_of_the_run_before(tmp_path, small):
    history, replay = History(2, 0), ReplayBuffer(1000, 2, PAIR, ONE)
    store = ReplayStore(replay)
    for step in (1, 2):
        replay.add(history.rollout(20))
        save(tmp_path, store, step)
    replay.add(history.rollout(3))
    before = save(tmp_path, store, 3)
    other = ReplayBuffer(1000, 2, PAIR, ONE)
    resumed = restored(tmp_path, other)
    after = save(tmp_path, resumed, 4)
    assert names(after) == [segment(1), segment(2), segment(3), "replay.safetensors"]
    for name, source in ((segment(1), segment(1)), (segment(2), segment(2)), (segment(3), TAIL)):
        assert os.path.samefile(after.path / name, before.path / source)
    assert digest(other) == digest(replay)


def test_a_save_that_fails_loses_nothing(tmp_path, small, monkeypatch):
    history, replay = History(1, 0), ReplayBuffer(200, 1, PAIR, ONE)
    store = ReplayStore(replay)
    replay.add(history.rollout(40))
    save(tmp_path, store, 1)
    check = checkpoint._check_space

    def full(*_):
        raise OSError(28, "No space left on device")

    for step in range(2, 9):  # longer than the ring
        replay.add(history.rollout(40))
        monkeypatch.setattr(checkpoint, "_check_space", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, store, step)
    monkeypatch.setattr(checkpoint, "_check_space", check)
    assert checkpoint.newest(tmp_path, pytest.fail).step == 1
    saved = save(tmp_path, store, 9)
    assert names(saved) == [segment(1), segment(2), "replay.safetensors"]
    other = ReplayBuffer(200, 1, PAIR, ONE)
    restored(tmp_path, other)
    assert digest(other) == digest(replay)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_segment_that_vanishes_while_training_is_written_again(tmp_path, small, damage):
    history, replay = History(1, 0), ReplayBuffer(200, 1, PAIR, ONE)
    said = []
    store = ReplayStore(replay, said.append)
    for step in (1, 2):
        replay.add(history.rollout(40))
        last = save(tmp_path, store, step)
    if damage == "missing":
        shutil.rmtree(last.path)
    else:
        os.truncate(last.path / segment(1), 50)
    replay.add(history.rollout(5))
    saved = save(tmp_path, store, 3)
    assert len(said) == 1 and "is gone or cut short: writing the whole buffer anew" in said[0]
    assert names(saved) == [segment(3), "replay.safetensors"]
    other = ReplayBuffer(200, 1, PAIR, ONE)
    restored(tmp_path, other)
    assert digest(other) == digest(replay)


# --- what was damaged -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, small):
    """A folder with checkpoints 1 (one segment) and 2 (two and a tail)."""
    history, replay = History(2, 0), ReplayBuffer(400, 2, PAIR, ONE)
    store = ReplayStore(replay)
    replay.add(history.rollout(30))
    save(tmp_path, store, 1)
    replay.add(history.rollout(30))
    save(tmp_path, store, 2)
    replay.add(history.rollout(3))
    save(tmp_path, store, 3)
    return tmp_path


def rewrite(saved, name, change):
    """Change tensors of a file, and its manifest so that it verifies: a stranger's work."""
    tensors = saved.tensors(name)
    change(tensors)
    others = {n: saved.tensors(n) for n in saved.files if n.endswith("tensors") and n != name}
    folder = saved.path.parent.parent
    return checkpoint.save(folder, saved.step + 1, {**others, name: tensors}, {"state": {}})


def test_a_truncated_new_segment_falls_back_to_the_checkpoint_before(run):
    os.truncate(run / "checkpoints" / "step-000000003" / TAIL, 40)
    said = []
    saved = checkpoint.newest(run, said.append)
    assert saved.step == 2 and len(said) == 1 and f"{TAIL} has 40 bytes instead of" in said[0]
    ReplayStore(ReplayBuffer(400, 2, PAIR, ONE)).restore(saved)


def test_an_edited_segment_that_all_share_is_one_clear_error(run):
    path = run / "checkpoints" / "step-000000001" / segment(1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{segment(1)} was changed after it was saved"):
        checkpoint.newest(run)


@pytest.mark.parametrize("name", ["replay.safetensors", segment(1), segment(2), TAIL])
def test_a_file_that_the_manifest_does_not_list_is_missed(run, name):
    saved = checkpoint.newest(run)
    tensors = {n: saved.tensors(n) for n in saved.files if n.endswith("tensors") and n != name}
    crafted = checkpoint.save(run, 9, tensors, {})
    with pytest.raises(CheckpointError, match=r"holds no replay buffer|segment .* missing|lacks"):
        ReplayStore(ReplayBuffer(400, 2, PAIR, ONE)).restore(crafted)


@pytest.mark.parametrize(
    ("capacity", "num_envs", "obs", "message"),
    [
        (400, 2, ONE, r"holds float32 \[2\] values of 'obs', this world has float32 \[1\]"),
        (400, 4, PAIR, "2 slots, this one 4: pass --num-envs 2"),
        (600, 2, PAIR, "rows per slot, this one .*: pass --algo.buffer-size 400"),
    ],
)
def test_a_buffer_of_another_run_is_refused_with_the_fix(run, capacity, num_envs, obs, message):
    with pytest.raises(CheckpointError, match=message):
        ReplayStore(ReplayBuffer(capacity, num_envs, obs, ONE)).restore(checkpoint.newest(run))


NONSENSE = {
    "another observation": (segment(1), lambda t: t.update(obs=t["obs"][:, :1].clone())),
    "no rows": (segment(1), lambda t: t.update(count=torch.zeros(2, dtype=torch.int64))),
    "negative count": (segment(1), lambda t: t["count"].copy_(torch.tensor([-5, 70]))),
    "huge count": (segment(1), lambda t: t["count"].fill_(2**62)),
    "wrapping count": (segment(1), lambda t: t["count"].copy_(torch.tensor([2**63 - 1, 3]))),
    "negative first": (segment(1), lambda t: t["first"].fill_(-(2**62))),
    "late first": (segment(2), lambda t: t["first"].fill_(2**40)),
    "one slot": (segment(1), lambda t: t.update(first=torch.zeros(1, dtype=torch.int64))),
    "float first": (segment(1), lambda t: t.update(first=t["first"].double() + 0.5)),
    "no header": (segment(1), lambda t: t.pop("count")),
    "another name": (segment(1), lambda t: t.update(extra=torch.zeros(3))),
    "heads of another count": ("replay", lambda t: t.update(heads=torch.zeros(5).long())),
    "negative heads": ("replay", lambda t: t["heads"].fill_(-7)),
    "huge heads": ("replay", lambda t: t["heads"].fill_(2**62)),
    "signature": ("replay", lambda t: t["signature"].fill_(91)),
    "another signature": ("replay", lambda t: t.update(signature=torch.tensor([50]).byte())),
    "no state": ("replay", lambda t: t.clear()),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_that_verifies_is_one_clear_error(run, case):
    name, change = NONSENSE[case]
    crafted = rewrite(
        checkpoint.newest(run), replay_store._STATE if name == "replay" else name, change
    )
    replay = ReplayBuffer(400, 2, PAIR, ONE)
    with pytest.raises(CheckpointError) as caught:
        ReplayStore(replay).restore(crafted)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# --- large buffers --------------------------------------------------------------------------------


def fill(replay, rollout, rows):
    """Add rows of images that differ."""
    for row in range(rows):
        rollout.all_obs[:] = row % 251
        rollout.all_obs[0, 0, 0, 0, 0] = row % 249
        replay.add(rollout)


def images(rows):
    """A buffer of images and a rollout of one step; a row has about 12 kB."""
    return ReplayBuffer(rows, 1, IMAGE, ONE), RolloutBuffer(1, 1, IMAGE, ONE, keep_finals=True)


def bytes_written():
    """Bytes that this process has handed to the file system."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)["wchar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs /proc")
@pytest.mark.parametrize("rows", [8_000, pytest.param(160_000, marks=pytest.mark.slow)])
def test_a_save_writes_only_what_is_new(tmp_path, rows):
    replay, rollout = images(rows)
    store, share = ReplayStore(replay), rows // 4
    written = []
    for step in range(1, 7):  # the ring is full after four
        fill(replay, rollout, share)
        begin = bytes_written()
        saved = save(tmp_path, store, step)
        written.append(bytes_written() - begin)
    new = share * replay.row_bytes
    assert new > 20e6, "segments, not tails"
    assert all(0.99 * new < count < 1.01 * new + 100_000 for count in written)
    assert len(names(saved)) in (5, 6)
    begin = bytes_written()
    save(tmp_path, store, 7)
    assert bytes_written() - begin < 10_000, "nothing new"
    sizes = {}
    for file in tmp_path.rglob("replay-*"):
        sizes[file.stat().st_ino] = file.stat().st_size
    assert sum(sizes.values()) < 2.01 * replay.nbytes, "on the disk, in three checkpoints"


MEMORY = """
import resource, sys
from rlgym.training import checkpoint
from rlgym.training.replay_store import ReplayStore
from tests.training.test_replay_store import fill, images, restored, save
folder, rows = sys.argv[1], int(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
replay, rollout = images(rows)
if sys.argv[3] == "save":
    store = ReplayStore(replay)
    for step in range(1, 9):
        fill(replay, rollout, rows // 8)
        before = peak()
        save(folder, store, step)
        print(peak() - before)
else:
    fill(replay, rollout, 2)
    before = peak()
    restored(folder, replay)
    print(peak() - before - replay.nbytes)
"""


@pytest.mark.parametrize("rows", [16_000, pytest.param(160_000, marks=pytest.mark.slow)])
def test_neither_saving_nor_restoring_doubles_the_memory(tmp_path, rows):
    pytest.importorskip("resource")
    grown = {}
    for what in ("save", "restore"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(rows), what]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[what] = max(map(int, done.stdout.split()))
    size = images(rows)[0].nbytes / 8
    assert grown["save"] < 1.3 * size + 20e6, "one copy of a segment"
    assert grown["restore"] < 2.3 * size + 20e6, "a file and its tensors"


def test_manifest_of_very_many_segments_can_be_read(tmp_path, small):
    replay = ReplayBuffer(200_000, 1, PAIR, ONE)
    store, history = ReplayStore(replay), History(1, 0)
    links = {}
    replay.add(history.rollout(30))
    saved = save(tmp_path, store, 1)
    links = {segment(number): saved.linked(segment(1)) for number in range(2, 3000)}
    checkpoint.save(tmp_path, 2, {}, {}, links=links)
    assert len(json.loads((tmp_path / "latest.json").read_text())) == 2
    assert len(checkpoint.newest(tmp_path, pytest.fail).files) == 2998
