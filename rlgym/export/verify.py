"""Verifying a bundle, also a stranger's: each artefact against the golden pairs.

What is only read and computed (numpy, ONNX of standard operators, LiteRT files that are byte for
byte what the graph gives) is checked for everyone. What is compiled, or loaded by a library that
trusts its files (C, .pt2, other LiteRT files), is left alone without `trust`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.bundle import ONNX, Bundle
from rlgym.deploy.errors import DeployError
from rlgym.deploy.graph import Graph
from rlgym.deploy.onnx_check import check_onnx
from rlgym.deploy.policy import (
    Policy,
    action_error,
    error_of,
    golden_pairs,
    load_onnx,
    run_onnx,
)
from rlgym.errors import MissingExtraError, UserError
from rlgym.export.bundle import compile_and_run
from rlgym.export.golden import TOLERANCE

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    text: str
    passed: bool
    skipped: bool = False
    error: float | None = None

    @property
    def mark(self) -> str:
        """What stands before its line."""
        return "-" if self.skipped else "ok" if self.passed else "NO"

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "passed": self.passed,
            "skipped": self.skipped,
            "error": self.error,
            "text": self.text,
        }


@dataclass(frozen=True)
class Case:
    """A bundle with all that its artefacts are held against."""

    bundle: Bundle
    policy: Policy
    """In numpy."""
    inputs: Arrays
    """Golden ones, by the graph's names."""
    world: Arrays
    """The trainer's actions, by key."""
    trust: bool = False

    def compare(self, name: str, outputs: Arrays, tolerance: float, where: str = "") -> Check:
        """Hold outputs against the trainer's actions."""
        return self.judge(name, error_of(self.policy.graph, outputs, self.world), tolerance, where)

    def judge(self, name: str, error: float, tolerance: float, where: str = "") -> Check:
        """Say whether an error is one that is allowed."""
        pairs = len(next(iter(self.inputs.values())))
        text = f"{pairs} golden pairs, largest error {error:.1e} of the range{where}"
        if not error <= tolerance:
            text += f", {tolerance:g} is allowed"
        return Check(name, text, error <= tolerance, error=error)


def verify(path: str | Path, trust: bool = False) -> list[Check]:
    """Check files, hashes, and every artefact that can be run here.

    Args:
        path: the bundle.
        trust: compile and load what could run code, too.

    Raises:
        BundleError: it is not whole, not safe, or not readable; nothing of it was run.
    """
    bundle = Bundle(path)
    files = Check("files", f"{len(bundle.manifest['files'])} files, all hashes right", True)
    policy = Policy(bundle, "numpy", replay=False)
    case = Case(bundle, policy, *golden_pairs(bundle, policy.graph), trust)
    checks = [files, case.compare("numpy", policy.run(case.inputs), TOLERANCE)]
    for entry in bundle.manifest["artefacts"]:  # ONNX is there, and each file is named: contract
        name = entry["format"]
        if name == "numpy":
            continue
        if name not in CHECKS:
            checks.append(Check(name, "not run here; its files are whole", True, skipped=True))
            continue
        check, needs_trust = CHECKS[name]
        if needs_trust and not trust:
            text = "not run: add --trust if you know who made it"
            checks.append(Check(name, text, True, skipped=True))
        else:
            checks.append(check(case, entry))
    return checks


def _check_onnx(case: Case, artefact: dict[str, Any]) -> Check:
    """All its ONNX files; the worst one is told."""
    found = []
    for name in artefact["files"]:
        try:
            session = load_onnx(case.bundle, case.policy.graph, name)
        except ModuleNotFoundError:
            text = 'not run: pip install "rlgym-lab[export]"'
            return Check("onnx", text, True, skipped=True)
        outputs = run_onnx(session, case.policy.graph, case.inputs)
        found.append(case.compare("onnx", outputs, TOLERANCE, f" ({name})"))
    return max(found, key=lambda check: check.error or 0.0)


def _check_unity(case: Case, artefact: dict[str, Any]) -> Check:
    """In onnxruntime, with what Unity would feed."""
    if len(artefact["files"]) != 1:
        return Check("unity", "it must name one file", False)
    graph, data = case.policy.graph, case.bundle.read(artefact["files"][0])
    check_onnx(data, artefact["files"][0])
    try:
        from rlgym.export.unity import run_unity

        told = run_unity(data, graph, case.inputs)
    except (MissingExtraError, ModuleNotFoundError):
        text = 'not run: pip install "rlgym-lab[export]"'
        return Check("unity", text, True, skipped=True)
    except UserError as fault:
        return Check("unity", str(fault), False)
    return case.judge("unity", action_error(graph, told, case.world), TOLERANCE, ", not in Unity")


