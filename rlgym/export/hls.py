"""A small network as an hls4ml project: C++ for FPGAs, whose simulation is run here.

Only the inner network is on the FPGA, in fixed-point numbers: what comes before its first layer
(the normaliser) and after its last one (bounds, squash, choice) stays with whoever feeds it, in
floats, as `policy.npz` has them. Synthesis needs the vendor's tools (Vitis HLS) and was not done.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlgym.deploy import graph as g
from rlgym.deploy.graph import Graph, Op, Port
from rlgym.deploy.reference import run
from rlgym.errors import MissingExtraError, UserError

try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import hls4ml  # pyright: ignore[reportMissingImports]
except ImportError:
    raise MissingExtraError('hls4ml is missing: pip install "rlgym-lab[fpga]"') from None

PRECISION = "ap_fixed<24,8>"
"""Of weights and values: within +-128, in steps of 0.000015."""
TABLE = 8192
"""Entries of the table that an activation is looked up in, over [-4, 4) or so; with hls4ml's own
1024 its steps are the largest error by far."""
TOLERANCE = 1e-2
"""Largest error of these numbers, as a share of the action's range."""
LARGEST = 1 << 16
"""Parameters; more do not fit the FPGAs that a robot carries, and compile for hours."""
REUSE = 64
"""Products that one multiplier does one after the other."""
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


class HLS:
    """A project in a folder, and its simulation.

    Args:
        graph: what `read_policy` gave.
        folder: an empty one, which must outlive this.

    Raises:
        UserError: the policy is not a plain, small network of layers that hls4ml has.
    """

    def __init__(self, graph: Graph, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.head, self.layers, self.tail = _split(graph)
        self.entry, self.exit = self.layers[0].inputs[0], self.layers[-1].output
        network = _network(self.layers)
        width = next(op.weight.shape[1] for op in self.layers if isinstance(op, g.Dense))
        with _quiet():
            settings = hls4ml.utils.config_from_pytorch_model(
                network,
                (width,),
                granularity="name",
                backend="Vitis",
                default_precision=PRECISION,
                default_reuse_factor=REUSE,
            )
            settings["Model"]["Strategy"] = "Resource"
            for layer in settings["LayerName"].values():
                if "TableSize" in layer:
                    layer["TableSize"] = TABLE
            self._model: Any = hls4ml.converters.convert_from_pytorch_model(
                network,
                output_dir=str(folder),
                project_name="policy",
                backend="Vitis",
                hls_config=settings,
            )
            self._model.write()

    def archive(self) -> bytes:
        """The project as a .tar.gz, the same bytes each time."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and path.suffix in _SOURCES:
                    name = f"policy_hls/{path.relative_to(self.folder).as_posix()}"
                    entry = tarfile.TarInfo(name)
                    entry.size = path.stat().st_size
                    archive.addfile(entry, io.BytesIO(path.read_bytes()))
        return gzip.compress(packed.getvalue(), mtime=0)

    def simulate(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs with the network in fixed point: compiled here, in a minute or more.

        Args:
            inputs: (B, *shape) by the graph's names.
        """
        middle = Port(self.entry, (), "float32")
        fed = run(replace(self.graph, ops=self.head, outputs=(middle,)), inputs)[self.entry]
        with _quiet():
            self._model.compile()
            found = self._model.predict(np.ascontiguousarray(fed, np.float32))
        rest = replace(self.graph, inputs=(Port(self.exit, (), "float32"),), ops=self.tail)
        return run(rest, {self.exit: np.asarray(found, np.float32).reshape(len(fed), -1)})


_SOURCES = {".cpp", ".h", ".txt", ".tcl", ".yml", ".prj", ".sh", ".dat"}


def _split(graph: Graph) -> tuple[tuple[Op, ...], tuple[Op, ...], tuple[Op, ...]]:
    """What comes before the layers, the layers, and what comes after them."""
    dense = [k for k, op in enumerate(graph.ops) if isinstance(op, g.Dense)]
    if not graph.is_mlp or graph.state_size or not dense:
        raise UserError("hls4ml holds plain networks that see one vector: use onnx or c")
    if graph.num_parameters > LARGEST:
        raise UserError(
            f"the network has {graph.num_parameters} parameters, an FPGA holds up to {LARGEST}: "
            "train a smaller one (--network.hidden 64 64), or use c"
        )
    layers = graph.ops[dense[0] : dense[-1] + 1]
    for op in layers:
        kind = getattr(op, "kind", "")
        if isinstance(op, g.Dense) or kind in _ACTIVATIONS:
            continue
        raise UserError(
            f"hls4ml has no {kind or type(op).__name__} layer: train with "
            f"--network.activation {' or '.join(_ACTIVATIONS)}, without layer norm"
        )
    return graph.ops[: dense[0]], layers, graph.ops[dense[-1] + 1 :]


def _network(layers: tuple[Op, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for op in layers:
        if isinstance(op, g.Dense):
            layer = nn.Linear(op.weight.shape[1], op.weight.shape[0])
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(op.weight))
                layer.bias.copy_(torch.from_numpy(op.bias))
            modules.append(layer)
        else:
            assert isinstance(op, g.Activation)
            modules.append(_ACTIVATIONS[op.kind]())
    return nn.Sequential(*modules).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what hls4ml says of each layer."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def write_hls(graph: Graph, golden: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, Any]]:
    """Write a project and simulate it.

    Args:
        graph: what `read_policy` gave.
        golden: (B, *shape) inputs by the graph's names.

    Returns:
        The project as a .tar.gz, and what the simulation gives for `golden`.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = HLS(graph, Path(folder))
        return project.archive(), project.simulate(golden)
