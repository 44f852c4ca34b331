"""`rlgym record`: film a policy without a display."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse, require_at_least
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Film a policy to an mp4 or gif; no display is needed.

    --env.KEY VALUE gives the world a keyword argument, in place of the run's own.
    """

    target: Positional[str]
    """The folder of a run, or the id of a world."""
    out: str | None = None
    """Film to write, .mp4 or .gif; by default into the run's folder, or here for a world."""
    policy: Literal["trained", "zero", "random"] = "trained"
    """Who acts."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    episodes: int = 1
    """How many episodes."""
    max_steps: int = 2000
    """Stop after so many steps."""
    fps: float | None = None
    """Frames per second; the world's own pace by default."""
    seed: int = 0
    """Seed of the world, and of the random policy."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world, beside those of the run: --env.KEY VALUE."""
    trust: bool = False
    """Import a module that the run names for its worlds, and let it say where they write."""


def run(argv: list[str]) -> int:
    """Film and say where the film is."""
    wanted = parse(Options, argv, "rlgym record", ("target",))
    path = film_path(wanted)
    require_at_least(wanted, episodes=1, max_steps=1, fps=0.1, seed=0)
    from rlgym.report.film import import_imageio, open_film

    imageio = import_imageio(path)
    prepare_headless()
    from rlgym.cli.view import settings_of, watch

    config = settings_of(wanted.target, wanted.policy, wanted.env, wanted.trust)
    frames = watch(wanted.target, config, wanted.policy, wanted.which, "rgb_array", wanted.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.stem}.part{path.suffix}")
    returns: list[float] = []
    count = 0
    film = None
    try:
        for frame in frames:
            if frame.returned is not None:
                returns.append(frame.returned)
            if frame.episode >= wanted.episodes or count >= wanted.max_steps:
                break
            picture = frame.image()
            if film is None:
                pace = wanted.fps or float(frame.env.metadata.get("render_fps") or 30)
                film = open_film(imageio, staged, pace)
            film.append_data(picture)
            count += 1
    finally:
        frames.close()
        if film is not None:
            film.close()
    os.replace(staged, path)
    earned = ", ".join(f"{value:.2f}" for value in returns) or "cut before the end"
    print(f"{path}: {count} frames, return {earned}")
    return 0


def film_path(wanted: Options) -> Path:
    """Return where the film goes.

    Raises:
        UserError: it would be neither an mp4 nor a gif.
    """
    if wanted.out is not None:
        path = Path(wanted.out)
    elif Path(wanted.target).is_dir():
        path = Path(wanted.target) / f"{wanted.policy}-{wanted.which}.mp4"
    else:
        world = wanted.target.rpartition(":")[2].replace("/", "-")
        path = Path(f"{world}-{wanted.policy}.mp4")
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"--out {path}: name a file that ends in .mp4 or .gif")
    return path


def prepare_headless() -> None:
    """Choose drawing without a window where there is no display; worlds read this when built."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
