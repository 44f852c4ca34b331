"""Bundles that a stranger made: nothing in them runs, and one line says what is wrong."""

import io
import json
import os
import stat
import struct
import zipfile

import numpy as np
import onnx
import onnxruntime  # noqa: F401 - imported before anything watches imports
import pytest
from onnx import TensorProto, helper, numpy_helper

from rlgym.deploy.bundle import GOLDEN, GRAPH, MANIFEST, ONNX, Bundle
from rlgym.deploy.errors import DeployError
from rlgym.deploy.policy import Policy
from tests.export.bundles import make_bundle, manifest_of, members, pack, sealed
from tests.security.test_hostile_files import Payload, nothing_happens


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of a sound bundle."""
    return members(make_bundle(tmp_path_factory.mktemp("good") / "good.rlpolicy"))


def open_all(path):
    """All that a robot does before it moves."""
    bundle = Bundle(path)
    Policy(bundle, "numpy")
    Policy(bundle, "onnx")


def refused(path):
    """Open, and return the one line of the error."""
    with nothing_happens(path.parent), pytest.raises(DeployError) as caught:
        open_all(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600, said
    assert said.isprintable(), said
    return said


def test_the_good_one_is_good(good, tmp_path):
    path = pack(tmp_path / "good.rlpolicy", good)
    with nothing_happens(tmp_path):
        open_all(path)


# ----- Zips --------------------------------------------------------------------------------------


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(arrays):
    """An archive of raw members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def header(text):
    """An .npy with a header of our own and no data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def odd_member(name="extra.bin", data=b"x", mode=0, **fields):
    """Add a member of which `fields` of its ZipInfo are set."""

    def build(path, good):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for own, content in good.items():
                archive.writestr(own, content)
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, data)

    return build


def raw(change):
    """Change the bytes of the good zip."""

    def build(path, good):
        pack(path, good)
        path.write_bytes(change(path.read_bytes()))

    return build


def _flag(data):
    """Mark all members as encrypted, in both of the places where a zip says so."""
    data = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + at] |= 1
            start = data.find(mark, start + 1)
    return bytes(data)


def _size(data):
    """Say that the list of members has two gigabytes."""
    return data[:-10] + struct.pack("<I", 1 << 31) + data[-6:]


def many(path, good):
    pack(path, good | {f"extras/{i}.bin": b"" for i in range(500)})


ZIPS = {
    "parent folder": odd_member("../evil.py"),
    "parent folder inside": odd_member("extras/../../evil.py"),
    "absolute": odd_member("/tmp/evil.py"),
    "drive": odd_member("C:/evil.py"),
    "backslash": odd_member("..\\evil.py"),
    "hidden": odd_member(".bashrc"),
    "device of windows": odd_member("extras/aux.txt"),
    "dot at the end": odd_member("extras/policy."),
    "line feed": odd_member("extras/a\nb"),
    "control letter": odd_member("extras/a\x1b[2Jb"),
    "not ascii": odd_member("extras/pólicy.onnx"),
    "right to left": odd_member("extras/\u202egnp.exe"),
    "very long": odd_member("extras/" + "a" * 400),
    "very deep": odd_member("/".join("abcdefgh") + "/x"),
    "folder that climbs": odd_member("../evil/", b""),
    "folder with content": odd_member("extras/", b"x" * 10),
    "symbolic link": odd_member("extras/link", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "device": odd_member("extras/disk", b"", stat.S_IFBLK | 0o600),
    "pipe": odd_member("extras/pipe", b"", stat.S_IFIFO | 0o600),
    "socket": odd_member("extras/socket", b"", stat.S_IFSOCK | 0o600),
    "bomb": odd_member("extras/zeros", b"\0" * (1 << 24), compress_type=zipfile.ZIP_DEFLATED),
    "packed by lzma": odd_member("extras/x", b"abc" * 99, compress_type=zipfile.ZIP_LZMA),
    "packed by bzip2": odd_member("extras/x", b"abc" * 99, compress_type=zipfile.ZIP_BZIP2),
    "twice": odd_member(GOLDEN),
    "manifest twice": odd_member(MANIFEST, b"{}"),
    "twins but for case": odd_member("Policy.onnx"),
    "not in the manifest": odd_member("extras/evil.py"),
    "many members": many,
    "encrypted": raw(_flag),
    "cut short": raw(lambda data: data[: len(data) // 2]),
    "end cut off": raw(lambda data: data[:-1]),
    "something behind": raw(lambda data: data + b"x"),
    "a bit turned": raw(lambda data: data[:99] + bytes([data[99] ^ 8]) + data[100:]),
    "empty": raw(lambda data: b""),
    "no zip": raw(lambda data: b"\x89PNG" + data[4:60]),
    "only an end": raw(lambda data: data[-22:]),
    "list of gigabytes": raw(_size),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ZIPS)
def test_zips(name, good, tmp_path):
    path = tmp_path / "bad.rlpolicy"
    ZIPS[name](path, good)
    refused(path)


def test_what_is_wrong_with_a_zip_is_said(good, tmp_path):
    said = {}
    for name in ("symbolic link", "bomb", "encrypted", "not in the manifest", "parent folder"):
        ZIPS[name](tmp_path / "bad.rlpolicy", good)
        said[name] = refused(tmp_path / "bad.rlpolicy")
    assert "no plain file" in said["symbolic link"]
    assert "unpacks to 16,777,216 bytes" in said["bomb"]
    assert "encrypted" in said["encrypted"]
    assert "does not name: extras/evil.py" in said["not in the manifest"]
    assert "no name for a file" in said["parent folder"]


def test_what_other_programs_write_is_taken(good, tmp_path):
    """A zip made of the folder by hand: with entries for folders, and without compression."""
    path = tmp_path / "by-hand.rlpolicy"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("extras/", b"")
        for name, data in good.items():
            archive.writestr(name, data)
    open_all(path)


# ----- Folders -----------------------------------------------------------------------------------


def lay_out(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def link_of_a_file(folder):
    (folder / ONNX).rename(folder.parent / "elsewhere")
    (folder / ONNX).symlink_to(folder.parent / "elsewhere")


def link_of_a_folder(folder):
    (folder / "extras").rename(folder.parent / "elsewhere")
    (folder / "extras").symlink_to(folder.parent / "elsewhere")


def many_folders(folder):
    for i in range(500):
        (folder / f"d{i}").mkdir()


FOLDERS = {
    "link of a file": link_of_a_file,
    "link of a folder": link_of_a_folder,
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "manifest that is a pipe": lambda folder: (
        (folder / MANIFEST).unlink(),
        os.mkfifo(folder / MANIFEST),
    ),
    "manifest missing": lambda folder: (folder / MANIFEST).unlink(),
    "file missing": lambda folder: (folder / GOLDEN).unlink(),
    "file too many": lambda folder: (folder / "extras" / "evil.py").write_text("1"),
    "file grown": lambda folder: (folder / GOLDEN).open("ab").write(b"x"),
    "file changed": lambda folder: (folder / GRAPH).write_bytes(
        (folder / GRAPH).read_bytes()[::-1]
    ),
    "folder for a file": lambda folder: ((folder / ONNX).unlink(), (folder / ONNX).mkdir()),
    "many folders": many_folders,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, good, tmp_path):
    folder = lay_out(tmp_path / "bad.rlpolicy", good)
    FOLDERS[name](folder)
    refused(folder)


# ----- Manifests ---------------------------------------------------------------------------------


def text(change):
    """Change the manifest's text."""

    def build(good):
        return {**good, MANIFEST: change(good[MANIFEST].decode()).encode("utf-8", "surrogatepass")}

    return build


