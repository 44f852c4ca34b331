"""`rlgym verify`: does a bundle do here what it did in the lab?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.cli.runs import read_run
from rlgym.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rlgym.config import TrainConfig
    from rlgym.deploy.bundle import Bundle
    from rlgym.export.verify import Check


@dataclass(frozen=True)
class Options:
    """Check a bundle: its files against their hashes, its policy against the golden pairs.

    Nothing of it is run but standard ONNX operators, arithmetic in numpy, and LiteRT files that are
    byte for byte what the policy gives. Its C source, .pt2 and other .tflite are different: they
    need --trust. The exit status is 0 exactly when everything agrees.
    """

    bundle: Positional[str]
    """NAME.rlpolicy, a zip or a folder."""
    trust: bool = False
    """Also compile its C source, and load its .pt2 and .tflite: only if you know who made it."""
    closed_loop: bool = False
    """Also play whole episodes in the policy's own world: each copy's return beside the float one.
    Needs --run, or --trust: the bundle says which world that is."""
    run: str | None = None
    """The folder of the run that the bundle comes from: for its world, and to play the trained
    policy beside its copies."""
    episodes: int = 32
    """Episodes of the closed loop, the same for each."""
    json: bool = False
    """Print one JSON object."""


def run(argv: list[str]) -> int:
    """Verify and print."""
    wanted = parse(Options, argv, "rlgym verify", ("bundle",))
    if wanted.episodes < 1:
        raise UserError("--episodes must be at least 1")
    if wanted.closed_loop and not wanted.trust and wanted.run is None:
        raise UserError(
            "--closed-loop starts the world that the bundle names: add --run RUN to take your own "
            "run's, or --trust if you know who made the bundle"
        )
    from rlgym.deploy.errors import DeployError
    from rlgym.export.verify import verify

    try:
        checks = verify(wanted.bundle, trust=wanted.trust)
        if wanted.closed_loop and all(check.passed for check in checks):
            checks += closed_loop(wanted)
    except DeployError as error:
        raise UserError(str(error)) from None
    passed = all(check.passed for check in checks)
    if wanted.json:
        found: dict[str, Any] = {"bundle": wanted.bundle, "passed": passed}
        print(json.dumps({**found, "checks": [check.document() for check in checks]}))
        return 0 if passed else 1
    for check in checks:
        print(f"{check.mark}  {check.name:<16} {check.text}")
    print("verified" if passed else "NOT verified: do not let it move anything")
    return 0 if passed else 1


def closed_loop(wanted: Options) -> list[Check]:
    """One check per copy: its mean return beside the first one's."""
    from rlgym.deploy.bundle import Bundle
    from rlgym.export.closed_loop import ALLOWED, check_world, closeness, copies
    from rlgym.export.verify import Check
    from rlgym.training.evaluation import evaluate
    from rlgym.training.worlds import make_worlds

    bundle = Bundle(wanted.bundle)
    config = _config(wanted, bundle)
    scored = replace(config.eval, episodes=wanted.episodes)
    config = replace(config, num_envs=wanted.episodes, num_groups=None, eval=scored)
    actors: dict[str, Any] = {}
    if wanted.run is not None:
        actors["trained"] = _trained(wanted.run, bundle)
    actors |= copies(bundle)
    checks: list[Check] = []
    reference: tuple[float, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        env = make_worlds(config, None, folder, evaluation=True)
        try:
            check_world(bundle.manifest, env.unwrapped.deployment())  # type: ignore[attr-defined]
            for name, actor in actors.items():
                found = evaluate(actor, env, wanted.episodes, seed=config.eval.seed)
                reference = reference or found.returns
                off = closeness(reference, found.returns)
                text = f"return {found.mean:.2f} ± {found.std:.2f} in {found.episodes} episodes"
                text += f", {off:.2%} from {next(iter(actors))}" if checks else ""
                checks.append(Check(f"loop {name}", text, off <= ALLOWED, error=off))
        finally:
            env.close()
    return checks


def _config(wanted: Options, bundle: Bundle) -> TrainConfig:
    """The run's settings, or those that the bundle tells of its world."""
    from rlgym.config import from_dict

    if wanted.run is not None:
        return read_run(wanted.run, wanted.trust)
    try:
        return from_dict(bundle.manifest["provenance"]["world"])
    except (KeyError, ConfigError) as error:
        raise UserError(f"the bundle does not say its world ({error}): add --run RUN") from None


def _trained(run: str, bundle: Bundle) -> Any:
    """The policy of the run's checkpoint that the bundle was made from."""
    from rlgym.training.run import load_policy

    step = bundle.manifest["provenance"].get("step")
    kinds: tuple[Literal["best", "last"], ...] = ("best", "last")
    for which in kinds:
        loaded = load_policy(run, which)
        if loaded.step == step:
            return loaded.policy
    raise UserError(f"{run} has no checkpoint of step {step}, which the bundle was made from")
