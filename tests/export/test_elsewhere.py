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
from tests.export.theirs import DENSE, MJLAB, REST, SIZE, model, numbers


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
    # what the action does not depend on may be anything
    nodes = [("Gemm", ("obs", "w", "b"), ("out",), {}), ("Softplus", ("out",), ("value",), {})]
    path, manifest = tmp_path / "theirs.onnx", tmp_path / "m.json"
    path.write_bytes(model(nodes, DENSE, gives=("value", "out"), batch=1))
    with pytest.raises(UserError, match="gives value, out: name the action's output"):
        read_elsewhere(path)
    manifest.write_text(json.dumps({"action": [{"output": "out"}]}))
    graph, golden, _ = read_elsewhere(path, manifest)
    assert len(golden) == 200 and len(graph.ops) == 1


# ----- From a file to a robot ---------------------------------------------------------------------


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
