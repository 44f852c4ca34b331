"""Writing a bundle: every artefact measured through its own runtime before it is sealed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.bundle import FORMAT, GOLDEN, GRAPH, MANIFEST, MOTION, ONNX, VERSION
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Graph
from rlgym.deploy.graph_check import check_graph
from rlgym.deploy.graph_file import dump_graph, load_graph
from rlgym.deploy.policy import action_error, error_of
from rlgym.deploy.reference import run
from rlgym.errors import UserError
from rlgym.export.c99 import pack_actions, pack_inputs, write_c99
from rlgym.export.golden import TOLERANCE, Golden
from rlgym.settings import suggest

INT8_TOLERANCE = 5e-3
"""Largest error of whole-number weights, as a share of the action's range."""
TEST_PAIRS = 32
"""Golden pairs inside the C test program."""
SUFFIX = ".rlpolicy"
UNITY = "extras/unity/policy.onnx"
DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member of a zip: the same policy gives the same bytes."""


@dataclass
class Artefact:
    """Files of one format, and how well they were seen to work."""

    format: str
    files: dict[str, bytes]
    max_error: float | None
    """Share of the action's range; None where it could not be run here."""
    tolerance: float
    verified_on: str
    about: dict[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """Its lines in the manifest."""
        return {
            "format": self.format,
            "files": sorted(self.files),
            "max_error": self.max_error,
            "tolerance": self.tolerance,
            "verified_on": self.verified_on,
            **self.about,
        }


def write_bundle(
    path: str | Path,
    graph: Graph,
    golden: Golden,
    description: Mapping[str, Any],
    formats: Sequence[str] = ("onnx",),
    motion: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write a bundle.

    Args:
        path: NAME.rlpolicy; a name that ends in "/" makes a folder, else it is a zip of the same.
        graph: what `read_policy` gave.
        golden: recorded pairs.
        description: the manifest's sections beside files and artefacts: what `describe` gave.
        formats: of `FORMATS`; numpy and onnx are always there.
        motion: arrays of the clips that the robot imitates, by name; kept in motion.npz.

    Returns:
        The manifest.

    Raises:
        UserError: an unknown format, one that cannot hold the policy, or one that came out wrong.
    """
    wanted = dict.fromkeys(("numpy", "onnx", *formats))
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"there is no format '{name}': {suggest(name, FORMATS)}")
    artefacts = [FORMATS[name][0](graph, golden, description) for name in wanted]
    for artefact in artefacts:
        if artefact.max_error is not None and not artefact.max_error <= artefact.tolerance:
            raise UserError(
                f"{artefact.format} differs from the policy by {artefact.max_error:.2g} of the "
                f"action's range, {artefact.tolerance:g} is allowed: leave it out of --to"
            )
    files = {name: data for artefact in artefacts for name, data in artefact.files.items()}
    files[GOLDEN] = golden.dump()
    if motion:
        files[MOTION] = _packed(motion)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **description,
        "golden": {"file": GOLDEN, "pairs": len(golden), "tolerance": TOLERANCE},
        "artefacts": [artefact.entry() for artefact in artefacts],
        "files": {name: _fingerprint(data) for name, data in sorted(files.items())},
    }
    files[MANIFEST] = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    _seal(path, files)
    return manifest


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    target, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez_compressed(target, **named)
    return target.getvalue()


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _seal(path: str | Path, files: dict[str, bytes]) -> None:
    """Put the files where they belong, all of them or none."""
    target = Path(path)
    if target.suffix != SUFFIX:
        raise UserError(f"{path}: the name of a bundle ends in {SUFFIX}")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"{target} is a folder and no bundle: it is not replaced, name another")
    staged = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if str(path).endswith(("/", os.sep)):
            for name, data in files.items():
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).write_bytes(data)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(staged, target)
        else:
            with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in files.items():
                    archive.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_DEFLATED)
            os.replace(staged, target)
    except (OSError, ValueError) as error:  # a name with a zero byte is no OSError
        raise UserError(
            f"{str(target)!r} cannot be written ({getattr(error, 'strerror', error)})"
        ) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            if staged.is_dir():
                shutil.rmtree(staged)
            else:
                staged.unlink(missing_ok=True)


def here() -> str:
    """The kind of machine that this is, for `verified_on`."""
    return f"{platform.machine()} CPU, {platform.system()}"


# ------------------------------------------------------------------------------------- formats


def _numpy(graph: Graph, golden: Golden, _: Mapping[str, Any]) -> Artefact:
    data = dump_graph(graph)
    try:
        again = load_graph(data)
        check_graph(again, len(golden))
    except BundleError as error:
        raise UserError(str(error)) from None
    error = error_of(again, run(again, golden.inputs), golden.world)
    return Artefact("numpy", {GRAPH: data}, error, TOLERANCE, f"{here()}, numpy {np.__version__}")


def _onnx(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> Artefact:
    from rlgym.export.onnx import OPSETS, to_onnx

    names = {18: ONNX, 15: "extras/policy_opset15.onnx"}
    files, worst = {}, 0.0
    for opset in sorted(OPSETS, reverse=True):
        model = to_onnx(graph, opset, metadata(description))
        files[names[opset]] = model.SerializeToString()
        worst = max(worst, error_of(graph, _run_onnx(files[names[opset]], golden), golden.world))
    import onnxruntime

    where = f"{here()}, onnxruntime {onnxruntime.__version__}"
    return Artefact("onnx", files, worst, TOLERANCE, where, {"opsets": sorted(OPSETS)})


def _run_onnx(model: bytes, golden: Golden) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {entry.name for entry in session.get_inputs()}
    inputs = {name: array for name, array in golden.inputs.items() if name in wanted}
    found: Any = session.run(names, inputs)
    return dict(zip(names, found, strict=True))


def _c(graph: Graph, golden: Golden, _: Mapping[str, Any]) -> Artefact:
    return _c_source(graph, golden, "c", TOLERANCE)


def _c_int8(graph: Graph, golden: Golden, _: Mapping[str, Any]) -> Artefact:
    return _c_source(graph, golden, "c-int8", INT8_TOLERANCE)


def _c_source(graph: Graph, golden: Golden, kind: str, tolerance: float) -> Artefact:
    """Source and test program; compiled and run here, since we wrote it, if there is a compiler."""
    weights = "int8" if kind == "c-int8" else "float32"
    rows = golden.spread(TEST_PAIRS)
    if graph.state_size:
        rows = np.flatnonzero(~golden.inputs["state"].any(1))[:TEST_PAIRS]  # where episodes start
    inputs = {name: array[rows] for name, array in golden.inputs.items()}
    outputs = {name: array[rows] for name, array in golden.outputs.items()}
    pairs = pack_inputs(graph, inputs), pack_actions(graph, outputs)
    boxes = [a for a in graph.actions if a.kind == "box" and np.all(np.asarray(a.scale) == 1)]
    spans = [np.asarray(box.high) - np.asarray(box.low) for box in boxes]
    widest = max((float(np.max(s[np.isfinite(s)], initial=1.0)) for s in spans), default=2.0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_c99(graph, folder, "policy", weights, pairs, tolerance * widest)
        files = {f"extras/{kind}/{path.name}": path.read_bytes() for path in paths}
        error, where = compile_and_run(Path(folder))
    error = None if error is None else error / widest
    return Artefact(kind, files, error, tolerance, where, {"weights": weights})


def compile_and_run(folder: Path) -> tuple[float | None, str]:
    """Build the test program in a folder and run it: its worst error, and where that was.

    The error is None where there is no C compiler.

    Raises:
        UserError: it does not compile, or does not say what it found.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None, "not compiled: there was no C compiler"
    sources = [str(folder / "policy.c"), str(folder / "policy_test.c")]
    program = folder / "check"
    build = [compiler, "-std=c99", "-O2", *sources, "-o", str(program), "-lm"]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        said = " ".join(built.stderr.split())[:200]
        raise UserError(f"the C source does not compile with {compiler}: {said}")
    said = subprocess.run([str(program)], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"worst error ([0-9.e+-]+), NaN gives -1", said)
    if found is None:
        raise UserError(f"the C test program failed: {' '.join(said.split()) or 'no output'}")
    return float(found[1]), f"{here()}, {Path(compiler).name} -O2"


def _tflite(graph: Graph, golden: Golden, _: Mapping[str, Any], kind: str) -> Artefact:
    """The file, and as a C array where a microcontroller's LiteRT can run it."""
    from rlgym.export import tflite

    quantize, tolerance = tflite.KINDS[kind]
    data = tflite.to_tflite(graph, quantize, golden.inputs)
    files = {f"extras/{kind}/policy.tflite": data}
    if kind != "tflite-int8":  # LiteRT for Micro does not mix int8 weights with float32
        files[f"extras/{kind}/policy_tflite.h"] = tflite.to_c_array(data).encode("ascii")
    error = error_of(graph, tflite.LiteRT(data, graph).run(golden.inputs), golden.world)
    where = f"{here()}, ai-edge-litert {version('ai-edge-litert')}"
    return Artefact(kind, files, error, tolerance, where)


def metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """Text keys inside the ONNX: mjlab's, which robot controllers read, and the whole manifest."""
    texts = {"rlgym.manifest": json.dumps(description, allow_nan=False)}
    robot = description.get("robot")
    if robot:
        texts |= {
            "joint_names": _csv(robot["joint_names"]),
            "joint_stiffness": _csv(robot["stiffness"]),
            "joint_damping": _csv(robot["damping"]),
        }
        if not any(robot.get("spherical", ())):
            # their target is default + scale * action, in the model file's angles
            signs, zeros = np.array(robot["sign"]), np.array(robot["offset"])
            poses = signs * (np.array(robot["action_offset"]) + zeros)
            texts["default_joint_pos"] = _csv(poses)
            texts["action_scale"] = _csv(signs * np.array(robot["action_scale"]))
    terms = [term["name"] for part in description["observation"] for term in part["terms"]]
    texts |= {"observation_names": _csv(terms), "command_names": ""}
    texts["run_path"] = str(description.get("provenance", {}).get("run", ""))
    return texts


def _csv(values: Iterable[Any]) -> str:
    return ",".join(value if isinstance(value, str) else repr(float(value)) for value in values)


def _pt2(graph: Graph, golden: Golden, _: Mapping[str, Any]) -> Artefact:
    import torch

    from rlgym.export.pt2 import run_pt2, write_pt2

    data = write_pt2(graph)
    error = error_of(graph, run_pt2(data, graph, golden.inputs), golden.world)
    where = f"{here()}, torch {torch.__version__}"
    return Artefact("pt2", {"extras/policy.pt2": data}, error, TOLERANCE, where)


def _unity(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> Artefact:
    from rlgym.export.unity import OPSET, run_unity, to_unity

    data = to_unity(graph, OPSET, metadata(description)).SerializeToString()
    error = action_error(graph, run_unity(data, graph, golden.inputs), golden.world)
    where = f"{here()}, onnxruntime {version('onnxruntime')}, not in Unity"
    return Artefact("unity", {UNITY: data}, error, TOLERANCE, where, {"opset": OPSET})


def _web(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> Artefact:
    from rlgym.export.onnx import to_onnx
    from rlgym.export.web import page_files

    model = to_onnx(graph, 18, metadata(description)).SerializeToString()
    page = page_files(graph, golden.inputs, golden.world, description, model)
    named = {f"extras/web/{name}": data for name, data in page.items()}
    return Artefact("web", named, None, TOLERANCE, "the page repeats golden pairs where it is open")


def _optional(graph: Graph, golden: Golden, about: Mapping[str, Any], kind: str) -> Artefact:
    from rlgym.export.optional import write

    return write(graph, golden, about, kind)


_OPTIONAL = {
    "openvino": "OpenVINO's own files, for Intel's chips",
    "coreml": "Core ML program for Apple's devices; converted only, it runs nowhere else",
    "executorch": "ExecuTorch program (.pte), for phones and boards",
    "aoti": "torch's AOTInductor package: machine code for this kind of processor",
    "hls4ml": "C++ project for FPGAs of a small network, simulated here",
    "tensorrt": "recipe: a TensorRT engine built and checked by trtexec on the device",
    "edgetpu": "recipe: full int8 LiteRT and the command that compiles it for a Coral Edge TPU",
    "greengrass": "recipe: a component of AWS IoT Greengrass v2 that runs the bundle",
    "sagemaker": "recipe: a model archive for a SageMaker endpoint",
}
FORMATS: dict[str, tuple[Callable[..., Artefact], str]] = {
    "numpy": (_numpy, "the graph as arrays, for a robot with numpy alone (always there)"),
    "onnx": (_onnx, "ONNX, opset 18 and an opset 15 twin (always there)"),
    "pt2": (_pt2, "torch.export program, for torch and its compilers"),
    "unity": (_unity, "ONNX for a Behavior of Unity's ML-Agents package"),
    "web": (_web, "page that runs it in a browser; rlgym web adds what it needs"),
    "c": (_c, "C99 source with a test program, no dependencies"),
    "c-int8": (_c_int8, "the same with weights in bytes, a quarter of the size"),
    "tflite": (
        partial(_tflite, kind="tflite"),
        "LiteRT (TensorFlow Lite) for plain networks, and as a C array",
    ),
    "tflite-int8": (partial(_tflite, kind="tflite-int8"), "the same with weights in bytes"),
    "tflite-full-int8": (
        partial(_tflite, kind="tflite-full-int8"),
        "the same with hidden layers in bytes, too",
    ),
    **{name: (partial(_optional, kind=name), what) for name, what in _OPTIONAL.items()},
}
"""Name of a format -> what makes it, and what it is."""
