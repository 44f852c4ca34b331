"""Policies of other trainers become bundles that verify and deploy take, or are refused by name."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rlgym.cli.main import main
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.cli import main as deploy
from rlgym.deploy.policy import Policy
from rlgym.deploy.reference import run
from rlgym.errors import UserError
from rlgym.export.elsewhere import read_elsewhere
from rlgym.export.onnx import to_onnx
from rlgym.export.read_onnx import read_onnx
from tests.export.bundles import make_graph

JOINTS = ["hip", "knee"]
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def model(
    nodes: list[Any],
    arrays: dict[str, Any],
    size: int = 5,
    gives: tuple[str, ...] = ("out",),
    metadata: dict[str, str] | None = None,
    batch: Any = "batch",
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """An ONNX of nodes (op, inputs, outputs, attributes)."""
    made = [
        helper.make_node(op, list(inputs), list(outputs), **attributes)
        for op, inputs, outputs, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("obs", kind, [batch, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in gives],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    if "chosen" in gives:
        graph.output[0].CopyFrom(helper.make_tensor_value_info("chosen", TensorProto.INT64, ["n"]))
    made_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made_model, metadata or {})
    return made_model.SerializeToString()


def of_torch(module: nn.Module, size: int = 5) -> bytes:
    """What torch's own (older) exporter writes."""
    target = io.BytesIO()
    axes = {"obs": {0: "batch"}, "actions": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["obs"], "output_names": ["actions"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(1, size),), target, dynamo=False, dynamic_axes=axes, **names
        )
    return target.getvalue()


class Normalised(nn.Module):
    """A normaliser and a network, as rsl_rl exports them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.mean, self.std = torch.randn(1, 5), torch.rand(1, 5) + 0.1
        self.layers = nn.Sequential(*layers)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layers((obs - self.mean) / (self.std + 1e-2))


class Gated(nn.Module):
    """What is less plain: SiLU, a sigmoid, slices in another order, a layer norm, bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Linear(5, 8), nn.Linear(8, 4), nn.LayerNorm(8)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.norm(self.first(obs)))
        left, right = self.last(torch.sigmoid(x)).split(2, 1)
        return torch.cat([2.0 - right, left * 3.0, right[:, 1:]], 1).clamp(-1.5, 1.5)


