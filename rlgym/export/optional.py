"""Artefacts of formats that need a package of their own, or somebody else's tools to be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from rlgym.deploy.graph import Graph
from rlgym.deploy.policy import error_of
from rlgym.export import recipes
from rlgym.export.bundle import Artefact, here
from rlgym.export.golden import TOLERANCE, Golden

Description = Mapping[str, Any]


def _openvino(graph: Graph, golden: Golden, _: Description) -> Artefact:
    from rlgym.export.openvino import NAMES, OpenVINO, to_openvino

    network, weights = to_openvino(graph)
    found = OpenVINO(network, weights, graph).run(golden.inputs)
    files = dict(
        zip((f"extras/openvino/{name}" for name in NAMES), (network, weights), strict=True)
    )
    where = f"{here()}, openvino {version('openvino')}"
    return Artefact("openvino", files, error_of(graph, found, golden.world), TOLERANCE, where)


def _coreml(graph: Graph, _: Golden, __: Description) -> Artefact:
    from rlgym.export.coreml import PACKAGE, to_coreml

    files = {f"extras/{PACKAGE}/{name}": data for name, data in to_coreml(graph).items()}
    where = f"not executed: converted by coremltools {version('coremltools')}, runs on Apple only"
    return Artefact("coreml", files, None, TOLERANCE, where)


def _executorch(graph: Graph, golden: Golden, _: Description) -> Artefact:
    from rlgym.export.executorch import run_executorch, to_executorch

    data, backend = to_executorch(graph)
    error = error_of(graph, run_executorch(data, graph, golden.inputs), golden.world)
    where = f"{here()}, executorch {version('executorch')}, {backend}"
    return Artefact("executorch", {"extras/policy.pte": data}, error, TOLERANCE, where)


def _aoti(graph: Graph, golden: Golden, _: Description) -> Artefact:
    from rlgym.export.aoti import run_aoti, to_aoti

    data = to_aoti(graph)
    error = error_of(graph, run_aoti(data, graph, golden.inputs), golden.world)
    where = f"{here()}, torch {version('torch')}"
    return Artefact("aoti", {"extras/policy_aoti.pt2": data}, error, TOLERANCE, where)


def _hls4ml(graph: Graph, golden: Golden, _: Description) -> Artefact:
    from rlgym.export import hls

    data, found = hls.write_hls(graph, golden.inputs)
    error = error_of(graph, found, golden.world)
    where = f"{here()}, C simulation of hls4ml {version('hls4ml')}; not synthesized"
    files = {"extras/hls4ml/project.tar.gz": data}
    about = {"precision": hls.PRECISION}
    return Artefact("hls4ml", files, error, hls.TOLERANCE, where, about)


def _recipe(
    graph: Graph,
    golden: Golden,
    description: Description,
    name: str,
    write: Callable[[Graph, Golden, Description], dict[str, bytes]],
) -> Artefact:
    found = write(graph, golden, description)
    files = {f"extras/{name}/{file}": data for file, data in found.items()}
    return Artefact(
        name, files, None, TOLERANCE, "not executed: a recipe for somebody else's tools"
    )


WRITERS: dict[str, Callable[[Graph, Golden, Description], Artefact]] = {
    "openvino": _openvino,
    "coreml": _coreml,
    "executorch": _executorch,
    "aoti": _aoti,
    "hls4ml": _hls4ml,
}
RECIPES: dict[str, Callable[[Graph, Golden, Description], dict[str, bytes]]] = {
    "tensorrt": recipes.tensorrt,
    "edgetpu": recipes.edgetpu,
    "greengrass": recipes.greengrass,
    "sagemaker": recipes.sagemaker,
}


def write(graph: Graph, golden: Golden, description: Description, name: str) -> Artefact:
    """Make an artefact.

    Args:
        graph: what `read_policy` gave.
        golden: recorded pairs.
        description: the manifest's sections.
        name: of `WRITERS` or `RECIPES`.

    Raises:
        MissingExtraError: its package is not installed.
        UserError: it cannot hold the policy.
    """
    if name in RECIPES:
        return _recipe(graph, golden, description, name, RECIPES[name])
    return WRITERS[name](graph, golden, description)
