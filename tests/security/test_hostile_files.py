"""Files that a stranger made: no code runs, nothing is written, and one line says what is wrong."""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from rlgym.config import TrainConfig, load_config, save_config
from rlgym.errors import CheckpointError, ConfigError, UserError
from rlgym.training import checkpoint

CANARY = "rlgym-canary"
WATCHED = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class")
seen: list[str] = []
watching = False


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def _hook(event, arguments):
    if watching and event in WATCHED:
        seen.append(f"{event} {arguments!r}")
    elif watching and event == "open" and isinstance(arguments[1], str):
        if any(letter in arguments[1] for letter in "wxa+"):
            seen.append(f"open {arguments!r}")
    elif watching and event == "import" and arguments[0] in ("evil", "antigravity"):
        seen.append(f"import {arguments!r}")


sys.addaudithook(_hook)  # cannot be removed, so it only looks while `watching`


@contextmanager
def nothing_happens(folder):
    """Fail when code of a file runs, when anything is written, or when it takes a CPU second."""
    global watching
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
    seen.clear()
    watching, started = True, time.process_time()
    try:
        yield
    finally:
        watching = False
    assert time.process_time() - started < 1.0
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before
    assert not Path(CANARY).exists()


def refused(error, folder, call, *args):
    """Call, and return the one line of the error."""
    with nothing_happens(folder), pytest.raises(error) as caught:
        call(*args)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_the_alarm_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError), nothing_happens(tmp_path):
        pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / CANARY).exists() and any("os.system" in line for line in seen)


# --- checkpoints ----------------------------------------------------------------------------------

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def make_run(folder):
    tensors = {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.zeros(4)}}
    return checkpoint.save(folder, 10, tensors, {"state": {"a": 1}}).path


