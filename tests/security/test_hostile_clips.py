"""Clip files that a stranger made: nothing in them runs, and one line says what is wrong."""

import io
import json
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from rlgym.envs.imitation import clip_files
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.gaits import generate
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ClipError
from tests.security.test_hostile_files import Payload, nothing_happens

A1 = get_robot("a1")
TROT = generate(A1, "trot")
GOOD = {
    "root_pos": TROT.root_pos,
    "root_quat": TROT.root_quat,
    "joint_pos": TROT.q,
    "fps": np.array(60.0),
    "joint_names": np.array(A1.joints),
}


def refused(path):
    """Load, and return the one line of the error; no code of the file may run meanwhile."""
    with nothing_happens(path.parent), pytest.raises(ClipError) as caught:
        load_clip(path, A1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def npz(path, members):
    """Write an archive of raw members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text):
    """An .npy file with a header of our own and no data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_the_good_file_is_good(tmp_path):
    path = npz(tmp_path / "good.npz", {f"{name}.npy": npy(value) for name, value in GOOD.items()})
    with nothing_happens(tmp_path):
        assert load_clip(path, A1).q == pytest.approx(TROT.q)


def test_a_pickle_inside_an_npz_is_not_opened(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **{**GOOD, "source": np.array([Payload()], object)}, allow_pickle=True)
    assert "objects" in refused(path)


def test_a_pickle_for_an_npz_is_not_opened(tmp_path):
    path = tmp_path / "bad.npz"
    np.array([Payload()], object).dump(path)
    assert "not an .npz archive" in refused(path)


def test_mimickits_pickles_are_not_read(tmp_path):
    path = tmp_path / "clip.pkl"
    np.array([Payload()], object).dump(path)
    assert "is no clip file" in refused(path)


HEADERS = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 3), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }",
    "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0, 3), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': __import__('os').system('touch x'), }",
    "(" * 3000,
    "{" * 60000,
    "",
]


@pytest.mark.parametrize("text", HEADERS, ids=[text[:40] for text in HEADERS])
def test_headers_that_lie_are_refused(tmp_path, text):
    members = {f"{name}.npy": npy(value) for name, value in GOOD.items()}
    refused(npz(tmp_path / "bad.npz", {**members, "root_pos.npy": header(text)}))


def test_an_archive_that_unpacks_to_gigabytes_is_refused_unopened(tmp_path):
    path = tmp_path / "bomb.npz"
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(80)) + squeezer.flush()
    plain = zipfile.ZipInfo("root_pos.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(plain, data)  # stored: the sizes below are put in by hand
    content = bytearray(path.read_bytes())
    for signature, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        at = content.index(signature)
        struct.pack_into("<H", content, at + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, at + size, 80 << 20)
    path.write_bytes(content)
    assert path.stat().st_size < 1 << 20
    assert "unpacks to more than 64 MB" in refused(path)
    for signature, size in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # and one that lies
        struct.pack_into("<I", content, content.index(signature) + size, 1000)
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("cut", [1, 10, 100, 1000])
def test_a_file_that_was_cut_or_damaged_is_refused(tmp_path, cut):
    path = tmp_path / "cut.npz"
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    refused(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + cut] = b"\xff" * cut
    path.write_bytes(damaged)
    refused(path)


def test_many_members_are_refused(tmp_path):
    path = npz(tmp_path / "many.npz", {f"{k}.npy": b"" for k in range(1000)})
    assert "unpacks to more" in refused(path)


JSON = [
    "[" * 1_000_000,
    '{"Frames": ' + "[" * 100_000,
    '{"FrameDuration": 1, "Frames": [[' + "9" * 5000 + "]]}",
    '{"FrameDuration": 1, "Frames": [[1e999]]}',
    '{"FrameDuration": 1, "Frames": [["__import__(\'os\')"]]}',
    '{"FrameDuration": {"__class__": 1}, "Frames": [[1, 2]]}',
    '{"FrameDuration": 1, "LoopMode": {}, "Frames": [[1, 2]]}',
    '{"Loop": [], "Frames": [[1, 2]]}',
    '{"Frames": {"0": [1]}, "FrameDuration": 1}',
    "\x00" * 1000,
    "\ufeff{}",
]


@pytest.mark.parametrize("text", JSON, ids=[f"{n}" for n in range(len(JSON))])
def test_json_that_bites_is_refused(tmp_path, text):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    refused(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    for suffix in (".txt", ".json", ".csv"):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(bytes(range(256)) * 10)
        refused(path)
        path.unlink()


def test_a_csv_of_one_endless_line_is_refused(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("1," * 1_000_000)
    refused(path)
    path.write_text('"' + "1" * 300_000)
    refused(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.txt"
    with open(path, "wb") as file:
        file.truncate(clip_files.MAX_BYTES + 1)
    started = time.process_time()
    assert "more than 64: cut it" in refused(path)
    assert time.process_time() - started < 0.5


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
    folder = tmp_path / "clip.npz"
    folder.mkdir()
    assert "is not a file" in refused(folder)


def test_a_name_cannot_climb_into_pybullet_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipError, match="No such file"):
        load_clip("../../secret.txt", A1)


def test_names_in_a_file_are_shown_short_and_in_one_line(tmp_path):
    path = tmp_path / "bad.npz"
    names = np.array([*A1.joints[:11], "evil\n\x1b[2J" + "x" * 10_000])
    np.savez(path, **{**GOOD, "joint_names": names})
    assert "\x1b" not in refused(path)
    evil = np.array("a\n\x1b[2J" + "b" * 1000)
    np.savez(path, **GOOD, name=evil, robot=np.array("a1"), licence=evil, source=evil)
    clip = load_clip(path, A1)
    assert clip.name == clip.licence == clip.source == ("a[2J" + "b" * 1000)[:200]


def test_a_json_of_many_frames_takes_seconds_not_minutes(tmp_path):
    path = tmp_path / "long.json"
    quats, q = TROT.root_quat.tolist(), TROT.q.tolist()
    rows = [[0.0, 0.0, 0.3, *quats[0], *q[k % 200]] for k in range(20_000)]
    path.write_text(json.dumps({"FrameDuration": 0.02, "Frames": rows}))
    started = time.process_time()
    assert load_clip(path, A1).num_frames == 20_000
    assert time.process_time() - started < 3
