"""A graph as OpenVINO's own files (.xml, .bin), for Intel's processors, graphics and NPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.graph import Graph
from rlgym.errors import MissingExtraError
from rlgym.export.onnx import to_onnx

try:
    import openvino
except ImportError:
    raise MissingExtraError('OpenVINO is missing: pip install "rlgym-lab[openvino]"') from None

NAMES = ("policy.xml", "policy.bin")
"""Of the network and of its weights; OpenVINO finds the second by the first."""


def to_openvino(graph: Graph) -> tuple[bytes, bytes]:
    """Return the network and its weights in float32; names and free batch axis are the ONNX's."""
    model = openvino.Core().read_model(to_onnx(graph).SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in NAMES]
        openvino.save_model(model, paths[0], compress_to_fp16=False)
        network, weights = (path.read_bytes() for path in paths)
    return network, weights


class OpenVINO:
    """Files of ours in OpenVINO, on the processor.

    Args:
        network: the .xml; OpenVINO trusts what it reads, so never a stranger's.
        weights: the .bin.
        graph: that they were written from.
    """

    def __init__(self, network: bytes, weights: bytes, graph: Graph) -> None:
        core = openvino.Core()
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would take bfloat16
        self._model: Any = core.compile_model(core.read_model(network, weights), "CPU", exact)
        # one port may have several names: an input has those of what follows without a change
        self._inputs = [(port, _known(port, graph.inputs)) for port in self._model.inputs]
        self._outputs = [(port, _known(port, graph.outputs)) for port in self._model.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs, (B, *shape), for (B, *shape) inputs by the graph's names."""
        found = self._model({port: inputs[name] for port, name in self._inputs})
        return {name: np.array(found[port]) for port, name in self._outputs}


def _known(port: Any, ports: Any) -> str:
    return next(one.name for one in ports if one.name in port.get_names())
