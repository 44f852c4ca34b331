"""A bundle's artefacts, each opened once to decide again and again: for errors and for timing.

`verify` opens and forgets; what is timed has to stay open. The same trust is asked for: what is
compiled, or loaded by a library that trusts its files, is left alone without it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.graph import STATE, Graph
from rlgym.deploy.policy import load_onnx, run_onnx
from rlgym.deploy.reference import run as run_graph
from rlgym.errors import MissingExtraError, UserError
from rlgym.export.c99 import pack_inputs
from rlgym.export.verify import Case

Arrays = dict[str, np.ndarray]
_FLOATS = ctypes.POINTER(ctypes.c_float)


@dataclass(frozen=True)
class Runner:
    """One artefact, open."""

    name: str
    """Of its format, and its opset where there are several."""
    where: str
    """What runs it."""
    run: Callable[[Arrays], Arrays]
    """(B, *shape) inputs by the graph's names to outputs, of which those of actions are there."""
    bind: Callable[[Arrays], Callable[[], Any]]
    """One row of inputs to a call that decides on it and does nothing else."""


@dataclass(frozen=True)
class Skipped:
    """An artefact that was left alone."""

    name: str
    reason: str


def open_artefacts(case: Case, folder: Path) -> Iterator[Runner | Skipped]:
    """Open the artefacts of a bundle, one after the other.

    Args:
        case: the bundle, its policy in numpy and its golden pairs; `case.trust` as for `verify`.
        folder: an empty one, where C is compiled; it must outlive the runners.
    """
    for entry in case.bundle.manifest["artefacts"]:
        name = entry["format"]
        if name not in RUNNERS:
            yield Skipped(name, "not timed: it runs elsewhere")
            continue
        opened, needs_trust = RUNNERS[name]
        if needs_trust and not case.trust:
            yield Skipped(name, "not run: add --trust if you know who made it")
            continue
        try:
            yield from opened(case, entry, folder)
        except MissingExtraError as error:
            yield Skipped(name, str(error))


def _numpy(case: Case, _: dict[str, Any], __: Path) -> Iterator[Runner]:
    graph = case.policy.graph

    def bind(row: Arrays) -> Callable[[], Any]:
        return lambda: run_graph(graph, row)

    yield Runner("numpy", f"numpy {np.__version__}", lambda x: run_graph(graph, x), bind)


def _onnx(case: Case, entry: dict[str, Any], _: Path) -> Iterator[Runner]:
    graph = case.policy.graph
    for file in sorted(entry["files"], reverse=True):  # policy.onnx before extras/
        try:
            session = load_onnx(case.bundle, graph, file)
        except ModuleNotFoundError:
            raise MissingExtraError('needs onnxruntime: pip install "rlgym-lab[export]"') from None
        names = [port.name for port in graph.outputs]

        def bind(row: Arrays, own: Any = session, names: Any = names) -> Callable[[], Any]:
            return lambda: own.run(names, row)

        def several(inputs: Arrays, own: Any = session) -> Arrays:
            return run_onnx(own, graph, inputs)

        stem = Path(file).stem
        name = "onnx" if stem == "policy" else f"onnx, {stem.removeprefix('policy_')}"
        yield Runner(name, f"onnxruntime {version('onnxruntime')}", several, bind)


def _pt2(case: Case, entry: dict[str, Any], _: Path) -> Iterator[Runner]:
    import torch

    from rlgym.export.pt2 import load_pt2, run_program, tensors_of

    graph = case.policy.graph
    program = load_pt2(case.bundle.read(entry["files"][0]))

    def bind(row: Arrays) -> Callable[[], Any]:
        inputs = tensors_of(graph, row)

        def decide() -> Any:
            with torch.no_grad():
                return program(*inputs)

        return decide

    where = f"torch {torch.__version__}"
    yield Runner("pt2", where, lambda x: run_program(program, graph, x), bind)


def _tflite(case: Case, entry: dict[str, Any], _: Path) -> Iterator[Runner | Skipped]:
    from rlgym.export import tflite

    name, graph = entry["format"], case.policy.graph
    data = next(case.bundle.read(file) for file in entry["files"] if file.endswith(".tflite"))
    if not case.trust and data != tflite.to_tflite(graph, tflite.KINDS[name][0], case.inputs):
        yield Skipped(name, "not run, not what this version writes: add --trust")
        return
    runtime = tflite.LiteRT(data, graph)

    def bind(row: Arrays) -> Callable[[], Any]:
        packed = pack_inputs(graph, row)
        return lambda: runtime.decide(packed)

    yield Runner(name, f"ai-edge-litert {version('ai-edge-litert')}", runtime.run, bind)


