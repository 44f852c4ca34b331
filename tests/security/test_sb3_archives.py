"""Models of SB3 that a stranger made: nothing runs, and one line says what is wrong."""

import base64
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgym.cli.main import main
from rlgym.errors import CheckpointError, UserError
from rlgym.interop.sb3_archive import read_archive
from rlgym.interop.sb3_models import load
from rlgym.interop.sb3_normalize import read_statistics
from rlgym.interop.torch_tensors import read_tensors
from tests.security.test_hostile_files import CANARY, Payload, nothing_happens, refused

BOX = {
    ":type:": "<class 'gymnasium.spaces.box.Box'>",
    ":serialized:": base64.b64encode(pickle.dumps(Payload())).decode(),
    **{"dtype": "float32", "_shape": [2], "low": "[-1. -1.]", "high": "[1. 1.]"},
}
DATA = {
    "policy_class": {
        ":type:": "<class 'abc.ABCMeta'>",
        ":serialized:": BOX[":serialized:"],
        "__module__": "stable_baselines3.common.policies",
    },
    "policy_kwargs": {":type:": "<class 'dict'>", ":serialized:": BOX[":serialized:"]},
    "observation_space": BOX,
    "action_space": BOX,
    "num_timesteps": 7,
}
PARAMETERS = {
    "log_std": torch.zeros(2),
    **{"mlp_extractor.policy_net.0.weight": torch.ones(3, 2)},
    **{"mlp_extractor.policy_net.0.bias": torch.zeros(3)},
    **{"mlp_extractor.value_net.0.weight": torch.ones(3, 2)},
    **{"mlp_extractor.value_net.0.bias": torch.zeros(3)},
    **{"action_net.weight": torch.ones(2, 3), "action_net.bias": torch.zeros(2)},
    **{"value_net.weight": torch.ones(1, 3), "value_net.bias": torch.zeros(1)},
}


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def pack(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def repack(content, change):
    """A file of torch.save with its members changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split("/")[0]
    change(members, root)
    return pack(members)


def with_pickle(program):
    """A file of torch.save whose description is this pickle."""
    return repack(saved(PARAMETERS), lambda m, root: m.__setitem__(f"{root}/data.pkl", program))


def model(path, data=None, parameters=None, **members):
    content = {"data": json.dumps(DATA if data is None else data).encode()}
    content["policy.pth"] = saved(PARAMETERS) if parameters is None else parameters
    Path(path).write_bytes(pack(content | members))
    return path


def test_a_good_model_whose_pickles_are_hostile_is_read_and_nothing_runs(tmp_path):
    path = model(tmp_path / "model.zip")
    with nothing_happens(tmp_path):
        policy = load(path)
    assert policy.step == 7
    np.testing.assert_array_equal(policy.act(np.zeros(2, np.float32)), np.zeros(2))


# ------------------------------------------------------------------------- pickles in policy.pth

GLOBAL = b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R."
PROTOCOL_4 = pickle.dumps(Payload(), 4)
HOSTILE = {
    "reduce": (GLOBAL, "os.system"),
    "protocol-4": (PROTOCOL_4, "SHORT_BINUNICODE|FRAME"),
    "protocol-0": (pickle.dumps(Payload(), 0), "posix.system|nt.system"),
    "inst": (b"(S'touch owned'\nios\nsystem\n.", "STRING|INST"),
    "obj": (b"(cos\nsystem\nS'touch owned'\no.", "os.system"),
    "newobj": (b"\x80\x02cbuiltins\nobject\n)\x81.", "builtins.object"),
    "ext": (b"\x80\x02\x82\x01.", "EXT1"),
    "torch-load": (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
    "rebuild-from-type": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n)R.",
        "_rebuild_from_type_v2",
    ),
    "ordered-dict-of-things": (
        b"\x80\x02ccollections\nOrderedDict\n(X\x01\x00\x00\x00atR.",
        "calls",
    ),
    "tensor-class": (b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.", "calls"),
    "build-on-global": (b"\x80\x02ccollections\nOrderedDict\n}b.", "not a dict"),
    "setitem-on-global": (
        b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00aNs.",
        "not a dict",
    ),
    "key-not-a-name": (b"\x80\x02}K\x01K\x02s.", "keys that are not names"),
    "nothing-but-a-number": (b"\x80\x02}X\x01\x00\x00\x00aK\x02s.", "'a' is not a tensor"),
    "memo-of-nothing": (b"\x80\x02h\x05.", "damaged"),
    "stack-of-nothing": (b"\x80\x02R.", "damaged"),
    "mark-of-nothing": (b"\x80\x02t.", "damaged"),
    "two-values": (b"\x80\x02}}.", "end with one dict"),
    "no-end": (b"\x80\x02}", "damaged"),
    "cut": (b"\x80\x02X\xff\xff\xff\x7fabc", "damaged"),
    "not-a-pickle": (b"hello", "damaged|instruction"),
    "empty": (b"", "damaged"),
    "laughs": (b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b".", "end with one dict"),
    "laughs-as-a-storage": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)"
        + b"q\x00h\x00\x86" * 200
        + b"X\x03\x00\x00\x00cpuK\x04tQ.",
        "without a name",
    ),
    "laughs-as-a-count": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpu)" + b"q\x00h\x00\x86" * 200 + b"tQ.",
        "claims something else",
    ),
    "persistent": (b"\x80\x02X\x01\x00\x00\x00aQ.", "not a tensor's storage"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_other_program_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, reason = HOSTILE[name]
    path = model(tmp_path / "model.zip", parameters=with_pickle(program))
    line = refused(CheckpointError, tmp_path, read_archive, path)
    assert any(word in line for word in reason.split("|")), line
    assert not (tmp_path / "owned").exists()


def test_the_programs_would_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program in (GLOBAL, HOSTILE["inst"][0], HOSTILE["obj"][0]):
        (tmp_path / "owned").unlink(missing_ok=True)
        pickle.loads(program)
        assert (tmp_path / "owned").exists()
    pickle.loads(PROTOCOL_4)
    assert (tmp_path / CANARY).exists()


def tensor_program(
    key=b"0", count=4, offset=0, shape=(2, 2), stride=(2, 1), storage=b"torch\nFloat"
):
    """The pickle of {"w": tensor} with claims of one's own."""

    def number(n):
        return (
            b"J" + struct.pack("<i", n)
            if -(2**31) <= n < 2**31
            else (b"\x8a\x08" + struct.pack("<q", n))
        )

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    def group(values):
        return b"(" + b"".join(number(n) for n in values) + b"t"

    persistent = b"(" + text(b"storage") + b"c" + storage + b"Storage\n" + text(key)
    persistent += text(b"cpu") + number(count) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + number(offset)
    tensor += group(shape) + group(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text(b"w") + tensor + b"s."


def tensor_file(**claims):
    def change(members, root):
        members[f"{root}/data.pkl"] = tensor_program(**claims)
        members[f"{root}/data/0"] = np.arange(4, dtype="<f4").tobytes()

    return repack(saved({"w": torch.zeros(2, 2)}), change)


def test_the_program_of_the_tests_is_right():
    read = read_tensors(tensor_file(), "it")["w"]
    assert torch.equal(read, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(read_tensors(tensor_file(stride=(1, 2)), "it")["w"], read.t())
    assert torch.equal(torch.load(io.BytesIO(tensor_file()), weights_only=True)["w"], read)


def test_tensors_that_multiply_their_bytes_are_refused(tmp_path):
    many = {f"a{i}": torch.zeros(100_000) for i in range(2)}
    names = {f"b{i}": many["a0"][:] for i in range(20)}  # one storage under twenty names
    path = model(tmp_path / "model.zip", parameters=saved(many | names))
    assert "share their bytes too often" in refused(CheckpointError, tmp_path, read_archive, path)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"shape": (2**20, 2**20)}, "claims the shape"),
        ({"shape": (10**6, 10**6), "stride": (0, 0)}, "claims the shape"),
        ({"shape": (2, 3)}, "claims the shape"),
        ({"offset": 1}, "claims the shape"),
        ({"stride": (2, 2**39)}, "claims the shape"),
        ({"offset": -1}, "not one that a tensor can have"),
        ({"shape": (-2, -2)}, "not one that a tensor can have"),
        ({"stride": (-1, 1)}, "not one that a tensor can have"),
        ({"stride": (1,)}, "damaged"),
        ({"shape": (1,) * 40, "stride": (1,) * 40}, "claims the shape"),
        ({"count": 2**40}, "claims"),
        ({"count": 3}, "claims 3 numbers and holds 4"),
        ({"key": b"7"}, "has no 'archive/data/7'"),
        ({"key": b"../../etc/passwd"}, "cannot be one of torch.save's"),
        ({"key": b"/etc/passwd"}, "cannot be one of torch.save's"),
        ({"storage": b"torch\nQInt8"}, "torch.QInt8Storage"),
        ({"storage": b"torch\nDouble"}, "claims 4 numbers and holds 2"),
        ({"storage": b"numpy\nFloat"}, "numpy.FloatStorage"),
    ],
)
def test_absurd_tensors_are_refused(claims, reason, tmp_path):
    path = model(tmp_path / "model.zip", parameters=tensor_file(**claims))
    assert reason in refused(CheckpointError, tmp_path, read_archive, path)


