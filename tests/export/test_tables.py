"""Every table of operations names the same ones: an operation that one format forgets is seen."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from rlgym.deploy import graph as g
from rlgym.deploy import graph_check, graph_file, reference
from rlgym.export import c99, onnx, pt2

EVERY = {
    kind
    for _, kind in inspect.getmembers(g, inspect.isclass)
    if issubclass(kind, g.Op) and kind is not g.Op
}
MANY = {g.OneHot, g.Concat, g.Image, g.Conv, g.GRU, g.LSTM}
"""Not in a plain network of one vector, which is all that LiteRT's writer holds."""
TABLES = {
    "a file's": (set(graph_file.OPS.values()), set()),
    "sizes": (set(graph_check._GIVES), set()),
    "numpy": (set(reference._COMPUTE), set()),
    "onnx": (set(onnx._WRITE), set()),
    "torch": (set(pt2._COMPUTE), set()),
    "c": (set(c99._EMIT), {g.Image, g.Conv}),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_every_operation(name: str) -> None:
    found, left_out = TABLES[name]
    assert found == EVERY - left_out


def test_litert_names_all_of_a_plain_network() -> None:
    pytest.importorskip("ai_edge_litert")
    from rlgym.export import tflite

    assert set(tflite._WRITE) == EVERY - MANY
    for kind in EVERY:
        fields = [item.name for item in dataclasses.fields(kind)]
        op = kind(**dict.fromkeys(fields, ()))
        graph = g.Graph((g.Port("obs", (3,), "float32"),), (op,), (), ())
        assert graph.is_mlp == (kind not in MANY), kind


def test_names_in_files_are_the_classes_own() -> None:
    assert {name: kind.__name__ for name, kind in graph_file.OPS.items()} == {
        kind.__name__: kind.__name__ for kind in EVERY
    }


def test_every_operation_is_in_some_policy_of_the_tests() -> None:
    from rlgym.export.read import read_policy
    from tests.export.policies import KINDS, make_policy

    seen = {type(op) for kind in KINDS for op in read_policy(make_policy(kind)).ops}
    assert EVERY - {g.LayerNorm} <= seen  # made by hand in test_tflite
