"""Films: what writes them, and one of an actor in a world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlgym.errors import MissingExtraError

if TYPE_CHECKING:
    from rlgym.report.measure import Actor


def import_imageio(path: Path) -> Any:
    """Import what writes films.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import imageio.v2 as imageio

        if path.suffix == ".mp4":
            import imageio_ffmpeg  # noqa: F401 - imageio finds it by itself, or fails late
    except ImportError as error:
        raise MissingExtraError(
            f'films need {error.name}: pip install "rlgym-lab[video]"'
        ) from None
    return imageio


def open_film(imageio: Any, path: Path, fps: float) -> Any:
    """Open the film that frames are appended to."""
    if path.suffix == ".gif":
        return imageio.get_writer(path, mode="I", duration=1000 / fps, loop=0)
    # Players want even sizes; ffmpeg's usual blocks of 16 would rescale most worlds' frames.
    return imageio.get_writer(path, fps=fps, macro_block_size=2, ffmpeg_log_level="error")


def film(env: Any, act: Actor, path: Path, seconds: float, *, seed: int = 0) -> None:
    """Film the first slot of a vector env that was made with render_mode "rgb_array".

    Args:
        env: vector env; other slots are stepped and not shown.
        act: chooses the actions.
        path: .mp4 or .gif; it appears when it is whole.
        seconds: length, at the world's own pace; episodes that end go on with the next.
        seed: of the episode.

    Raises:
        MissingExtraError: what writes films is not installed.
    """
    imageio = import_imageio(path)
    fps = float(env.metadata.get("render_fps") or 30)
    staged = path.with_name(f"{path.stem}.part{path.suffix}")
    obs, info = env.reset(seed=seed)
    with open_film(imageio, staged, fps) as writer:
        for _ in range(max(round(seconds * fps), 1)):
            writer.append_data(np.asarray(env.render_slot(0), np.uint8))
            obs, _, _, _, info = env.step(act(obs, info))
    os.replace(staged, path)
