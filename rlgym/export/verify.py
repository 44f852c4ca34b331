"""Verifying a bundle, also a stranger's: each artefact against the golden pairs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgym.deploy.bundle import Bundle, finite
from rlgym.deploy.policy import Policy, error_of, golden_pairs
from rlgym.export.bundle import compile_and_run


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


def verify(path: str | Path, trust: bool = False) -> list[Check]:
    """Check files, hashes, and every artefact that can be run here.

    Args:
        path: the bundle.
        trust: compile and run its C source too.

    Raises:
        BundleError: it is not whole, not safe, or not readable; nothing of it was run.
    """
    bundle = Bundle(path)
    manifest = bundle.manifest
    checks = [Check("files", f"{len(manifest['files'])} files, all hashes right", True)]
    inputs, world = golden_pairs(bundle)
    pairs = len(next(iter(inputs.values())))
    tolerance = finite(manifest.get("golden", {}).get("tolerance"), "golden.tolerance")
    for runtime in ("numpy", "onnx"):
        policy = Policy(bundle, runtime, replay=False)  # type: ignore[arg-type]
        error = error_of(policy.graph, policy.run(inputs), world)
        text = f"{pairs} golden pairs, largest error {error:.1e} of the range"
        checks.append(Check(runtime, text, error <= tolerance, error=error))
    sources = [entry for entry in manifest["artefacts"] if entry["format"] in ("c", "c-int8")]
    return checks + [_check_c(bundle, entry, trust) for entry in sources]


def _check_c(bundle: Bundle, artefact: dict[str, Any], trust: bool) -> Check:
    name = artefact["format"]
    if not trust:
        text = "not compiled: add --trust if you know who made it"
        return Check(name, text, True, skipped=True)
    with tempfile.TemporaryDirectory() as folder:
        for file in artefact["files"]:
            Path(folder, Path(file).name).write_bytes(bundle.read(file))
        error, where = compile_and_run(Path(folder))
    if error is None:
        return Check(name, where, True, skipped=True)
    return Check(name, f"{where}: its own test passes, error {error:.1e}", True, error=error)
