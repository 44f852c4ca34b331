"""Formats with packages of their own hold the graph; recipes say what is true of the policy."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import yaml

from rlgym.deploy.policy import error_of
from rlgym.deploy.reference import run, to_world
from rlgym.errors import UserError
from rlgym.export import recipes
from rlgym.export.golden import Golden
from rlgym.export.read import read_policy
from rlgym.export.verify import verify
from tests.export.bundles import (
    make_bundle,
    make_golden,
    make_graph,
    manifest_of,
    members,
    pack,
    sealed,
)
from tests.export.policies import make_policy, observations
from tests.export.test_graph import arrays_of

ROWS = 24
ABOUT = {"provenance": {"run": "Hop v0 (seed 1)"}}


def sample(kind: str):
    """A policy's graph, inputs and the outputs that it means."""
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, ROWS))
    if graph.state_size:
        generator = np.random.default_rng(0)
        inputs["state"] = generator.normal(size=(ROWS, graph.state_size)).astype(np.float32)
    return graph, inputs, run(graph, inputs)


def assert_close(found, wanted):
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["clipped", "sac", "nested", "nature", "lstm"])
def test_openvino_is_the_graph(kind):
    ov = pytest.importorskip("rlgym.export.openvino", exc_type=ImportError)
    graph, inputs, wanted = sample(kind)
    runtime = ov.OpenVINO(*ov.to_openvino(graph), graph)
    assert_close(runtime.run(inputs), wanted)
    assert_close(
        runtime.run({name: value[:1] for name, value in inputs.items()}),
        {name: value[:1] for name, value in wanted.items()},
    )


def test_a_bundle_with_openvino_is_verified_where_it_is_trusted(tmp_path):
    pytest.importorskip("openvino")
    path = make_bundle(tmp_path / "hop.rlpolicy", ("openvino",))
    checks = {check.name: check for check in verify(path)}
    assert checks["openvino"].skipped and "--trust" in checks["openvino"].text
    (check,) = (check for check in verify(path, trust=True) if check.name == "openvino")
    assert check.passed and not check.skipped
    assert check.error is not None and check.error <= 1e-5


def test_a_torn_network_is_one_line(tmp_path):
    pytest.importorskip("openvino")
    files = members(make_bundle(tmp_path / "hop.rlpolicy", ("openvino",)))
    files["extras/openvino/policy.xml"] = b"<net"
    torn = pack(tmp_path / "torn.rlpolicy", sealed(files, manifest_of(files)))
    (check,) = (check for check in verify(torn, trust=True) if check.name == "openvino")
    assert not check.passed and "\n" not in check.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squashed", "discrete", "lstm"])
def test_core_ml_programs_are_written_with_the_graphs_names(kind):
    coreml = pytest.importorskip("rlgym.export.coreml", exc_type=ImportError)
    graph, _, _ = sample(kind)
    files = coreml.to_coreml(graph)
    assert "Manifest.json" in files and any(name.endswith("weight.bin") for name in files)
    spec = coreml.read_spec(files)
    for entries, ports in (
        (spec.description.input, graph.inputs),
        (spec.description.output, graph.outputs),
    ):
        names = {coreml.feature_name(port.name) for port in ports}
        assert {entry.name for entry in entries} == names and all(map(str.isidentifier, names))


