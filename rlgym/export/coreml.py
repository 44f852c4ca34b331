"""A graph as a Core ML program (.mlpackage) for Apple's devices: written here, run only there."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from rlgym.deploy.graph import Graph
from rlgym.errors import MissingExtraError, UserError
from rlgym.export.pt2 import to_program

try:
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it misses Apple's own libraries
    import coremltools  # pyright: ignore[reportMissingImports]
except ImportError:
    raise MissingExtraError('Core ML needs coremltools: pip install "rlgym-lab[coreml]"') from None

PACKAGE = "policy.mlpackage"
"""A folder, as Xcode takes it."""


def to_coreml(graph: Graph) -> dict[str, bytes]:
    """Return the package's files, by path inside of it; float32, one observation at a time.

    Raises:
        UserError: the policy sees images or whole numbers in bytes, which coremltools cannot take.
    """
    odd = [f"'{port.name}' ({port.dtype})" for port in graph.inputs if port.dtype not in _TYPES]
    if odd:
        raise UserError(
            f"Core ML takes inputs of {', '.join(_TYPES)}, not {', '.join(odd)}: use onnx"
        )
    program = to_program(graph, one=True).run_decompositions({})
    for node in list(program.graph.nodes):  # the converter does not know what changes nothing
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model: Any = coremltools.convert(
            program,
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS16,
        )
        package = Path(folder, PACKAGE)
        _named(model, graph).save(str(package))
        files = sorted(path for path in package.rglob("*") if path.is_file())
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


_TYPES = ("float32", "int32")
_RESERVED = {"state"}


def _named(model: Any, graph: Graph) -> Any:
    """The model with the graph's names, where the converter has those of torch's operations."""
    spec = model.get_spec()
    ports = [*zip(list(spec.description.input), graph.inputs, strict=True)]
    ports += zip(list(spec.description.output), graph.outputs, strict=True)
    for entry, port in ports:
        if entry.name != (name := feature_name(port.name)):
            coremltools.utils.rename_feature(spec, entry.name, name)
    return coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def feature_name(name: str) -> str:
    """A graph's name as Core ML takes it: an identifier, and none of its own words."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"policy_{plain}" if plain in _RESERVED else plain


def read_spec(files: dict[str, bytes]) -> Any:
    """The description of a package that `to_coreml` gave."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, PACKAGE)
        for name, data in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_bytes(data)
        return coremltools.utils.load_spec(str(package))
