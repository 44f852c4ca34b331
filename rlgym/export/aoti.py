"""A graph compiled by torch's AOTInductor: a .pt2 package with machine code, for this processor.

It is run from Python, or from C++ without it (`torch::inductor::AOTIModelPackageLoader`, linked
with libtorch). It takes one observation at a time, and holds only for processors with the
instructions of the one that compiled it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import _inductor as inductor

from rlgym.deploy.graph import Graph
from rlgym.errors import UserError
from rlgym.export.pt2 import tensors_of, to_program


def to_aoti(graph: Graph) -> bytes:
    """Compile a graph for a batch of one; takes a minute.

    Raises:
        UserError: there is no C++ compiler.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UserError("AOTInductor needs a C++ compiler: install g++, or leave aoti out of --to")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "policy.pt2"))
        inductor.aoti_compile_and_package(to_program(graph, one=True), package_path=path)
        return Path(path).read_bytes()


def run_aoti(data: bytes, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Load a package of ours and run it row by row; it is machine code, so never a stranger's.

    Args:
        data: what `to_aoti` gave.
        graph: that it was compiled from.
        inputs: (B, *shape) by the graph's names.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.pt2")
        path.write_bytes(data)
        program = inductor.aoti_load_package(str(path))
        whole = tensors_of(graph, inputs)
        rows = [program(*(part[k : k + 1] for part in whole)) for k in range(len(whole[0]))]
    columns = zip(graph.outputs, zip(*rows, strict=True), strict=True)
    return {port.name: torch.cat(values).numpy() for port, values in columns}