NETWORKS = {
    "elu": lambda: Normalised(nn.Linear(5, 8), nn.ELU(), nn.Linear(8, 3)),
    "tanh": lambda: Normalised(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh()),
    "relu": lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)),
    "gated": Gated,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_torch_exports_is_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = NETWORKS[name]()
    path = tmp_path / "theirs.onnx"
    path.write_bytes(of_torch(module))
    graph, golden, _ = read_elsewhere(path)
    rows = 3 * numbers(100, 5)
    with torch.no_grad():
        wanted = module(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(run(graph, {"obs": rows})["action"], wanted, atol=2e-5)
    assert len(golden) == 200 and golden.world[""].std() > 0.01
    assert len(graph.ops) <= 14


def test_made_up_observations_follow_the_normaliser(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    nodes = [
        ("Sub", ("obs", "mean"), ("a",), {}),
        ("Div", ("a", "std"), ("b",), {}),
        ("Gemm", ("b", "w"), ("out",), {}),
    ]
    mean, std = np.float32([100, 0, -50, 0, 0]), np.float32([1, 10, 1, 1, 0.1])
    path.write_bytes(model(nodes, {"mean": mean, "std": std, "w": numbers(5, 2)}))
    _, golden, _ = read_elsewhere(path, pairs=2000)
    np.testing.assert_allclose(golden.inputs["obs"].mean(0), mean, atol=1.0)
    np.testing.assert_allclose(golden.inputs["obs"].std(0), 2 * std, rtol=0.1)


DENSE = {"w": numbers(5, 3), "b": numbers(3)}


@pytest.mark.parametrize(
    ("nodes", "arrays"),
    [
        ([("MatMul", ("obs", "w"), ("m",), {}), ("Add", ("b", "m"), ("out",), {})], DENSE),
        ([("Gemm", ("obs", "w", "b"), ("out",), {"alpha": 0.5, "beta": 2.0})], DENSE),
        (
            [
                ("Transpose", ("t",), ("w",), {"perm": [1, 0]}),
                ("MatMul", ("obs", "w"), ("m",), {}),
                ("Identity", ("m",), ("same",), {}),
                ("Add", ("same", "b"), ("added",), {}),
                ("Concat", ("m", "added"), ("out",), {"axis": -1}),
            ],
            {"t": numbers(3, 5), "b": DENSE["b"]},
        ),
        (
            [
                ("Gather", ("obs", "order"), ("x",), {"axis": 1}),
                ("Min", ("x", "most"), ("y",), {}),
                ("Max", ("y", "least"), ("out",), {}),
            ],
            {"order": np.int64([4, 0, 2]), "most": np.float32(0.7), "least": np.float32([-0.5])},
        ),
        (
            [("Slice", ("obs", "from", "to", "axis"), ("out",), {})],
            {"from": np.int64([1]), "to": np.int64([-1]), "axis": np.int64([1])},
        ),
    ],
    ids=["bias apart", "scaled", "bias of a layer read twice", "columns and bounds", "slice"],
)
def test_forms_of_the_same(nodes: list, arrays: dict, tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    path.write_bytes(model(nodes, arrays))
    graph, golden, _ = read_elsewhere(path)
    session = onnxruntime.InferenceSession(path.read_bytes())
    (wanted,) = session.run(None, golden.inputs)
    np.testing.assert_allclose(run(graph, golden.inputs)["action"], wanted, atol=1e-5)


def test_our_own_onnx_comes_back() -> None:
    ours = make_graph()
    data = to_onnx(ours, 18).SerializeToString()
    graph, _ = read_onnx(data, "ours.onnx")
    rows = numbers(20, 26)
    again, first = run(graph, {"obs": rows}), run(ours, {"obs": rows})
    np.testing.assert_allclose(again["action"], first["action"], atol=1e-5)
    np.testing.assert_array_equal(graph.actions[0].low, ours.actions[0].low)


def test_a_choice_by_arg_max_or_by_the_manifest(tmp_path: Path) -> None:
    nodes = [("Gemm", ("obs", "w", "b"), ("logits",), {})]
    chosen = [*nodes, ("ArgMax", ("logits",), ("chosen",), {"axis": 1, "keepdims": 0})]
    path, manifest = tmp_path / "theirs.onnx", tmp_path / "m.json"
    path.write_bytes(model(chosen, DENSE, gives=("chosen",)))
    graph, golden, _ = read_elsewhere(path)
    assert graph.actions[0].kind == "discrete" and set(golden.world[""]) == {0, 1, 2}
    path.write_bytes(model(nodes, DENSE, gives=("logits",)))
    manifest.write_text(json.dumps({"action": [{"kind": "discrete"}]}))
    again, other, _ = read_elsewhere(path, manifest)
    np.testing.assert_array_equal(other.world[""], golden.world[""])
    assert [port.name for port in again.outputs] == ["logits", "action"]


def test_a_model_of_one_row_and_several_outputs(tmp_path: Path) -> None:
    nodes = [("Gemm", ("obs", "w", "b"), ("out",), {}), ("Tanh", ("out",), ("value",), {})]
    path, manifest = tmp_path / "theirs.onnx", tmp_path / "m.json"
    path.write_bytes(model(nodes, DENSE, gives=("value", "out"), batch=1))
    with pytest.raises(UserError, match="gives value, out: name the action's output"):
        read_elsewhere(path)
    manifest.write_text(json.dumps({"action": [{"output": "out"}]}))
    graph, golden, _ = read_elsewhere(path, manifest)
    assert len(golden) == 200 and len(graph.ops) == 1


# ----- From a file to a robot ---------------------------------------------------------------------

MJLAB = {
    "joint_names": "hip,knee",
    "joint_stiffness": "40.000,30.000",
    "joint_damping": "1.000",
    "default_joint_pos": "0.500,-0.250",
    "action_scale": "0.250,0.500",
    "observation_names": "base_ang_vel,projected_gravity,joint_pos,joint_vel,actions,command",
    "command_names": "twist",
    "run_path": "someone/project/run",
}
LIMITS = {"lower": [-1.0, -1.0], "upper": [1.0, 1.0]}
REST = {"robot": LIMITS, "timing": {"control_hz": 50}, "safety": {"target_rate": [9.0, 9.0]}}
SIZE = 3 + 3 + 2 + 2 + 2 + 3


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[Path, Path]:
    """A policy with mjlab's keys, and what these do not say."""
    path, manifest = tmp_path / "walk.onnx", tmp_path / "rest.json"
    nodes = [
        ("Gemm", ("obs", "w", "b"), ("h",), {}),
        ("Elu", ("h",), ("e",), {}),
        ("Gemm", ("e", "v"), ("actions",), {}),
    ]
    arrays = {"w": numbers(SIZE, 8), "b": numbers(8), "v": 0.1 * numbers(8, 2)}
    path.write_bytes(model(nodes, arrays, SIZE, ("actions",), MJLAB))
    manifest.write_text(json.dumps(REST))
    return path, manifest


def test_mjlabs_keys_become_a_robot(theirs: tuple[Path, Path], capsys: Any) -> None:
    path, manifest = theirs
    assert main(["export", str(path), "--manifest", str(manifest), "--licence", "MIT"]) == 0
    bundle = path.with_suffix(".rlpolicy")
    assert main(["verify", str(bundle)]) == 0
    found = Bundle(bundle).manifest
    assert [term["name"] for term in found["observation"][0]["terms"]] == [
        *("angular_velocity", "gravity", "joint_angle", "joint_velocity", "last_action", "command")
    ]
    assert found["robot"]["stiffness"] == [40.0, 30.0] and found["robot"]["damping"] == [1.0, 1.0]
    assert found["robot"]["action_offset"] == [0.5, -0.25] and found["licence"] == "MIT"
    # ours are angles, theirs angles from the default pose
    obs = numbers(SIZE)
    away = np.zeros(SIZE, np.float32)
    away[6:8] = [0.5, -0.25]
    session = onnxruntime.InferenceSession(path.read_bytes())
    (wanted,) = session.run(None, {"obs": obs[None]})
    np.testing.assert_allclose(Policy(Bundle(bundle)).act(obs + away), wanted[0], atol=1e-5)


def test_a_robot_that_lacks_the_command_is_refused_by_name(
    theirs: tuple[Path, Path], capsys: Any
) -> None:
    path, manifest = theirs
    assert main(["export", str(path), "--manifest", str(manifest)]) == 0
    capsys.readouterr()
    assert deploy([str(path.with_suffix(".rlpolicy")), "--fast", "--seconds", "1"]) == 2
    said = capsys.readouterr().err
    assert "command (3)" in said and "dry-run" in said and said.count("\n") == 1


def test_without_a_command_it_runs(theirs: tuple[Path, Path], capsys: Any) -> None:
    path, manifest = theirs
    keys = {**MJLAB, "observation_names": MJLAB["observation_names"].replace(",command", "")}
    nodes = [("Gemm", ("obs", "w"), ("actions",), {})]
    arrays = {"w": 0.05 * numbers(SIZE - 3, 2)}
    path.write_bytes(model(nodes, arrays, SIZE - 3, ("actions",), keys))
    assert main(["export", str(path), "--manifest", str(manifest), "--to", "c"]) == 0
    bundle = str(path.with_suffix(".rlpolicy"))
    capsys.readouterr()
    assert deploy([bundle, "--fast", "--seconds", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cycles"] == 200 and report["fault"] is None  # 2 s of them on the way


def test_our_own_keys_bring_everything_back(theirs: tuple[Path, Path], tmp_path: Path) -> None:
    path, manifest = theirs
    assert main(["export", str(path), "--manifest", str(manifest)]) == 0
    first = Bundle(path.with_suffix(".rlpolicy"))
    again = tmp_path / "again.onnx"
    again.write_bytes(first.read("policy.onnx"))
    assert main(["export", str(again)]) == 0
    second = Bundle(again.with_suffix(".rlpolicy")).manifest
    for section in ("observation", "action", "robot", "timing", "safety"):
        assert second[section] == first.manifest[section], section


def test_a_plain_policy_with_a_manifest_by_hand(tmp_path: Path, capsys: Any) -> None:
    path, manifest = tmp_path / "plain.onnx", tmp_path / "m.json"
    path.write_bytes(model([("Gemm", ("obs", "w", "b"), ("out",), {})], DENSE))
    terms = [{"name": "lidar", "size": 4, "units": "m"}, {"name": "speed", "size": 1}]
    action = {"scale": [2, 2, 2], "offset": [0, 0, 1], "low": [-1, -1, None], "high": [1, 1, 3]}
    given = {"observation": [{"name": "obs", "terms": terms}], "action": [action]}
    manifest.write_text(json.dumps({**given, "timing": {"control_hz": 20}, "licence": "CC0"}))
    samples = tmp_path / "seen.npy"
    np.save(samples, numbers(50, 5))
    words = ["--manifest", str(manifest), "--samples", str(samples)]
    assert main(["export", str(path), *words]) == 0
    bundle = Bundle(path.with_suffix(".rlpolicy"))
    assert bundle.manifest["golden"]["pairs"] == 50 and bundle.manifest["licence"] == "CC0"
    assert bundle.manifest["action"][0]["low"] == [-1.0, -1.0, None]
    assert main(["verify", str(path.with_suffix(".rlpolicy"))]) == 0
    obs = numbers(5)
    wanted = np.clip(2 * (obs @ DENSE["w"] + DENSE["b"]) + [0, 0, 1], [-1, -1, -np.inf], [1, 1, 3])
    np.testing.assert_allclose(Policy(bundle).act(obs), wanted, atol=1e-5)


@pytest.mark.slow
def test_a_zip_of_stable_baselines_goes_by_way_of_import(tmp_path: Path, capsys: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").save(tmp_path / "cart.zip")
    zipped, folder = str(tmp_path / "cart.zip"), str(tmp_path / "cart")
    assert main(["export", zipped]) == 2
    assert "rlgym import sb3" in capsys.readouterr().err
    assert main(["import", "sb3", zipped, "--env", "CartPole-v1", "--run-dir", folder]) == 0
    out = str(tmp_path / "cart.rlpolicy")
    assert main(["export", folder, "--which", "last", "--out", out, "--steps", "40"]) == 0
    assert main(["verify", out]) == 0
    model = sb3.PPO.load(zipped, device="cpu")
    policy = Policy(Bundle(out))
    for obs in 0.1 * numbers(20, 4):
        assert policy.act(obs) == model.predict(obs, deterministic=True)[0]
    assert deploy([out, "--fast", "--seconds", "1", "--hz", "50"]) == 0


# ----- Refusals -----------------------------------------------------------------------------------

GEMM = [("Gemm", ("obs", "w", "b"), ("out",), {})]


def refused(data: bytes, folder: Path, given: Any = None, samples: Any = None) -> str:
    path, manifest = folder / "x.onnx", None
    path.write_bytes(data)
    if given is not None:
        manifest = folder / "m.json"
        manifest.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(UserError) as caught:
        read_elsewhere(path, manifest, samples)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD: dict[str, tuple[Any, str]] = {
    "no ONNX": (lambda: b"hello", "no policy that may be loaded"),
    "nothing": (lambda: b"", "no policy that may be loaded"),
    "softplus": (lambda: model([("Softplus", ("obs",), ("out",), {})], {}), "uses Softplus ('out'"),
    "a loop": (
        lambda: model([("Loop", ("n", "", "obs"), ("out",), {})], {"n": np.int64(3)}),
        "operator 'Loop'",
    ),
    "own domain": (
        lambda: model([("Evil", ("obs",), ("out",), {"domain": "com.evil"})], {}),
        "operator 'Evil'",
    ),
    "whole numbers": (
        lambda: model(GEMM, DENSE, kind=TensorProto.INT64),
        "only float32 vectors",
    ),
    "NaN weights": (lambda: model(GEMM, {**DENSE, "b": np.float32([0, np.nan, 0])}), "not finite"),
    "division by zero": (
        lambda: model([("Div", ("obs", "z"), ("out",), {})], {"z": np.zeros(5, np.float32)}),
        "not finite",
    ),
    "numbers that overflow": (
        lambda: model(GEMM, {**DENSE, "w": np.full((5, 3), 3e38, np.float32)}),
        "numbers that are not finite",
    ),
    "sizes": (lambda: model(GEMM, {**DENSE, "w": numbers(4, 3)}), "cannot be"),
    "a constant that bursts": (
        lambda: model(
            [("MatMul", ("tall", "flat"), ("w",), {}), ("MatMul", ("obs", "w"), ("out",), {})],
            {"tall": np.zeros((10_000, 1), np.float32), "flat": np.zeros((1, 10_000), np.float32)},
        ),
        "up to 100,000,000 numbers",
    ),
    "another elu": (lambda: model([("Elu", ("obs",), ("out",), {"alpha": 0.5})], {}), "uses Elu"),
    "sum of inputs": (lambda: model([("Add", ("obs", "obs"), ("out",), {})], {}), "uses Add"),
    "no network": (lambda: model([("Identity", ("obs",), ("out",), {})], {}), "its input as its"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_policy_is_refused(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    assert words in refused(make(), tmp_path)


MANIFESTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "is not JSON"),
    "deep": ("[" * 100_000, "is not JSON"),
    "a list": ([], "must be an object"),
    "a typing mistake": ({"robots": {}}, "did you mean 'robot'"),
    "a robot of text": ({"robot": "a1"}, "robot is of another type"),
    "actions of text": ({"action": ["a"]}, "must be a list of objects"),
    "no rate": ({"timing": {"control_hz": 0}}, "timing: "),
    "terms too short": (
        {"observation": [{"name": "obs", "terms": [{"name": "a", "size": 4}]}]},
        "have 4 values, x.onnx takes 5",
    ),
    "a term without size": ({"observation": [{"terms": [{"name": "a"}]}]}, "the terms of 'obs'"),
    "terms of text": ({"observation": [{"terms": "abc"}]}, "the terms of 'obs'"),
    "a term of text": ({"observation": [{"terms": ["a"]}]}, "the terms of 'obs'"),
    "a size of text": (
        {"observation": [{"terms": [{"name": "a", "size": "five"}]}]},
        "the terms of 'obs'",
    ),
    "scales": ({"action": [{"scale": [1, 2]}]}, "'scale' of the action must be 3 numbers"),
    "bounds of text": ({"action": [{"low": "abc"}]}, "'low' of the action must be 3 numbers"),
    "another kind": ({"action": [{"kind": "multi_binary"}]}, "gives a 'box' action"),
    "half a robot": ({"robot": {"joint_names": ["a"]}}, "does not say robot.stiffness"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    given, words = MANIFESTS[name]
    assert words in refused(model(GEMM, DENSE), tmp_path, given)


ROBOT = {
    **{"joint_names": ["a", "b", "c"], "stiffness": [1, 1, 1], "damping": [1, 1, 1]},
    **{"default_joint_pos": [0, 0, 0], "action_scale": [1, 1, 1]},
    **{"lower": [-1, -1, -1], "upper": [1, 1, 1]},
}


@pytest.mark.parametrize("field", ROBOT)
@pytest.mark.parametrize("value", [3, "abc", None, ["x"], [[1], [2], [3]], {"a": 1}])
def test_a_robot_of_another_form_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    rest = {"timing": {"control_hz": 50}}
    if (field, value) == ("joint_names", ["x"]):
        return  # which is a name
    said = refused(model(GEMM, DENSE), tmp_path, {"robot": {**ROBOT, field: value}, **rest})
    assert field in said


def test_a_hostile_manifest_inside_is_refused(tmp_path: Path) -> None:
    sound = {
        **{"observation": [], "action": [{}], "licence": ""},
        **dict.fromkeys(("robot", "timing", "safety", "simulation", "targets")),
    }
    path = tmp_path / "sound.onnx"
    path.write_bytes(model(GEMM, DENSE, metadata={"rlgym.manifest": json.dumps(sound)}))
    read_elsewhere(path)
    for changed in (
        *({**sound, name: value} for name in sound for value in (3, "abc", [3], {"a": []})),
        *({k: v for k, v in sound.items() if k != name} for name in sound if name != "targets"),
    ):
        if changed == {**sound, "licence": "abc"}:
            continue
        data = model(GEMM, DENSE, metadata={"rlgym.manifest": json.dumps(changed)})
        path.write_bytes(data)
        try:
            _, _, description = read_elsewhere(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert description["robot"] is None and description["licence"] == ""
    for text in ("{", "[]", "[" * 100_000, "NaN"):
        assert refused(model(GEMM, DENSE, metadata={"rlgym.manifest": text}), tmp_path)


def test_bytes_that_are_changed_at_random_are_read_or_refused(tmp_path: Path) -> None:
    nodes = [("Gemm", ("obs", "w", "b"), ("h",), {}), ("Tanh", ("h",), ("out",), {})]
    sound, rng, path = model(nodes, DENSE), np.random.default_rng(4), tmp_path / "x.onnx"
    path.write_bytes(sound)
    read_elsewhere(path, pairs=4)
    refusals = 0
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(
            bytes(data[: len(data) if rng.random() < 0.8 else rng.integers(len(data))])
        )
        try:
            read_elsewhere(path, pairs=4)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert 30 < refusals < 150


def test_what_nobody_may_guess_has_to_be_said(theirs: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = theirs
    said = refused(path.read_bytes(), tmp_path)
    assert "does not say robot.lower, robot.upper, timing.control_hz" in said
    keys = {**MJLAB, "observation_names": "foo,bar"}
    said = refused(model(GEMM, DENSE, metadata=keys), tmp_path, REST)
    assert "how many are of each of foo, bar" in said
    keys = {**MJLAB, "joint_damping": "1,2,3"}
    assert "'joint_damping'" in refused(model(GEMM, DENSE, metadata=keys), tmp_path, REST)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((10, 4), np.float32), "obs [10, 4]; the policy takes obs [rows, 5]"),
        (np.full((10, 5), np.nan, np.float32), "not finite"),
        (np.array([{}]), "holds no observations"),
    ],
)
def test_samples_that_do_not_fit(array: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", array, allow_pickle=True)
    said = refused(model(GEMM, DENSE), tmp_path, samples=tmp_path / "seen.npy")
    assert words in said


def test_a_bundle_that_would_not_open_is_not_left_behind(
    theirs: tuple[Path, Path], capsys: Any
) -> None:
    path, manifest = theirs
    wrong = {**REST, "robot": {"lower": [1.0, 1.0], "upper": [-1.0, -1.0]}}
    manifest.write_text(json.dumps(wrong))
    assert main(["export", str(path), "--manifest", str(manifest)]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not path.with_suffix(".rlpolicy").exists()


def test_metadata_is_what_onnx_says(theirs: tuple[Path, Path]) -> None:
    _, found = read_onnx(theirs[0].read_bytes(), "x")
    assert found.metadata == MJLAB and not found.single
    assert onnx.load_model_from_string(theirs[0].read_bytes()).metadata_props
