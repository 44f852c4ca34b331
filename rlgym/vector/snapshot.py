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

from rlgym.errors import ContractError
from rlgym.spaces import Layout, Tree, tree_items
from rlgym.vector.slot import Episode


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
    """
    try:
        documents = json.loads(bytes(snapshot["episodes"]))
        actions: Any = {leaf.key: snapshot[f"actions:{leaf.key}"] for leaf in action_layout.leaves}
    except (KeyError, ValueError):
        raise ContractError(
            "the snapshot is incomplete or of other actions: start a new run for this world"
        ) from None
    if len(documents) != num_envs:
        raise ContractError(
            f"the snapshot holds {len(documents)} slots, this env has {num_envs}: "
            f"use num_envs {len(documents)}"
        )
    for leaf in action_layout.leaves:
        if actions[leaf.key].shape[1:] != leaf.shape:
            raise ContractError(
                f"the snapshot's actions have shape {list(actions[leaf.key].shape[1:])}, this "
                f"world takes {list(leaf.shape)}: start a new run for this world"
            )
    actions = actions[""] if action_layout.single else actions
    episodes: list[Episode | None] = []
    at = 0
    for document in documents:
        if document is None:
            episodes.append(None)
            continue
        count = document.pop("actions")
        native = [action_layout.read(actions, row) for row in range(at, at + count)]
        at += count
        episodes.append(Episode(**document, actions=native))
    return episodes


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
