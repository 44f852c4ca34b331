"""Policies of other trainers through the same door: an ONNX and what is known of it, as a bundle.

What a robot must know comes from keys inside the ONNX (ours, or those that mjlab writes) and from
a manifest that a person wrote, which wins. The golden pairs are observations that the person
gives, or made-up ones, with the actions that onnxruntime finds for them in the original file: the
graph that was read from it has to repeat them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.arrays import read_arrays
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Graph, Port
from rlgym.deploy.onnx_check import open_onnx
from rlgym.deploy.policy import error_of
from rlgym.deploy.reference import run
from rlgym.deploy.schema import fault_of, manifest_schema
from rlgym.errors import MissingExtraError, UserError
from rlgym.export.describe import describe
from rlgym.export.golden import TOLERANCE, Golden
from rlgym.export.mjlab import from_mjlab
from rlgym.export.read_onnx import WIDEST, Model, read_onnx
from rlgym.settings import suggest

MAX_MANIFEST, MAX_ONNX, MAX_SAMPLES = 4 << 20, 512 << 20, 256 << 20
"""Bytes."""
SPREAD = 2.0
"""Standard deviations of made-up observations."""
ACTION_BOUND = 100.0
"""Of actions where nothing is said: no joint has so wide a range."""
SECTIONS = ("observation", "action", "robot", "timing", "safety", "simulation", "licence")
"""What a manifest that a person wrote may hold."""
_OURS = "rlgym.manifest"
_TERM = {"units": "", "history": 1, "order": "newest first", "start": "state"}
"""What a term is where nothing else is said."""


@dataclass
class Known:
    """What is known of a policy beside its network."""

    terms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By input."""
    action: dict[str, Any] = field(default_factory=dict)
    robot: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    safety: dict[str, Any] | None = None
    simulation: dict[str, Any] | None = None
    licence: str = ""
    shift: np.ndarray | None = None
    """(n,) what the original expects to be taken off our observation; None: nothing."""


def read_elsewhere(
    path: str | Path,
    manifest: str | Path | None = None,
    samples: str | Path | None = None,
    pairs: int = 200,
    seed: int = 0,
) -> tuple[Graph, Golden, dict[str, Any]]:
    """Read an ONNX of another trainer, and everything that `write_bundle` needs beside it.

    Args:
        path: the ONNX.
        manifest: JSON with some of `SECTIONS`, in the words of docs/bundle.md.
        samples: observations as the ONNX takes them, .npy or .npz by input; None: made-up ones.
        pairs: golden pairs, where they are made up.
        seed: of these.

    Returns:
        The graph, the golden pairs, and the description.

    Raises:
        UserError: it cannot be read, or what a robot must know is missing: says which.
    """
    name, data = Path(path).name, _bytes(path, MAX_ONNX)
    given = {} if manifest is None else _sections(manifest)
    own = (given.get("action") or [{}])[0]
    graph, model = read_onnx(data, name, own.get("output"))
    known = _known(model.metadata, graph, given, name)
    graph = _with_action(graph, known.action, name)
    raw = _observations(graph, samples, pairs, seed)
    inputs = raw
    if known.shift is not None:
        inputs = {key: value + known.shift for key, value in raw.items()}
        raw = {key: value - known.shift for key, value in inputs.items()}
        graph = _shifted(graph, known.shift)
    golden = _golden(graph, model, inputs, raw, name)
    told = {name: getattr(known, name) for name in ("robot", "timing", "safety", "simulation")}
    description = describe(graph, {"terms": known.terms, **told}, {"run": name}, known.licence)
    return graph, golden, description


# ------------------------------------------------------------------------------ what is given


