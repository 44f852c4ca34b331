"""A bundle says the same everywhere, and refuses to say two things at once."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from rlgym.deploy import graph as g
from rlgym.deploy.bundle import MANIFEST, MAX_FILES, MOTION, ONNX, Bundle
from rlgym.deploy.errors import BundleError, DeployError
from rlgym.deploy.policy import Policy
from rlgym.deploy.reference import run
from rlgym.deploy.schema import fault_of, manifest_schema
from rlgym.errors import UserError
from rlgym.export.bundle import FORMATS
from rlgym.export.closed_loop import check_world, closeness, copies, round_weights
from rlgym.export.describe import RATE_MARGIN, describe, target_rate
from rlgym.export.pt2 import run_pt2, write_pt2
from rlgym.export.read import read_policy
from rlgym.export.verify import verify
from tests.export.bundles import (
    make_bundle,
    make_deployment,
    make_golden,
    make_graph,
    manifest_of,
    members,
    pack,
    sealed,
)
from tests.export.policies import make_policy, observations
from tests.export.test_graph import arrays_of


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A sound bundle, zipped."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "hop.rlpolicy")


def test_a_zip_and_a_folder_hold_the_same(path, tmp_path):
    folder = make_bundle(f"{tmp_path}/hop.rlpolicy/")
    zipped = members(path)
    assert {n: Bundle(folder).read(n) for n in zipped if n != MANIFEST} == {
        n: data for n, data in zipped.items() if n != MANIFEST
    }
    assert Bundle(folder).manifest == Bundle(path).manifest


def test_the_same_policy_gives_the_same_bytes(path, tmp_path):
    again = make_bundle(tmp_path / "again.rlpolicy")
    changed = {n for n, data in members(path).items() if members(again)[n] != data}
    assert not changed - {"golden.npz", MOTION, MANIFEST, "policy.npz"}  # zips tell the time
    for name in changed - {MANIFEST}:
        ours, theirs = Bundle(path).arrays(name), Bundle(again).arrays(name)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_all_runtimes_act_alike(path):
    obs = np.random.default_rng(3).normal(size=(26,)).astype(np.float32)
    acts = [Policy(Bundle(path), runtime).act(obs) for runtime in ("numpy", "onnx", "auto")]
    np.testing.assert_allclose(acts[0], acts[1], rtol=0, atol=1e-5)
    assert np.array_equal(acts[1], acts[2])


def test_what_the_manifest_says(path):
    manifest = Bundle(path).manifest
    assert [term["name"] for term in manifest["observation"][0]["terms"]] == [
        *("joint_angle", "joint_velocity", "targets")
    ]
    assert manifest["robot"]["joint_names"] == ["hip", "knee", "ankle"]
    assert manifest["artefacts"][1]["max_error"] <= 1e-5
    assert Bundle(path).arrays(MOTION)["0/q"].shape == (9, 3)


def test_the_onnx_carries_what_controllers_of_mjlab_read(path):
    session = onnxruntime.InferenceSession(Bundle(path).read(ONNX))
    found = session.get_modelmeta().custom_metadata_map
    assert found["joint_names"] == "hip,knee,ankle"
    # their target is default + scale * action, in the model file's angles
    assert found["default_joint_pos"] == "0.5,-0.75,0.5"
    assert found["action_scale"] == "0.25,-0.25,0.25"
    assert json.loads(found["rlgym.manifest"])["robot"]["cutoff"] == 4.0


def test_a_schema_in_the_words_of_the_standard(path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    manifest = Bundle(path).manifest
    assert not list(validator.iter_errors(manifest))
    for field, wrong in (("robot", 3), ("files", {"a": {}}), ("golden", {}), ("action", [])):
        changed = {**manifest, field: wrong}
        assert list(validator.iter_errors(changed)) and fault_of(changed, schema)


# ----- Manifests that contradict themselves, or the policy ----------------------------------------


def put(*keys):
    """A change that sets the value at the end of a path of keys."""
    *way, last, value = keys

    def change(manifest):
        for key in way:
            manifest = manifest[key]
        manifest[last] = value

    return change


OBS = ("observation", 0)
MISMATCHES = {
    "another observation": (put(*OBS, "name", "lidar"), "['lidar'], its policy takes ['obs']"),
    "another shape": (put(*OBS, "shape", [27]), "float32 [27] in the manifest"),
    "another type": (put(*OBS, "dtype", "float64"), "float64 [26] in the manifest"),
    "a term too long": (put(*OBS, "terms", 0, "size", 4), "have 27 values"),
    "a term missing": (lambda m: m["observation"][0]["terms"].pop(0), "have 23 values"),
    "a term twice": (put(*OBS, "terms", 1, "name", "joint_angle"), "a term twice"),
    "history": (put(*OBS, "terms", 0, "history", 2), "not history times width"),
    "mask": (put("mask", 3), "mask has 3 values"),
    "state": (put("state", 8), "state has 8 values"),
    "another action": (put("action", 0, "key", "arm"), "other actions"),
    "kind of action": (put("action", 0, "kind", "discrete"), "kind of action"),
    "shape of action": (put("action", 0, "shape", [2]), "the shape [2] in the manifest"),
    "bounds of action": (put("action", 0, "low", [-9.0] * 3), "'low' of action"),
    "scale of action": (put("action", 0, "scale", [2.0] * 3), "'scale' of action"),
    "a joint twice": (put("robot", "joint_names", ["hip", "knee", "hip"]), "named twice"),
    "a joint more": (put("robot", "joint_names", ["a", "b", "c", "d"]), "for 4 joints"),
    "a gain less": (put("robot", "stiffness", [40.0]), "robot.stiffness has 1 values"),
    "a pose too long": (put("robot", "default_joint_pos", [0.0] * 4), "default_joint_pos has 4"),
    "action scales": (put("robot", "action_scale", [0.25] * 4), "action_scale has 4"),
    "limits": (put("robot", "lower", [2.0] * 3), "has the limits 2.0 and 1.0"),
    "limits of targets": (put("robot", "target_upper", [-2.0] * 3), "has the limits -1.5 and -2"),
    "base": (put("robot", "base_rotation", [0.0, 0.0, 0.0, 2.0]), "no unit quaternion"),
    "rate": (put("timing", "control_hz", 60.0), "control_hz is 60.0"),
    "decimation": (put("timing", "decimation", 5), "not 0.02 s"),
    "cutoff": (put("robot", "cutoff", 25.0), "cannot filter"),
    "rate of targets": (put("safety", "target_rate", [1.0]), "target_rate has 1 values"),
    "steps of targets": (put("targets", "steps", [1]), "for 1 frames"),
    "no motion": (put("targets", None), "nothing says of which motion"),
    "offset of a clip": (put("targets", "clips", 0, "action_offset", [0.0]), "clip 'hop' has 1"),
    "file of an artefact": (put("artefacts", 0, "files", ["gone"]), "is no file of the bundle"),
    "format twice": (put("artefacts", 1, "format", "numpy"), "listed twice"),
    "numpy of nothing": (put("artefacts", 0, "files", []), "name policy.npz, and it alone"),
    "numpy of two files": (
        put("artefacts", 0, "files", ["policy.npz", ONNX]),
        "name policy.npz, and it alone",
    ),
    "no onnx": (lambda m: m["artefacts"].pop(1), "does not name policy.onnx"),
    "onnx of its twin": (
        put("artefacts", 1, "files", ["extras/policy_opset15.onnx"]),
        "does not name policy.onnx",
    ),
    "a file of no format": (
        put("artefacts", 1, "files", [ONNX]),
        "holds extras/policy_opset15.onnx, and its list",
    ),
    "pairs": (put("golden", "pairs", 39), "does not hold 39 inputs"),
    "tolerance": (put("golden", "tolerance", 0.5), "golden.tolerance: is 0.5"),
    "negative gain": (put("robot", "damping", [-1.0] * 3), "must be at least 0"),
    "sign of a half": (put("robot", "sign", [0.5] * 3), "must be one of"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_mismatches_are_refused(name, path, tmp_path):
    change, words = MISMATCHES[name]
    files = members(path)
    manifest = manifest_of(files)
    change(manifest)
    changed = pack(tmp_path / "bad.rlpolicy", {**files, MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(BundleError) as caught:
        Policy(Bundle(changed), "numpy")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_shipped_clip_needs_its_arrays(tmp_path):
    files = members(make_bundle(tmp_path / "full.rlpolicy"))
    manifest = manifest_of(files)
    del files[MOTION], manifest["files"][MOTION]
    bad = pack(tmp_path / "bad.rlpolicy", {**files, MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(BundleError, match=r"there is no motion\.npz"):
        Policy(Bundle(bad), "numpy")


def test_the_world_of_another_robot_lists_both_sides(path):
    manifest, world = Bundle(path).manifest, make_deployment()
    check_world(manifest, world)
    check_world(manifest, {})
    world["robot"]["joint_names"] = ["knee", "hip", "ankle"]
    with pytest.raises(UserError, match="are knee, hip, ankle; the policy's are hip, knee, ankle"):
        check_world(manifest, world)
    world = make_deployment()
    world["terms"]["obs"][0]["name"] = "imu"
    with pytest.raises(UserError, match=r"imu \(3\).*joint_angle \(3\)"):
        check_world(manifest, world)
    world = make_deployment()
    world["timing"]["control_dt"] = 0.03
    with pytest.raises(UserError, match=r"0\.03 s; the policy's are 0\.02 s"):
        check_world(manifest, world)


# ----- Writing ------------------------------------------------------------------------------------


def test_an_unknown_format_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="onnx"):
        make_bundle(tmp_path / "x.rlpolicy", ("onxx",))
    assert not list(tmp_path.iterdir())


def test_a_format_that_came_out_wrong_is_not_sealed(tmp_path, monkeypatch):
    def wrong(graph, golden, description):
        artefact = FORMATS["onnx"][0](graph, golden, description)
        artefact.max_error = 0.01
        return artefact

    monkeypatch.setitem(FORMATS, "numpy", (wrong, ""))
    with pytest.raises(UserError, match=r"differs from the policy by 0\.01"):
        make_bundle(tmp_path / "x.rlpolicy")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        make_bundle(tmp_path / "file" / "x.rlpolicy")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    folder = tmp_path / "mine.rlpolicy"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is a folder and no bundle"):
        make_bundle(f"{folder}/")
    assert (folder / "thesis.txt").read_text() == "x" and len(list(tmp_path.iterdir())) == 1


def test_a_bundle_replaces_the_old_one(tmp_path):
    for name in ("zip.rlpolicy", "folder.rlpolicy/"):
        first = make_bundle(f"{tmp_path}/{name}", graph=make_graph(1))
        before = Bundle(first).read(ONNX)
        make_bundle(f"{tmp_path}/{name}", graph=make_graph(2))
        assert Bundle(first).read(ONNX) != before
    assert {path.name for path in tmp_path.iterdir()} == {"zip.rlpolicy", "folder.rlpolicy"}


def test_terms_that_a_wrapper_changed_are_not_told():
    deployment = make_deployment()
    deployment["terms"]["obs"].pop()
    terms = describe(make_graph(), deployment, {})["observation"][0]["terms"]
    assert [(term["name"], term["size"]) for term in terms] == [("value", 26)]


def test_rates_of_targets_are_those_of_the_lab():
    golden, deployment = make_golden(make_graph()), make_deployment()
    actions, starts = golden.world[""], golden.starts
    steps = [np.abs(actions[i] - actions[i - 1]) for i in range(1, 40) if not starts[i]]
    fastest = float(np.max(steps)) * 0.25 / 0.02
    assert target_rate(golden, deployment) == pytest.approx([RATE_MARGIN * fastest] * 3)
    assert target_rate(golden, {}) is None


# ----- Verifying ----------------------------------------------------------------------------------


def test_verify_leaves_alone_what_could_run_code(tmp_path, monkeypatch):
    path = make_bundle(tmp_path / "c.rlpolicy", ("c",))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it ran something"))
    checks = {check.name: check for check in verify(path)}
    assert list(checks) == ["files", "numpy", "onnx", "c"]
    assert all(check.passed for check in checks.values())
    assert checks["c"].skipped and "--trust" in checks["c"].text
    monkeypatch.undo()
    trusted = {check.name: check for check in verify(path, trust=True)}
    assert not trusted["numpy"].skipped and trusted["c"].passed


def test_verify_finds_a_policy_that_does_something_else(tmp_path):
    """All hashes are right, and the ONNX is another network's."""
    other = members(make_bundle(tmp_path / "other.rlpolicy", graph=make_graph(5)))
    files = members(make_bundle(tmp_path / "good.rlpolicy"))
    forged = sealed({**files, ONNX: other[ONNX]}, manifest_of(files))
    bad = pack(tmp_path / "bad.rlpolicy", forged)
    checks = {check.name: check for check in verify(bad)}
    assert checks["numpy"].passed and not checks["onnx"].passed
    assert checks["onnx"].mark == "NO" and "is allowed" in checks["onnx"].text
    with pytest.raises(DeployError, match="Nothing will move"):
        Policy(Bundle(bad), "onnx")


