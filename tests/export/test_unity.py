"""The ONNX for Unity does what the policy does, and has what ML-Agents' C# code asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rlgym.agents.policy import ActorCritic
from rlgym.config import NetworkConfig
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import MASK, STATE
from rlgym.deploy.reference import run, to_world
from rlgym.errors import UserError
from rlgym.export.bundle import UNITY
from rlgym.export.read import read_policy
from rlgym.export.unity import OPSET, OPSETS, run_unity, to_unity, unity_inputs, world_actions
from rlgym.export.verify import verify
from rlgym.spaces import Layout
from tests.export.bundles import make_bundle, make_graph, manifest_of, members, pack, sealed
from tests.export.policies import KINDS, make_policy, observations
from tests.export.test_graph import arrays_of
from tests.export.unity_loader import Behavior, failures

ROWS = 100
FIT = [kind for kind in KINDS if kind not in ("multi-binary", "nested", "sac-mixed")]
SENSORS = spaces.Dict(
    {
        "obs_0": spaces.Box(-1, 1, (1,), np.float32),
        "obs_1": spaces.Box(0, 255, (3, 36, 40), np.uint8),
        "obs_2": spaces.Box(-1, 1, (3,), np.float32),
        "obs_3": spaces.Box(-1, 1, (5, 4), np.float32),
    }
)
HYBRID = spaces.Dict(
    {
        "continuous": spaces.Box(-1.0, 1.0, (2,), np.float32),
        "discrete": spaces.MultiDiscrete([3, 2]),
    }
)


def hybrid(recurrent: str = "none"):
    """A policy of a Unity scene that has everything: pictures, buffers, both kinds of actions."""
    config = NetworkConfig(hidden=(16,), normalize_obs=True, recurrent=recurrent, recurrent_size=6)
    policy = ActorCritic.build(Layout(SENSORS), Layout(HYBRID), config, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    SENSORS.seed(1)
    layout = Layout(SENSORS)
    arrays = layout.alloc(ROWS)
    for row in range(ROWS):
        layout.write(SENSORS.sample(), arrays, row)
    return policy, {key: torch.from_numpy(array) for key, array in arrays.items()}


def scene_of(graph, model) -> Behavior:
    """The scene that the policy was made for."""
    shapes = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
    count = sum(name.startswith("obs_") for name in shapes)
    sensors = tuple(tuple(d.dim_value for d in shapes[f"obs_{k}"][1:]) for k in range(count))
    boxes = [int(np.prod(action.shape)) for action in graph.actions if action.kind == "box"]
    sizes = [op.sizes for op in graph.ops if type(op).__name__ == "Choose"]
    return Behavior(sensors, sum(boxes), tuple(n for size in sizes for n in size))


@pytest.mark.parametrize("kind", FIT)
def test_unity_is_told_what_the_policy_does(kind):
    policy = make_policy(kind)
    obs = observations(kind, ROWS)
    graph = read_policy(policy)
    inputs = arrays_of(graph, obs)
    state = None
    if graph.state_size:
        state = torch.randn(ROWS, graph.state_size, generator=torch.Generator().manual_seed(1))
        inputs[STATE] = state.numpy()
    told = run_unity(to_unity(graph).SerializeToString(), graph, inputs)
    wanted = policy.act(obs, state=state, deterministic=True)[0]
    np.testing.assert_allclose(told[""], wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_computes_the_same(opset):
    policy, obs = hybrid("lstm")
    graph = read_policy(policy, masked=True)
    inputs = {key: value.numpy() for key, value in obs.items()}
    mask = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[:10] = False
    state = torch.randn(ROWS, graph.state_size, generator=torch.Generator().manual_seed(1))
    inputs |= {MASK: mask.numpy(), STATE: state.numpy()}
    model = to_unity(graph, opset)
    assert model.opset_import[0].version == opset
    told = run_unity(model.SerializeToString(), graph, inputs)
    wanted = policy.act(obs, state=state, mask=mask, deterministic=True)[0]
    np.testing.assert_allclose(told["continuous"], wanted["continuous"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(told["discrete"], wanted["discrete"].numpy())


def test_memory_is_carried_as_the_policy_carries_it():
    policy, obs = hybrid("gru")
    graph = read_policy(policy)
    model = ReferenceEvaluator(to_unity(graph))  # ONNX's own, beside onnxruntime
    names, state, memory = model.output_names, None, np.zeros((1, 1, 6), np.float32)
    for row in range(6):
        one = {key: value[row : row + 1] for key, value in obs.items()}
        wanted, _, state = policy.act(one, state=state, deterministic=True)
        inputs = {key: value.numpy() for key, value in one.items()}
        fed = {**unity_inputs(graph, inputs), "recurrent_in": memory}
        found = dict(zip(names, model.run(None, fed), strict=True))
        memory = found["recurrent_out"]
        told = world_actions(graph, found)
        np.testing.assert_allclose(told["continuous"], wanted["continuous"], atol=1e-5)
        np.testing.assert_allclose(memory[:, 0], state, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", FIT)
def test_the_loader_has_nothing_to_say(kind, deterministic):
    graph = read_policy(make_policy(kind))
    model = to_unity(graph)
    assert failures(model.SerializeToString(), scene_of(graph, model), deterministic) == []


def shapes_of(model):
    return {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim[1:]] for i in _inputs(model)}


def test_sensors_keep_their_numbers():
    # Gymnasium sorts by name, so that obs_10 stands before obs_2
    sensors = {f"obs_{k}": spaces.Box(-1, 1, (k + 1,), np.float32) for k in range(11)}
    layout = Layout(spaces.Dict(sensors))
    assert [leaf.key for leaf in layout.leaves][1:3] == ["obs_1", "obs_10"]
    policy = ActorCritic.build(layout, Layout(HYBRID), NetworkConfig(), 0)
    found = shapes_of(to_unity(read_policy(policy)))
    assert found.pop("action_masks") == [5]
    assert list(found.items()) == [(f"obs_{k}", [k + 1]) for k in range(11)]


def test_pictures_come_channels_first():
    assert shapes_of(to_unity(read_policy(hybrid("lstm")[0]))) == {
        **{"obs_0": [1], "obs_1": [3, 36, 40], "obs_2": [3], "obs_3": [5, 4]},
        **{"action_masks": [5], "recurrent_in": [1, 12]},
    }
    wide = Layout(spaces.Box(0, 255, (20, 24, 3), np.uint8)), Layout(HYBRID)
    policy = ActorCritic.build(*wide, NetworkConfig(), 0)
    assert shapes_of(to_unity(read_policy(policy)))["obs_0"] == [3, 20, 24]


def test_outputs_stand_in_the_order_of_ml_agents_with_its_constants():
    graph = read_policy(hybrid("gru")[0])
    model = to_unity(graph)
    kinds = ("continuous", "discrete")
    actions = [
        (f"{k}_actions", f"{k}_action_output_shape", f"deterministic_{k}_actions") for k in kinds
    ]
    assert [output.name for output in model.graph.output] == [
        *("version_number", "memory_size", *actions[0], *actions[1], "recurrent_out")
    ]
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    constants = {
        "version_number": [3.0],
        "memory_size": [6.0],
        "continuous_action_output_shape": [2.0],
        "discrete_action_output_shape": [[3.0, 2.0]],
    }
    for name, value in constants.items():
        np.testing.assert_array_equal(arrays[name], np.float32(value), strict=True)
    assert model.opset_import[0].version == OPSET == 9 and model.ir_version <= 6
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("kind", FIT)
def test_every_operator_is_one_that_unity_knows(kind):
    """Of the lists in the manuals of Barracuda 1.3 to 2.0, and of Sentis 1.0 to 2.4."""
    known = {
        *("Add", "ArgMax", "Cast", "Concat", "Conv", "Div", "Elu", "Equal", "Flatten", "Gather"),
        *("Gemm", "Max", "Min", "Mul", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Sqrt"),
        *("Sub", "Tanh"),
    }
    assert {node.op_type for node in to_unity(read_policy(make_policy(kind))).graph.node} <= known


# ------------------------------------------------------------------- the loader can say something


def _inputs(model):
    return list(model.graph.input)


def _without(model, name):
    kept = [output for output in model.graph.output if output.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _retype(model, name, dtype):
    """Give a constant another type."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    for output in model.graph.output:
        if output.name == name:
            output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _revalue(model, name, value):
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(value), name))


