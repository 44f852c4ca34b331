"""`rlgym verify`: does a bundle do here what it did in the lab?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Check a bundle: its files against their hashes, its policy against the golden pairs.

    Nothing of it is run but standard ONNX operators and arithmetic in numpy. Compiling its C source
    is different: that needs --trust. The exit status is 0 exactly when everything agrees.
    """

    bundle: Positional[str]
    """NAME.rlpolicy, a zip or a folder."""
    trust: bool = False
    """Also compile and run its C source: say so only if you know who made the bundle."""
    json: bool = False
    """Print one JSON object."""


def run(argv: list[str]) -> int:
    """Verify and print."""
    wanted = parse(Options, argv, "rlgym verify", ("bundle",))
    from rlgym.deploy.errors import DeployError
    from rlgym.export.verify import verify

    try:
        checks = verify(wanted.bundle, trust=wanted.trust)
    except DeployError as error:
        raise UserError(str(error)) from None
    passed = all(check.passed for check in checks)
    if wanted.json:
        found: dict[str, Any] = {"bundle": wanted.bundle, "passed": passed}
        print(json.dumps({**found, "checks": [check.document() for check in checks]}))
        return 0 if passed else 1
    for check in checks:
        print(f"{check.mark}  {check.name:<10} {check.text}")
    print("verified" if passed else "NOT verified: do not let it move anything")
    return 0 if passed else 1
