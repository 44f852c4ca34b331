"""One set of array functions for numpy and torch, so that the task is written once.

    xp = namespace(q)
    cos = xp.cos(q)

Results have the kind, dtype and device of what goes in. Only what the task needs is here, under
numpy's names; `axis` is always explicit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlgym import device

Array = Any
"""A numpy array or a torch tensor."""


class NumpyNamespace:
    """numpy itself, but for the few functions that have a faster way for small arrays."""

    sin = staticmethod(np.sin)
    cos = staticmethod(np.cos)
    arctan2 = staticmethod(np.arctan2)
    arccos = staticmethod(np.arccos)
    arcsin = staticmethod(np.arcsin)
    exp = staticmethod(np.exp)
    log = staticmethod(np.log)
    sqrt = staticmethod(np.sqrt)
    abs = staticmethod(np.abs)
    floor = staticmethod(np.floor)
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)
    where = staticmethod(np.where)
    concatenate = staticmethod(np.concatenate)
    broadcast_to = staticmethod(np.broadcast_to)
    matmul = staticmethod(np.matmul)
    zeros_like = staticmethod(np.zeros_like)
    ones_like = staticmethod(np.ones_like)

    @staticmethod
    def stack(arrays: Sequence[Array], axis: int) -> Array:
        if axis != -1:
            return np.stack(arrays, axis)
        # np.stack reshapes each of its arguments first; writing columns takes half the time
        first = np.asarray(arrays[0])
        out = np.empty((*first.shape, len(arrays)), first.dtype)
        for i, array in enumerate(arrays):
            out[..., i] = array
        return out

    @staticmethod
    def clip(x: Array, lower: Array | float, upper: Array | float) -> Array:
        return np.minimum(np.maximum(x, lower), upper)

    @staticmethod
    def dot(a: Array, b: Array) -> Array:
        """Sum of products over the last axis."""
        return np.einsum("...i,...i->...", a, b)

    @staticmethod
    def sum(x: Array, axis: int) -> Array:
        return x.sum(axis)

    @staticmethod
    def all(x: Array, axis: int) -> Array:
        return x.all(axis)

    @staticmethod
    def min(x: Array, axis: int) -> Array:
        return x.min(axis)

    @staticmethod
    def array(values: Any, like: Array) -> Array:
        return np.asarray(values, like.dtype)

    @staticmethod
    def zeros(shape: Sequence[int], like: Array) -> Array:
        return np.zeros(shape, like.dtype)

    @staticmethod
    def full(shape: Sequence[int], value: float, like: Array) -> Array:
        return np.full(shape, value, like.dtype)

    @staticmethod
    def copy(x: Array) -> Array:
        return x.copy()

    @staticmethod
    def astype(x: Array, like: Array) -> Array:
        """`x` with the dtype of `like`."""
        return x.astype(like.dtype)

    @staticmethod
    def int8(x: Array) -> Array:
        return x.astype(np.int8)


class TorchNamespace:
    """The same functions by torch; none of them synchronizes with an accelerator."""

    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    arctan2 = staticmethod(torch.arctan2)
    arccos = staticmethod(torch.arccos)
    arcsin = staticmethod(torch.arcsin)
    exp = staticmethod(torch.exp)
    log = staticmethod(torch.log)
    sqrt = staticmethod(torch.sqrt)
    abs = staticmethod(torch.abs)
    floor = staticmethod(torch.floor)
    where = staticmethod(torch.where)
    broadcast_to = staticmethod(torch.broadcast_to)
    matmul = staticmethod(torch.matmul)
    zeros_like = staticmethod(torch.zeros_like)
    ones_like = staticmethod(torch.ones_like)

    @staticmethod
    def minimum(a: Array, b: Array | float) -> Array:
        return torch.minimum(a, b) if isinstance(b, torch.Tensor) else torch.clamp(a, max=b)

    @staticmethod
    def maximum(a: Array, b: Array | float) -> Array:
        return torch.maximum(a, b) if isinstance(b, torch.Tensor) else torch.clamp(a, min=b)

    @staticmethod
    def concatenate(arrays: Sequence[Array], axis: int) -> Array:
        return torch.cat(tuple(arrays), axis)

    @staticmethod
    def stack(arrays: Sequence[Array], axis: int) -> Array:
        return torch.stack(tuple(arrays), axis)

    @staticmethod
    def clip(x: Array, lower: Array | float, upper: Array | float) -> Array:
        return torch.clamp(x, lower, upper)  # pyright: ignore[reportArgumentType,reportCallIssue]

    @staticmethod
    def dot(a: Array, b: Array) -> Array:
        """Sum of products over the last axis."""
        return (a * b).sum(-1)

    @staticmethod
    def sum(x: Array, axis: int) -> Array:
        return x.sum(axis)

    @staticmethod
    def all(x: Array, axis: int) -> Array:
        return x.all(axis)

    @staticmethod
    def min(x: Array, axis: int) -> Array:
        return x.amin(axis)

    @staticmethod
    def array(values: Any, like: Array) -> Array:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)

    @staticmethod
    def zeros(shape: Sequence[int], like: Array) -> Array:
        return torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)

    @staticmethod
    def full(shape: Sequence[int], value: float, like: Array) -> Array:
        return torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)

    @staticmethod
    def copy(x: Array) -> Array:
        return x.clone()

    @staticmethod
    def astype(x: Array, like: Array) -> Array:
        """`x` with the dtype of `like`."""
        return x.to(like.dtype)

    @staticmethod
    def int8(x: Array) -> Array:
        return x.to(torch.int8)


NUMPY = NumpyNamespace()
TORCH = TorchNamespace()


def namespace(x: Array) -> Any:
    """Return the functions for arrays of the kind of `x`."""
    return TORCH if isinstance(x, torch.Tensor) else NUMPY


def constant(values: Any, like: Array) -> Array:
    """Turn a (nested) tuple of numbers into an array of the kind, dtype and device of `like`.

    The array is made once and shared: do not write into it.
    """
    if isinstance(like, torch.Tensor):
        return device.constant(values, like.dtype, like.device)
    return _numpy_constant(values, like.dtype)


@functools.lru_cache(maxsize=512)
def _numpy_constant(values: Any, dtype: np.dtype) -> np.ndarray:
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def indices(values: tuple[int, ...], like: Array) -> Array:
    """Turn a tuple of indices into an array that indexes arrays such as `like`; made once."""
    if isinstance(like, torch.Tensor):
        return device.constant(values, torch.int64, like.device)
    return _numpy_constant(values, _INTEGER)


_INTEGER = np.dtype(np.int64)


def renewed(old: Array, new: Array) -> Array:
    """Return `new`; of torch, in the memory of `old`, which a recorded graph knows by its address.

    What a later step needs of this one must pass through here.
    """
    if isinstance(old, torch.Tensor) and new is not old:
        return old.copy_(new)
    return new


def expand(mask: Array, x: Array) -> Array:
    """Give `mask` (B,) as many axes as `x` (B, ...), so that it selects rows in `where`."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def choose_rows(mask: Array, new: Array, old: Array) -> Array:
    """Return `new` in the rows of `mask` (B,) and `old` elsewhere; a new array."""
    return namespace(old).where(expand(mask, old), new, old)
