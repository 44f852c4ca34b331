"""`rlgym play`: watch a policy in a window."""

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse, require_at_least
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Open a window and let a policy act; Ctrl-C ends it.

    The zero policy shows a world at rest, the random one what an untrained policy sees: look at
    both before you train in a world of your own.
    --env.KEY VALUE gives the world a keyword argument, in place of the run's own.
    """

    target: Positional[str]
    """The folder of a run, or the id of a world."""
    policy: Literal["trained", "zero", "random"] = "trained"
    """Who acts."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    episodes: int | None = None
    """Stop after so many episodes."""
    seed: int = 0
    """Seed of the world, and of the random policy."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world, beside those of the run: --env.KEY VALUE."""
    trust: bool = False
    """Import a module that the run names for its worlds, and let it say where they write."""


def run(argv: list[str]) -> int:
    """Play until the episodes are over or Ctrl-C."""
    wanted = parse(Options, argv, "rlgym play", ("target",))
    require_at_least(wanted, episodes=1, seed=0)
    if not has_display():
        raise UserError(
            f"there is no display here: rlgym record {wanted.target} makes a film instead"
        )
    from rlgym.cli.view import settings_of, watch

    config = settings_of(wanted.target, wanted.policy, wanted.env, wanted.trust)
    shown = watch(wanted.target, config, wanted.policy, wanted.which, "human", wanted.seed)
    due = time.perf_counter()
    try:
        for frame in shown:
            # many worlds keep this pace themselves, and a batch of worlds does not
            due = max(due + 1.0 / (frame.env.metadata.get("render_fps") or 30), time.perf_counter())
            if frame.returned is not None:
                print(f"episode {frame.episode}: return {frame.returned:.2f}", flush=True)
            if wanted.episodes is not None and frame.episode >= wanted.episodes:
                break
            time.sleep(max(due - time.perf_counter(), 0.0))
    except KeyboardInterrupt:
        return 0
    finally:
        shown.close()
    return 0


def has_display() -> bool:
    """Tell whether a window can be opened: on Linux a server must be named."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
