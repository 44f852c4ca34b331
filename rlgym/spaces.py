"""Observations and actions as flat sets of arrays, whatever space a world declares.

A `Layout` looks at a Gymnasium space once and lists its leaves: the Box, Discrete, MultiBinary and
MultiDiscrete spaces inside any nesting of Dict and Tuple. From there on a batch of observations (or
actions) is a `Tree`: one array when the space is a single leaf, else a flat dict of arrays keyed by
path ("camera/left", "0/joint"). Only numpy and Gymnasium are imported here, because worker
processes use this file and start faster without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces

from rlgym.errors import SpaceError

A = TypeVar("A")
Tree = A | dict[str, A]
"""One array, or a flat dict of arrays keyed by path."""

_LEAF_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)


def map_tree(fn: Callable[..., Any], *trees: Any) -> Any:
    """Apply `fn` to the arrays that stand at the same place in every tree."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: fn(*(tree[key] for tree in trees)) for key in first}
    return fn(*trees)


def tree_items(tree: Tree[A]) -> list[tuple[str, A]]:
    """List a tree's arrays with their keys; a single array has the key ""."""
    return list(tree.items()) if isinstance(tree, dict) else [("", tree)]


@dataclass(frozen=True)
class Leaf:
    """One array of an observation or action."""

    key: str
    """Path joined by "/"; "" when the whole space is this leaf."""
    path: tuple[str | int, ...]
    """Keys and indices that lead from the whole value to this one."""
    space: gymnasium.Space
    """The Box, Discrete, MultiBinary or MultiDiscrete space."""
    shape: tuple[int, ...]
    """Shape of one value, without the batch axis."""
    dtype: np.dtype
    """Type that buffers hold: the space's own, except float64, which is kept as float32."""

    @property
    def num_choices(self) -> tuple[int, ...]:
        """Number of choices of each discrete component; () for Box and MultiBinary."""
        if isinstance(self.space, spaces.Discrete):
            return (int(self.space.n),)
        if isinstance(self.space, spaces.MultiDiscrete):
            return tuple(int(n) for n in self.space.nvec.reshape(-1))
        return ()

    @property
    def start(self) -> np.ndarray:
        """Lowest value of each discrete component, shaped as the leaf."""
        if isinstance(self.space, spaces.Discrete):
            return np.asarray(self.space.start, np.int64)
        if isinstance(self.space, spaces.MultiDiscrete):
            return np.asarray(self.space.start, np.int64)
        return np.zeros(self.shape, np.int64)

    @property
    def is_image(self) -> bool:
        """True for uint8 boxes of rank 3: (H, W, C) or (C, H, W)."""
        return (
            isinstance(self.space, spaces.Box) and self.dtype == np.uint8 and len(self.shape) == 3
        )


def _leaves(space: gymnasium.Space, path: tuple[str | int, ...]) -> list[Leaf]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, sub in space.spaces.items() for leaf in _leaves(sub, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, sub in enumerate(space.spaces) for leaf in _leaves(sub, (*path, i))]
    if isinstance(space, _LEAF_SPACES):
        dtype = np.dtype(space.dtype)
        if dtype in (np.dtype(np.float64), np.dtype(np.float16)):
            dtype = np.dtype(np.float32)
        if dtype in (np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)):
            dtype = np.dtype(np.int64)  # torch has little arithmetic for wide unsigned integers
        shape = tuple(int(n) for n in (space.shape or ()))
        return [Leaf("/".join(str(part) for part in path), path, space, shape, dtype)]
    where = "/".join(str(part) for part in path) or "the space itself"
    raise SpaceError(
        f"{type(space).__name__} space at {where} has no fixed shape: use Box, Discrete, "
        "MultiBinary, MultiDiscrete, Dict or Tuple, or flatten it with a gymnasium wrapper"
    )


