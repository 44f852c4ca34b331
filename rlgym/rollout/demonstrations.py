"""Recorded transitions that a replay buffer begins with: files of other tools, and old runs.

A file is one `.safetensors` or `.npz` with these arrays, K steps in order of time, episode after
episode:

    observations         (K, ...)   or observations/<key>, one per entry of a Dict observation
    actions              (K, ...)   in the world's own units; or actions/<key>
    rewards              (K,)
    terminated           (K,)       the world ended with this step
    truncated            (K,)       the recording stopped, or time ran out, after this step
    next_observations    (K, ...)   what was seen after the step; optional
    action_masks         (K, M)     which choices were allowed, nonzero = allowed; optional

Without `next_observations` the last observation of a truncated episode is not known, so its last
step only says where the step before it led. The last step of a file ends its episode.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rlgym.errors import UserError
from rlgym.rollout.ring import FINAL, OPEN, TERMINATED, TRUNCATED, named
from rlgym.settings import short
from rlgym.spaces import Layout, Leaf, Tree, tree_items

SUFFIXES = (".safetensors", ".npz")
MASKS = "action_masks"


@dataclass
class Demonstrations:
    """Whole episodes as rows of a replay buffer: each ends in a row with its last observation."""

    obs: Tree[Tensor]
    """Tree of (K, ...)."""
    actions: Tree[Tensor]
    """Tree of (K, ...)."""
    rewards: np.ndarray
    """(K,) float32."""
    flags: np.ndarray
    """(K,) int32, as in `rlgym.rollout.ring`."""
    stored: bool = False
    """The actions are as the critic takes them already."""
    mask: Tensor | None = None
    """(K, M) bool; None when all actions are allowed."""

    def episodes(self) -> Iterator[tuple[int, int]]:
        """First row of each episode, and the row after its last."""
        ends = np.flatnonzero(self.flags == FINAL) + 1
        return zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)

    @property
    def size(self) -> int:
        """Transitions."""
        return int(np.count_nonzero(self.flags < FINAL))

    def share_outside(self, action_layout: Layout) -> float:
        """Share of the transitions with a continuous action beyond the world's bounds.

        A thousandth of the range beyond them is rounding. Stored actions are within.
        """
        outside = torch.zeros(len(self.flags), dtype=torch.bool)
        for leaf in () if self.stored else action_layout.leaves:
            if isinstance(leaf.space, gymnasium.spaces.Box):
                actions = dict(tree_items(self.actions))[leaf.key].double()
                low = torch.from_numpy(leaf.space.low).double()
                high = torch.from_numpy(leaf.space.high).double()
                slack = 1e-3 * torch.nan_to_num(high - low, posinf=0.0)
                beyond = torch.maximum(low - actions, actions - high) > slack
                outside |= beyond.flatten(1).any(1)
        return float(outside[torch.from_numpy(self.flags < FINAL)].double().mean())


def load(path: str | os.PathLike[str], obs_layout: Layout, action_layout: Layout) -> Demonstrations:
    """Read a file of transitions, or the newest replay buffer of a run's folder.

    Args:
        path: the file or the folder.
        obs_layout: layout of the world's observations.
        action_layout: layout of its actions.

    Raises:
        UserError: there is no such file, or an array in it is missing, unknown, of another shape or
            type, or outside the world's space.
    """
    path = Path(path)
    if path.is_dir():
        return _from_run(path, obs_layout, action_layout)
    return from_arrays(path, _read(path), obs_layout, action_layout)


def from_arrays(
    source: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    obs_layout: Layout,
    action_layout: Layout,
) -> Demonstrations:
    """Take the arrays that a file would hold.

    Args:
        source: where they come from, for errors.
        arrays: by the names above.
        obs_layout: layout of the world's observations.
        action_layout: layout of its actions.

    Raises:
        UserError: as `load`.
    """
    path = Path(source)
    actions = _expected("actions", action_layout)
    obs, following = (_expected(n, obs_layout) for n in ("observations", "next_observations"))
    needed = [*obs, *actions, "rewards", "terminated", "truncated"]
    missing = [name for name in needed if name not in arrays]
    unknown = sorted(set(arrays) - {*needed, *following, MASKS})
    has_following = all(name in arrays for name in following)
    if not has_following:
        unknown += [name for name in following if name in arrays]
    if missing or unknown:
        raise UserError(
            f"{path} lacks {missing or 'nothing'} and has the unknown {unknown or 'nothing'}: "
            f"it must hold {needed}, and may hold {[*following, MASKS]}"
        )
    K = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    leaves = obs | actions | (following if has_following else {})
    values = {name: _fitted(path, name, arrays[name], K, leaf) for name, leaf in leaves.items()}
    for name in ("rewards", "terminated", "truncated"):
        if arrays[name].shape != (K,) or K == 0 or arrays[name].dtype.kind not in "biuf":
            raise UserError(f"{path}: '{name}' has shape {list(arrays[name].shape)}, make it [K]")
    rewards = arrays["rewards"].astype(np.float32)
    if not np.isfinite(rewards).all():
        raise UserError(
            f"{path}: 'rewards' holds values that are not finite: remove their episodes"
        )
    terminated, truncated = (arrays[n].astype(np.bool_) for n in ("terminated", "truncated"))
    mask = _mask(path, arrays.get(MASKS), K, action_layout)
    return _rows(
        _tree(values, obs),
        _tree(values, following) if has_following else None,
        _tree(values, actions),
        rewards,
        terminated,
        truncated,
        mask,
    )


def save(
    path: str | os.PathLike[str],
    observations: Tree[Any],
    actions: Tree[Any],
    rewards: Any,
    terminated: Any,
    truncated: Any,
    next_observations: Tree[Any] | None = None,
) -> None:
    """Write transitions to a file that `load` reads.

    Args:
        path: ends in .safetensors or .npz; a file that is there is replaced.
        observations: tree of (K, ...), numpy arrays or tensors.
        actions: tree of (K, ...), in the world's units.
        rewards: (K,).
        terminated: (K,) bool.
        truncated: (K,) bool.
        next_observations: tree of (K, ...); without it the last step before each truncation is
            lost.

    Raises:
        UserError: for another kind of file.
    """
    path = Path(path)
    _check_suffix(path)
    given = {
        **named("observations", observations),
        **named("actions", actions),
        **({} if next_observations is None else named("next_observations", next_observations)),
        "rewards": rewards,
        "terminated": terminated,
        "truncated": truncated,
    }
    tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in given.items()}
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, **arrays)
    else:
        safetensors.torch.save_file({k: v.clone() for k, v in tensors.items()}, path)


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is neither {' nor '.join(SUFFIXES)}: convert it to one of them")


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file; nothing in it is run."""
    _check_suffix(path)
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
            return {name: tensor.numpy() for name, tensor in content.items()}
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a plain {path.suffix} file: {error}") from None


