"""Statistics of SB3's `VecNormalize`, from files that hold numbers only.

SB3 saves them as a pickle. Three lines turn one's own into numbers:

    norm = VecNormalize.load("vecnormalize.pkl", venv)     # or model.get_vec_normalize_env()
    rms = norm.obs_rms                                     # of a Dict space: a dict of them
    np.savez("vecnormalize.npz", mean=rms.mean, var=rms.var, count=rms.count,
             clip=norm.clip_obs, epsilon=norm.epsilon)

A .npz, .safetensors or .json file has `mean`, `var` and optionally `count`, `clip` and `epsilon`;
for a Dict space there are `mean/KEY`, `var/KEY` (and `count/KEY`) instead, or in JSON a dict of
lists under `mean` and `var`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from torch import nn

from rlgym.agents.normalize import EPSILON
from rlgym.errors import CheckpointError, UserError
from rlgym.interop.torch_tensors import open_zip, read_member
from rlgym.settings import short
from rlgym.spaces import Layout, Leaf

MAX_BYTES = 64 * 1024**2
"""Statistics are a few numbers per observed value."""
CLIP, VEC_EPSILON, COUNT = 10.0, 1e-8, 1e4
"""VecNormalize's own defaults; the count says how fast old statistics give way to new ones."""


@dataclass(frozen=True)
class Statistics:
    """What `VecNormalize` knows about observations, by key ("" for a single one)."""

    mean: Mapping[str, np.ndarray]
    """Means."""
    var: Mapping[str, np.ndarray]
    """Variances."""
    count: float
    """Observations seen."""
    clip: float
    """Bound of a normalised value."""
    epsilon: float
    """Added to the variance before the root."""


