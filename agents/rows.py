"""Nested dicts of tensors that share their first axis: a learner's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

from torch import Tensor


def map_rows(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `fn` to every tensor of nested dicts; None stays None."""
    if isinstance(tree, dict):
        return {key: map_rows(fn, part) for key, part in tree.items()}
    return None if tree is None else fn(tree)


def cut_rows(tree: Any, size: int) -> Iterable[Any]:
    """Cut every tensor of nested dicts into pieces of `size` rows; views. None stays None."""
    if isinstance(tree, dict):
        parts = [cut_rows(part, size) for part in tree.values()]
        return (dict(zip(tree, piece, strict=True)) for piece in zip(*parts, strict=False))
    return repeat(None) if tree is None else tree.split(size)
