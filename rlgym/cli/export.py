"""`rlgym export`: a trained policy as a bundle that proves itself."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse, require_at_least
from rlgym.cli.runs import read_run, require_fit
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Write a trained policy as a bundle: NAME.rlpolicy.

    The bundle holds the network with its normaliser in every format asked for, the contract with
    whoever runs it (names, units, order, rate, limits), and golden pairs recorded in the run's own
    world. Each format is run here against them and its largest error is written down.

    A policy of another trainer comes in as its ONNX, with what a robot must know in the keys that
    mjlab writes or in a JSON file of yours (docs/elsewhere.md); one of Stable-Baselines3 by way of
    rlgym import.

    rlgym export RUN --to c,c-int8
    rlgym export policy.onnx --manifest robot.json
    """

    run: Positional[str]
    """The run's folder, or the .onnx of another trainer."""
    to: str = ""
    """Formats beside numpy and onnx, separated by commas: pt2, unity, web, c, c-int8, tflite,
    tflite-int8, tflite-full-int8, openvino, executorch, aoti, coreml, hls4ml, tensorrt, edgetpu,
    greengrass, sagemaker. docs/formats.md says what each needs and holds."""
    out: str | None = None
    """Bundle to write; ending in / it is a folder, else a zip. By default in the run's folder."""
    which: Literal["best", "last"] = "best"
    """The checkpoint with the best score so far, or the last one."""
    steps: int = 200
    """Steps to record in the world, at least 32; each is a golden pair."""
    seed: int = 0
    """Seed of that world."""
    licence: str = ""
    """Under which the policy may be passed on."""
    manifest: str | None = None
    """With an .onnx: JSON with what it does not say itself, in the words of docs/bundle.md."""
    samples: str | None = None
    """With an .onnx: observations for the golden pairs, .npy or .npz; else they are made up."""
    trust: bool = False
    """Import a module that the run names for its worlds, and let it say where they write."""


def run(argv: list[str]) -> int:
    """Export and say what came of it."""
    wanted = parse(Options, argv, "rlgym export", ("run",))
    if wanted.steps < 32:
        raise UserError("--steps must be at least 32: fewer pairs prove little")
    require_at_least(wanted, seed=0)
    formats = [name.strip() for name in wanted.to.split(",") if name.strip()]
    elsewhere = wanted.run.lower().endswith((".onnx", ".zip")) and not Path(wanted.run).is_dir()
    for name in () if elsewhere else ("manifest", "samples"):
        if getattr(wanted, name) is not None:
            raise UserError(
                f"--{name} goes with the .onnx of another trainer: a run knows this itself, leave "
                "it out"
            )
    path, manifest = (export_elsewhere if elsewhere else export_run)(wanted, formats)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(f"{path}: {size / 1024:,.0f} KiB, {manifest['golden']['pairs']} golden pairs")
    for entry in manifest["artefacts"]:
        error = entry["max_error"]
        seen = "not run" if error is None else f"error {error:.1e}"
        print(f"  {entry['format']:<16} {seen:<14} {entry['verified_on']}")
    print(f"  rlgym verify {path}")
    return 0


def export_elsewhere(wanted: Options, formats: list[str]) -> tuple[str, dict[str, Any]]:
    """Bring an ONNX of another trainer through the same door; returns the path and manifest."""
    import rlgym
    from rlgym.deploy.bundle import Bundle
    from rlgym.deploy.controller import Controller
    from rlgym.deploy.errors import DeployError
    from rlgym.deploy.policy import Policy
    from rlgym.export.bundle import write_bundle
    from rlgym.export.elsewhere import read_elsewhere

    if wanted.run.lower().endswith(".zip"):
        raise UserError(
            f"{wanted.run} comes in as a run: rlgym import sb3 {wanted.run} --env ID "
            "--run-dir RUN, then rlgym export RUN"
        )
    found = read_elsewhere(wanted.run, wanted.manifest, wanted.samples, wanted.steps, wanted.seed)
    graph, golden, description = found
    description["provenance"] |= {"rlgym": rlgym.__version__, "python": sys.version.split()[0]}
    description["licence"] = wanted.licence or description["licence"]
    path = wanted.out or str(Path(wanted.run).with_suffix(".rlpolicy"))
    manifest = write_bundle(path, graph, golden, description, formats)
    try:
        bundle = Bundle(path)
        Controller(bundle, Policy(bundle, "numpy"))
    except DeployError as error:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        raise UserError(f"{error} (nothing was written)") from None
    if manifest["robot"] and not (manifest["safety"] or {}).get("target_rate"):
        print("note: nothing limits how fast joints' targets move: give safety.target_rate")
    return path, manifest


def export_run(wanted: Options, formats: list[str]) -> tuple[str, dict[str, Any]]:
    """Load the policy, record it in its world, write the bundle; returns its path and manifest."""
    import rlgym
    from rlgym.export.bundle import write_bundle
    from rlgym.export.describe import describe, target_rate
    from rlgym.export.golden import record
    from rlgym.export.read import read_policy
    from rlgym.training.run import load_policy
    from rlgym.training.worlds import make_worlds

    config = read_run(wanted.run, wanted.trust)
    loaded = load_policy(wanted.run, wanted.which)
    config = replace(config, num_envs=1, num_groups=1, backend="sync")
    env = make_worlds(config, None, wanted.run, evaluation=True)
    try:
        require_fit(loaded, env)
        graph = read_policy(loaded, masked=env.mask_size > 0)
        golden = record(loaded.policy, env, graph, wanted.steps, wanted.seed)
        deployment = env.unwrapped.deployment()  # type: ignore[attr-defined]
    finally:
        env.close()
    provenance = {
        "run": Path(wanted.run).resolve().name,
        "step": loaded.step,
        "world": {
            "env_id": config.env_id,
            "env": _public(config.env),
            "wrappers": {"frame_stack": config.wrappers.frame_stack},
            "eval": {"env": _public(config.eval.env), "seed": config.eval.seed},
        },
        "rlgym": rlgym.__version__,
        "python": sys.version.split()[0],
    }
    path = wanted.out or str(Path(wanted.run) / f"{Path(wanted.run).resolve().name}.rlpolicy")
    rate = target_rate(golden, deployment)
    if rate is not None:
        deployment["safety"] = {**deployment.get("safety", {}), "target_rate": rate}
    description = describe(graph, deployment, provenance, wanted.licence)
    motion = deployment.get("motion")
    return path, write_bundle(path, graph, golden, description, formats, motion)


def _public(value: Any) -> Any:
    """What a stranger may read of a world's arguments: no folders of this machine."""
    if isinstance(value, dict):
        return {str(key): _public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
