"""Images of a player, which arrive as PNG files, as arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from PIL import Image

from rlgym.errors import WorldError

_MAGIC = b"\x89PNG\r\n\x1a\n"
PARALLEL_FROM = 4
"""Images in one message from which on several threads decode; fewer are done sooner by one."""


def picture_size(data: bytes) -> tuple[int, int]:
    """Height and width of the first PNG file in `data`; nothing is decoded.

    Raises:
        WorldError: it does not begin with one.
    """
    if data[:8] != _MAGIC or data[12:16] != b"IHDR" or len(data) < 24:
        raise WorldError("a compressed observation is no PNG image")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def decode_images(
    images: Sequence[bytes], mappings: Sequence[Sequence[int]], out: np.ndarray
) -> None:
    """Decode one observation of several agents.

    Args:
        images: per agent, PNG files one after another, each with up to three channels.
        mappings: per agent, which channel each of the files' channels goes to, -1 for none; the
            ones that share a channel are averaged. Empty: the first channels as they come, and
            for a single channel the average of the first file's.
        out: (n, C, H, W) uint8, written to.

    Raises:
        WorldError: an image is damaged, or has another size.
    """

    def one(i: int) -> None:
        _decode(images[i], mappings[i], out[i])

    if len(images) >= PARALLEL_FROM:
        list(_threads().map(one, range(len(images))))
    else:
        for i in range(len(images)):
            one(i)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "unity-png")


def _files(data: bytes) -> Iterator[bytes]:
    """The PNG files in `data`; their ends are found chunk by chunk."""
    start = 0
    while start < len(data):
        if data[start : start + 8] != _MAGIC:
            raise WorldError("a compressed observation is no PNG image")
        end, kind = start + 8, b""
        while kind != b"IEND":
            kind = data[end + 4 : end + 8]
            end += 12 + int.from_bytes(data[end : end + 4], "big")
            if len(kind) != 4 or end > len(data):
                raise WorldError("a PNG image of an observation is cut short")
        yield data[start:end]
        start = end


def _decode(data: bytes, mapping: Sequence[int], out: np.ndarray) -> None:
    num_channels, height, width = out.shape
    planes: list[np.ndarray] = []
    for file in _files(data):
        try:
            with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
                if (image.height, image.width) != (height, width):
                    raise WorldError(
                        f"an image of {image.height} x {image.width} pixels arrived for an "
                        f"observation of {height} x {width}"
                    )
                pixels = np.asarray(image if image.mode in ("RGB", "L") else image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, WorldError):
                raise
            raise WorldError(f"a PNG image of an observation is damaged: {error}") from error
        planes += [pixels] if pixels.ndim == 2 else [pixels[:, :, c] for c in range(3)]
    if not mapping:
        if num_channels == 1:
            mapping = [0] * min(len(planes), 3)
        else:
            mapping = range(min(len(planes), num_channels))
    for channel in range(num_channels):
        chosen = [p for p, target in zip(planes, mapping, strict=False) if target == channel]
        if not chosen:
            raise WorldError(
                f"the images of an observation fill no channel {channel} of {num_channels}"
            )
        if len(chosen) == 1:
            out[channel] = chosen[0]
        else:
            np.rint(np.mean(chosen, axis=0), out=out[channel], casting="unsafe")
