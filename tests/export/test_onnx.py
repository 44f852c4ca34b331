"""What onnxruntime computes from the file is what the graph means."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rlgym.deploy import graph as g
from rlgym.deploy.reference import run, to_world
from rlgym.export.onnx import OPSETS, to_onnx, write_onnx
from rlgym.export.read import read_policy
from tests.export.policies import KINDS, make_policy, observations
from tests.export.test_graph import arrays_of

ROWS = 200


def session(model) -> onnxruntime.InferenceSession:
    data = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def assert_same(graph, model, inputs) -> None:
    names = [port.name for port in graph.outputs]
    found = session(model).run(names, inputs)
    for name, value, wanted in zip(names, found, run(graph, inputs).values(), strict=True):
        assert value.dtype == wanted.dtype and value.shape == wanted.shape, name
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_both_opsets(kind, opset):
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, ROWS))
    if graph.state_size:
        generator = np.random.default_rng(0)
        inputs[g.STATE] = generator.normal(size=(ROWS, graph.state_size)).astype(np.float32)
    assert_same(graph, to_onnx(graph, opset), inputs)
    one = {name: value[:1] for name, value in inputs.items()}
    assert_same(graph, to_onnx(graph, opset), one)


@pytest.mark.parametrize("kind", ["discrete", "nested"])
def test_masks(kind):
    graph = read_policy(make_policy(kind), masked=True)
    inputs = arrays_of(graph, observations(kind, ROWS))
    size = next(port for port in graph.inputs if port.name == g.MASK).shape[0]
    mask = torch.rand(ROWS, size, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:20] = False
    assert_same(graph, to_onnx(graph), {**inputs, g.MASK: mask.numpy()})


def test_ten_thousand_observations_agree_to_1e_5():
    policy = make_policy("squashed", seed=5)
    graph = read_policy(policy)
    obs = observations("squashed", 10_000)
    found = session(to_onnx(graph)).run(["action"], {"obs": obs.numpy()})[0]
    told = to_world(graph, {"action": np.asarray(found)})
    wanted = policy.act(obs, deterministic=True)[0].numpy()
    assert np.abs(told - wanted).max() <= 1e-5


def test_one_plain_file_that_describes_itself(tmp_path):
    graph = read_policy(make_policy("clipped"))
    path = tmp_path / "policy.onnx"
    write_onnx(graph, path, metadata={"joint_names": "a,b,c", "rlgym.manifest": {"rate": 0.1}})
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]
    loaded = session(str(path))
    found = loaded.get_modelmeta().custom_metadata_map
    assert found == {"joint_names": "a,b,c", "rlgym.manifest": '{"rate": 0.1}'}
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}, "standard operators only"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert loaded.get_inputs()[0].shape == ["batch", 6]