MANIFESTS = {
    "no json": text(lambda t: "import os"),
    "a list": text(lambda t: "[]"),
    "not unicode": lambda good: {**good, MANIFEST: b"\xff\xfe{}"},
    "deep": text(lambda t: '{"a":' * 50_000 + "1" + "}" * 50_000),
    "deep list": text(lambda t: "[" * 100_000 + "]" * 100_000),
    "infinity": text(lambda t: t.replace('"step": 7', '"step": Infinity')),
    "not a number": text(lambda t: t.replace('"step": 7', '"step": NaN')),
    "infinity in digits": text(lambda t: t.replace('"step": 7', '"step": 1e999')),
    "endless digits": text(lambda t: t.replace('"step": 7', '"step": ' + "9" * 5000)),
    "an entry twice": text(lambda t: t.replace('"step": 7', '"step": 7, "step": 8')),
    "another version": text(lambda t: t.replace('"version": 1', '"version": 2')),
    "a version of text": text(lambda t: t.replace('"version": 1', '"version": "1\\n2"')),
    "another format": text(lambda t: t.replace('"rlpolicy"', '"pickle"')),
    "five megabytes": text(lambda t: t + " " * (5 << 20)),
    "hash of another": text(lambda t: t.replace('"sha256": "', '"sha256": "0', 2)),
    "negative size": text(lambda t: t.replace('"bytes": ', '"bytes": -')),
    "escape codes": text(lambda t: t.replace('"hip"', '"\\u001b[2J"')),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name, good, tmp_path):
    files = MANIFESTS[name](good)
    assert files[MANIFEST] != good[MANIFEST]
    refused(pack(tmp_path / "bad.rlpolicy", files))


