"""`rlgym latency`: how long one decision of a bundle's policy takes here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Time each artefact of a bundle on this machine: one observation at a time, one thread.

    p50, p90, p99 and the largest, of the call alone. On a machine that does other things the last
    two show its scheduler, not the policy. With --loadgen MLPerf LoadGen's SingleStream scenario
    measures each once more: MLPerf-style, not a submission.

    Nothing of the bundle is run but what verify runs: C, .pt2 and other .tflite need --trust.
    """

    bundle: Positional[str]
    """NAME.rlpolicy, a zip or a folder."""
    seconds: float = 2.0
    """Of each artefact, by each clock."""
    loadgen: bool = False
    """Also let LoadGen measure; needs the extra rlgym-lab[latency]."""
    trust: bool = False
    """Also compile its C source, and load its .pt2 and .tflite: only if you know who made it."""
    json: bool = False
    """Print one JSON object."""


def run(argv: list[str]) -> int:
    """Measure and print."""
    wanted = parse(Options, argv, "rlgym latency", ("bundle",))
    if not 0.0 < wanted.seconds <= 3600.0:
        raise UserError("--seconds must be above 0 and at most 3600")
    import torch

    from rlgym.bench.harness import machine
    from rlgym.bench.load import LoadWatch
    from rlgym.deploy.errors import DeployError
    from rlgym.export.latency import LABEL, heading, measure_bundle

    torch.set_num_threads(1)
    watch = LoadWatch()
    try:
        found = measure_bundle(wanted.bundle, wanted.seconds, wanted.loadgen, wanted.trust)
    except DeployError as error:
        raise UserError(str(error)) from None
    load = watch.stop()
    if wanted.json:
        document: dict[str, Any] = {"bundle": wanted.bundle, "machine": machine()}
        document |= {"busy": load["busy"], "reasons": load["reasons"]}
        print(json.dumps({**document, "latency": [entry.document() for entry in found]}))
        return 0
    print("\n".join([heading(), *(line for entry in found for line in entry.lines())]))
    if wanted.loadgen:
        print(f"LoadGen, SingleStream: {LABEL}")
    if load["busy"]:
        print(f"the machine was busy: {'; '.join(load['reasons'])}")
    return 0