def _bytes(path: str | Path, limit: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise UserError(f"{path} has more than {limit >> 20} MiB")
    return data


def _sections(path: str | Path) -> dict[str, Any]:
    """A manifest of a person's own: some sections, whose entries may be fewer than a bundle's."""
    try:
        found = json.loads(_bytes(path, MAX_MANIFEST).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must be an object with some of {', '.join(SECTIONS)}")
    for name, value in found.items():
        if name not in SECTIONS:
            raise UserError(f"{path} has a section '{name}': {suggest(name, SECTIONS)}")
        kinds = {"observation": list, "action": list, "licence": str}
        if not isinstance(value, kinds.get(name, dict)):
            raise UserError(f"{path}: {name} is of another type than docs/bundle.md says")
        entries = value if isinstance(value, list) else []
        if not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name} must be a list of objects")
    timing = found.get("timing", {})
    if isinstance(timing.get("control_hz"), (int, float)) and timing["control_hz"] > 0:
        timing.setdefault("control_dt", 1.0 / timing["control_hz"])
    return found


def _known(metadata: Mapping[str, str], graph: Graph, given: dict[str, Any], name: str) -> Known:
    """Put together what the file and the person say."""
    known = Known()
    if _OURS in metadata:
        known = _from_ours(metadata[_OURS], name)
    elif "joint_names" in metadata:
        terms, robot, shift = from_mjlab(metadata, graph, given, name)
        known = Known(terms={graph.inputs[0].name: terms}, robot=robot, shift=shift)
    for entry in given.get("observation", ()):
        terms = entry.get("terms") or ()
        filled = [{**_TERM, **term} if isinstance(term, dict) else term for term in terms]
        known.terms[str(entry.get("name", graph.inputs[0].name))] = filled
    known.action = {**known.action, **(given.get("action") or [{}])[0]}
    for section in ("timing", "safety", "simulation"):
        if section in given:
            setattr(known, section, {**(getattr(known, section) or {}), **given[section]})
    known.licence = given.get("licence", known.licence)
    if known.robot is not None or "robot" in given:
        known.robot = _robot({**(known.robot or {}), **given.get("robot", {})}, known, name)
    _check_forms(known, name)
    for port in graph.inputs:
        width = sum(term["size"] for term in known.terms.get(port.name, ()))
        if port.name in known.terms and width != port.shape[0]:
            raise UserError(
                f"the terms of '{port.name}' have {width} values, {name} takes {port.shape[0]}: "
                "list them in the manifest's observation, with their sizes"
            )
    return known


def _check_forms(known: Known, name: str) -> None:
    """Refuse what the manifest's schema does not allow, whoever said it."""
    schema = manifest_schema()
    faults = {
        section: fault_of(getattr(known, section), schema["properties"][section], schema)
        for section in ("robot", "timing", "safety", "simulation", "licence")
    }
    for key, terms in known.terms.items():
        wanted = {"type": "array", "items": schema["$defs"]["term"]}
        faults[f"the terms of '{key}'"] = fault_of(terms, wanted, schema)
    for where, fault in faults.items():
        if fault:
            raise UserError(f"what is known of {name}: {where}: {fault}: see docs/bundle.md")


def _from_ours(text: str, name: str) -> Known:
    """What one of our own bundles wrote into its ONNX."""
    try:
        said = json.loads(text)
        if said.get("targets"):
            raise UserError(f"{name} imitates a motion, which its bundle holds: take that one")
        terms = {str(entry["name"]): entry["terms"] for entry in said["observation"]}
        told = {part: said[part] for part in ("robot", "timing", "safety", "simulation")}
        action = {key: said["action"][0].get(key) for key in ("scale", "offset", "low", "high")}
        found = Known(terms=terms, action=action, licence=said["licence"], **told)
        _check_forms(found, name)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} has a manifest inside that cannot be read ({error})") from None


def _robot(robot: dict[str, Any], known: Known, name: str) -> dict[str, Any]:
    """The robot's section with everything that deploying asks for.

    Raises:
        UserError: something is not known that nobody may guess.
    """
    needed = ("joint_names", "stiffness", "damping", "default_joint_pos", "action_scale")
    missing = [f"robot.{key}" for key in (*needed, "lower", "upper") if key not in robot]
    missing += [] if known.timing else ["timing.control_hz"]
    if missing:
        raise UserError(
            f"{name} does not say {', '.join(missing)}, which a robot needs: write them into a "
            "JSON file in the words of docs/bundle.md and give it with --manifest"
        )
    names = robot["joint_names"]
    joints = len(names) if isinstance(names, list) else 0
    half = {"sign": [1.0] * joints, "offset": [0.0] * joints, "spherical": [False] * joints}
    return {
        "name": "robot",
        "names": names,
        **half,
        "base_rotation": [0.0, 0.0, 0.0, 1.0],
        "base_origin": [0.0, 0.0, 0.0],
        "init_height": 0.0,
        "action_offset": robot["default_joint_pos"],
        "action_bound": ACTION_BOUND,
        "target_lower": None,
        "target_upper": None,
        "cutoff": None,
        **robot,
    }


# ------------------------------------------------------------------------------- the network


def _with_action(graph: Graph, own: Mapping[str, Any], name: str) -> Graph:
    """The graph with the kind, scale and bounds of its action."""
    (action,) = graph.actions
    if own.get("kind") == "discrete" and action.kind == "box":
        logits = replace(graph.ops[-1], output="logits")
        count = action.shape[0]
        ops = (*graph.ops[:-1], logits, g.Choose("action", ("logits",), (count,), (0,)))
        ports = Port("logits", (count,), "float32"), Port("action", (1,), "int64")
        chosen = g.Action("", "action", "discrete", (), "logits")
        return replace(graph, ops=ops, outputs=ports, actions=(chosen,))
    if own.get("kind", action.kind) != action.kind:
        raise UserError(f"{name} gives a '{action.kind}' action, the manifest says {own['kind']!r}")
    if action.kind != "box":
        return graph
    changes, infinite = {}, {"low": -np.inf, "high": np.inf}
    for key in ("scale", "offset", "low", "high"):
        if own.get(key) is None:
            continue
        try:
            values = [infinite.get(key) if v is None else v for v in own[key]]
            array = np.array(values, np.float32)
            if array.shape != action.shape or np.isnan(array).any():
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(
                f"'{key}' of the action must be {action.shape[0]} numbers, one per action"
            ) from None
        changes[key] = array
    return replace(graph, actions=(replace(action, **changes),))