def test_any_value_of_a_manifest_may_be_nonsense(good, tmp_path):
    """Each value replaced by another: refused in one line, or of no consequence."""
    manifest = manifest_of(good)
    paths = list(_paths(manifest))
    assert len(paths) > 150
    for i, path in enumerate(paths):
        for wrong in (None, "\x00", -1, {}, [[]], 1e300)[i % 6 :: 6]:
            changed = json.loads(json.dumps(manifest))
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = wrong
            files = {**good, MANIFEST: json.dumps(changed).encode()}
            try:
                Policy(Bundle(pack(tmp_path / "bad.rlpolicy", files)), "numpy")
            except DeployError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, path


def _paths(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, (dict, list)):
            yield from _paths(item, (*path, key))
        else:
            yield (*path, key)


# ----- Arrays and networks, with hashes that are right --------------------------------------------


def arrays(name, change):
    """Change the members of an .npz, and seal the bundle again."""

    def build(good):
        with zipfile.ZipFile(io.BytesIO(good[name])) as archive:
            inside = {n.removesuffix(".npy"): archive.read(n) for n in archive.namelist()}
        return sealed({**good, name: npz(change(inside))}, manifest_of(good))

    return build


def layout(change):
    """Change the graph's description of itself."""

    def within(inside):
        found = json.loads(np.load(io.BytesIO(inside["layout"])).tobytes())
        change(found)
        text = json.dumps(found).encode()
        return {**inside, "layout": npy(np.frombuffer(text, np.uint8))}

    return arrays(GRAPH, within)


def weight(value):
    """Put a value into the first layer."""

    def within(inside):
        array = np.load(io.BytesIO(inside["op2.weight"])).copy()
        array[0, 0] = value
        return {**inside, "op2.weight": npy(array)}

    return arrays(GRAPH, within)


def onnx_model(*nodes, constants=(), domain="", functions=()):
    """A model of the right inputs and outputs that does something else."""

    def build(good):
        model = helper.make_model(
            helper.make_graph(
                list(nodes),
                "evil",
                [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", 26])],
                [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 3])],
                list(constants),
            ),
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(domain or "ai.onnx", 1)]
            if domain
            else [helper.make_opsetid("", 18)],
            ir_version=8,
        )
        return sealed({**good, ONNX: model.SerializeToString()}, manifest_of(good))

    return build


def external(location):
    """Weights that lie in another file, of the system's."""

    def build(good):
        model = onnx.load_model_from_string(good[ONNX])
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        return sealed({**good, ONNX: model.SerializeToString()}, manifest_of(good))

    return build


