"""A snapshot that a file holds may say anything: what is not one is refused in our own words."""

import json
from typing import Any

import numpy as np
import pytest

from rlgym.errors import CheckpointError, UserError
from rlgym.registry import make_vec

MANY = np.array([2**62, 2**62], np.int64)


def changed(snapshot: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The snapshot with other fields in its first episode; None takes one away."""
    documents = json.loads(bytes(snapshot["episodes"]))
    document = {**documents[0], **fields}
    documents[0] = {name: value for name, value in document.items() if value is not None}
    return {**snapshot, "episodes": packed(json.dumps(documents))}


def packed(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


DAMAGED = {
    "a number": lambda s: {**s, "episodes": packed("5")},
    "numbers": lambda s: {**s, "episodes": packed("[1, 2]")},
    "words": lambda s: {**s, "episodes": packed('{"a": 1, "b": 2}')},
    "no text": lambda s: {**s, "episodes": np.full(9, np.nan)},
    "nested deeply": lambda s: {**s, "episodes": packed("[" * 100_000)},
    "an unknown field": lambda s: changed(s, x=1),
    "no count": lambda s: changed(s, actions=None),
    "a count in words": lambda s: changed(s, actions="9"),
    "a count of halves": lambda s: changed(s, actions=0.5),
    "a count that is a flag": lambda s: changed(s, actions=True),
    "a count below zero": lambda s: changed(s, actions=-1),
    "a count of more than there are": lambda s: changed(s, actions=10**15),
    "actions without rows": lambda s: {**s, "actions:": np.array(1)},
    "actions that are no numbers": lambda s: {**s, "actions:": np.full(9, np.nan)},
    "no hashes": lambda s: {n: a for n, a in s.items() if n != "obs_hash"},
    "no returns": lambda s: {n: a for n, a in s.items() if n != "returns"},
    "no lengths": lambda s: {n: a for n, a in s.items() if n != "lengths"},
    "short hashes": lambda s: {**s, "obs_hash": s["obs_hash"][:, :5]},
    "returns of one slot": lambda s: {**s, "returns": s["returns"][:1]},
    "lengths with halves": lambda s: {**s, "lengths": s["lengths"] + 0.5},
    "lengths below zero": lambda s: {**s, "lengths": -1 - s["lengths"]},
    "lengths whose sum overflows": lambda s: {**s, "lengths": MANY},
}


@pytest.fixture(scope="module")
def snapshot() -> dict[str, np.ndarray]:
    env = make_vec("CartPole-v1", 2, backend="sync")
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.zeros(2, np.int64))
    found = env.snapshot()
    env.close()
    return found


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_snapshot_is_refused_in_one_line(snapshot: dict[str, Any], kind: str) -> None:
    env = make_vec("CartPole-v1", 2, backend="sync")
    with pytest.raises(UserError) as caught:
        env.restore(DAMAGED[kind](snapshot))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    _, info = env.restore(snapshot)  # and nothing of the env is spoilt
    assert info["replayed"].all()
    env.close()


def test_what_is_wrong_is_named(snapshot: dict[str, Any]) -> None:
    env = make_vec("CartPole-v1", 2, backend="sync")
    with pytest.raises(CheckpointError, match=r"10000 actions of 8\): use another checkpoint"):
        env.restore(changed(snapshot, actions=10_000))
    with pytest.raises(CheckpointError, match="no obs_hash of 2 slots"):
        env.restore({**snapshot, "obs_hash": snapshot["returns"]})
    env.close()


WORLDS = {
    "tensors": ("CartPole-v1", {"backend": "device"}),
    "mujoco": ("rlgym/Imitate-v0", {"env_kwargs": {"engine": "mujoco"}}),
    "bullet": ("rlgym/Imitate-v0", {"env_kwargs": {"engine": "bullet"}}),
    "unity": ("unity:standin", {}),
}
SPOILT = {
    "gone": lambda a: None,
    "a number": lambda a: np.array(3.0),
    "nothing": lambda a: a[:0],
    "twice as long": lambda a: np.concatenate((a, a)),
    "text": lambda a: np.full(a.shape, 200, np.uint8),
    "no numbers": lambda a: np.full(a.shape, np.nan, np.float32),
    "far below zero": lambda a: np.full(a.shape, -(2**62)).astype(a.dtype),
    "far above": lambda a: np.full(a.shape, 2**62).astype(a.dtype),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("world", WORLDS)
def test_no_array_of_a_snapshot_is_believed(world: str) -> None:
    """Each array of each kind of worlds, spoilt in every way: refused, or new episodes begin."""
    env_id, settings = WORLDS[world]
    env: Any = make_vec(env_id, 12 if world == "unity" else 2, **settings)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_layout.alloc(env.num_envs))
    snapshot = env.snapshot()
    for name, array in snapshot.items():
        for how, spoil in SPOILT.items():
            other = {key: value for key, value in snapshot.items() if key != name}
            spoilt = spoil(np.atleast_1d(array))
            if spoilt is not None:
                other[name] = spoilt
            try:
                env.restore(other)
            except UserError as error:
                assert "\n" not in str(error), (name, how)
    _, info = env.restore(snapshot)
    assert info["replayed"].all() == (world != "unity")
    env.close()