def _expected(prefix: str, layout: Layout) -> dict[str, Leaf]:
    return {f"{prefix}/{leaf.key}" if leaf.key else prefix: leaf for leaf in layout.leaves}


def _fitted(path: Path, name: str, array: np.ndarray, count: int, leaf: Leaf) -> Tensor:
    """Return an array in its leaf's type, or say why it does not belong there."""
    if array.shape != (count, *leaf.shape):
        raise UserError(
            f"{path}: '{name}' has shape {list(array.shape)}, and {count} steps of this world have "
            f"{[count, *leaf.shape]}"
        )
    if not np.can_cast(array.dtype, leaf.dtype, "same_kind") and array.dtype.kind not in "biu":
        raise UserError(f"{path}: '{name}' is {array.dtype}, this world has {leaf.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{path}: '{name}' holds values that are not finite: remove their episodes")
    if leaf.num_choices:
        last = leaf.start + np.reshape(leaf.num_choices, leaf.shape) - 1
        if (array < leaf.start).any() or (array > last).any():
            raise UserError(f"{path}: '{name}' has values outside {leaf.space}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(leaf.dtype)))


def _mask(path: Path, array: np.ndarray | None, count: int, layout: Layout) -> Tensor | None:
    """Return the flags of what was allowed; None where the file does not say."""
    if array is None:
        return None
    if array.shape != (count, layout.mask_size) or array.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: '{MASKS}' has shape {list(array.shape)}, and {count} steps of this world "
            f"have {[count, layout.mask_size]}"
        )
    return torch.from_numpy(array != 0)


def _tree(values: dict[str, Tensor], leaves: Mapping[str, Leaf]) -> Tree[Tensor]:
    found = {leaf.key: values[name] for name, leaf in leaves.items()}
    return found[""] if list(found) == [""] else found


def _rows(
    obs: Tree[Tensor],
    next_obs: Tree[Tensor] | None,
    actions: Tree[Tensor],
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    mask: Tensor | None,
) -> Demonstrations:
    """Insert a row for the last observation after each episode's end."""
    terminated, truncated = terminated.copy(), truncated.copy()
    truncated[-1] |= not terminated[-1]
    flags = terminated * np.int32(TERMINATED) | truncated * np.int32(TRUNCATED)
    ends = np.flatnonzero(flags)
    if next_obs is None:
        # What follows a cut is unknown: the cut step becomes the final row of the step before it.
        # After a termination nothing is asked, so any observation will do; it is its own.
        cut = ends[~terminated[ends]]
        first = np.append(0, ends[:-1] + 1)[~terminated[ends]]
        flags[cut[cut > first] - 1] |= TRUNCATED
        flags[cut] = FINAL
        ends = ends[terminated[ends]]
        alone = cut[cut == first]  # an episode of one cut step says nothing
        kept = np.setdiff1d(np.arange(len(flags)), alone)
    else:
        kept = np.arange(len(flags))
    source = np.sort(np.concatenate((kept, ends)), kind="stable")
    is_final = np.append(False, source[1:] == source[:-1]) if len(source) else np.zeros(0, np.bool_)
    if not len(source):
        raise UserError("the demonstrations hold no whole step: record next_observations as well")
    picked = torch.from_numpy(source)
    final = torch.from_numpy(is_final)

    def observed(seen: Tensor, following: Tensor | None = None) -> Tensor:
        rows = seen[picked]
        if following is not None:
            rows[final] = following[picked[final]]
        return rows

    if next_obs is None:
        found = _map(observed, obs)
    else:
        found = _map(observed, obs, next_obs)
    out = np.where(is_final, np.int32(FINAL), flags[source])
    quiet = np.where(out == FINAL, np.float32(0), rewards[source])
    if mask is not None:
        mask = mask[picked]
        if next_obs is not None:  # what was allowed after the last step is not known
            mask[final] = True
    return Demonstrations(found, _map(lambda a: a[picked], actions), quiet, out, mask=mask)