def test_core_ml_refuses_images():
    coreml = pytest.importorskip("rlgym.export.coreml", exc_type=ImportError)
    with pytest.raises(UserError, match=r"uint8.*use onnx"):
        coreml.to_coreml(read_policy(make_policy("nature")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squashed", "nested", "lstm"])
def test_executorch_is_the_graph(kind):
    et = pytest.importorskip("rlgym.export.executorch", exc_type=ImportError)
    graph, inputs, wanted = sample(kind)
    data, backend = et.to_executorch(graph)
    assert backend in ("xnnpack", "portable")
    assert_close(et.run_executorch(data, graph, inputs), wanted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_packages_are_the_graph():
    from rlgym.export.aoti import run_aoti, to_aoti

    graph, inputs, wanted = sample("squashed")
    assert_close(run_aoti(to_aoti(graph), graph, inputs), wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fixed_point_on_an_fpga_is_near_the_graph(tmp_path):
    hls = pytest.importorskip("rlgym.export.hls", exc_type=ImportError)
    graph, inputs, _ = sample("clipped")
    data, found = hls.write_hls(graph, inputs)
    wanted = {"": to_world(graph, run(graph, inputs))}
    assert error_of(graph, found, wanted) <= hls.TOLERANCE
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    assert "policy_hls/firmware/policy.cpp" in names and "policy_hls/build_prj.tcl" in names


@pytest.mark.parametrize(
    ("kind", "reason"), [("lstm", "see one vector"), ("squashed", "no silu layer")]
)
def test_an_fpga_refuses_what_it_cannot_hold(kind, reason, tmp_path):
    hls = pytest.importorskip("rlgym.export.hls", exc_type=ImportError)
    with pytest.raises(UserError, match=reason):
        hls.HLS(read_policy(make_policy(kind)), tmp_path)


# ----- Recipes --------------------------------------------------------------------------


def test_trtexec_gets_the_policys_shapes_and_the_comparison_works(tmp_path):
    graph = make_graph()
    golden = make_golden(graph)
    files = recipes.tensorrt(graph, golden, ABOUT)
    script = files["build.sh"].decode()
    assert "--minShapes=obs:1x26" in script and "--maxShapes=obs:32x26" in script
    rows = golden.spread(recipes.PAIRS)
    sent = np.frombuffer(files["obs.bin"], np.float32).reshape(-1, 26)
    assert np.array_equal(sent, golden.inputs["obs"][rows])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert subprocess.run(["sh", "-n", "build.sh"], cwd=tmp_path).returncode == 0

    def compare(shift: float, *words: str) -> subprocess.CompletedProcess[str]:
        values = (run(graph, {"obs": sent})["action"] + shift).ravel().tolist()
        told = [{"name": "action", "dimensions": "32x3", "values": values}]
        (tmp_path / "found.json").write_text(json.dumps(told))
        command = [sys.executable, "compare.py", "found.json", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert compare(0.0).returncode == 0
    assert compare(1e-3).returncode == 1 and compare(1e-3, "0.01").returncode == 0
    assert compare(float("nan")).returncode == 1


def test_an_edge_tpu_gets_full_int8():
    pytest.importorskip("ai_edge_litert")
    graph = make_graph()
    files = recipes.edgetpu(graph, make_golden(graph), ABOUT)
    assert files["policy.tflite"][4:8] == b"TFL3" and b"edgetpu_compiler" in files["build.sh"]


def test_a_greengrass_recipe_names_its_artifacts():
    graph = make_graph()
    files = recipes.greengrass(graph, make_golden(graph), ABOUT)
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["RecipeFormatVersion"] == "2020-01-25"
    assert recipe["ComponentName"] == "com.example.rlgym.Hop-v0-seed-1"
    (manifest,) = recipe["Manifests"]
    script = manifest["Lifecycle"]["run"]["Script"]
    bundle = manifest["Artifacts"][0]["URI"].rpartition("/")[2]
    assert bundle == "Hop-v0-seed-1.rlpolicy" and f"/{bundle} --robot" in script
    for option in ("robot", "seconds"):  # what the script reads is what the component configures
        assert f"{{configuration:/{option}}}" in script
        assert option in recipe["ComponentConfiguration"]["DefaultConfiguration"]


SERVE = """
import sys, json
sys.path.insert(0, "code")
import inference
model = inference.model_fn(".")
inputs = inference.input_fn(sys.stdin.read(), "application/json")
print(inference.output_fn(inference.predict_fn(inputs, model), "application/json"))
"""


@pytest.mark.parametrize("kind", ["clipped", "nested"])
def test_a_sagemaker_archive_serves_the_policy(kind, tmp_path):
    graph, inputs, wanted = sample(kind)
    told = to_world(graph, wanted)
    world = told if isinstance(told, dict) else {"": told}
    golden = Golden(inputs, wanted, world, np.zeros(ROWS, bool))
    (data,) = recipes.sagemaker(graph, golden, ABOUT).values()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path, filter="data")
    body = json.dumps({"inputs": {name: value.tolist() for name, value in inputs.items()}})
    command = [sys.executable, "-c", SERVE]
    done = subprocess.run(command, cwd=tmp_path, input=body, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    actions = json.loads(done.stdout)["actions"]
    for key, value in golden.world.items():
        found = np.asarray(actions[key]).reshape(value.shape)
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5, err_msg=key)


def test_the_same_policy_gives_the_same_archive():
    graph = make_graph()
    assert recipes.sagemaker(graph, make_golden(graph), ABOUT) == recipes.sagemaker(
        graph, make_golden(graph), ABOUT
    )


def test_a_bundle_takes_every_recipe(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = make_bundle(
        tmp_path / "hop.rlpolicy", ("tensorrt", "edgetpu", "greengrass", "sagemaker")
    )
    checks = {check.name: check for check in verify(path)}
    for name in ("tensorrt", "edgetpu", "greengrass", "sagemaker"):
        assert checks[name].skipped and "files are whole" in checks[name].text
