"""A graph comes out of its file as it went in, and sizes are followed through it."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from rlgym.deploy import graph as g
from rlgym.deploy.arrays import read_arrays
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Graph, Port
from rlgym.deploy.graph_check import check_graph
from rlgym.deploy.graph_file import dump_graph, load_graph
from rlgym.deploy.onnx_check import OPERATORS, check_onnx
from rlgym.deploy.reference import run
from rlgym.deploy.schema import fault_of, manifest_schema
from rlgym.export.onnx import to_onnx
from rlgym.export.read import read_policy
from tests.export.bundles import make_graph
from tests.export.policies import KINDS, make_policy, observations
from tests.export.test_graph import arrays_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back(kind):
    graph = read_policy(make_policy(kind), masked=kind in ("discrete", "nested"))
    again = load_graph(dump_graph(graph))
    assert again.inputs == graph.inputs and again.outputs == graph.outputs
    assert [type(op) for op in again.ops] == [type(op) for op in graph.ops]
    inputs = arrays_of(graph, observations(kind, 20))
    for name, value in run(graph, inputs).items():
        assert np.array_equal(run(again, inputs)[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_followed_to_the_values_that_come_out(kind):
    graph = read_policy(make_policy(kind))
    check_graph(graph)
    last = graph.ops[-1]
    wider = replace(graph, outputs=(*graph.outputs, Port(last.output, (99_999,), "float32")))
    with pytest.raises(BundleError, match="its port says 99999"):
        check_graph(wider)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opset", [15, 18])
def test_what_we_write_as_onnx_passes_our_own_door(kind, opset):
    model = to_onnx(read_policy(make_policy(kind)), opset)
    check_onnx(model.SerializeToString(), "policy.onnx")
    assert {node.op_type for node in model.graph.node} <= OPERATORS


WRONG = {
    "a layer of another width": (
        lambda ops: [
            replace(ops[2], weight=np.zeros((8, 25), np.float32)) if i == 2 else op
            for i, op in enumerate(ops)
        ],
        r"an array must be \[None, 26\], is \[8, 25\]",
    ),
    "a bias too short": (
        lambda ops: [*ops[:2], replace(ops[2], bias=np.zeros(7, np.float32)), *ops[3:]],
        r"must be \[8\], is \[7\]",
    ),
    "a clip of nothing": (
        lambda ops: [ops[0], replace(ops[1], clip=0.0), *ops[2:]],
        r"its clip is 0\.0",
    ),
    "a clip of text": (
        lambda ops: [ops[0], replace(ops[1], clip="8"), *ops[2:]],
        "its clip is '8'",
    ),
    "columns that are not there": (
        lambda ops: [*ops[:4], g.Slice("part", ("tanh",), 4, 9), *ops[4:]],
        "columns 4 to 9 of 8",
    ),
    "columns backwards": (
        lambda ops: [*ops[:4], g.Slice("part", ("tanh",), 4, 4), *ops[4:]],
        "columns 4 to 4 of 8",
    ),
    "choices without logits": (
        lambda ops: [*ops, g.Choose("choice", ("mean",), (2, 2), (0, 0))],
        "3 logits for 4 choices",
    ),
    "no choices": (
        lambda ops: [*ops, g.Choose("choice", ("mean",), (3, 0), (0, 0))],
        "a component has no choices",
    ),
    "a choice of halves": (
        lambda ops: [*ops, g.Choose("choice", ("mean",), (1.5, 1.5), (0, 0))],
        "whole numbers",
    ),
    "a mask of another size": (
        lambda ops: [*ops, g.Choose("choice", ("mean", "tanh"), (3,), (0,))],
        "the mask does not have 3 values",
    ),
    "a picture of a row": (
        lambda ops: [*ops, g.Image("picture", ("obs",), True)],
        "it takes pictures",
    ),
    "two inputs too many": (
        lambda ops: [replace(ops[0], inputs=("obs", "obs", "obs")), *ops[1:]],
        "cannot be computed",
    ),
    "a state of another size": (
        lambda ops: [
            *ops,
            g.GRU(
                "next",
                ("tanh", "mean"),
                *(np.zeros((9, 8), np.float32),) * 2,
                *(np.zeros(9, np.float32),) * 2,
            ),
        ],
        "an array must be",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_computed_is_refused(name):
    change, words = WRONG[name]
    graph = make_graph()
    with pytest.raises(BundleError, match=words) as caught:
        check_graph(replace(graph, ops=tuple(change(list(graph.ops)))))
    assert "\n" not in str(caught.value)


def test_a_padding_of_a_billion():
    x = Port("obs", (3, 8, 8), "uint8")
    weight, bias = np.zeros((2, 3, 3, 3), np.float32), np.zeros(2, np.float32)
    ops = (
        g.Image("x", ("obs",), False),
        g.Conv("planes", ("x",), weight, bias, 1, 10**9),
        g.Flatten("flat", ("planes",)),
    )
    with pytest.raises(BundleError, match="padding 1000000000"):
        check_graph(Graph((x,), ops, (Port("flat", (72,), "float32"),), make_graph().actions))


def pictures(size, *ops, planes=1):
    """A graph of square pictures, whose "flat" is 3 values."""
    x = Port("obs", (planes, size, size), "uint8")
    flat = g.Slice("flat", ("row",), 0, 3)
    action = replace(make_graph().actions[0], output="flat")
    ops = (g.Image("x", ("obs",), False), *ops, flat)
    return Graph((x,), ops, (Port("flat", (3,), "float32"),), (action,))


@pytest.mark.parametrize(
    ("planes", "size", "kernel", "padding"), [(1, 1024, 64, 0), (50_000, 1, 1, 64)]
)
def test_what_a_convolution_holds_meanwhile_counts(planes, size, kernel, padding):
    """Windows of a picture, and its padding: gigabytes of some kilobytes."""
    weight, bias = np.zeros((1, planes, kernel, kernel), np.float32), np.zeros(1, np.float32)
    conv = g.Conv("planes", ("x",), weight, bias, 1 + padding, padding)
    graph = pictures(size, conv, g.Flatten("row", ("planes",)), planes=planes)
    with pytest.raises(BundleError, match="numbers at once for 1 observations, and 268,435,456"):
        check_graph(graph)


def test_what_is_held_at_once_counts_and_what_is_done_does_not():
    rows = [g.Flatten("r0", ("x",))]
    rows += [g.Activation(f"r{i + 1}", (f"r{i}",), "tanh") for i in range(400)]
    check_graph(pictures(1000, *rows, g.Activation("row", ("r400",), "tanh")))
    firsts = [g.Slice(f"f{i}", (f"r{i}",), 0, 1) for i in range(400)]  # so all are needed at last
    with pytest.raises(BundleError, match="numbers at once"):
        check_graph(
            pictures(1000, *rows, *firsts, g.Concat("row", tuple(f"f{i}" for i in range(400))))
        )


def test_rows_count():
    check_graph(make_graph(), 1_000_000)
    with pytest.raises(BundleError, match=r"for 10,?000,?000 observations.*fewer steps"):
        check_graph(make_graph(), 10_000_000)


def test_nothing_is_kept_that_is_done():
    """Memory of a chain is that of a few of its links."""
    rows = [g.Flatten("r0", ("x",))]
    rows += [g.Activation(f"r{i + 1}", (f"r{i}",), "tanh") for i in range(50)]
    graph = pictures(500, *rows, g.Activation("row", ("r50",), "tanh"))
    tracemalloc.start()
    try:
        run(graph, {"obs": np.zeros((1, 1, 500, 500), np.uint8)})
        assert tracemalloc.get_traced_memory()[1] < 10 << 20  # a link has 1 MB
    finally:
        tracemalloc.stop()


def test_actions_must_be_there():
    graph = make_graph()
    for change, words in (
        ({"output": "gone"}, "never gives"),
        ({"kind": "exec"}, "kind 'exec'"),
        ({"shape": (4,)}, r"the shape \[4\]"),
        ({"low": np.zeros(2, np.float32)}, "'low' of 'action' is not 3 numbers"),
        ({"scale": np.full(3, np.nan, np.float32)}, "is not a number somewhere"),
    ):
        with pytest.raises(BundleError, match=words):
            check_graph(replace(graph, actions=(replace(graph.actions[0], **change),)))


def test_a_file_of_arrays_says_its_name():
    with pytest.raises(BundleError, match=r"motion\.npz holds no plain arrays \(no zip"):
        read_arrays(b"x" * 99, "motion.npz")


# ----- The schema's checker -----------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 3},
        "b": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1, "maxItems": 2},
        "c": {"anyOf": [{"type": "null"}, {"enum": ["x", "y"]}]},
        "d": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4},
        "e": {"type": "number", "exclusiveMinimum": 0},
        "f": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
        "g": {"type": "object", "properties": {"h": {}}, "additionalProperties": False},
        "i": {"const": 1},
    },
    "$defs": {"b": {"type": "string"}},
}
VALUES = [
    ({"a": 1, "b": ["x"], "c": None, "d": "abc", "e": 0.1, "f": {"x": True}, "g": {"h": 1}}, ""),
    ([], "it: must be object, is []"),
    ({}, "it: lacks a"),
    ({"a": 0}, "a: is 0, must be at least 1"),
    ({"a": 4}, "a: is 4, must be at most 3"),
    ({"a": 1.5}, "a: must be integer, is 1.5"),
    ({"a": True}, "a: must be integer, is True"),
    ({"a": 1, "b": []}, "b: has 0 entries, needs 1"),
    ({"a": 1, "b": ["x", 2]}, "b[1]: must be string, is 2"),
    ({"a": 1, "b": ["x"] * 3}, "b: has 3 entries, 2 are allowed"),
    ({"a": 1, "c": "z"}, "c: must be one of x, y"),
    ({"a": 1, "d": "ab\n"}, "d: 'ab\\n' is not allowed"),
    ({"a": 1, "d": "abcde"}, "d: has 5 letters, 4 are allowed"),
    ({"a": 1, "e": 0}, "e: is 0, must be above 0"),
    ({"a": 1, "e": float("inf")}, "e: must be number, is inf"),
    ({"a": 1, "f": {"x": 1}}, "f.x: must be boolean, is 1"),
    ({"a": 1, "f": dict.fromkeys("xyz", True)}, "f: has 3 entries, 2 are allowed"),
    ({"a": 1, "g": {"k": 1}}, "g: has the unknown entry 'k'"),
    ({"a": 1, "i": 1.0}, "i: must be 1, is 1.0"),
    ({"a": 1, "i": True}, "i: must be 1, is True"),
]


@pytest.mark.parametrize(("value", "said"), VALUES)
def test_the_checker_says_where_and_what(value, said):
    assert fault_of(value, SCHEMA) == said


def test_the_checker_agrees_with_the_library():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for value, said in VALUES:
        # ours is stricter in three places: line feeds, 1.0 for 1, and infinity
        if said and not ("\\n" in said or "1.0" in said or "inf" in said):
            assert list(validator.iter_errors(value)), value
        if not said:
            assert not list(validator.iter_errors(value))


def test_the_schema_uses_no_word_that_the_checker_does_not_know():
    words = {"type": "object", "properties": {"a": {"format": "uri"}}}
    with pytest.raises(KeyError):
        fault_of({"a": "x"}, words)
    text = json.dumps(manifest_schema())
    for word in (
        "oneOf",
        "allOf",
        '"if"',
        "patternProperties",
        "prefixItems",
        '"not"',
        "uniqueItems",
    ):
        assert word not in text


def test_reading_a_bundle_needs_neither_torch_nor_onnx():
    """What a robot imports: numpy, and nothing of the rest of rlgym."""
    code = (
        "import sys\n"
        "for name in ('torch', 'gymnasium', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "import rlgym.deploy.policy\n"
        "wrong = {n.split('.')[1] for n in sys.modules if n.startswith('rlgym.')} - {'deploy'}\n"
        "print(sorted(wrong))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
