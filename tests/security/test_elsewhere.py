"""ONNX files and manifests of strangers: read, or refused in one line; nothing of them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from rlgym.errors import UserError
from rlgym.export.elsewhere import read_elsewhere
from tests.export.theirs import DENSE, GEMM, MJLAB, REST, SIZE, model, numbers


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
    "no ONNX": (lambda: b"hello", "cannot be read as a policy"),
    "nothing": (lambda: b"", "is no ONNX file"),
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


def test_what_nobody_may_guess_has_to_be_said(tmp_path: Path) -> None:
    nodes = [("Gemm", ("obs", "w"), ("out",), {})]
    said = refused(model(nodes, {"w": numbers(SIZE, 2)}, SIZE, metadata=MJLAB), tmp_path)
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
