"""`rlgym sim2sim`: a trained policy in other engines and under disturbances, on one page."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse, require_at_least
from rlgym.cli.runs import read_run
from rlgym.errors import MissingExtraError, UserError


@dataclass(frozen=True)
class Options:
    """Measure an imitation policy in each engine, pushed, on other friction, heavier, weaker, late.

    Each row stands beside standing still and the open-loop reference in the same world. The page
    has tables, plots and films; the same as Markdown and JSON lies beside it.
    """

    run: Positional[str]
    """The run's folder."""
    engines: tuple[str, ...] = ("bullet", "mujoco")
    """Engines, separated by commas or spaces."""
    disturbances: tuple[str, ...] = ()
    """Only these rows; all by default."""
    episodes: int = 32
    """Episodes of 10 s for each actor in each row."""
    out: str | None = None
    """Folder of the page; by default sim2sim in the run's folder."""
    which: Literal["best", "last"] = "best"
    """The checkpoint with the best score so far, or the last one."""
    film_seconds: float = 6.0
    """Length of the film in each engine; 0 films nothing."""
    seed: int = 0
    """Seed of the episodes."""
    json: bool = False
    """Print the whole report as one JSON object."""
    trust: bool = False
    """Import a module that the run names for its worlds, and let it say where they write."""


def run(argv: list[str]) -> int:
    """Measure, write the page, and say where it is."""
    wanted = parse(Options, argv, "rlgym sim2sim", ("run",))
    require_at_least(wanted, episodes=1, film_seconds=0, seed=0)
    engines, disturbances = _names(wanted.engines), _names(wanted.disturbances)
    if not engines:
        raise UserError("--engines names none: give bullet, mujoco, or both")
    config = read_run(wanted.run, wanted.trust)
    folder = Path(wanted.out) if wanted.out is not None else Path(wanted.run) / "sim2sim"
    from rlgym.report.page import headline, write_page
    from rlgym.report.sim2sim import DISTURBANCES, compare, film_policy

    document = compare(
        wanted.run,
        config,
        engines=engines,
        disturbances=disturbances or tuple(DISTURBANCES),
        episodes=wanted.episodes,
        which=wanted.which,
        seed=wanted.seed,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    page = write_page(document, folder)  # before films: they take a while, and may be interrupted
    if wanted.film_seconds > 0:
        try:
            films = film_policy(
                wanted.run, config, folder, engines, wanted.film_seconds, which=wanted.which
            )
            write_page(document, folder, films)
        except MissingExtraError as error:  # the numbers are worth a page without them
            print(f"no films: {error}", file=sys.stderr)
    if wanted.json:
        print(json.dumps(document))
        return 0
    print(f"{headline(document)}\n{page}")
    return 0


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for entry in given for name in entry.split(",") if name)
