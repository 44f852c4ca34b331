"""A graph as an ExecuTorch program (.pte), for phones and boards without Python.

It takes one observation at a time. Layers run in XNNPACK where it takes the whole policy, else in
ExecuTorch's portable kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlgym.deploy.graph import Graph
from rlgym.errors import MissingExtraError
from rlgym.export.pt2 import tensors_of, to_program

# pyright: reportMissingImports=false
try:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
except ImportError:
    raise MissingExtraError('ExecuTorch is missing: pip install "rlgym-lab[executorch]"') from None


def to_executorch(graph: Graph) -> tuple[bytes, str]:
    """Return the program, and what runs its layers: "xnnpack" or "portable"."""
    try:
        return _lower(graph, [XnnpackPartitioner()]), "xnnpack"
    except RuntimeError:  # such as an input that is an output, too
        return _lower(graph, []), "portable"


def _lower(graph: Graph, partitioners: list[Any]) -> bytes:
    program = to_program(graph, one=True)
    lowered: Any = to_edge_transform_and_lower(program, partitioner=partitioners)
    return bytes(lowered.to_executorch().buffer)


def run_executorch(
    data: bytes, graph: Graph, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run a program of ours row by row; ExecuTorch trusts its files, so never a stranger's.

    Args:
        data: what `to_executorch` gave.
        graph: that it was written from.
        inputs: (B, *shape) by the graph's names.
    """
    program: Any = portable_lib._load_for_executorch_from_buffer(data)
    whole = tensors_of(graph, inputs)
    rows = []
    for k in range(len(whole[0])):
        found = program.forward([part[k : k + 1].contiguous() for part in whole])
        rows.append([value.clone() for value in found])  # the next row overwrites them
    columns = zip(graph.outputs, zip(*rows, strict=True), strict=True)
    return {port.name: torch.cat(values).numpy() for port, values in columns}