# ------------------------------------------------------------------------------------ zip files


def bomb(size=2**30):
    """A small zip whose member unpacks to a gigabyte of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("data", "w", force_zip64=True) as member:
            for _ in range(size // 2**24):
                member.write(bytes(2**24))
        archive.writestr("policy.pth", saved(PARAMETERS))
    return file.getvalue()


def lying(content, name, size):
    """The list of members claims `size` bytes for one of them."""
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name))
    claimed = struct.pack("<II", size, size)
    return content[: at + 20] + claimed + content[at + 28 :]


GOOD = pack({"data": json.dumps(DATA), "policy.pth": saved(PARAMETERS)})
ARCHIVES = {
    "not-a-zip": (b"hello", "not a zip file"),
    "empty": (b"", "not a zip file"),
    "cut": (GOOD[:-40], "holds no model"),
    "cut-early": (GOOD[: len(GOOD) // 2], "not a zip file"),
    "damaged": (GOOD.replace(b"num_timesteps", b"num_timestepS"), "damaged"),
    "nothing-in-it": (pack({"a": b""}), "holds no model"),
    "no-parameters": (pack({"data": b"{}"}), "holds no model"),
    "bomb": (bomb(2**26), "is compressed"),
    "claims-much": (lying(GOOD, b"policy.pth", 2**31), "lists the same bytes twice, or too much"),
    "twice": (GOOD, "lists the same bytes twice"),
    "parameters-not-a-zip": (pack({"data": json.dumps(DATA), "policy.pth": b"PK"}), "torch.save"),
    "bare-pickle": (
        pack({"data": json.dumps(DATA), "policy.pth": pickle.dumps(Payload())}),
        "not a zip file of torch.save",
    ),
    "no-description": (
        pack({"data": json.dumps(DATA), "policy.pth": pack({"archive/version": b"3"})}),
        "has no data.pkl",
    ),
    "big-endian": (
        pack(
            {
                "data": json.dumps(DATA),
                "policy.pth": repack(
                    saved(PARAMETERS), lambda m, root: m.__setitem__(f"{root}/byteorder", b"big")
                ),
            }
        ),
        "byte order",
    ),
    "hostile-variables": (
        pack(
            {
                "data": json.dumps(DATA),
                "policy.pth": saved(PARAMETERS),
                "pytorch_variables.pth": with_pickle(GLOBAL),
            }
        ),
        "pytorch_variables.pth: its pickle names 'os.system'",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_or_lying_archive_is_refused(name, tmp_path):
    content, reason = ARCHIVES[name]
    path = tmp_path / "model.zip"
    path.write_bytes(content)
    if name == "twice":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("data", b"{}")
    assert reason in refused(CheckpointError, tmp_path, read_archive, path)


def test_members_with_paths_outside_are_never_written(tmp_path):
    path = model(tmp_path / "model.zip", **{"../evil": b"x", "/etc/evil": b"x", "a/../../b": b"x"})
    with nothing_happens(tmp_path.parent):
        load(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    assert "no such file" in refused(CheckpointError, tmp_path, read_archive, tmp_path)
    assert "no such file" in refused(CheckpointError, tmp_path, read_archive, tmp_path / "a.zip")


# ------------------------------------------------------------------------------------------ data


def changed(**changes):
    return DATA | changes


def box(**changes):
    return BOX | changes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a dict"),
        (b"{}", "a class from"),
        (changed(policy_class={"__module__": "evil"}), "a class from 'evil'"),
        (changed(policy_class="evil"), "a class from"),
        (changed(policy_kwargs=[1]), "are not a dict"),
        (changed(policy_kwargs={"activation_fn": "<class 'os.system'>"}), "activation_fn="),
        (changed(policy_kwargs={"features_extractor_class": "evil"}), "features_extractor_class="),
        (changed(policy_kwargs={"trick" * 999: 1}), "in policy_kwargs"),
        (changed(observation_space=None), "cannot be read without unpickling"),
        (changed(observation_space="Box"), "cannot be read without unpickling"),
        (changed(observation_space=box(_shape=[10**9, 10**9])), "without unpickling"),
        (changed(observation_space=box(_shape=[-2])), "without unpickling"),
        (changed(observation_space=box(low="[" + "1. " * 10**5)), "without unpickling"),
        (changed(observation_space=box(low="[nan 0.]")), "without unpickling"),
        (changed(observation_space=box(low="[__import__('os') 0.]")), "without unpickling"),
        (changed(observation_space=box(low="[1e99999999 0.]")), "without unpickling|space"),
        (changed(observation_space=box(dtype="object")), "Box of object|without unpickling"),
        (changed(observation_space=box(**{":type:": "<class 'evil.Box'>"})), "without unpickling"),
        (
            changed(
                action_space={
                    ":type:": "<class 'gymnasium.spaces.discrete.Discrete'>",
                    **{"n": "9" * 5000, "start": "0"},
                }
            ),
            "without unpickling",
        ),
        (
            changed(
                action_space={
                    ":type:": "<class 'gymnasium.spaces.discrete.Discrete'>",
                    **{"n": str(2**40), "start": "0"},
                }
            ),
            "the action space asks for 1099511627776",
        ),
        (changed(n_steps=2**62), "asks for rollouts"),
        (changed(gamma=7), "algo.gamma must be"),
    ],
)
def test_data_that_no_model_has_is_refused(data, reason, tmp_path):
    path = model(tmp_path / "model.zip")
    text = data if isinstance(data, bytes) else json.dumps(data)
    path.write_bytes(pack({"data": text, "policy.pth": saved(PARAMETERS)}))
    line = refused(UserError, tmp_path, load, path)
    assert any(word in line for word in reason.split("|")), line


def test_networks_that_would_fill_up_to_gigabytes_are_refused(tmp_path):
    wide, narrow = torch.zeros(20_000, 2), torch.zeros(1, 2)
    towers = {
        "mlp_extractor.policy_net": (wide, torch.zeros(1, 20_000)),
        "mlp_extractor.value_net": (narrow, torch.zeros(20_000, 1)),
    }
    parameters = dict(PARAMETERS)
    for name, (first, second) in towers.items():
        for i, weight in ((0, first), (2, second)):
            parameters[f"{name}.{i}.weight"] = weight
            parameters[f"{name}.{i}.bias"] = torch.zeros(len(weight))
    parameters |= {"action_net.weight": torch.ones(2, 1), "value_net.weight": torch.ones(1, 20_000)}
    path = model(tmp_path / "model.zip", parameters=saved(parameters))
    assert "widths differ too much" in refused(CheckpointError, tmp_path, load, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action_net.weight": None}, "only PPO, A2C, SAC and TD3"),
        ({"action_net.bias": None}, "no parameter action_net.bias"),
        ({"extra.weight": torch.ones(2)}, "'extra.weight' [2], which belongs to no network"),
        ({"action_net.weight": torch.ones(2)}, "make no layer"),
        ({"action_net.weight": torch.ones(2, 3, 1, 1)}, "action space|takes"),
        ({"log_std": torch.zeros(3)}, "log_std"),
        ({"log_std": None}, "log_std"),
        ({"value_net.weight": torch.ones(1, 4)}, "takes 4 numbers where it is given 3"),
        ({"lstm_actor.weight": torch.ones(1)}, "RecurrentPPO"),
    ],
)
def test_parameters_that_make_no_network_are_refused(change, reason, tmp_path):
    parameters = {k: v for k, v in (PARAMETERS | change).items() if v is not None}
    path = model(tmp_path / "model.zip", parameters=saved(parameters))
    line = refused(CheckpointError, tmp_path, load, path)
    assert any(word in line for word in reason.split("|")), line


# ------------------------------------------------------------------------------ the command line


def test_the_command_says_one_line_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model("model.zip", parameters=with_pickle(GLOBAL))
    with nothing_happens(tmp_path):
        assert main(["import", "sb3", "model.zip", "--trust"]) == 2  # trust is for statistics only
    error = capsys.readouterr().err
    assert error.startswith("error: model.zip") and error.count("\n") == 1
    assert sorted(os.listdir()) == ["model.zip"]


# ------------------------------------------------------------------------------------ statistics


def npz(**members):
    return pack({f"{name}.npy": content for name, content in members.items()})


def npy(header):
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


STATISTICS = {
    "pickle.pkl": (pickle.dumps(Payload()), "add --trust"),
    "pickle.npz": (pickle.dumps(Payload()), "not a zip file"),
    "objects.npz": (
        npz(mean=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")),
        "not",
    ),
    "huge.npz": (
        npz(mean=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }")),
        "fewer numbers than it claims",
    ),
    "code.npz": (npz(mean=npy("__import__('os').system('touch owned')")), "not an array"),
    "cut.npz": (npz(mean=b"\x93NUMPY"), "not an array"),
    "cut.safetensors": (b"\x08\0\0\0\0\0\0\0{", "not a safetensors"),
    "text.json": (b"hello", "not a JSON file"),
    "list.json": (b"[1, 2]", "not a JSON file"),
    "words.json": (b'{"mean": ["a"], "var": [1]}', "finite numbers"),
    "ragged.json": (b'{"mean": [[1], [1, 2]], "var": [1]}', "not a JSON file"),
    "deep.json": (b'{"mean":' + b"[" * 100_000, "not a JSON file"),
    "empty.json": (b"{}", "needs mean and var"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_hostile_statistics_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, reason = STATISTICS[name]
    (tmp_path / name).write_bytes(content)
    assert reason in refused(CheckpointError, tmp_path, read_statistics, tmp_path / name)


def test_a_trusted_file_that_is_no_pickle_is_one_line(tmp_path):
    for content in (b"hello", b"\x80\x04N.", b""):
        (tmp_path / "norm.pkl").write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_statistics(tmp_path / "norm.pkl", trust=True)
        assert "\n" not in str(caught.value)