def _c(case: Case, entry: dict[str, Any], folder: Path) -> Iterator[Runner | Skipped]:
    name = entry["format"]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield Skipped(name, "not run: there is no C compiler here")
        return
    own = folder / name
    own.mkdir()
    for file in entry["files"]:
        (own / Path(file).name).write_bytes(case.bundle.read(file))
    library = CLibrary(own, case.policy.graph, compiler)
    where = f"{Path(compiler).name} -O2, called through ctypes"
    yield Runner(name, where, library.run, library.bind)


def _openvino(case: Case, entry: dict[str, Any], _: Path) -> Iterator[Runner]:
    from rlgym.export.openvino import OpenVINO

    network, weights = (case.bundle.read(file) for file in sorted(entry["files"], reverse=True))
    model = OpenVINO(network, weights, case.policy.graph)

    def bind(row: Arrays) -> Callable[[], Any]:
        return lambda: model.run(row)

    yield Runner("openvino", f"openvino {version('openvino')}", model.run, bind)


def _aoti(case: Case, entry: dict[str, Any], folder: Path) -> Iterator[Runner]:
    from rlgym.export.aoti import inductor, run_aoti
    from rlgym.export.pt2 import tensors_of

    graph, data = case.policy.graph, case.bundle.read(entry["files"][0])
    path = folder / "policy_aoti.pt2"
    path.write_bytes(data)
    program = inductor.aoti_load_package(str(path))

    def bind(row: Arrays) -> Callable[[], Any]:
        inputs = tensors_of(graph, row)
        return lambda: program(*inputs)

    yield Runner("aoti", f"torch {version('torch')}", lambda x: run_aoti(data, graph, x), bind)


class CLibrary:
    """The C export as a shared library of this process.

    Args:
        folder: with policy.c and policy.h; the library is written there.
        graph: of the policy.
        compiler: a command that takes gcc's options.

    Raises:
        UserError: it does not compile.
    """

    def __init__(self, folder: Path, graph: Graph, compiler: str) -> None:
        target = folder / "policy.so"
        build = [compiler, "-std=c99", "-O2", "-shared", "-fPIC", str(folder / "policy.c")]
        done = subprocess.run([*build, "-o", str(target), "-lm"], capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.split())[:200]
            raise UserError(f"the C source does not compile with {compiler}: {said}")
        self.graph = graph
        self._library = ctypes.CDLL(str(target))
        self._step = self._library.policy_step
        self._step.argtypes = [_FLOATS, _FLOATS]
        outputs = {port.name: port for port in graph.outputs}
        self._ports = [outputs[action.output] for action in graph.actions]
        self._widths = [int(np.prod(port.shape)) for port in self._ports]

    def run(self, inputs: Arrays) -> Arrays:
        """Actions for (B, *shape) inputs: one trace, which begins anew where the state is zeros.

        Raises:
            UserError: it reports a fault.
        """
        packed = pack_inputs(self.graph, inputs)
        found = np.zeros((len(packed), sum(self._widths)), np.float32)
        for k, (row, action) in enumerate(zip(packed, found, strict=True)):
            if not self.graph.state_size or not inputs[STATE][k].any():
                self._library.policy_reset()
            status = self._step(row.ctypes.data_as(_FLOATS), action.ctypes.data_as(_FLOATS))
            if status:
                raise UserError(f"the C source answers {status} to observation {k}: export again")
        columns = np.split(found, np.cumsum(self._widths)[:-1], 1)
        ports = zip(self._ports, columns, strict=True)
        return {port.name: column.astype(port.dtype) for port, column in ports}

    def bind(self, row: Arrays) -> Callable[[], Any]:
        """A call that decides on one row; memory is carried on."""
        packed, action = pack_inputs(self.graph, row), np.zeros(sum(self._widths), np.float32)
        arguments = packed.ctypes.data_as(_FLOATS), action.ctypes.data_as(_FLOATS)
        kept = packed, action  # the pointers do not keep them

        def decide(step: Any = self._step, kept: Any = kept) -> Any:
            return step(*arguments)

        return decide


RUNNERS: dict[str, tuple[Callable[[Case, dict[str, Any], Path], Iterator[Any]], bool]] = {
    "numpy": (_numpy, False),
    "onnx": (_onnx, False),
    "pt2": (_pt2, True),
    "openvino": (_openvino, True),
    "aoti": (_aoti, True),
    "c": (_c, True),
    "c-int8": (_c, True),
    "tflite": (_tflite, False),
    "tflite-int8": (_tflite, False),
    "tflite-full-int8": (_tflite, False),
}
"""Name of a format -> what opens it, and whether that could run code out of the bundle."""