def read_statistics(path: str | Path, trust: bool = False) -> Statistics:
    """Read statistics from a .npz, .safetensors or .json file.

    Args:
        path: the file.
        trust: also unpickle what `VecNormalize.save` wrote, which runs whatever its author put
            into it.

    Raises:
        CheckpointError: it is no such file, or is a pickle and not trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of statistics")
    if path.suffix not in (".npz", ".safetensors", ".json"):
        if not trust:
            raise CheckpointError(
                f"{path} is not .npz, .safetensors or .json: turn the pickle into numbers with the "
                "three lines in docs/sb3.md, or add --trust to unpickle it if you made it yourself"
            )
        return _unpickle(path)
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than statistics of observations can be")
    content = path.read_bytes()
    if path.suffix == ".json":
        return _from_arrays(_parse_json(content, path), path)
    if path.suffix == ".npz":
        return _from_arrays(_parse_npz(content, path), path)
    try:
        return _from_arrays(safetensors.numpy.load(content), path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None


def apply(statistics: Statistics, layout: Layout, norms: nn.ModuleDict, source: Any) -> None:
    """Put statistics into a policy's normalisers.

    Args:
        statistics: of every float observation.
        layout: leaves of the observation space.
        norms: `policy.obs_norm`, built with `obs_clip=statistics.clip`.
        source: the file, for errors.

    Raises:
        CheckpointError: keys or shapes differ from the observations'.
    """
    leaves = normalized(layout)
    keys = [leaf.key for leaf in leaves]
    if sorted(statistics.mean) != sorted(keys):
        raise CheckpointError(
            f"{source} has statistics of {sorted(statistics.mean)} and the policy normalises "
            f"{sorted(keys)}: all of a world's Box observations are normalised, or none"
        )
    for leaf, norm in zip(leaves, norms.values(), strict=True):
        mean, var = statistics.mean[leaf.key], statistics.var[leaf.key]
        if mean.shape != leaf.shape or var.shape != leaf.shape:
            raise CheckpointError(
                f"{source}: mean {list(mean.shape)} and var {list(var.shape)} of "
                f"{leaf.key or 'the observation'} are not of its shape {list(leaf.shape)}"
            )
        # ours always adds EPSILON, so that another epsilon has to be part of the variance
        buffers: Any = norm
        buffers.mean.copy_(torch.from_numpy(mean))
        buffers.var.copy_(torch.from_numpy(var + (statistics.epsilon - EPSILON)))
        buffers.count.fill_(statistics.count)
        buffers.shift.copy_(buffers.mean)
        buffers.scale.copy_((buffers.var + EPSILON).rsqrt())


def normalized(layout: Layout) -> list[Leaf]:
    """Leaves that a policy with `normalize_obs` normalises."""
    boxes = [leaf for leaf in layout.leaves if isinstance(leaf.space, spaces.Box)]
    return [leaf for leaf in boxes if not leaf.is_image]


def _from_arrays(arrays: Mapping[str, Any], path: Path) -> Statistics:
    found: dict[str, dict[str, np.ndarray]] = {"mean": {}, "var": {}}
    numbers = {"count": COUNT, "clip": CLIP, "epsilon": VEC_EPSILON}
    for name, value in arrays.items():
        kind, _, key = name.partition("/")
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {short(name)} is not made of finite numbers")
        if kind in found:
            found[kind][key] = array.astype(np.float64)
        elif kind in numbers and array.size == 1:
            numbers[kind] = float(array.reshape(-1)[0])
        else:
            raise CheckpointError(
                f"{path}: {short(name)} is none of mean, var, count, clip and epsilon"
            )
    mean, var = found["mean"], found["var"]
    if not mean or mean.keys() != var.keys():
        raise CheckpointError(f"{path} needs mean and var (of a Dict space: mean/KEY and var/KEY)")
    for key in mean:
        if (var[key] < 0).any() or mean[key].shape != var[key].shape:
            raise CheckpointError(f"{path}: var of {key or 'the observation'} is no variance")
    if numbers["count"] < 0 or numbers["clip"] <= 0 or not 0 <= numbers["epsilon"] < math.inf:
        raise CheckpointError(f"{path}: count, clip or epsilon is negative")
    return Statistics(mean, var, **numbers)


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
        flat: dict[str, Any] = {}
        for name, value in document.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            flat |= {f"{name}/{key}" if key else name: np.array(part) for key, part in parts}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a JSON file of numbers ({short(str(error))})") from None
    return flat


def _parse_npz(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file without its pickles and without believing what its headers claim."""
    archive = open_zip(io.BytesIO(content), str(path))
    arrays = {}
    for member in archive.namelist():
        stream = io.BytesIO(read_member(archive, member, MAX_BYTES, str(path)))
        try:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
            rest = stream.read()
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(rest) or fortran:
                raise ValueError("objects, or fewer numbers than it claims")
            arrays[member.removesuffix(".npy")] = np.frombuffer(rest, dtype).reshape(shape)
        except (ValueError, TypeError, SyntaxError, EOFError, RecursionError) as error:
            what = f"{path}: {short(member)} is not an array of numbers ({short(str(error))})"
            raise CheckpointError(what) from None
    return arrays


def _unpickle(path: Path) -> Statistics:
    """Load what `VecNormalize.save` wrote; only for a file that the person vouches for."""
    import pickle

    try:
        with open(path, "rb") as file:
            saved: Any = pickle.load(file)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{path} cannot be unpickled ({short(str(error))})") from None
    try:
        return statistics_of(saved)
    except AttributeError:
        raise UserError(f"{path} holds a {type(saved).__name__} and no VecNormalize") from None


def statistics_of(vec_normalize: Any) -> Statistics:
    """Copy the statistics of an SB3 `VecNormalize`.

    Raises:
        UserError: it normalises no observations.
    """
    if not vec_normalize.norm_obs:
        raise UserError("this VecNormalize has norm_obs=False: leave it out")
    rms = vec_normalize.obs_rms
    each = rms if isinstance(rms, dict) else {"": rms}
    return Statistics(
        mean={key: np.array(one.mean, np.float64) for key, one in each.items()},
        var={key: np.array(one.var, np.float64) for key, one in each.items()},
        count=float(next(iter(each.values())).count),
        clip=float(vec_normalize.clip_obs),
        epsilon=float(vec_normalize.epsilon),
    )
