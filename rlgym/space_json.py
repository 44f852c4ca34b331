"""Gymnasium spaces as plain JSON values and back, so that a policy's file says what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlgym.errors import SpaceError

MAX_VALUES = 30_000_000
"""Numbers that a space of a file may describe, all its parts together: a 4K picture has 25 million.
A stranger's file must not ask for all memory."""


def space_to_json(space: gymnasium.Space) -> dict[str, Any]:
    """Describe a space; infinite bounds are the words "inf" and "-inf".

    Raises:
        SpaceError: for a space that no policy of ours takes.
    """
    if isinstance(space, spaces.Box):
        return {
            "kind": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bounds(space.low),
            "high": _bounds(space.high),
        }
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        return {"kind": "Discrete", "n": n, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"kind": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        parts = [[key, space_to_json(part)] for key, part in space.spaces.items()]
        return {"kind": "Dict", "spaces": parts}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise SpaceError(
        f"{type(space).__name__} space has no fixed shape: use Box, Discrete, MultiBinary, "
        "MultiDiscrete, Dict or Tuple, or wrap the world so that it is flattened"
    )


def space_from_json(document: Any) -> gymnasium.Space:
    """Build the space that `space_to_json` described.

    Raises:
        SpaceError: the document is not a description of a space.
    """
    try:
        if _num_values(document) > MAX_VALUES:
            raise SpaceError(f"a space of more than {MAX_VALUES:,} values is not one of ours")
        return _build(document)
    except SpaceError:
        raise
    except Exception as error:  # a file may hold anything
        raise SpaceError(
            f"not the description of a space: {type(error).__name__}: {error}"
        ) from None


def _bounds(bounds: np.ndarray) -> Any:
    """One number when all are the same, else all of them in order."""
    flat = bounds.reshape(-1)
    if flat.size and (flat == flat[0]).all():
        return _word(flat[0].item())
    return [_word(value) for value in flat.tolist()]


def _word(value: float | int) -> float | int | str:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _num_values(document: Mapping[str, Any]) -> int:
    """Numbers that a description asks for beyond those that it lists: its shapes'."""
    if document["kind"] == "Dict":
        return sum(_num_values(part) for _, part in document["spaces"])
    if document["kind"] == "Tuple":
        return sum(_num_values(part) for part in document["spaces"])
    return math.prod(_shape(document)) if "shape" in document else 1


def _shape(document: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in document["shape"])
    if any(n < 0 for n in shape):
        raise SpaceError(f"a space of shape {list(shape)} is not one of ours")
    return shape


def _box(document: Mapping[str, Any]) -> gymnasium.Space:
    shape, dtype = _shape(document), np.dtype(document["dtype"])
    if dtype.kind not in "fiub":
        raise SpaceError(f"a Box of {dtype} is not one of ours")

    def bounds(values: Any) -> np.ndarray:
        numbers = values if isinstance(values, list) else [values]
        exact = [float(v) if isinstance(v, str) or dtype.kind == "f" else int(v) for v in numbers]
        flat = np.array(exact, dtype)
        return np.full(shape, flat[0]) if flat.size == 1 else flat.reshape(shape)

    low, high = bounds(document["low"]), bounds(document["high"])
    return spaces.Box(low, high, shape, dtype.type)


def _discrete(document: Mapping[str, Any]) -> gymnasium.Space:
    dtype: Any = np.dtype(document.get("dtype", "int64")).type
    return spaces.Discrete(int(document["n"]), start=int(document["start"]), dtype=dtype)


def _multi_discrete(document: Mapping[str, Any]) -> gymnasium.Space:
    start = np.array(document["start"], np.int64)
    nvec = np.array(document["nvec"], np.int64)
    return spaces.MultiDiscrete(nvec, dtype=np.dtype(document["dtype"]).type, start=start)


def _multi_binary(document: Mapping[str, Any]) -> gymnasium.Space:
    shape = _shape(document)
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else list(shape))


def _build(document: Mapping[str, Any]) -> gymnasium.Space:
    return _BUILDERS[document["kind"]](document)


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], gymnasium.Space]] = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Dict": lambda d: spaces.Dict([(str(key), _build(part)) for key, part in d["spaces"]]),
    "Tuple": lambda d: spaces.Tuple([_build(part) for part in d["spaces"]]),
}