@pytest.mark.parametrize("listed", [["extras/policy_opset15.onnx"], None])
def test_verify_does_not_pass_over_a_policy_that_is_not_listed(listed, tmp_path):
    other = members(make_bundle(tmp_path / "other.rlpolicy", graph=make_graph(5)))
    files = members(make_bundle(tmp_path / "good.rlpolicy"))
    manifest = manifest_of(files)
    if listed is None:
        del manifest["artefacts"][1]
    else:
        manifest["artefacts"][1]["files"] = listed
    bad = pack(tmp_path / "bad.rlpolicy", sealed({**files, ONNX: other[ONNX]}, manifest))
    with pytest.raises(BundleError, match=r"does not name policy\.onnx as onnx"):
        verify(bad)


def test_golden_pairs_that_take_too_much_memory_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("rlgym.deploy.graph_check.MAX_VALUES", 1500)
    with pytest.raises(UserError, match=r"numbers at once for 40 observations.* fewer steps"):
        make_bundle(tmp_path / "x.rlpolicy")


def test_a_format_of_tomorrow_is_passed_over(path, tmp_path):
    files = members(path)
    manifest = manifest_of(files)
    manifest["artefacts"].append({**manifest["artefacts"][0], "format": "hologram"})
    new = pack(tmp_path / "new.rlpolicy", {**files, MANIFEST: json.dumps(manifest).encode()})
    assert verify(new)[-1].skipped