def _map(fn: Any, *trees: Any) -> Any:
    if isinstance(trees[0], dict):
        return {key: fn(*(tree[key] for tree in trees)) for key in trees[0]}
    return fn(*trees)


# ----- an old run's buffer ---------------------------------------------------------------------


def _from_run(folder: Path, obs_layout: Layout, action_layout: Layout) -> Demonstrations:
    """Join the segments of the newest checkpoint, slot after slot."""
    segments = [_read_segment(file) for file in _segment_files(folder)]
    leaves = {**_expected("obs", obs_layout), **_expected("actions", action_layout)}
    for segment in segments:
        for name, leaf in leaves.items():
            shape = list(segment[name].shape[1:]) if name in segment else "nothing"
            if shape != list(leaf.shape):
                raise UserError(
                    f"the replay buffer in {folder} has {shape} of '{name}', and this world has "
                    f"{list(leaf.shape)}: use the buffer of a run in the same world"
                )
    names = [*leaves, "rewards", "flags", *(["mask"] if "mask" in segments[0] else [])]
    joined = {name: torch.cat([segment[name] for segment in segments]) for name in names}
    slots = len(segments[0]["first"])
    picked = np.concatenate([_stream(segments, slot) for slot in range(slots)])
    source = torch.from_numpy(picked)
    flags = joined["flags"].numpy()[picked]
    # What was open at the end is the last observation of an episode that was cut there.
    opened = np.flatnonzero(flags == OPEN)
    before = opened[(opened > 0)] - 1
    flags[before[flags[before] == 0]] |= TRUNCATED
    flags[opened] = FINAL
    # A final row that follows another, or none, ends nothing.
    empty = (flags == FINAL) & np.append(True, flags[:-1] == FINAL)
    rows = source[torch.from_numpy(~empty)]
    values = {name: joined[name][rows] for name in leaves}
    if not len(rows):
        raise UserError(f"the replay buffer in {folder} is empty: use that of a longer run")
    return Demonstrations(
        _tree(values, _expected("obs", obs_layout)),
        _tree(values, _expected("actions", action_layout)),
        joined["rewards"].numpy()[rows.numpy()],
        flags[~empty],
        stored=True,
        mask=joined["mask"][rows] if "mask" in joined else None,
    )


def _segment_files(folder: Path) -> list[Path]:
    """Segments of the newest complete checkpoint, oldest first; the tail comes last."""
    for checkpoint in sorted(folder.glob("checkpoints/step-*"), reverse=True):
        files = sorted(checkpoint.glob("replay-[0-9]*.safetensors"))
        files += checkpoint.glob("replay-tail.safetensors")
        if files and (checkpoint / "manifest.json").is_file():
            return files
    raise UserError(f"{folder} holds no replay buffer: name a file, or the folder of a SAC run")


def _read_segment(path: Path) -> dict[str, Tensor]:
    segment = {name: torch.from_numpy(array) for name, array in _read(path).items()}
    missing = {"first", "count", "rewards", "flags"} - set(segment)
    if missing:
        raise UserError(f"{short(path)} is no segment of a replay buffer: it lacks {missing}")
    return segment


def _stream(segments: list[dict[str, Tensor]], slot: int) -> np.ndarray:
    """Rows of one slot in the joined segments; of a row saved twice, the later one."""
    numbers, places, base = [], [], 0
    for segment in segments:
        first, count = segment["first"].tolist(), segment["count"].tolist()
        start = base + sum(count[:slot])
        numbers.append(np.arange(first[slot], first[slot] + count[slot]))
        places.append(np.arange(start, start + count[slot]))
        base += sum(count)
    number, place = np.concatenate(numbers), np.concatenate(places)
    # unique keeps the first of equal numbers: looked at from the end, that is the latest
    _, latest = np.unique(number[::-1], return_index=True)
    return place[::-1][latest]
