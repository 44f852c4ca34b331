"""Policies that another trainer might have written, as ONNX files made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

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


DENSE = {"w": numbers(5, 3), "b": numbers(3)}
GEMM = [("Gemm", ("obs", "w", "b"), ("out",), {})]
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
