"""A page that runs the policy in a browser, in onnxruntime-web, and nothing of it elsewhere.

The page is static: its template lies in `rlgym.assets`, beside it go policy.onnx and policy.json
(what the actions mean, and golden pairs that the page repeats first). The runtime, 14 MB of
WebAssembly, is no part of a bundle: `rlgym web` puts it there, from npm or from a folder.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.deploy.bundle import ONNX, Bundle
from rlgym.deploy.graph import Graph
from rlgym.deploy.policy import Policy, golden_pairs
from rlgym.errors import UserError
from rlgym.export.describe import number
from rlgym.export.golden import TOLERANCE

PAGE = ("index.html", "page.css", "page.js", "policy.js", "cartpole.js")
"""Files of the template."""
RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
"""What the page loads of it, and the SHA-256 in that version."""
ROWS, NUMBERS = 64, 200_000
"""Most golden pairs on a page, and most numbers in them."""
TYPES = {".html": "text/html", ".css": "text/css", ".json": "application/json"}
TYPES |= {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
TYPES |= {".onnx": "application/octet-stream", "": "application/octet-stream"}
LICENCE = """\
onnxruntime-web {version}, https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def page_files(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    world: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    model: bytes,
) -> dict[str, bytes]:
    """The page's files by name, without the runtime; the same policy gives the same bytes.

    Args:
        graph: of the policy.
        inputs: golden ones, (K, *shape) by the graph's names.
        world: the trainer's actions, by key.
        description: the manifest, or its sections.
        model: the bytes of policy.onnx.
    """
    home = files("rlgym.assets") / "web"
    found = {name: (home / name).read_bytes() for name in PAGE}
    width = sum(int(np.prod(array.shape[1:])) for array in inputs.values())
    total = len(next(iter(inputs.values())))
    rows = max(1, min(ROWS, total, NUMBERS // max(width, 1)))
    made = description.get("provenance", {})
    about = {
        "name": str(made.get("run", "")),
        "licence": description.get("licence", ""),
        "world": str(made.get("world", {}).get("env_id", "")),
        "state": graph.state_size,
        "inputs": [{"name": p.name, "shape": p.shape, "dtype": p.dtype} for p in graph.inputs],
        "actions": [_action(action) for action in graph.actions],
        "tolerance": TOLERANCE,
        "golden": {
            "rows": rows,
            "inputs": {name: _flat(array[:rows]) for name, array in inputs.items()},
            "world": {key: _flat(array[:rows]) for key, array in world.items()},
        },
    }
    found["policy.json"] = (json.dumps(about, allow_nan=False) + "\n").encode()
    found[ONNX] = model
    return found


def _flat(array: np.ndarray) -> list[Any]:
    return (array.astype(np.uint8) if array.dtype == bool else array).ravel().tolist()


def _action(action: Any) -> dict[str, Any]:
    entry = {"key": action.key, "output": action.output, "kind": action.kind}
    entry["shape"] = list(action.shape)
    if action.kind == "box":
        for name in ("scale", "offset", "low", "high"):
            entry[name] = [number(value) for value in getattr(action, name)]
    return entry


def write_page(bundle: str | Path, folder: str | Path, runtime: str | Path | None = None) -> Path:
    """Write the page of a bundle, also a stranger's: the page itself is ours.

    Args:
        bundle: NAME.rlpolicy; its golden pairs are repeated first.
        folder: where the page goes; what stands there under the same names is replaced.
        runtime: folder with the runtime's two files, such as node_modules/onnxruntime-web/dist;
            None: what stands in `folder` already, or npm's.

    Returns:
        The folder.

    Raises:
        BundleError: the bundle is not whole, or does not do here what it did in the lab.
        UserError: the runtime cannot be had.
    """
    opened, target = Bundle(bundle), Path(folder)
    policy = Policy(opened)
    pairs = golden_pairs(opened, policy.graph)
    page = page_files(policy.graph, *pairs, opened.manifest, opened.read(ONNX))
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in page.items():
            (target / name).write_bytes(data)
        _put_runtime(target, None if runtime is None else Path(runtime))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror})") from None
    return target


def _put_runtime(target: Path, source: Path | None) -> None:
    """Put the runtime's files beside the page.

    Raises:
        UserError: they are not in `source`, or npm is not there or fails; says what to do.
    """
    if source is None:
        if not _is_runtime(target):
            with tempfile.TemporaryDirectory() as folder:
                _fetch(Path(folder))
                for name in RUNTIME_FILES:
                    shutil.copyfile(Path(folder, name), target / name)
    else:
        missing = [name for name in RUNTIME_FILES if not (source / name).is_file()]
        if missing:
            raise UserError(
                f"{source} lacks {', '.join(missing)}: they are in the folder dist of the npm "
                f"package {RUNTIME}"
            )
        if source.resolve() != target.resolve():
            for name in RUNTIME_FILES:
                shutil.copyfile(source / name, target / name)
    text = LICENCE.format(version=RUNTIME_VERSION if _is_runtime(target) else "")
    (target / f"{RUNTIME}.LICENSE.txt").write_text(text, encoding="utf-8")


def _is_runtime(folder: Path) -> bool:
    return all(
        (folder / name).is_file()
        and hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted
        for name, wanted in RUNTIME_FILES.items()
    )


def _fetch(folder: Path) -> None:
    """Get the runtime through npm into a folder."""
    npm, package = shutil.which("npm"), f"{RUNTIME}@{RUNTIME_VERSION}"
    advice = (
        f"the page needs {package}: install npm, or give a folder with "
        f"{' and '.join(RUNTIME_FILES)} as --runtime"
    )
    if npm is None:
        raise UserError(advice)
    command = [npm, "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600.0)
        (packed,) = folder.glob("*.tgz")
        with tarfile.open(packed) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is not None:
                    (folder / name).write_bytes(member.read())
    except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError, ValueError):
        said = "npm did not give it"
        raise UserError(f"{said}; {advice}") from None
    if not _is_runtime(folder):
        said = " ".join(done.stderr.split())[:200] or "its files are not those of that version"
        raise UserError(f"{said}; {advice}")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, with types that browsers insist on."""

    extensions_map = TYPES

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def make_server(folder: str | Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of a folder for this machine alone; port 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """
    try:
        handler = partial(_Handler, directory=str(folder))
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}): give another with --port") from None
