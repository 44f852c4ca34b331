"""What a model file of Stable-Baselines3 says in plain text, and its tensors; nothing is unpickled.

The file is a zip (https://stable-baselines3.readthedocs.io/en/master/guide/save_format.html):
`policy.pth` and `pytorch_variables.pth` hold tensors, and `data` is JSON in which every object that
JSON cannot hold stands twice: as a pickle, which is never looked at here, and as the texts of its
attributes, as Python prints them. The texts are enough for settings and for most spaces.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

from rlgym.errors import CheckpointError, SpaceError
from rlgym.interop.torch_tensors import open_zip, read_member, read_tensors
from rlgym.settings import short
from rlgym.space_json import space_from_json

MAX_DATA_BYTES = 256 * 1024**2
"""The JSON also holds the last observations of every world, which may be images."""
MAX_TENSOR_BYTES = 4 * 1024**3
"""Parameters of a policy and its critics."""
SHOWN_DIGITS = 8
"""Digits after the point that numpy prints of an array, unless told otherwise."""

_POLICIES = ("common.policies", "sac.policies", "td3.policies", "dqn.policies")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf)")


@dataclass(frozen=True)
class Archive:
    """A model file of SB3, read."""

    path: Path
    """The file."""
    data: Mapping[str, Any]
    """The JSON."""
    parameters: Mapping[str, Tensor]
    """`policy.state_dict()`."""
    variables: Mapping[str, Tensor]
    """Tensors beside the policy, such as SAC's log_ent_coef."""

    def number(self, name: str) -> float | None:
        """A setting that is a number, or a schedule that is constant; else None."""
        value: Any = self.data.get(name)
        if isinstance(value, Mapping):  # ConstantSchedule(val=0.2), as text
            found = re.fullmatch(
                r"ConstantSchedule\(val=([-+.e\d]+)\)", str(value.get("value_schedule"))
            )
            value = float(found[1]) if found and _NUMBER.fullmatch(found[1]) else None
        return value if type(value) in (int, float) and math.isfinite(value) else None

    @property
    def policy_kwargs(self) -> Mapping[str, Any]:
        """What the policy was built with; classes are texts such as "<class 'torch...ReLU'>"."""
        kwargs = self.data.get("policy_kwargs") or {}
        if not isinstance(kwargs, Mapping):
            raise CheckpointError(f"{self.path}: its policy_kwargs are not a dict")
        return {key: value for key, value in kwargs.items() if not key.startswith(":")}

    def space(self, name: str) -> gymnasium.Space:
        """Build "observation_space" or "action_space" from its texts.

        Raises:
            SpaceError: they do not say all of it; the message names the fix.
        """
        try:
            entry = self.data[name]
            kind = _kind(entry)
            return space_from_json(_DOCUMENTS[kind](entry))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = (
                str(error)
                if isinstance(error, _IncompleteError)
                else "its plain text lacks something"
            )
            raise SpaceError(
                f"{self.path}: the {name} cannot be read without unpickling ({why}): give the "
                f"world that the model was trained in, --env ID, or {name}= from Python"
            ) from None

    def check_space(self, name: str, space: gymnasium.Space) -> None:
        """Refuse a space that contradicts the file, as far as the file's texts go.

        Bounds are compared for actions only, because a policy scales or clips to them; SB3 turns
        images (H, W, C) to (C, H, W).

        Raises:
            SpaceError: says what the file has and what was given.
        """
        try:
            own = self.space(name)
        except SpaceError:
            return
        shape = space.shape or ()
        same = type(own) is type(space) and own.shape in (shape, shape[-1:] + shape[:-1])
        compared = ("n", "nvec", "start") + (("low", "high") if name == "action_space" else ())
        for part in compared if same else ():
            if hasattr(own, part):
                pair = np.asarray(getattr(own, part)), np.asarray(getattr(space, part))
                same = same and np.allclose(*pair, rtol=1e-3, atol=1e-3)
        if not same:
            raise SpaceError(
                f"{self.path} was trained with the {name} {short(own)}, and this world has "
                f"{short(space)}: give the world that it was trained in, wrappers included"
            )