class Layout:
    """The leaves of a space, and the ways between a world's own values and batched arrays.

    Attributes:
        space: the Gymnasium space of one value.
        leaves: its leaves, in the space's order.
        single: True when the space is one leaf, so that a batch is a bare array.
        mask_size: number of flags of an action mask: the sum of the choices of every Discrete and
            MultiDiscrete leaf.

    Raises:
        SpaceError: for Text, Sequence, Graph and other spaces without a fixed shape, and for an
            empty space.
    """

    def __init__(self, space: gymnasium.Space) -> None:
        """Read `space` once."""
        self.space = space
        self.leaves = tuple(_leaves(space, ()))
        if not self.leaves:
            raise SpaceError(f"{space} holds no values: give it at least one Box or Discrete space")
        if len({leaf.key for leaf in self.leaves}) != len(self.leaves):
            raise SpaceError(f'two entries of {space} have the same path: do not use "/" in keys')
        self.single = self.leaves[0].path == ()
        self.mask_size = sum(sum(leaf.num_choices) for leaf in self.leaves)
        self._is_discrete = self.single and isinstance(space, spaces.Discrete)
        self._is_tuple = {  # which inner nodes are tuples; the rest are dicts
            path for path, node in _inner_nodes(space, ()) if isinstance(node, spaces.Tuple)
        }

    def __repr__(self) -> str:
        """Show each leaf with its type and shape."""
        parts = ", ".join(
            f"{leaf.key or 'value'}: {leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves
        )
        return f"Layout({parts})"

    def alloc(self, *lead: int) -> Tree[np.ndarray]:
        """Zeroed arrays of shape (*lead, *leaf.shape), one per leaf."""
        arrays = {leaf.key: np.zeros((*lead, *leaf.shape), leaf.dtype) for leaf in self.leaves}
        return arrays[""] if self.single else arrays

    def nbytes(self) -> int:
        """Bytes of one value."""
        return sum(
            int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in self.leaves
        )

    def write(self, value: Any, tree: Tree[np.ndarray], row: int) -> None:
        """Copy one value, nested as the world gives it, into row `row` of a batch.

        Raises:
            SpaceError: when the value lacks an entry of the space or has another shape.
        """
        if self.single:
            self._write_leaf(self.leaves[0], value, tree, row)  # type: ignore[arg-type]
            return
        for leaf in self.leaves:
            part = value
            try:
                for step in leaf.path:
                    part = part[step]
            except (KeyError, IndexError, TypeError):
                raise SpaceError(
                    f"the world's value has no entry {leaf.key!r}, but its space declares one"
                ) from None
            self._write_leaf(leaf, part, tree[leaf.key], row)  # type: ignore[index]

    @staticmethod
    def _write_leaf(leaf: Leaf, value: Any, array: np.ndarray, row: int) -> None:
        if (
            leaf.shape
            and getattr(value, "shape", None) != leaf.shape
            and np.shape(value) != leaf.shape
        ):
            # numpy would broadcast a wrong shape silently
            raise SpaceError(
                f"the world's value {leaf.key!r} has shape {list(np.shape(value))}, its space says "
                f"{list(leaf.shape)}: correct the space or the world"
            )
        try:
            array[row] = value
        except (TypeError, ValueError) as error:
            raise SpaceError(
                f"the world's value {leaf.key!r} does not fit {leaf.space}: {error}"
            ) from None

    def read(self, tree: Tree[np.ndarray], row: int) -> Any:
        """Give one row as the world expects it: nested, Discrete as a scalar, arrays copied."""
        if self._is_discrete:
            return tree[row]  # type: ignore[index]
        if self.single:
            return _native(self.leaves[0], tree[row])  # type: ignore[index]
        values = {leaf.path: _native(leaf, tree[leaf.key][row]) for leaf in self.leaves}  # type: ignore[index]
        return self._assemble(values, ())

    def nest(self, tree: Tree[np.ndarray]) -> Any:
        """Give a batch as Gymnasium's `batch_space` nests it: dicts and tuples of arrays."""
        if self.single:
            return tree
        return self._assemble({leaf.path: tree[leaf.key] for leaf in self.leaves}, ())  # type: ignore[index]

    def flatten(self, nested: Any) -> Tree[Any]:
        """Turn a nested (or flat) value or batch into a tree; arrays are not copied.

        Raises:
            SpaceError: when an entry is missing; the message lists what is expected.
        """
        if self.single:
            return nested
        if isinstance(nested, Mapping) and all(leaf.key in nested for leaf in self.leaves):
            return {leaf.key: nested[leaf.key] for leaf in self.leaves}
        flat = {}
        for leaf in self.leaves:
            part = nested
            try:
                for step in leaf.path:
                    part = part[step]
            except (KeyError, IndexError, TypeError):
                raise SpaceError(
                    f"entry {leaf.key!r} is missing: expected {[leaf.key for leaf in self.leaves]}"
                ) from None
            flat[leaf.key] = part
        return flat

    def _assemble(
        self, values: dict[tuple[str | int, ...], Any], path: tuple[str | int, ...]
    ) -> Any:
        if path in values:
            return values[path]
        depth = len(path)
        names = dict.fromkeys(
            leaf[depth] for leaf in values if leaf[:depth] == path and len(leaf) > depth
        )
        if path in self._is_tuple:
            return tuple(self._assemble(values, (*path, name)) for name in names)
        return {name: self._assemble(values, (*path, name)) for name in names}


def _inner_nodes(
    space: gymnasium.Space, path: tuple[str | int, ...]
) -> list[tuple[tuple[str | int, ...], gymnasium.Space]]:
    if isinstance(space, spaces.Dict):
        children: list[tuple[str | int, gymnasium.Space]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = list(enumerate(space.spaces))
    else:
        return []
    return [(path, space)] + [
        node for name, sub in children for node in _inner_nodes(sub, (*path, name))
    ]


def _native(leaf: Leaf, value: Any) -> Any:
    if isinstance(leaf.space, spaces.Discrete):
        return leaf.dtype.type(value)
    return np.array(value, dtype=leaf.space.dtype)  # a copy: a world may keep what it is given
