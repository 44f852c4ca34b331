"""`rlgym web`: a bundle's policy as a page that runs it in a browser."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Show a bundle's policy in a browser, where onnxruntime-web runs it.

    Writes a folder of static files and serves it on this machine alone. The page repeats the golden
    pairs, times a decision, and lets the policy act: on a cart-pole that it draws, or as a plot of
    its actions. It asks nobody else for anything, so the folder also works on any static host.

    The page is rlgym's own: nothing of a stranger's bundle is run but its ONNX's standard
    operators. The runtime (14 MB, MIT) comes from npm once, or from --runtime.
    """

    bundle: Positional[str]
    """NAME.rlpolicy, a zip or a folder."""
    out: str | None = None
    """Folder to write; by default NAME.web beside the bundle."""
    runtime: str | None = None
    """Folder with ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm, such as
    node_modules/onnxruntime-web/dist; needs no network then."""
    port: int = 8000
    """Of 127.0.0.1; 0 takes a free one."""
    write_only: bool = False
    """Write the folder and do not serve it."""


def run(argv: list[str]) -> int:
    """Write the page, and serve it until stopped."""
    wanted = parse(Options, argv, "rlgym web", ("bundle",))
    from rlgym.deploy.errors import DeployError
    from rlgym.export.web import make_server, write_page

    folder = wanted.out or str(Path(wanted.bundle).with_suffix(".web"))
    try:
        folder = write_page(wanted.bundle, folder, wanted.runtime)
    except DeployError as error:
        raise UserError(str(error)) from None
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB, for any static host", flush=True)
    if wanted.write_only:
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill ends it as Ctrl-C does
    with make_server(folder, wanted.port) as server:
        print(f"open http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
