"""Where every slot stands, as arrays: each episode's beginning, its actions, its last hash.

Replaying the actions on a fresh world must end in an observation with the same hash. Arrays and
JSON only, so that a checkpoint holds nothing that could run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgym.errors import CheckpointError, ContractError
from rlgym.settings import short
from rlgym.spaces import Layout, Tree, tree_items
from rlgym.vector.slot import Episode

_ENDLESS = 2**40  # steps; no episode takes so long, and sums of such lengths stay far from 2**63

UNFIT = (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
"""What goes wrong where a snapshot's arrays are of other worlds, or of none: new episodes begin."""


def encode(
    records: list[Episode | None], marked: Mapping[str, Any], action_layout: Layout
) -> dict[str, np.ndarray]:
    """Write episodes as arrays.

    Args:
        records: each slot's episode; None where it could not be had.
        marked: "obs" tree, "returns" and "lengths" (num_envs,) of the same moment.
        action_layout: layout of the actions.
    """
    documents = [_document(record) for record in records]
    flat = [
        action
        for document, record in zip(documents, records, strict=True)
        if document is not None and record is not None
        for action in record.actions
    ]
    actions = action_layout.alloc(len(flat))
    for row, action in enumerate(flat):
        action_layout.write(action, actions, row)
    return {
        "episodes": np.frombuffer(json.dumps(documents).encode(), np.uint8).copy(),
        "obs_hash": np.stack([row_hash(marked["obs"], row) for row in range(len(records))]),
        "returns": marked["returns"],
        "lengths": marked["lengths"],
        **{f"actions:{key}": array for key, array in tree_items(actions)},
    }


def decode(
    snapshot: Mapping[str, np.ndarray], num_envs: int, action_layout: Layout
) -> list[Episode | None]:
    """Read episodes back.

    Raises:
        ContractError: when the snapshot was taken of another number of slots or other actions.
        CheckpointError: no env writes such a snapshot.
    """
    try:
        documents = list(json.loads(bytes(snapshot["episodes"])))
        actions: Any = {leaf.key: snapshot[f"actions:{leaf.key}"] for leaf in action_layout.leaves}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ContractError(
            "the snapshot is incomplete or of other actions: start a new run for this world"
        ) from None
    if len(documents) != num_envs:
        raise ContractError(_other_slots(len(documents), num_envs))
    for leaf in action_layout.leaves:
        if actions[leaf.key].shape[1:] != leaf.shape:
            raise ContractError(
                f"the snapshot's actions have shape {list(actions[leaf.key].shape[1:])}, this "
                f"world takes {list(leaf.shape)}: start a new run for this world"
            )
    episodes: list[Episode | None] = []
    at = 0
    try:
        left = min(len(array) for array in actions.values())
        if any(actions[leaf.key].dtype != leaf.dtype for leaf in action_layout.leaves):
            raise TypeError("actions of another type")
        actions = actions[""] if action_layout.single else actions
        for document in documents:
            if document is None:
                episodes.append(None)
                continue
            count = document.pop("actions")
            if type(count) is not int or not 0 <= count <= left - at:
                raise ValueError(f"{short(count)} actions of {left - at}")
            native = [action_layout.read(actions, row) for row in range(at, at + count)]
            at += count
            episodes.append(Episode(**document, actions=native))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(error) from None
    return episodes


def require_rows(
    snapshot: Mapping[str, np.ndarray], num_envs: int, *, hashed: bool = False
) -> None:
    """Make sure that a snapshot says of each slot how long its episode is and what it brought.

    Args:
        snapshot: arrays by name.
        num_envs: slots of the env that is to go on from it.
        hashed: whether it must have the hash of each slot's observation as well.

    Raises:
        ContractError: it was taken of another number of slots.
        CheckpointError: an array is missing, of another type or of another shape.
    """
    lengths = snapshot.get("lengths")
    if lengths is not None and lengths.shape != (num_envs,) and lengths.ndim == 1:
        raise ContractError(_other_slots(len(lengths), num_envs))
    rows: dict[str, tuple[str, tuple[int, ...]]] = {
        "returns": ("f", (num_envs,)),
        "lengths": ("i", (num_envs,)),
    }
    if hashed:
        rows["obs_hash"] = "u", (num_envs, hashlib.sha256().digest_size)
    for name, (kind, shape) in rows.items():
        array = snapshot.get(name)
        if array is None or array.dtype.kind != kind or array.shape != shape:
            raise _damaged(f"it has no {name} of {num_envs} slots")
    lengths = snapshot["lengths"]
    if not 0 <= lengths.min() <= lengths.max() < _ENDLESS:
        raise _damaged(f"an episode of {lengths.min()} to {lengths.max()} steps")


def _other_slots(held: int, num_envs: int) -> str:
    return f"the snapshot holds {held} slots, this env has {num_envs}: use num_envs {held}"


def _damaged(why: object) -> CheckpointError:
    return CheckpointError(
        f"the worlds' snapshot is not one that a run saves ({why}): use another checkpoint"
    )


def row_hash(tree: Tree[np.ndarray], row: int) -> np.ndarray:
    """SHA-256 of one row of a batch, (32,) uint8."""
    digest = hashlib.sha256()
    for _, array in tree_items(tree):
        digest.update(np.ascontiguousarray(array[row]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _document(record: Episode | None) -> dict[str, Any] | None:
    """An episode's JSON part; None when reset options cannot be written down."""
    if record is None:
        return None
    document = {
        "seed": record.seed,
        "options": record.options,
        "rng": record.rng,
        "actions": len(record.actions),
    }
    try:
        json.dumps(document)
    except TypeError:
        return None
    return document
