"""ONNX files that a stranger put into a bundle: little that would make much is told at once."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.export.bundles import make_bundle, members, pack
from tests.security.test_bundles import NODE, SHORT, onnx_model, refused


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of a sound bundle."""
    return members(make_bundle(tmp_path_factory.mktemp("good") / "good.rlpolicy"))


def doubled(first, times, kind, *inputs):
    """Put a value beside itself again and again, and give what `kind` makes of "it"."""
    names = [first, *(f"twice{i}" for i in range(times)), "it"]
    nodes = [NODE("Concat", [a, a], [b], axis=-1) for a, b in pairwise(names)]
    return [*nodes, NODE(kind, inputs, ["action"])]


def whole(name, values):
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def sparse(size):
    values, at = numpy_helper.from_array(np.ones(1, np.float32), "v"), whole("i", [0])
    return NODE("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, at, [size]))


SHAPES = "makes shapes of more than 8,388,608 numbers"
MODELS = {
    "its input doubled": (onnx_model(*doubled("obs", 25, "Tanh", "it")), SHAPES),
    "a constant doubled": (
        onnx_model(*doubled("w", 25, "MatMul", "obs", "it"), constants=[SHORT]),
        SHAPES,
    ),
    "a shape doubled": (
        onnx_model(*doubled("s", 20, "Reshape", "obs", "it"), constants=[whole("s", [1])]),
        SHAPES,
    ),
    "many axes": (
        onnx_model(
            NODE("Reshape", ["obs", "s"], ["t0"]),
            *(NODE("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(2000)),
            NODE("Tanh", ["t2000"], ["action"]),
            constants=[whole("s", np.ones(1000))],
        ),
        SHAPES,
    ),
    "another shape": (
        onnx_model(NODE("Tanh", ["obs"], ["action"])),
        "gives 'action' as [40, 26], not [40, 3]",
    ),
    "its own shape": (
        onnx_model(NODE("Shape", ["obs"], ["s"]), NODE("Reshape", ["obs", "s"], ["action"])),
        "the operator 'Shape'",
    ),
    "a sparse gigabyte": (
        onnx_model(sparse(1 << 28), NODE("Sub", ["obs", "c"], ["action"])),
        "sparse weights",
    ),
    "out of order": (
        onnx_model(
            NODE("Tanh", ["t"], ["action"]), NODE("MatMul", ["obs", "w"], ["t"]), constants=[SHORT]
        ),
        "reads 't' before anything gives it",
    ),
    "an outer product": (
        onnx_model(
            NODE("Reshape", ["obs", "a"], ["x"]),
            NODE("Reshape", ["obs", "b"], ["y"]),
            NODE("Mul", ["x", "y"], ["xy"]),
            NODE("Mul", ["xy", "c"], ["xyc"]),  # 2.4 GB
            NODE("ReduceMax", ["xyc"], ["most"], keepdims=0),
            NODE("MatMul", ["obs", "w"], ["none"]),
            NODE("Mul", ["none", "most"], ["action"]),
            constants=[
                *(SHORT, whole("a", [-1, 1, 1]), whole("b", [1, -1, 1])),
                numpy_helper.from_array(np.ones((1, 1, 550), np.float32), "c"),
            ],
        ),
        "cannot be computed",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name, good, tmp_path):
    build, words = MODELS[name]
    said = refused(pack(tmp_path / "bad.rlpolicy", build(good)))
    assert words in said