def test_too_many_files(tmp_path):
    files = members(make_bundle(tmp_path / "x.rlpolicy"))
    extra = {f"extras/{i}": b"" for i in range(2 * MAX_FILES)}
    with pytest.raises(BundleError, match="more than"):
        Bundle(pack(tmp_path / "many.rlpolicy", {**files, **extra}))


# ----- Closed loop, and .pt2 ----------------------------------------------------------------------


def test_rounded_weights_are_near(tmp_path):
    path = make_bundle(tmp_path / "c.rlpolicy", ("c-int8",))
    found = copies(Bundle(path))
    assert list(found) == ["onnx", "c-int8"]
    inputs = {"obs": np.random.default_rng(4).normal(size=(50, 26)).astype(np.float32)}
    float_, rounded = (copy.compute(inputs)["action"] for copy in found.values())
    assert 0 < np.abs(float_ - rounded).max() < 0.1


@pytest.mark.parametrize("kind", ["gru", "lstm", "nested", "sac"])
def test_rounding_keeps_the_form(kind):
    graph = read_policy(make_policy(kind))
    rounded = round_weights(graph)
    changed = [
        type(new).__name__
        for old, new in zip(graph.ops, rounded.ops, strict=True)
        for name in g.constants(old)
        if not np.array_equal(getattr(old, name), getattr(new, name))
    ]
    assert changed and set(changed) <= {"Dense", "GRU", "LSTM"}


def test_closeness():
    assert closeness([100.0, 100.0], [98.0, 98.0]) == pytest.approx(0.02)
    assert closeness([-1.0, 1.0], [0.0, 0.1]) == pytest.approx(0.05), "in their spread"


@pytest.mark.slow  # torch takes seconds to trace a program
@pytest.mark.parametrize(
    "kind", ["clipped", "nested", "nature", "gru", "lstm", "sac-mixed", "multi-binary"]
)
def test_pt2_is_the_graph(kind):
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, 30))
    if graph.state_size:
        normal = np.random.default_rng(0).normal(size=(30, graph.state_size))
        inputs[g.STATE] = normal.astype(np.float32)
    data = write_pt2(graph)
    for rows in (30, 1):
        some = {name: array[:rows] for name, array in inputs.items()}
        found, wanted = run_pt2(data, graph, some), run(graph, some)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_a_torn_pt2_is_one_line():
    with pytest.raises(BundleError, match="cannot be run") as caught:
        run_pt2(b"PK\x03\x04", make_graph(), {"obs": np.zeros((1, 26), np.float32)})
    assert "\n" not in str(caught.value)