class _IncompleteError(ValueError):
    """A text that leaves something out."""


def read_archive(path: str | Path) -> Archive:
    """Read a model file of SB3 without running anything of it.

    Raises:
        CheckpointError: it is not such a file, is damaged, or holds what cannot be read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give what model.save(...) wrote")
    try:
        with open(path, "rb") as file, open_zip(file, str(path)) as archive:
            if "data" not in archive.namelist() or "policy.pth" not in archive.namelist():
                raise CheckpointError(
                    f"{path} holds no model of Stable-Baselines3 (data, policy.pth): give what "
                    "model.save(...) wrote"
                )
            text = read_member(archive, "data", MAX_DATA_BYTES, str(path))
            tensors = {}
            for name in ("policy.pth", "pytorch_variables.pth"):
                if name in archive.namelist():
                    content = read_member(archive, name, MAX_TENSOR_BYTES, str(path))
                    tensors[name] = read_tensors(content, f"{path}: {name}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its data is not JSON: copy the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: its data is not a dict of settings")
    archive = Archive(path, data, tensors["policy.pth"], tensors.get("pytorch_variables.pth", {}))
    _check_policy_class(archive)
    return archive


def _check_policy_class(archive: Archive) -> None:
    entry = archive.data.get("policy_class")
    module = str(entry.get("__module__")) if isinstance(entry, Mapping) else short(entry)
    if module.removeprefix("stable_baselines3.") not in _POLICIES:
        raise CheckpointError(
            f"{archive.path}: its policy is a class from {short(module)}, and only those of "
            "stable_baselines3 itself are known here (PPO, A2C, SAC, TD3)"
        )


# ----------------------------------------------------------------------------------- spaces


def _kind(entry: Mapping[str, Any]) -> str:
    found = re.fullmatch(r"<class '(?:gym|gymnasium|shimmy)\.[\w.]+\.(\w+)'>", entry[":type:"])
    kind = found[1] if found else "space"
    if kind not in _DOCUMENTS:
        raise _IncompleteError(f"it is a {kind}")
    return kind


def _box(entry: Mapping[str, Any]) -> dict[str, Any]:
    shape = _shape(entry)
    dtype = np.dtype(entry["dtype"])
    low, high = (_numbers(entry[end], math.prod(shape), dtype) for end in ("low", "high"))
    return {"kind": "Box", "shape": shape, "dtype": str(dtype), "low": low, "high": high}


def _shape(entry: Mapping[str, Any]) -> list[int]:
    return [int(n) for n in entry.get("_shape", entry.get("shape"))]  # "shape" in Gym before 0.18


def _discrete(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "Discrete", "n": int(entry["n"]), "start": int(entry.get("start", 0))}


def _multi_discrete(entry: Mapping[str, Any]) -> dict[str, Any]:
    (count,) = _shape(entry)
    whole = np.dtype(np.int64)
    nvec = _numbers(entry["nvec"], count, whole)
    start = _numbers(entry["start"], count, whole) if "start" in entry else [0] * len(nvec)
    return {"kind": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": "int64"}


def _multi_binary(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "MultiBinary", "shape": _shape(entry)}


_DOCUMENTS = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
}


def _numbers(text: str, count: int, dtype: np.dtype) -> list[Any]:
    """Read an array as numpy printed it.

    Raises:
        _IncompleteError: numpy left entries out, or digits that matter.
    """
    if "..." in text:
        raise _IncompleteError("numpy left entries out where it printed its bounds")
    words = text.replace("[", " ").replace("]", " ").split()
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        raise _IncompleteError(f"it has {count} entries and {len(words)} numbers")
    if dtype.kind != "f":
        return [int(word) for word in words]
    for word in words:
        digits, _, exponent = word.partition("e")
        shown = len(digits.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - SHOWN_DIGITS)
        # A rounded number is the true one again where the type's own steps are coarser.
        if shown >= SHOWN_DIGITS and np.spacing(dtype.type(abs(float(word)))) <= unit:
            raise _IncompleteError(f"numpy rounded a bound to {word}")
    return [str(float(word)) if "inf" in word else float(word) for word in words]
