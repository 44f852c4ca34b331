"""Rows of experience: one ring per slot, written by rollouts, saved in pieces, restored.

A slot's stream is its rows in order of time. A row holds what the slot saw, what it did, and what
came of it; where an episode ended, one more row holds only the last observation, and the next
episode follows. So the row after a transition always holds its true next observation: each
observation, image or vector, is stored once, and an n-step sum is a walk along rows. The newest row
of each slot is open: it holds the newest observation and waits for an action.

`index` of a row is `ring row * num_envs + slot`; the next row of the same slot is `num_envs` later,
modulo the size of the buffer. Rewards and flags are decided on the host, where worlds report them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.errors import CheckpointError, StateError, UserError
from rlgym.rollout.budget import check_memory, ring_rows, row_bytes
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.hindsight import rows_left
from rlgym.rollout.priorities import Priorities, Prioritized
from rlgym.spaces import Layout, Tree, tree_items

TERMINATED, TRUNCATED, FINAL, OPEN = 1, 2, 4, 8
"""Flags of a row: two of a transition, then a last observation, and a row without an action yet."""


class Ring:
    """The rows of a replay buffer; see `rlgym.rollout.replay.ReplayBuffer` for the arguments."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_layout: Layout,
        action_layout: Layout,
        device: torch.device | str,
        mask_size: int,
        memory: float | None,
        prioritized: Prioritized | None,
        track_ends: bool,
    ) -> None:
        self.capacity = capacity
        self.num_envs = num_envs
        self.num_rows = ring_rows(capacity, num_envs)
        self.device = torch.device(device)
        self.row_bytes = row_bytes(
            obs_layout, action_layout, mask_size, prioritized is not None, track_ends
        )
        self._size = self.num_rows * num_envs
        self._mask_size = mask_size
        check_memory(capacity, num_envs, self.row_bytes, self.device, memory)
        self._fields: dict[str, Tensor] = {}
        for prefix, layout in (("obs", obs_layout), ("actions", action_layout)):
            for leaf in layout.leaves:
                name = f"{prefix}/{leaf.key}" if leaf.key else prefix
                self._fields[name] = self._zeros(leaf.shape, leaf.dtype)
        if mask_size:
            self._fields["mask"] = self._zeros((mask_size,), np.dtype(np.bool_))
        # On a CPU the device's copies are the host's arrays themselves.
        self._shared = self.device.type == "cpu"
        size = self._size
        self._host = {"rewards": np.zeros(size, np.float32), "flags": np.full(size, OPEN, np.int32)}
        if track_ends:
            self._host["left"] = np.zeros(size, np.int32)  # rows to the final one of the episode
        self._copies = {
            name: torch.from_numpy(array).to(self.device) for name, array in self._host.items()
        }
        self._views = {name: field.numpy() for name, field in self._fields.items() if self._shared}
        self._priorities: Priorities | None = None
        if prioritized is not None:
            self._priorities = Priorities(size, self.device, prioritized)

        # A slot's rows are counted from 0 for ever; row r stands at ring row r % num_rows.
        self._slots = np.arange(num_envs)
        self._heads = np.zeros(num_envs, np.int64)  # each slot's open row
        self._saved = np.zeros(num_envs, np.int64)  # the same, when `mark_saved` was called
        self._starts = np.zeros(num_envs, np.int64)  # first row of the episode in progress
        self._pending = np.zeros(num_envs, np.bool_)  # the newest transition may still change
        self._dirty = False
        self._transitions = 0
        self._changed: list[np.ndarray] = []  # rows that hold another transition than before
        self._counted: list[np.ndarray] = []  # rows of which only `left` is new
        self._source: tuple[Any, list[tuple[str, Any]], list[tuple[str, Any]]] = (None, [], [])
        self._expected: np.ndarray | None = None  # next row of each slot while segments are loaded

    @property
    def size(self) -> int:
        """Transitions held."""
        return self._transitions

    @property
    def nbytes(self) -> int:
        """Bytes of all rows on the device."""
        return self._size * self.row_bytes

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        if self.device.type == "cpu":  # numpy leaves pages untouched until they are written
            return torch.from_numpy(np.zeros((self._size, *shape), dtype))
        kind = torch.from_numpy(np.zeros(0, dtype)).dtype
        return torch.zeros((self._size, *shape), dtype=kind, device=self.device)

    # ------------------------------------------------------------------ writing
    def add(self, rollout: RolloutBuffer) -> None:
        """Append what a rollout holds; it must keep final observations (`keep_finals=True`).

        A slot that was inactive in a step gets no row: its reward, and its end, go to its newest
        transition. Where the rollout begins a new episode although the last one went on (a run was
        resumed, a world replaced), the last one counts as truncated.

        Raises:
            StateError: an episode ended and its last observation is not there.
            UserError: the rollout is longer than the ring.
        """
        T, N = rollout.num_steps, self.num_envs
        if self.num_rows < 2 * T + 1:
            raise UserError(
                f"a buffer of {self.capacity} transitions cannot take {T} steps of {N} worlds: "
                f"pass --algo.buffer-size {2 * T * N}"
            )
        host = rollout.host
        rewards, active = host["rewards"], host["active"]
        if T == 1 and not rollout.finals and active.all() and self._stand_alike():
            starts = host["episode_start"]
            if not (starts[1].any() or (starts[0] & self._pending).any()):
                self._add_whole(rollout)
                self._publish()
                return
        flags = host["terminated"].view(np.uint8) | host["truncated"].view(np.uint8) << 1
        cut = self._pending & host["episode_start"][0]
        if cut.any():
            self._cut(np.flatnonzero(cut))
        finals = iter(rollout.finals)
        final = next(finals, None)
        rows, sources = [], []
        for t in range(T):
            acting = self._slots
            if not active[t].all():
                acting = np.flatnonzero(active[t])
                self._merge(np.flatnonzero(~active[t] & self._pending), rewards[t], flags[t])
            at = self._at(acting)
            rows.append(at)
            sources.append(acting + t * N)
            self._write(at, acting, rewards[t, acting], flags[t, acting])
            ended = int(np.count_nonzero(flags[t]))
            while final is not None and final.t == t:
                self._finish(final.slots, final.obs)
                ended -= len(final.slots)
                final = next(finals, None)
            if ended:
                raise StateError(
                    "an episode ended and its last observation is not there: make the rollout "
                    "buffer with keep_finals=True"
                )
        acted = (rows[0], sources[0]) if T == 1 else (np.concatenate(rows), np.concatenate(sources))
        self._store("actions", rollout.actions, *acted)
        rows.append(self._at(self._slots))
        sources.append(self._slots + T * N)
        seen = (np.concatenate(rows), np.concatenate(sources))
        self._store("obs", rollout.all_obs, *seen)
        if rollout.all_masks is not None:
            self._store("mask", rollout.all_masks, *seen)
        self._publish()

    def _stand_alike(self) -> bool:
        """Whether the open rows of all slots stand side by side."""
        return self.num_envs == 1 or bool((self._heads == self._heads[0]).all())

    def _add_whole(self, rollout: RolloutBuffer) -> None:
        """Append one step of every slot, where all stand alike and none ended: whole ring rows."""
        if self._source[0] is not rollout:  # views cost as much as copying a small row
            parts = [named("actions", rollout.actions), named("obs", rollout.all_obs)]
            if rollout.all_masks is not None:
                parts[1]["mask"] = rollout.all_masks
            acts, seen = (
                [(name, value.numpy() if self._shared else value) for name, value in part.items()]
                for part in parts
            )
            self._source = (rollout, acts, seen)
        _, acts, seen = self._source
        N, head = self.num_envs, int(self._heads[0])
        at, after = head % self.num_rows * N, (head + 1) % self.num_rows * N
        now, following = slice(at, at + N), slice(after, after + N)
        flags = self._host["flags"]
        flags[now] = 0
        self._host["rewards"][now] = rollout.host["rewards"][0]
        if "left" in self._host:
            self._host["left"][now] = 0
        target = self._views if self._shared else self._fields
        for name, value in acts:
            target[name][now] = value[0]
        for name, value in seen:
            target[name][now] = value[0]
            target[name][following] = value[1]
        self._transitions += N
        if head >= self.num_rows - 1:  # the next open row held something
            self._transitions -= int(np.count_nonzero(flags[following] < FINAL))
            flags[following] = OPEN
        self._heads += 1
        self._pending[:] = True
        if not self._shared or self._priorities is not None:
            self._changed += [self._slots + at, self._slots + after]

    def _append(
        self, slot: int, values: dict[str, Tensor], rewards: np.ndarray, flags: np.ndarray
    ) -> None:
        """Append one whole episode, its final row included, to a slot between two episodes."""
        count, only = len(flags), np.array([slot])
        at, picked = self._at(only, back=-np.arange(count)), np.arange(count)
        for name, value in values.items():
            self._copy(name, value, at, picked)
        before = self._host["flags"][at[1:]]
        self._transitions += count - 1 - int(np.count_nonzero(before < FINAL))
        self._host["flags"][at] = flags
        self._host["rewards"][at] = rewards
        self._changed.append(at)
        self._heads[slot] += count - 1
        self._open(only)
        self._close(only)

    def _at(self, slots: np.ndarray, back: Any = 0) -> np.ndarray:
        """Index of the open rows of these slots, or of the row `back` before."""
        return (self._heads[slots] - back) % self.num_rows * self.num_envs + slots

    def _write(
        self, at: np.ndarray, slots: np.ndarray, rewards: np.ndarray, flags: np.ndarray
    ) -> None:
        """Complete the open rows `at` of these slots and open the next ones."""
        self._host["rewards"][at] = rewards
        self._host["flags"][at] = flags
        if "left" in self._host:
            self._host["left"][at] = 0
        self._transitions += len(at)
        self._pending[slots] = True
        self._changed.append(at)
        self._open(slots)

    def _open(self, slots: np.ndarray) -> None:
        self._heads[slots] += 1
        at = self._at(slots)
        flags = self._host["flags"]
        self._transitions -= int(np.count_nonzero(flags[at] < FINAL))
        flags[at] = OPEN
        self._changed.append(at)

    def _merge(self, slots: np.ndarray, rewards: np.ndarray, flags: np.ndarray) -> None:
        """Add the reward and the end of an inactive step to the newest transitions."""
        at = self._at(slots, back=1)
        self._host["rewards"][at] += rewards[slots]
        self._host["flags"][at] |= flags[slots]
        self._changed.append(at)

    def _finish(self, slots: np.ndarray, obs: Tree[Tensor]) -> None:
        """Append the last observations of episodes that ended; of those that never acted, none."""
        chosen = np.flatnonzero(self._pending[slots])
        slots = slots[chosen]
        at = self._at(slots)
        for name, value in named("obs", obs).items():
            self._copy(name, value, at, chosen)
        if "mask" in self._fields:
            everything = torch.ones(1, self._mask_size, dtype=torch.bool)
            self._copy("mask", everything, at, np.zeros_like(at))
        self._end(slots, at)

    def _cut(self, slots: np.ndarray) -> None:
        """Truncate the episodes in progress; their newest observation becomes the last."""
        before = self._at(slots, back=1)
        self._host["flags"][before] |= TRUNCATED
        self._changed.append(before)
        self._end(slots, self._at(slots))

    def _end(self, slots: np.ndarray, at: np.ndarray) -> None:
        """Make the open rows `at` final ones."""
        self._host["flags"][at] = FINAL
        self._host["rewards"][at] = 0.0
        self._changed.append(at)
        self._open(slots)
        self._close(slots)

    def _close(self, slots: np.ndarray) -> None:
        """Note that these slots' episodes are over, and how far each of their rows is from it."""
        self._pending[slots] = False
        if "left" in self._host:
            for slot in slots:
                final = self._heads[slot] - 1
                rows = np.arange(
                    int(max(self._starts[slot], final - self.num_rows + 2)), int(final) + 1
                )
                at = rows % self.num_rows * self.num_envs + slot
                self._host["left"][at] = final - rows
                self._counted.append(at)
        self._starts[slots] = self._heads[slots]

    def _store(self, prefix: str, tree: Tree[Tensor], at: np.ndarray, source: np.ndarray) -> None:
        """Copy rows `source` of a time-major tree (T, N, ...) to rows `at`."""
        for name, value in named(prefix, tree).items():
            self._copy(name, value.flatten(0, 1), at, source)

    def _copy(self, name: str, value: Tensor, at: np.ndarray, source: np.ndarray) -> None:
        if self._shared:
            self._views[name][at] = value.numpy(force=True)[source]
            return
        rows = value[torch.from_numpy(source).to(value.device)].to(self.device)
        field = self._fields[name]
        field.index_copy_(0, torch.from_numpy(at).to(self.device), rows.to(field.dtype))

    def _publish(self) -> None:
        """Bring what the host decided to the device, and new rows into the priorities."""
        self._dirty = True
        changed, counted = self._changed, self._counted
        self._changed, self._counted = [], []
        if not self._shared:
            at = np.unique(np.concatenate(changed + counted))
            rows = torch.from_numpy(at).to(self.device)
            for name, array in self._host.items():
                values = torch.from_numpy(array[at]).to(self.device)
                self._copies[name].index_copy_(0, rows, values)
        if self._priorities is not None:
            rows = torch.from_numpy(np.unique(np.concatenate(changed))).to(self.device)
            self._priorities.fresh(rows, self._copies["flags"].index_select(0, rows) < FINAL)

    # ------------------------------------------------------------------ saving
    def _first_unsaved(self) -> np.ndarray:
        """Number of each slot's first row to save; the newest saved one may have changed since."""
        oldest = self._heads - (self.num_rows - 1)
        return np.maximum(np.maximum(self._saved - 1, oldest), 0)

    def _places(self, first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots and numbers of rows, slot after slot, `count` from `first` in each."""
        slots = np.repeat(self._slots, count)
        offsets = np.arange(len(slots)) - np.repeat(count.cumsum() - count, count)
        return slots, first[slots] + offsets

    @property
    def unsaved_bytes(self) -> int:
        """Bytes that `unsaved` would take; 0 when nothing was added since `mark_saved`."""
        if not self._dirty:
            return 0
        return int((self._heads - self._first_unsaved() + 1).sum()) * self.row_bytes

    def unsaved(self) -> dict[str, Tensor]:
        """Copy the rows since `mark_saved` to the host, with the newest before it and the open one.

        Returns:
            A segment: `first` and `count` (num_envs,) int64, number of each slot's first row and
            how many follow; and the rows, slot after slot, `obs` (or `obs/<key>`), `actions` (or
            `actions/<key>`), `rewards`, `flags`, and `mask` where there are masks.
        """
        first = self._first_unsaved()
        count = self._heads - first + 1
        slots, numbers = self._places(first, count)
        at = numbers % self.num_rows * self.num_envs + slots
        rows = torch.from_numpy(at).to(self.device)
        segment = {name: field.index_select(0, rows).cpu() for name, field in self._fields.items()}
        for name in ("rewards", "flags"):
            segment[name] = torch.from_numpy(self._host[name][at])
        return {"first": torch.from_numpy(first), "count": torch.from_numpy(count), **segment}

    def mark_saved(self) -> None:
        """Count everything in the ring as saved; ends the loading of segments.

        Raises:
            CheckpointError: segments were loaded, and rows of the ring are in none of them.
        """
        if self._expected is not None:
            if (self._expected <= self._heads).any():
                raise CheckpointError(
                    "the saved replay buffer lacks its newest rows: use an older checkpoint"
                )
            self._expected = None
            self._derive()
        self._saved = self._heads.copy()
        self._dirty = False

    def mark_unsaved(self) -> None:
        """Count nothing as saved: a file of what was is lost."""
        self._saved = np.zeros_like(self._heads)
        self._dirty = True

    def holds(self, header: dict[str, Tensor]) -> bool:
        """Tell whether a segment is still needed.

        It is not when all its rows left the ring, or stand in a later segment: the last two of each
        slot do, unless the segment is the last.

        Args:
            header: at least `first` and `count` of a segment that was saved or loaded.
        """
        first, last = header["first"].numpy(), (header["first"] + header["count"] - 1).numpy()
        oldest = self._heads - (self.num_rows - 1)
        own = np.maximum(first, oldest) <= last - 2
        return bool(own.any() or (last == self._saved).all())

    def load_segment(self, tensors: dict[str, Tensor]) -> None:
        """Put the rows of a segment back; call in the order of saving, after `load_state`.

        Raises:
            CheckpointError: it is of another buffer, or the one before it is missing.
        """
        if self._expected is None:
            raise StateError("load_segment comes after load_state")
        names = {*self._fields, "rewards", "flags", "first", "count"}
        if names != set(tensors):
            wrong = ", ".join(sorted(names ^ set(tensors)))
            raise CheckpointError(f"a segment of the replay buffer does not fit this one: {wrong}")
        first, count = tensors["first"].numpy(), tensors["count"].numpy()
        if first.shape != self._heads.shape or count.shape != first.shape or (count < 1).any():
            raise CheckpointError(
                "a segment of the replay buffer names no rows: it was not saved so"
            )
        if (first > self._expected).any():
            raise CheckpointError(
                "a segment of the replay buffer is missing: use an older checkpoint"
            )
        total = int(count.sum())
        for name, field in (self._fields | self._copies).items():
            if name != "left" and not _fits(tensors[name], total, field):
                raise CheckpointError(
                    f"'{name}' of a saved replay buffer is {_kind(tensors[name], 0)} instead of "
                    f"{total} times {_kind(field)}"
                )
        slots, numbers = self._places(first, count)
        oldest = self._heads - (self.num_rows - 1)
        kept = np.flatnonzero((numbers >= oldest[slots]) & (numbers <= self._heads[slots]))
        at = numbers[kept] % self.num_rows * self.num_envs + slots[kept]
        for name in self._fields:
            self._copy(name, tensors[name], at, kept)
        for name in ("rewards", "flags"):
            self._host[name][at] = tensors[name].numpy()[kept]
        self._expected = np.maximum(self._expected, first + count)

    def state(self) -> dict[str, Tensor]:
        """Everything but the rows: where each ring stands, priorities, what it is a buffer of."""
        state = {
            "heads": torch.from_numpy(self._heads.copy()),
            "pending": torch.from_numpy(self._pending.copy()),
            "signature": torch.tensor(list(json.dumps(self._signature()).encode())).byte(),
        }
        if self._priorities is not None:
            state.update(self._priorities.state())
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Empty the buffer and take what `state` gave; segments and `mark_saved` come after it.

        Raises:
            CheckpointError: it is of another size, number of slots, or kind of observation.
        """
        try:
            saved = json.loads(bytes(state["signature"].tolist()))
            heads, pending = state["heads"].numpy(), state["pending"].numpy()
            slots, rows, fields = (saved[name] for name in ("num_envs", "num_rows", "fields"))
            if heads.shape != (slots,) or pending.shape != (slots,) or (heads < pending).any():
                raise ValueError("slots without rows")
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("this is not the state of a replay buffer") from None
        mine = self._signature()
        if slots != self.num_envs:
            raise CheckpointError(
                f"the saved replay buffer has {slots} slots, this one {self.num_envs}: "
                f"pass --num-envs {slots}"
            )
        if rows != self.num_rows:
            raise CheckpointError(
                f"the saved replay buffer has {rows} rows per slot, this one {self.num_rows}: "
                f"pass --algo.buffer-size {(rows - 1) * slots}"
            )
        for name in sorted({*fields, *mine["fields"]}):
            before, now = fields.get(name, "no such"), mine["fields"].get(name, "no such")
            if before != now:
                raise CheckpointError(
                    f"the saved replay buffer holds {before} values of '{name}', this world has "
                    f"{now}: resume with the world and wrappers of the run, or start a new one"
                )
        if heads.shape != self._heads.shape or heads.dtype != np.int64 or (heads < 0).any():
            raise CheckpointError("this is not the state of a replay buffer")
        if self._priorities is not None:
            if "priorities" not in state:
                raise CheckpointError(
                    "the saved replay buffer has no priorities: pass --algo.prioritized false"
                )
            self._priorities.load_state(state)
        self._heads, self._pending = heads.copy(), pending.copy()
        self._host["flags"].fill(OPEN)
        self._expected = np.maximum(self._heads - (self.num_rows - 1), 0)

    def _signature(self) -> dict[str, Any]:
        kinds = {name: _kind(field) for name, field in self._fields.items()}
        return {"num_envs": self.num_envs, "num_rows": self.num_rows, "fields": kinds}

    def _derive(self) -> None:
        """Work out from the flags what is not saved."""
        flags = self._host["flags"]
        self._transitions = int(np.count_nonzero(flags < FINAL))
        oldest = np.maximum(self._heads - (self.num_rows - 1), 0)
        for slot in range(self.num_envs):
            numbers = np.arange(oldest[slot], self._heads[slot])
            at = numbers % self.num_rows * self.num_envs + slot
            ends = np.flatnonzero(flags[at] == FINAL)
            self._starts[slot] = oldest[slot] + (ends[-1] + 1 if len(ends) else 0)
            if "left" in self._host:
                self._host["left"][at] = rows_left(flags[at], FINAL)
        if not self._shared:
            for name, array in self._host.items():
                self._copies[name].copy_(torch.from_numpy(array))


def _kind(rows: Tensor, first: int = 1) -> str:
    """Type and shape, of one row unless `first` is 0."""
    return f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape[first:])}"


def _fits(rows: Tensor, count: int, field: Tensor) -> bool:
    return rows.shape == (count, *field.shape[1:]) and rows.dtype == field.dtype


def named(prefix: str, tree: Tree[Any]) -> dict[str, Any]:
    """Name the arrays of a tree as the rows and the files name them: `obs`, or `obs/<key>`."""
    return {f"{prefix}/{key}" if key else prefix: value for key, value in tree_items(tree)}