def _check_c(case: Case, artefact: dict[str, Any]) -> Check:
    name = artefact["format"]
    if len({Path(file).name for file in artefact["files"]}) != len(artefact["files"]):
        return Check(name, "two of its files have one name", False)
    with tempfile.TemporaryDirectory() as folder:
        for file in artefact["files"]:
            Path(folder, Path(file).name).write_bytes(case.bundle.read(file))
        try:
            error, where = compile_and_run(Path(folder))
        except UserError as fault:
            return Check(name, str(fault), False)
    if error is None:
        return Check(name, where, True, skipped=True)
    return Check(
        name,
        f"{where}: its own test passes, error {error:.1e} in the action's units",
        True,
        error=error,
    )


def _check_pt2(case: Case, artefact: dict[str, Any]) -> Check:
    from rlgym.export.pt2 import run_pt2

    if len(artefact["files"]) != 1:
        return Check("pt2", "it must name one file", False)
    data = case.bundle.read(artefact["files"][0])
    try:
        outputs = run_pt2(data, case.policy.graph, case.inputs)
    except DeployError as fault:
        return Check("pt2", str(fault), False)
    return case.compare("pt2", outputs, TOLERANCE)


def _check_optional(case: Case, artefact: dict[str, Any]) -> Check:
    """In the runtime of its own package, where that is installed."""
    name, graph = artefact["format"], case.policy.graph
    files = [case.bundle.read(file) for file in sorted(artefact["files"], reverse=True)]
    try:
        outputs = _OPTIONAL[name](graph, case.inputs, files)
    except MissingExtraError as missing:
        return Check(name, f"not run: {missing}", True, skipped=True)
    except Exception as fault:  # what a foreign runtime may raise is its own affair
        return Check(name, f"it cannot be run: {' '.join(str(fault).split())[:200]}", False)
    return case.compare(name, outputs, TOLERANCE)


def _run_openvino(graph: Graph, inputs: Arrays, files: list[bytes]) -> Arrays:
    from rlgym.export.openvino import OpenVINO

    network, weights = files
    return OpenVINO(network, weights, graph).run(inputs)


def _run_executorch(graph: Graph, inputs: Arrays, files: list[bytes]) -> Arrays:
    from rlgym.export.executorch import run_executorch

    return run_executorch(files[0], graph, inputs)


def _run_aoti(graph: Graph, inputs: Arrays, files: list[bytes]) -> Arrays:
    from rlgym.export.aoti import run_aoti

    return run_aoti(files[0], graph, inputs)


_OPTIONAL: dict[str, Callable[[Graph, Arrays, list[bytes]], Arrays]] = {
    "openvino": _run_openvino,
    "executorch": _run_executorch,
    "aoti": _run_aoti,
}


def _check_tflite(case: Case, artefact: dict[str, Any]) -> Check:
    """LiteRT does not check what it loads, so a file must be what the checked graph gives."""
    name, graph = artefact["format"], case.policy.graph
    files = {Path(file).suffix: case.bundle.read(file) for file in artefact["files"]}
    known = {".tflite"} <= files.keys() <= {".tflite", ".h"}
    if not known or len(files) != len(artefact["files"]):
        return Check(name, "it must name one .tflite, and one .h at most", False)
    try:
        from rlgym.export import tflite

        quantize, tolerance = tflite.KINDS[name]
        data = files[".tflite"]
        if ".h" in files and files[".h"] != tflite.to_c_array(data).encode("ascii"):
            return Check(name, "its C array is not its .tflite", False)
        if data != tflite.to_tflite(graph, quantize, case.inputs) and not case.trust:
            text = "not run, not what this version writes: add --trust if you know who made it"
            return Check(name, text, True, skipped=True)
        outputs = tflite.LiteRT(data, graph).run(case.inputs)
    except MissingExtraError:
        text = 'not run: pip install "rlgym-lab[tflite]"'
        return Check(name, text, True, skipped=True)
    except UserError as fault:
        return Check(name, str(fault), False)
    return case.compare(name, outputs, tolerance)


def _check_web(case: Case, artefact: dict[str, Any]) -> Check:
    """A page is code of its maker's: what is not byte for byte ours is pointed out."""
    from rlgym.export.web import page_files

    bundle, graph = case.bundle, case.policy.graph
    page = page_files(graph, case.inputs, case.world, bundle.manifest, bundle.read(ONNX))
    found = {Path(name).name: bundle.read(name) for name in artefact["files"]}
    if found == page and len(found) == len(artefact["files"]):
        return Check("web", "the page is what this version writes; not opened here", True)
    text = "NOT what this version writes: open it only if you know who made it, or use rlgym web"
    return Check("web", text, True, skipped=True)


CHECKS: dict[str, tuple[Callable[[Case, dict[str, Any]], Check], bool]] = {
    "onnx": (_check_onnx, False),
    "unity": (_check_unity, False),
    "web": (_check_web, False),
    "c": (_check_c, True),
    "c-int8": (_check_c, True),
    "pt2": (_check_pt2, True),
    "tflite": (_check_tflite, False),
    "tflite-int8": (_check_tflite, False),
    "tflite-full-int8": (_check_tflite, False),
    **{name: (_check_optional, True) for name in _OPTIONAL},
}
"""Name of a format -> what checks it, and whether that could run code out of the bundle."""