FAULTS = {
    "version": (lambda m: _revalue(m, "version_number", [4.0]), "model version 4"),
    "no version": (lambda m: _without(m, "version_number"), "version_number is missing"),
    "no memory": (lambda m: _without(m, "memory_size"), "memory_size is missing"),
    "no shape": (
        lambda m: _without(m, "discrete_action_output_shape"),
        "discrete_action_output_shape is missing",
    ),
    "no recurrent_out": (lambda m: _without(m, "recurrent_out"), "memory without recurrent_out"),
    "wrong branches": (
        lambda m: _revalue(m, "discrete_action_output_shape", [[3.0, 3.0]]),
        "branches (3, 3)",
    ),
    "wrong size": (
        lambda m: _revalue(m, "continuous_action_output_shape", [3.0]),
        "continuous size 3",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_loader_finds_a_fault(fault):
    graph = read_policy(hybrid("gru")[0])
    model = to_unity(graph)
    scene = scene_of(graph, model)
    change, message = FAULTS[fault]
    assert failures(model.SerializeToString(), scene) == []
    change(model)
    said = failures(model.SerializeToString(), scene)
    assert any(message in line for line in said), said


def test_the_loader_throws_at_the_wrong_types_and_shapes():
    graph = read_policy(hybrid()[0])
    model = to_unity(graph)
    scene = scene_of(graph, model)
    _retype(model, "version_number", np.int64)
    with pytest.raises(TypeError, match="version_number is read as Tensor<float>"):
        failures(model.SerializeToString(), scene)
    model = to_unity(graph)
    assert "obs_2 is [3], the sensor [4]" in failures(
        model.SerializeToString(), replace(scene, sensors=((1,), (3, 36, 40), (4,), (5, 4)))
    )
    discrete = read_policy(make_policy("discrete"))
    model = to_unity(discrete)
    for node in model.graph.node:  # indices as floats, as a careless export has them
        if node.output[0] == "discrete_actions":
            node.output[0] = "indices"
    model.graph.node.append(helper.make_node("Cast", ["indices"], ["discrete_actions"], to=1))
    next(
        o for o in model.graph.output if o.name == "discrete_actions"
    ).type.tensor_type.elem_type = 1
    with pytest.raises(TypeError, match="Tensor<int>"):
        failures(model.SerializeToString(), Behavior(((6,),), 0, (5,)))


# ------------------------------------------------------------------------------- refusals, bundle


@pytest.mark.parametrize("kind", ["multi-binary", "nested"])
def test_a_space_that_unity_does_not_have_is_refused(kind):
    with pytest.raises(UserError, match="MultiBinary, which no Unity behaviour has"):
        to_unity(read_policy(make_policy(kind)))


def test_opsets_that_unity_does_not_take_are_refused():
    with pytest.raises(UserError, match="opset 18 is not for Unity: choose from 9 to 15"):
        to_unity(read_policy(make_policy("clipped")), 18)


def test_it_travels_in_a_bundle_and_is_verified(tmp_path):
    path = make_bundle(tmp_path / "hop.rlpolicy", ("unity",))
    check = next(check for check in verify(path) if check.name == "unity")
    assert check.passed and not check.skipped and (check.error or 1.0) <= 1e-5
    files = members(path)
    (entry,) = [e for e in manifest_of(files)["artefacts"] if e["format"] == "unity"]
    assert entry["files"] == [UNITY] and entry["opset"] == OPSET
    assert failures(files[UNITY], Behavior(((26,),), 3)) == []
    other = to_unity(make_graph(seed=5)).SerializeToString()
    forged = pack(tmp_path / "b.rlpolicy", sealed({**files, UNITY: other}, manifest_of(files)))
    check = next(check for check in verify(forged) if check.name == "unity")
    assert not check.passed and (check.error or 0.0) > 1e-5
    hidden = {**files, "extras/unity/a.onnx": files[UNITY], UNITY: other}
    manifest = manifest_of(files)
    manifest["artefacts"][-1]["files"] = ["extras/unity/a.onnx", UNITY]
    forged = pack(tmp_path / "d.rlpolicy", sealed(hidden, manifest))
    assert not next(check for check in verify(forged) if check.name == "unity").passed
    hostile = onnx.load_from_string(other)
    hostile.graph.node[0].domain = "com.microsoft"
    files[UNITY] = hostile.SerializeToString()
    forged = pack(tmp_path / "c.rlpolicy", sealed(files, manifest_of(files)))
    with pytest.raises(BundleError, match=r"com\.microsoft"):
        verify(forged)


def test_the_numpy_reference_agrees():
    policy, obs = hybrid()
    graph = read_policy(policy, masked=False)
    inputs = {key: value.numpy() for key, value in obs.items()}
    told = run_unity(to_unity(graph).SerializeToString(), graph, inputs)
    wanted = to_world(graph, run(graph, inputs))
    for key in told:
        np.testing.assert_allclose(told[key], wanted[key], atol=1e-5)
