"""`rlgym eval`: the score of a trained policy."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse, require_at_least
from rlgym.cli.runs import read_run, require_fit


@dataclass(frozen=True)
class Options:
    """Play whole episodes in fresh worlds and print returns, lengths and successes.

    --env.KEY VALUE gives the worlds a keyword argument, in place of the run's own.
    """

    run: Positional[str]
    """The run's folder."""
    episodes: int = 100
    """How many episodes."""
    which: Literal["best", "last"] = "best"
    """The checkpoint with the best score so far, or the last one."""
    stochastic: bool = False
    """Sample actions, as in training, instead of taking the most likely."""
    seed: int | None = None
    """Seed of the worlds; the run's eval.seed by default."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world, beside those of the run: --env.KEY VALUE."""
    json: bool = False
    """Print one JSON object."""
    trust: bool = False
    """Import a module that the run names for its worlds, and let it say where they write."""


def run(argv: list[str]) -> int:
    """Evaluate and print."""
    wanted = parse(Options, argv, "rlgym eval", ("run",))
    require_at_least(wanted, episodes=1, seed=0)
    config = read_run(wanted.run, wanted.trust, wanted.env)
    from rlgym.training.evaluation import evaluate
    from rlgym.training.run import load_policy
    from rlgym.training.worlds import make_worlds

    loaded = load_policy(wanted.run, wanted.which)
    config = replace(config, eval=replace(config.eval, episodes=wanted.episodes))
    env = make_worlds(config, None, wanted.run, evaluation=True)
    try:
        require_fit(loaded, env)
        result = evaluate(
            loaded.policy,
            env,
            wanted.episodes,
            deterministic=not wanted.stochastic,
            seed=config.eval.seed if wanted.seed is None else wanted.seed,
        )
    finally:
        env.close()
    if wanted.json:
        about = {"run": wanted.run, "env_id": config.env_id, "step": loaded.step}
        print(json.dumps({**about, "which": wanted.which, **result.document()}))
        return 0
    success = "" if result.success_rate is None else f", success {result.success_rate:.0%}"
    print(
        f"{config.env_id}, {result.episodes} episodes with the policy of step {loaded.step:,}: "
        f"return {result.mean:.2f} ± {result.std:.2f} (from {result.min:.2f} to {result.max:.2f}), "
        f"length {result.mean_length:.1f}{success}"
    )
    return 0