def _shifted(graph: Graph, shift: np.ndarray) -> Graph:
    """The graph of observations from which `shift` is taken first."""
    (port,) = graph.inputs
    first = g.Normalize("absolute", (port.name,), shift, np.ones_like(shift), WIDEST)
    rest = []
    for op in graph.ops:
        inputs = tuple("absolute" if name == port.name else name for name in op.inputs)
        rest.append(replace(op, inputs=inputs))
    return replace(graph, ops=(first, *rest))


def _observations(graph: Graph, samples: Any, pairs: int, seed: int) -> dict[str, np.ndarray]:
    """The person's observations by input, or made-up ones about what a normaliser expects."""
    if samples is not None:
        return _read_samples(samples, graph)
    rng, found = np.random.default_rng(seed), {}
    for port in graph.inputs:
        rows = SPREAD * rng.normal(size=(pairs, *port.shape))
        scale: Any = 1.0
        shift: Any = 0.0
        reader = _only_reader(graph, port.name)
        while isinstance(reader, g.Normalize):
            safe = np.where(reader.inv_std == 0, 1.0, reader.inv_std.astype(np.float64))
            scale, shift = scale / safe, shift + reader.mean * scale
            reader = _only_reader(graph, reader.output)
        found[port.name] = (rows * np.abs(scale) + shift).astype(np.float32)
    return found


def _only_reader(graph: Graph, name: str) -> Any:
    """The operation that reads an array; None where there are several, or none."""
    readers = [op for op in graph.ops if name in op.inputs]
    return readers[0] if len(readers) == 1 else None


def _read_samples(path: str | Path, graph: Graph) -> dict[str, np.ndarray]:
    data = _bytes(path, MAX_SAMPLES)
    try:
        if data[:6] == b"\x93NUMPY":
            with Path(path).open("rb") as file:
                arrays = {graph.inputs[0].name: np.load(file, allow_pickle=False)}
        else:
            arrays = read_arrays(data, str(path))
    except (BundleError, ValueError, OSError) as error:
        raise UserError(f"{path} holds no observations ({error})") from None
    wanted = {port.name: port.shape for port in graph.inputs}
    rows = {len(array) for array in arrays.values() if array.ndim}
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    if shapes != wanted or len(rows) != 1 or min(rows) < 1:
        raise UserError(
            f"{path} has {', '.join(f'{n} {list(a.shape)}' for n, a in arrays.items())}; the "
            f"policy takes {', '.join(f'{n} [rows, {s[0]}]' for n, s in wanted.items())}"
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{path} has observations that are not finite")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _golden(
    graph: Graph,
    model: Model,
    inputs: dict[str, np.ndarray],
    raw: dict[str, np.ndarray],
    name: str,
) -> Golden:
    """The original's actions on `raw`, beside our inputs; the graph must repeat them.

    Raises:
        UserError: it does not.
    """
    found = _original(model, raw, name)
    if not np.isfinite(found).all():
        raise UserError(f"{name} answers some observations with numbers that are not finite")
    (action,) = graph.actions
    with np.errstate(all="ignore"):
        outputs = run(graph, inputs)
    rows = len(next(iter(inputs.values())))
    if action.kind == "box":
        world = np.clip(action.offset + action.scale * found, action.low, action.high)  # type: ignore
        world = world.astype(np.float32)
    else:
        width = outputs[action.logits].shape[1]
        world = found.reshape(rows, -1)
        world = world.argmax(1) if world.shape[1] == width and width > 1 else world[:, 0]
    golden = Golden(inputs, outputs, {"": world}, np.ones(rows, bool))
    error = error_of(graph, outputs, golden.world)
    if not error <= TOLERANCE:
        raise UserError(
            f"what was read from {name} differs from it by {error:.2g} of the action's range: "
            "please report this, with the file"
        )
    return golden


def _original(model: Model, raw: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The action's output in onnxruntime, (rows, ...)."""
    try:
        session = open_onnx(model.data)
        wanted = {entry.name for entry in session.get_inputs()}
        rows = len(next(iter(raw.values())))
        step, parts = 1 if model.single else rows, []
        for at in range(0, rows, step):
            part = {n: array[at : at + step] for n, array in raw.items() if n in wanted}
            parts.append(np.asarray(session.run([model.output], part)[0]))
        return np.concatenate(parts)
    except ModuleNotFoundError:
        message = 'the original is run in onnxruntime: pip install "rlgym-lab[export]"'
        raise MissingExtraError(message) from None
    except Exception as error:  # onnxruntime's errors have no common family
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot be run ({said})") from None
