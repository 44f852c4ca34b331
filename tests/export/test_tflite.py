"""What LiteRT computes from the file is what the graph means, in float32 and in int8."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlgym.config import NetworkConfig
from rlgym.deploy import graph as g
from rlgym.deploy.reference import run
from rlgym.errors import MissingExtraError, UserError
from rlgym.export import verify as verifying
from rlgym.export.read import read_policy
from rlgym.spaces import Layout
from tests.export.bundles import make_bundle, manifest_of, members, pack, sealed
from tests.export.policies import BOUNDED, KINDS, VECTOR, make_policy, observations
from tests.export.test_graph import arrays_of

pytest.importorskip("ai_edge_litert", reason="LiteRT is in the extra 'tflite'")

from ai_edge_litert import schema_py_generated as schema

from rlgym.export import tflite

OTHERS = ("nested", "nature", "gru", "lstm", "sac-mixed")
PLAIN = [kind for kind in KINDS if kind not in OTHERS]
ROWS = 100
ROUNDED = {"weights": 0.01, "full": 0.02}
"""Share of the range; these networks are so small that little averages out."""
FILE = "extras/{0}/policy.tflite"


def prepared(kind: str, rows: int = ROWS):
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, rows))
    return graph, inputs, run(graph, inputs)


def computed(graph, inputs, quantize=None):
    return tflite.LiteRT(tflite.to_tflite(graph, quantize, inputs), graph).run(inputs)


def model_of(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def operations(data: bytes) -> list[str]:
    model = model_of(data)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


@pytest.mark.parametrize("kind", PLAIN)
def test_every_plain_kind_in_float32(kind):
    graph, inputs, wanted = prepared(kind)
    found = computed(graph, inputs)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("quantize", ROUNDED)
@pytest.mark.parametrize("kind", PLAIN)
def test_every_plain_kind_in_int8(kind, quantize):
    graph, inputs, wanted = prepared(kind)
    found = computed(graph, inputs, quantize)
    name = graph.actions[0].logits or graph.actions[0].output
    error = np.abs(found[name] - wanted[name]).max() / np.ptp(wanted[name])
    assert 1e-5 < error < ROUNDED[quantize]


@pytest.mark.parametrize("quantize", [None, *ROUNDED])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
def test_layer_norm_and_every_activation(activation, quantize):
    draw = np.random.default_rng(0).normal

    def numbers(*shape: int) -> np.ndarray:
        return (draw(size=shape) / shape[-1] ** 0.5).astype(np.float32)

    ops = (
        g.Flatten("flat", ("obs",)),
        g.Dense("wide", ("flat",), numbers(64, 6), numbers(64)),
        g.Activation("first", ("wide",), activation),
        g.Dense("inner", ("first",), numbers(64, 64), numbers(64)),
        g.LayerNorm("normed", ("inner",), 1 + numbers(64), numbers(64)),
        g.Activation("second", ("normed",), activation),
        g.Dense("mean", ("second",), numbers(3, 64), numbers(3)),
        g.Activation("action", ("mean",), "tanh"),
    )
    ports = (g.Port("obs", (6,), "float32"),), (g.Port("action", (3,), "float32"),)
    graph = g.Graph(ports[0], ops, ports[1], ())
    inputs = {"obs": draw(size=(ROWS, 6)).clip(-2, 2).astype(np.float32)}
    wanted = run(graph, inputs)["action"]
    error = np.abs(computed(graph, inputs, quantize)["action"] - wanted).max()
    assert np.ptp(wanted) > 0.5
    assert error < (1e-5 if quantize is None else 2 * ROUNDED[quantize] * np.ptp(wanted))


def test_ten_thousand_observations_agree_to_1e_5():
    graph = read_policy(make_policy("squashed", seed=5))
    inputs = {"obs": np.random.default_rng(0).uniform(-5, 5, (10_000, 6)).astype(np.float32)}
    error = np.abs(computed(graph, inputs)["action"] - run(graph, inputs)["action"]).max()
    assert error <= 1e-5


@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_a_network_of_ordinary_width_keeps_the_limits_in_int8(activation):
    policy = make_policy("clipped")
    config = NetworkConfig(hidden=(256, 128), activation=activation, normalize_obs=True)
    policy = type(policy).build(Layout(VECTOR), Layout(BOUNDED), config, 0)
    graph = read_policy(policy)
    *ops, head, mean, clip = graph.ops
    head = replace(head, weight=30 * head.weight)
    graph = replace(graph, ops=(*ops, head, mean, clip))
    inputs = arrays_of(graph, observations("clipped", 400))
    fresh = arrays_of(graph, observations("clipped", 500, seed=9))
    wanted = run(graph, fresh)["action"]
    for name, limit in (("tflite-int8", 0.005), ("tflite-full-int8", 0.01)):
        quantize, tolerance = tflite.KINDS[name]
        data = tflite.to_tflite(graph, quantize, inputs)
        error = np.abs(tflite.LiteRT(data, graph).run(fresh)["action"] - wanted)
        assert tolerance == limit
        assert (error / (BOUNDED.high - BOUNDED.low)).max() < limit, name


def test_values_beyond_the_calibration_saturate():
    graph, inputs, _ = prepared("squashed")
    few = {"obs": inputs["obs"][:20] * np.float32(0.2)}
    runtime = tflite.LiteRT(tflite.to_tflite(graph, "full", few), graph)
    wanted = run(graph, inputs)["action"]
    found = runtime.run(inputs)["action"]
    assert np.abs(found).max() <= 1.0
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.7, "clipped, not wrapped around"


def test_what_is_inside():
    graph, inputs, _ = prepared("squashed")
    whole, small, full = (
        tflite.to_tflite(graph, quantize, inputs) for quantize in (None, "weights", "full")
    )
    assert operations(whole)[:5] == ["SUB", "MUL", "MAXIMUM", "MINIMUM", "FULLY_CONNECTED"]
    assert operations(small) == operations(whole)
    inner = operations(full)
    dense = [k for k, name in enumerate(inner) if name == "FULLY_CONNECTED"]
    assert inner[dense[0] - 1] == "QUANTIZE" and inner[dense[-1] + 1] == "DEQUANTIZE"
    assert inner.count("QUANTIZE") == inner.count("DEQUANTIZE") == 1 and inner[-1] == "TANH"
    assert whole == tflite.to_tflite(graph), "the same graph gives the same bytes"
    assert whole[4:8] == b"TFL3"
    part = model_of(whole).subgraphs[0]
    assert [list(part.tensors[k].shape) for k in (*part.inputs, *part.outputs)] == [[1, 6], [1, 3]]
    model = schema.Model.GetRootAs(full, 0)
    for k in range(1, model.BuffersLength()):
        vector = model.Buffers(k)._tab
        assert vector.Vector(vector.Offset(4)) % tflite.ALIGN == 0


@pytest.mark.parametrize("kind", OTHERS)
def test_what_it_cannot_hold_is_said(kind):
    with pytest.raises(UserError, match="use onnx, which holds them all, or c,"):
        tflite.to_tflite(read_policy(make_policy(kind)))


def test_other_refusals(tmp_path):
    with pytest.raises(UserError, match="without images, memory, masks"):
        tflite.to_tflite(read_policy(make_policy("discrete"), masked=True))
    graph, inputs, _ = prepared("clipped", 10)
    with pytest.raises(UserError, match="observations to calibrate with"):
        tflite.write_tflite(graph, tmp_path / "policy.tflite", "full")
    broken = {"obs": np.full_like(inputs["obs"], np.nan)}
    with pytest.raises(UserError, match="not finite"):
        tflite.to_tflite(graph, "full", broken)
    with pytest.raises(UserError, match=r"cannot be run .* export the policy again"):
        tflite.LiteRT(b"TFL3" * 20, graph)
    other = read_policy(make_policy("discrete"))
    with pytest.raises(UserError, match="cannot be run"):
        tflite.LiteRT(tflite.to_tflite(graph), other)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, "rlgym.export.tflite")
    with pytest.raises(MissingExtraError, match=r"rlgym-lab\[tflite\]"):
        __import__("rlgym.export.tflite")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here")
def test_the_c_array_is_the_file(tmp_path):
    data = tflite.to_tflite(prepared("linear", 5)[0])
    (tmp_path / "policy_tflite.h").write_text(tflite.to_c_array(data), encoding="ascii")
    (tmp_path / "main.c").write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include "policy_tflite.h"\n'
        "int main(void) { fwrite(policy_tflite, 1, policy_tflite_len, stdout);\n"
        "return (int)((uintptr_t)policy_tflite % 16); }\n"
    )
    program = str(tmp_path / "main")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, str(tmp_path / "main.c"), "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, check=True).stdout == data


def test_a_bundle_is_verified_without_trust(tmp_path):
    path = make_bundle(tmp_path / "hop.rlpolicy", tuple(tflite.KINDS))
    checks = {check.name: check for check in verifying.verify(path)}
    for name, (_, tolerance) in tflite.KINDS.items():
        check = checks[name]
        assert check.passed and not check.skipped, check
        assert check.error is not None and check.error <= tolerance
    files = members(path)
    arrays = [name for name in files if name.endswith(".h")]
    assert arrays == ["extras/tflite/policy_tflite.h", "extras/tflite-full-int8/policy_tflite.h"]


@pytest.mark.parametrize("name", tflite.KINDS)
def test_a_file_that_is_not_the_policys_is_not_loaded(name, tmp_path, monkeypatch):
    files = members(make_bundle(tmp_path / "hop.rlpolicy", (name,)))
    files.pop(f"extras/{name}/policy_tflite.h", None)
    data = bytearray(files[FILE.format(name)])
    data[len(data) // 2] ^= 0x40
    files[FILE.format(name)] = bytes(data)
    manifest = manifest_of(files)
    manifest["artefacts"][-1]["files"] = [FILE.format(name)]
    path = pack(tmp_path / "forged.rlpolicy", sealed(files, manifest))

    def never(*_):
        raise AssertionError("LiteRT was given a stranger's file")

    monkeypatch.setattr(tflite, "LiteRT", never)
    check = verifying.verify(path)[-1]
    assert check.name == name and check.skipped and "add --trust" in check.text
    with pytest.raises(AssertionError, match="a stranger's file"):
        verifying.verify(path, trust=True)


def test_a_second_file_is_not_passed_over(tmp_path):
    files = members(make_bundle(tmp_path / "hop.rlpolicy", ("tflite",)))
    manifest = manifest_of(files)
    manifest["artefacts"][-1]["files"].insert(0, "extras/other.tflite")
    files["extras/other.tflite"] = b"another policy"
    check = verifying.verify(pack(tmp_path / "two.rlpolicy", sealed(files, manifest)))[-1]
    assert not check.passed and "one .tflite" in check.text


def test_other_weights_are_found_with_trust(tmp_path):
    files = members(make_bundle(tmp_path / "hop.rlpolicy", ("tflite",)))
    graph = read_policy(make_policy("clipped"))
    (flat, normal, hidden, *rest) = graph.ops
    wider = np.zeros((len(hidden.bias), 26), np.float32)
    normal = replace(normal, mean=np.zeros(26, np.float32), inv_std=np.ones(26, np.float32))
    graph = replace(
        graph,
        inputs=(g.Port("obs", (26,), "float32"),),
        ops=(flat, normal, replace(hidden, weight=wider), *rest),
    )
    files[FILE.format("tflite")] = tflite.to_tflite(graph)
    manifest = manifest_of(files)
    path = pack(tmp_path / "a.rlpolicy", sealed(files, manifest))
    assert verifying.verify(path)[-1].text == "its C array is not its .tflite"
    manifest["artefacts"][-1]["files"] = [FILE.format("tflite")]
    del files["extras/tflite/policy_tflite.h"]
    path = pack(tmp_path / "b.rlpolicy", sealed(files, manifest))
    check = verifying.verify(path, trust=True)[-1]
    assert not check.passed and "is allowed" in check.text