def set_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def plant(path, name, content):
    """Put `content` in a file and let the manifest vouch for it, as its author would."""
    import hashlib

    (path / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    set_manifest(path, lambda manifest: manifest["files"].__setitem__(name, entry))


def read_all(path):
    found = checkpoint.read(path)
    for name in found.files:
        found.document(name) if name.endswith(".json") else found.tensors(name)


def torch_zip():
    file = io.BytesIO()
    torch.save(Payload(), file)
    return file.getvalue()


def npy_object():
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps([1])


PICKLES = {
    "pickle": pickle.dumps(Payload()),
    "torch": torch_zip(),
    "npy": npy_object(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("vouched", [False, True])
def test_a_pickle_in_any_slot_is_not_unpickled(tmp_path, monkeypatch, name, kind, vouched):
    monkeypatch.chdir(tmp_path)
    path = make_run(tmp_path)
    if vouched and name != "manifest.json":
        plant(path, name, PICKLES[kind])
    else:
        (path / name).write_bytes(PICKLES[kind])
    message = refused(CheckpointError, tmp_path, read_all, path)
    assert name in message


def header(text, payload=b"", length=None):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + payload


TENSOR = '{"w":{"dtype":"F32","shape":%s,"data_offsets":%s}}'
SAFETENSORS = {
    "empty": b"",
    "header longer than the file": header("{}", length=2**40),
    "header of 2**64 - 1 bytes": header("{}", length=2**64 - 1),
    "header that is not JSON": header("{nonsense"),
    "header nested deeply": header('{"a":' * 5000 + "1" + "}" * 5000),
    "tensor outside of the file": header(TENSOR % ("[4]", "[0,16]"), bytes(8)),
    "offsets backwards": header(TENSOR % ("[4]", "[16,0]"), bytes(16)),
    "shape that overflows": header(TENSOR % (f"[{2**62},{2**62}]", "[0,16]"), bytes(16)),
    "negative shape": header(TENSOR % ("[-4]", "[0,16]"), bytes(16)),
    "shape unlike the data": header(TENSOR % ("[1000000]", "[0,16]"), bytes(16)),
    "unknown type": header(TENSOR.replace("F32", "OBJ") % ("[4]", "[0,16]"), bytes(16)),
    "bytes that belong to no tensor": header(TENSOR % ("[4]", "[0,16]"), bytes(64)),
    "not text": header(b"\xff\xfe\x00\x01"),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_a_malformed_tensor_file_is_refused(tmp_path, kind):
    path = make_run(tmp_path)
    plant(path, "model.safetensors", SAFETENSORS[kind])
    message = refused(CheckpointError, tmp_path, read_all, path)
    assert "model.safetensors: not a safetensors file" in message


JSON = {
    "empty": b"",
    "nested deeply": b"[" * 100_000,
    "not text": b"\xff\xfe",
    "cut": b'{"a": [1, 2',
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_malformed_document_is_refused(tmp_path, name, kind):
    path = make_run(tmp_path)
    if name == "state.json":
        plant(path, name, JSON[kind])
    else:
        (path / name).write_bytes(JSON[kind])
    assert f"{name}: not a JSON file" in refused(CheckpointError, tmp_path, read_all, path)


@pytest.mark.parametrize(
    "name",
    [
        *("../../secret.json", "/etc/passwd", "..", ".", "", "a/b.json", "a\\b.json"),
        *("C:\\x.json", "model.pt", "model.pkl", ".hidden.json", "a\0.json", "x.safetensors.pkl"),
        *("s" * 5000, "s" * 5000 + ".json"),
    ],
)
def test_a_manifest_names_files_of_its_folder_only(tmp_path, name):
    (tmp_path / "secret.json").write_text('"secret"')
    path = make_run(tmp_path / "run")
    set_manifest(path, lambda m: m["files"].__setitem__(name, {"bytes": 8, "sha256": "0" * 64}))
    assert "which no checkpoint holds" in refused(CheckpointError, tmp_path, read_all, path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "manifest", "a b"])
def test_nothing_is_saved_under_a_strange_name(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot name a file"):
        checkpoint.save(tmp_path, 1, {}, {name: 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="other"),
        lambda m: m.update(version=999),
        lambda m: m.update(version="1\n2"),
        lambda m: m.update(step=11),
        lambda m: m.update(step="10"),
        lambda m: m.update(files=[]),
        lambda m: m["files"].update({"state.json": "x"}),
        lambda m: m["files"]["state.json"].update(bytes="8"),
        lambda m: m["files"]["state.json"].update(bytes=True),
        lambda m: m["files"]["state.json"].update(bytes=-1),
        lambda m: m["files"]["state.json"].update(bytes=2**70),
        lambda m: m["files"]["state.json"].update(sha256=None),
        lambda m: m["files"]["state.json"].update(sha256="0" * 64),
        lambda m: m["files"].update({"absent.json": {"bytes": 0, "sha256": "0" * 64}}),
        lambda m: m.clear(),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, change):
    path = make_run(tmp_path)
    set_manifest(path, change)
    refused(CheckpointError, tmp_path, read_all, path)


def test_a_manifest_as_large_as_a_disk_is_not_read(tmp_path):
    path = make_run(tmp_path)
    with open(path / "manifest.json", "r+b") as file:
        file.truncate(2**33)  # sparse
    assert "larger than" in refused(CheckpointError, tmp_path, read_all, path)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_links_are_not_followed(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes(b"12345678")
    path = make_run(tmp_path / "run")
    plant(path, name, outside.read_bytes())
    (path / name).unlink()
    (path / name).symlink_to(outside)
    assert "not a plain file" in refused(CheckpointError, tmp_path, read_all, path)


def test_a_linked_checkpoint_folder_is_not_one(tmp_path):
    path = make_run(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / path.name).symlink_to(path)
    assert checkpoint.newest(tmp_path / "run") is None


@pytest.mark.parametrize(
    "pointer",
    [
        *("../../elsewhere", "/etc", "", "step-1/../../x", "step-000000010\n", None, 7, ["a"]),
        "step-" + "9" * 500,
    ],
)
def test_the_best_pointer_names_a_checkpoint_of_its_run(tmp_path, pointer):
    make_run(tmp_path)
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": pointer}))
    assert "names no checkpoint" in refused(CheckpointError, tmp_path, checkpoint.best, tmp_path)


def test_an_archive_in_place_of_a_folder_is_not_opened(tmp_path):
    path = make_run(tmp_path)
    shutil.rmtree(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped", "x")
    with nothing_happens(tmp_path):
        assert checkpoint.newest(tmp_path) is None


# --- configs --------------------------------------------------------------------------------------

YAML = {
    "apply": "env_id: !!python/object/apply:os.system ['touch rlgym-canary']",
    "new": "!!python/object/new:os.system ['touch rlgym-canary']",
    "object": "algo: !!python/object:rlgym.config.PPOConfig {gamma: 0.5}",
    "name": "env: {f: !!python/name:os.system }",
    "module": "env: !!python/module:antigravity ",
    "tuple": "network: {hidden: !!python/tuple [1, 2]}",
    "own tag": "env: !evil {a: 1}",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nenv: {bomb: [*c, *c]}",
    "brackets": "[" * 40_000,
    "braces": "{a: " * 20_000,
    "a merge key": "base: &base {gamma: 0.5}\nalgo:\n  <<: *base",
    "pickle": pickle.dumps(Payload(), protocol=0).decode("latin1"),
    "control characters": "env_id: \x00\x07",
    "two documents": "num_envs: 1\n---\nnum_envs: 2\n",
    "a date that is none": "seed: 2026-99-99",
    "a key that is a list": "? [a, b]\n: 1\n",
}


@pytest.mark.parametrize("kind", YAML)
def test_hostile_yaml_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(YAML[kind], encoding="utf-8")
    message = refused(ConfigError, tmp_path, load_config, "config.yaml")
    assert message.startswith("config.yaml")


def test_yaml_is_refused_by_us_and_not_by_luck(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = YAML["apply"]
    with pytest.raises(AssertionError), nothing_happens(tmp_path):
        yaml.load(text, yaml.UnsafeLoader)  # what the alarm would have shown


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["eval", "resume", "play", "record"])
def test_a_run_imports_no_module_that_the_person_did_not_ask_for(
    tmp_path, monkeypatch, capsys, verb
):
    from rlgym.cli.main import main

    (tmp_path / "evil.py").write_text(f"open({CANARY!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    run = tmp_path / "run"
    make_run(run)
    save_config(TrainConfig(env_id="evil:CartPole-v1"), run / "config.yaml")
    with nothing_happens(tmp_path):
        assert main([verb, "run"]) == 2
        if verb == "resume":
            assert main(["train", "--config", "run/config.yaml"]) == 2
            assert main(["train", "CartPole-v1", "--config", "run/config.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all("asks to import the module 'evil'" in line for line in lines)
    assert all("--trust" in line for line in lines)


@pytest.mark.parametrize("call", ["resume", "train"])
def test_python_asks_as_the_command_line_does(tmp_path, monkeypatch, call):
    import rlgym

    (tmp_path / "evil.py").write_text(f"open({CANARY!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run, other = tmp_path / "run", tmp_path / "file"
    make_run(run)
    other.touch()
    config = TrainConfig(env_id="evil:CartPole-v1")
    save_config(config, run / "config.yaml")
    target = run if call == "resume" else load_config(run / "config.yaml")
    told = refused(UserError, tmp_path, getattr(rlgym, call), target)
    assert "asks to import the module 'evil'" in told and "trust=True" in told
    for said in ({"trust": True}, {"env_id": "evil:CartPole-v1"}):
        with pytest.raises(UserError) as caught:  # what comes after that question
            getattr(rlgym, call)(target, **said, **({} if call == "resume" else {"run_dir": other}))
        assert "asks to import" not in str(caught.value)