NODE = helper.make_node
SHORT = numpy_helper.from_array(np.zeros((26, 3), np.float32), "w")
LOOP = helper.make_graph(
    [NODE("Identity", ["c"], ["d"])],
    "body",
    [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ],
    [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
)
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"

CONTENTS = {
    "weights that are not numbers": weight(np.nan),
    "weights that are infinite": weight(np.inf),
    "pickled weights": arrays(
        GRAPH, lambda a: {**a, "op2.weight": npy(np.array([Payload()], object))}
    ),
    "pickled golden pairs": arrays(
        GOLDEN, lambda a: {**a, "inputs/obs": npy(np.array([Payload()], object))}
    ),
    "a bare pickle": lambda good: sealed(
        {**good, GOLDEN: npy(np.array([Payload()], object))}, manifest_of(good)
    ),
    "header of a terabyte": arrays(GOLDEN, lambda a: {**a, "inputs/obs": header(HUGE)}),
    "header that is code": arrays(
        GOLDEN, lambda a: {**a, "inputs/obs": header("__import__('os').system('true')")}
    ),
    "deep header": arrays(GOLDEN, lambda a: {**a, "inputs/obs": header("(" * 9000)}),
    "records": arrays(GRAPH, lambda a: {**a, "op2.weight": npy(np.zeros(3, "f4,f4"))}),
    "text": arrays(GRAPH, lambda a: {**a, "op2.weight": npy(np.array("weights"))}),
    "no golden pairs": arrays(GOLDEN, lambda a: {}),
    "fewer golden pairs": arrays(
        GOLDEN, lambda a: {n: npy(np.load(io.BytesIO(d))[:1]) for n, d in a.items()}
    ),
    "other golden actions": arrays(GOLDEN, lambda a: {**a, "world/": npy(np.ones((40, 3), "f4"))}),
    "golden actions that are not numbers": arrays(
        GOLDEN, lambda a: {**a, "world/": npy(np.full((40, 3), np.nan, "f4"))}
    ),
    "no layout": arrays(GRAPH, lambda a: {n: d for n, d in a.items() if n != "layout"}),
    "deep layout": arrays(
        GRAPH, lambda a: {**a, "layout": npy(np.frombuffer(b"[" * 99_999, np.uint8))}
    ),
    "unknown operation": layout(lambda found: found["ops"][0].update(op="Python")),
    "dunder operation": layout(lambda found: found["ops"][0].update(op="__class__")),
    "unknown field": layout(lambda found: found["ops"][0].update(code="1")),
    "array for a number": layout(lambda found: found["ops"][1].update(clip={"array": "op2.bias"})),
    "array that is missing": layout(lambda f: f["ops"][2].update(weight={"array": "nowhere"})),
    "text for an array": layout(lambda found: found["ops"][2].update(weight="x")),
    "unknown activation": layout(lambda found: found["ops"][3].update(kind="exec")),
    "read before given": layout(lambda found: found["ops"].reverse()),
    "loop": layout(lambda found: found["ops"][2].update(inputs=["tanh"])),
    "given twice": layout(lambda found: found["ops"].append(dict(found["ops"][0]))),
    "million operations": layout(lambda found: found["ops"].extend([found["ops"][0]] * 20_000)),
    "huge input": layout(lambda found: found["inputs"][0].update(shape=[1 << 40])),
    "negative input": layout(lambda found: found["inputs"][0].update(shape=[-26])),
    "huge state": layout(lambda found: found.update(state_size=1 << 40)),
    "input of objects": layout(lambda found: found["inputs"][0].update(dtype="object")),
    "output missing": layout(lambda found: found["outputs"][0].update(name="gone")),
    "no actions": layout(lambda found: found.update(actions=[])),
    "operator of python": onnx_model(
        NODE("PyOp", ["obs"], ["action"], domain="ai.onnx.contrib"), domain="ai.onnx.contrib"
    ),
    "operator of microsoft": onnx_model(
        NODE("FusedMatMul", ["obs", "w"], ["action"], domain="com.microsoft"),
        constants=[SHORT],
        domain="com.microsoft",
    ),
    "onnx loop": onnx_model(
        NODE("Loop", ["", ""], ["d"], body=LOOP), NODE("MatMul", ["obs", "w"], ["action"])
    ),
    "onnx that expands": onnx_model(NODE("Expand", ["obs", "w"], ["action"]), constants=[SHORT]),
    "onnx padding of a billion": onnx_model(
        NODE("MaxPool", ["obs"], ["action"], kernel_shape=[1], pads=[1 << 30, 1 << 30])
    ),
    "inputs that are no names": layout(lambda found: found["ops"][0].update(inputs=[["obs"]])),
    "an output that is no name": layout(lambda found: found["ops"][0].update(output=["flat"])),
    "onnx of something else": onnx_model(
        NODE("MatMul", ["obs", "w"], ["action"]), constants=[SHORT]
    ),
    "onnx weights of the system": external("/etc/passwd"),
    "onnx weights elsewhere": external("../../secrets.bin"),
    "onnx cut short": lambda good: sealed({**good, ONNX: good[ONNX][:-50]}, manifest_of(good)),
    "onnx of zeros": lambda good: sealed({**good, ONNX: b"\0" * 5000}, manifest_of(good)),
    "onnx empty": lambda good: sealed({**good, ONNX: b""}, manifest_of(good)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(name, good, tmp_path):
    path = pack(tmp_path / "bad.rlpolicy", CONTENTS[name](good))
    refused(path)


def test_what_is_wrong_with_contents_is_said(good, tmp_path):
    for name, words in (
        ("weights that are not numbers", "not finite (weight)"),
        ("pickled golden pairs", "holds objects"),
        ("operator of python", "ai.onnx.contrib"),
        ("onnx weights of the system", "weights are in another file"),
        ("onnx of something else", "does not do here what it did in the lab"),
        ("onnx loop", "branches or loops"),
        ("unknown activation", "no activation 'exec'"),
    ):
        said = refused(pack(tmp_path / "bad.rlpolicy", CONTENTS[name](good)))
        assert words in said, (name, said)


def test_arrays_that_unpack_to_too_much(good, tmp_path, monkeypatch):
    monkeypatch.setattr("rlgym.deploy.arrays.MAX_UNPACKED", 2000)
    assert "unpacks to more than" in refused(pack(tmp_path / "bad.rlpolicy", good))


def test_sixty_files_at_least():
    assert len(ZIPS) + len(FOLDERS) + len(MANIFESTS) + len(CONTENTS) >= 60


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\x06\x0a\x04\x20\xff\xff\x7f",  # the operator's name is a number
        b"\x38\xff\xff\xff\xff\x7f",  # the graph is one
        b"\x3a\xff\xff\xff\xff\x0f",  # longer than the file
        b"\x3b\x3c",  # a group, which ONNX does not have
        b"\xff" * 20,  # a number without end
    ],
)
def test_bytes_that_are_no_onnx(data, good, tmp_path):
    files = sealed({**good, ONNX: data}, manifest_of(good))
    assert "no policy that may be loaded" in refused(pack(tmp_path / "bad.rlpolicy", files))
