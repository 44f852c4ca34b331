"""Which agent stands in which slot, and what one step brings to it.

An agent of Unity has a new id in each episode, asks for decisions when it likes, and tells of its
end at once. A slot is fixed for life. Here one becomes the other, for the agents of one behaviour
in one player; nothing here knows of processes or messages.

The way of a slot through a step:

- it acts: its agent asked before the step, so the step's action is for it. `active` is True.
- its agent asks again: reward and observation are written.
- its agent ends: the last observation is kept, and the end is told in the step in which the next
  agent of that slot asks for the first time, because only then there is a first observation to
  show beside it. Where the agents decide in step with each other this is the same step.
- it is empty: no agent stands in it. `active` is False and the observation stays.

A step that is told in a row in which the slot did not act (`active` False) belongs to the slot's
last action, as `rlgym.vector.contract` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlgym.envs.unity.frames import Actions, Batch, BehaviorSpec
from rlgym.errors import WorldError

PATIENCE = 50
"""Rounds of decisions without a sign of an agent, after which nobody waits for it any longer."""


@dataclass(frozen=True)
class Rows:
    """The rows of a vector env that these slots fill: views, each (count, ...)."""

    obs: list[np.ndarray]
    """One per observation of the behaviour; `final_obs` likewise."""
    final_obs: list[np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    active: np.ndarray
    lost: np.ndarray
    """(count,) float32: 1 where the slot was lost in this step, 0 elsewhere."""
    mask: np.ndarray | None = None
    """(count, mask_size) bool; None for a behaviour without discrete actions."""
    terms: np.ndarray | None = None
    """(count, 2) float32: the agent's own reward and its group's; None when not wanted."""


class IdCounter:
    """The number that a player gives next; its agents of all behaviours share it.

    Unity gives an agent its next id at the moment in which it ends, from one counter. So the ends
    tell which body a new id will be, however late it asks for its first decision.
    """

    def __init__(self) -> None:
        self._next = 0

    def restart(self) -> None:
        """Begin anew, as another player does."""
        self._next = 0

    def see(self, number: int) -> None:
        """Note an id that an agent has."""
        self._next = max(self._next, number + 1)

    def issue(self) -> int:
        """The id that an agent that ends now gets."""
        self._next += 1
        return self._next - 1


class Slots:
    """The slots of one behaviour in one player.

    Args:
        spec: the behaviour.
        count: slots.
        rows: where results are written.
        group_weight: how much a group's reward counts beside the agent's own.
        counter: of the player's ids.

    Attributes:
        alive: (count,) bool: an agent stands in the slot.
        asking: (count,) bool: its agent waits for an action now.
        owing: (count,) bool: it acts in this step and its agent has not asked again yet.
        ids: (count,) int64: its agent; -1 without one.
        empty_episodes: agents that ended before their first decision; nobody could act for them.
    """

    def __init__(
        self,
        spec: BehaviorSpec,
        count: int,
        rows: Rows,
        *,
        group_weight: float = 1.0,
        counter: IdCounter | None = None,
    ) -> None:
        self.spec = spec
        self.count = count
        self.rows = rows
        self.group_weight = group_weight
        self.alive = np.zeros(count, np.bool_)
        self.asking = np.zeros(count, np.bool_)
        self.owing = np.zeros(count, np.bool_)
        self.ids = np.full(count, -1, np.int64)
        self.empty_episodes = 0
        self._fresh = np.zeros(count, np.bool_)  # this step's action was not handed over yet
        self._slot_of: dict[int, int] = {}
        self._counter = counter or IdCounter()
        self._free: dict[int, int] = dict.fromkeys(range(count), -1)  # slot -> id that will come
        self._group = np.zeros(count, np.int64)
        self._silence = np.zeros(count, np.int64)  # rounds since the agent was heard of
        self._ends: dict[int, _End] = {}  # slots whose end is still to be told
        self._told: set[int] = set()  # slots whose row of this step is complete
        self._deciding = np.zeros(0, np.int64)  # slots that the last message asked for, in order
        self._whole = False  # all of them, in the order of the slots
        self._known: bytes | None = None  # ids of the last message: the same ids, the same slots
        self._resetting = False
        self._last = _Choice(spec, count)

    # ------------------------------------------------------------------ reset
    def begin_reset(self) -> None:
        """Forget what is under way; agents that go on after the reset keep their slots."""
        self._resetting = True
        self._ends.clear()
        self._silence[:] = 0
        self.asking[:] = False
        self._fresh[:] = False
        self.owing[:] = self.alive
        self._told.clear()
        self._deciding, self._known, self._whole = self._deciding[:0], None, False
        self._last.clear()

    def end_reset(self) -> None:
        """Begin to count: what comes from here on belongs to a step."""
        self._resetting = False
        self.owing[:] = False

    def lose_all(self) -> None:
        """Give up every agent, because their player is gone; those that follow are others."""
        for slot in list(self._ends):
            self._tell(slot)
        alive = np.flatnonzero(self.alive)
        self._mark_lost(np.array([slot for slot in alive if slot not in self._told], np.int64))
        for flags in (self.alive, self.asking, self.owing, self._fresh):
            flags[:] = False
        self._slot_of.clear()
        self._free = dict.fromkeys(range(self.count), -1)
        self._group[:] = 0
        self.ids[:] = -1
        self._deciding, self._known, self._whole = self._deciding[:0], None, False

    def _mark_lost(self, slots: np.ndarray) -> None:
        """End these slots' episodes where their last observation was."""
        rows = self.rows
        for final, obs in zip(rows.final_obs, rows.obs, strict=True):
            final[slots] = obs[slots]
        rows.reward[slots] = 0.0
        rows.terminated[slots] = False
        rows.truncated[slots] = True
        rows.active[slots] = False
        rows.lost[slots] = 1.0
        self._told.update(slots.tolist())
        if rows.terms is not None:
            rows.terms[slots] = np.nan

    # ------------------------------------------------------------------ one step
    def begin_step(self, everyone: bool) -> None:
        """Begin a step: its actions are for all agents, or only for those that ask now."""
        rows = self.rows
        acting = self.alive if everyone else self.asking
        self._told.clear()
        rows.reward[:] = 0.0
        rows.terminated[:] = False
        rows.truncated[:] = False
        rows.lost[:] = 0.0
        rows.active[:] = acting
        self._fresh[:] = acting
        self.owing[:] = acting
        if rows.terms is not None:
            rows.terms[:] = np.nan

    def answer(self, continuous: np.ndarray | None, discrete: np.ndarray | None) -> Actions:
        """What the agents that asked in the last message are told.

        An agent that is asked for a second time in one step is told its last action again, as far
        as it is allowed.

        Args:
            continuous: (count, continuous) float32, this step's actions of all slots.
            discrete: (count, branches) int64.
        """
        slots = self._deciding
        fresh = self._fresh
        self.asking[:] = False
        if self._whole and fresh.all():
            fresh[:] = False
            self._last.keep_all(continuous, discrete)
            return Actions(continuous, discrete)
        now = slots[fresh[slots]]
        self._last.keep(now, continuous, discrete)
        fresh[now] = False
        return self._last.actions(slots, self.rows.mask)

    def take(self, batch: Batch) -> None:
        """Take what one message says of this behaviour.

        Raises:
            WorldError: more agents than slots.
        """
        if not batch.done.any():
            self._ask(batch, None)
            return
        ended = np.flatnonzero(batch.done)
        for row in ended.tolist():
            self._end(batch, row)
        self._known = None
        self._ask(batch, np.flatnonzero(~batch.done))

    def pass_round(self) -> None:
        """Count a message in which someone of this player asked, after all `take`s."""
        self._silence += 1
        self._silence[self.asking] = 0

    def give_up_silent(self) -> int:
        """Give up the agents that this step waits for and that stay silent; how many there were."""
        gone = np.flatnonzero(self.owing & self.alive & (self._silence >= PATIENCE))
        for slot in gone.tolist():
            self._vacate(slot)
        if not self._resetting:
            self._mark_lost(gone)
        self.owing[gone] = False
        return len(gone)

    def finish_step(self) -> None:
        """End a step: tell of the ends whose next agent does not come."""
        self.owing[:] = False
        if self._ends:
            late = [slot for slot in self._ends if self._silence[slot] >= PATIENCE]
            for slot in late:
                self._tell(slot)
                for obs, final in zip(self.rows.obs, self.rows.final_obs, strict=True):
                    obs[slot] = final[slot]

    # ------------------------------------------------------------------ what a message says
    def _ask(self, batch: Batch, chosen: np.ndarray | None) -> None:
        """Note the agents that ask for a decision; `chosen` rows of the batch, None for all."""
        ids = batch.ids if chosen is None else batch.ids[chosen]
        known = ids.tobytes()
        if known == self._known:
            slots, new = self._deciding, []
        else:
            slots, new = self._find(
                ids, batch.group_ids if chosen is None else batch.group_ids[chosen]
            )
            self._known, self._deciding = known, slots
            self._whole = len(slots) == self.count and bool((slots == np.arange(self.count)).all())
        where: slice | np.ndarray = slice(None) if self._whole else slots
        source: slice | np.ndarray = slice(None) if chosen is None else chosen
        for target, values in zip(self.rows.obs, batch.obs, strict=True):
            target[where] = values[source]
        if self.rows.mask is not None and batch.masks is not None:
            self.rows.mask[where] = batch.masks[source]
        self.asking[where] = True
        self.owing[where] &= self._fresh[where]
        if not self._resetting:
            self._reward(batch, source, where)
        for slot in new:
            self._begin_episode(slot)

    def _reward(self, batch: Batch, source: slice | np.ndarray, where: slice | np.ndarray) -> None:
        own, group = batch.reward[source], batch.group_reward[source]
        if self._told:  # what follows an end in the same step came of no action of its own
            slots = np.arange(self.count) if isinstance(where, slice) else where
            counts = ~np.isin(slots, list(self._told))
            own, group = own * counts, group * counts
        self.rows.reward[where] += own + self.group_weight * group if group.any() else own
        terms = self.rows.terms
        if terms is not None:
            terms[where, 0] = np.nan_to_num(terms[where, 0]) + own
            terms[where, 1] = np.nan_to_num(terms[where, 1]) + group

    def _begin_episode(self, slot: int) -> None:
        """Tell the end of the episode before; what came before a first action is no reward."""
        if slot in self._told or self._resetting:  # a lost player's last rewards stay
            return
        self.rows.reward[slot] = 0.0
        if self.rows.terms is not None:
            self.rows.terms[slot] = np.nan
        if slot in self._ends:
            self._tell(slot)

    def _end(self, batch: Batch, row: int) -> None:
        """Note that an agent's episode is over."""
        number = int(batch.ids[row])
        slot = self._slot_of.get(number)
        if slot is None:
            self._counter.see(number)
            self.empty_episodes += not self._resetting
            free = next((free for free, coming in self._free.items() if coming == number), None)
            if free is not None:
                self._free[free] = self._counter.issue()
            return
        self._vacate(slot, self._counter.issue())
        self.owing[slot] = False
        self.asking[slot] = False
        if slot in self._told:  # its episode began and ended without an action of this step
            self.empty_episodes += 1
            return
        if self._resetting:
            return
        for final, values in zip(self.rows.final_obs, batch.obs, strict=True):
            final[slot] = values[row]
        own, group = float(batch.reward[row]), float(batch.group_reward[row])
        # A slot whose agent asked before in this step has a part of the reward in its row already.
        rows = self.rows
        total = float(rows.reward[slot]) + own + self.group_weight * group
        rows.reward[slot] = 0.0
        if rows.terms is not None:
            before = np.nan_to_num(rows.terms[slot])
            own, group = own + float(before[0]), group + float(before[1])
            rows.terms[slot] = np.nan
        self._ends[slot] = _End(total, own, group, bool(batch.interrupted[row]))

    def _tell(self, slot: int) -> None:
        """Write an end into this step's row."""
        end, rows = self._ends.pop(slot), self.rows
        self._told.add(slot)
        rows.reward[slot] = end.reward
        rows.terminated[slot] = not end.interrupted
        rows.truncated[slot] = end.interrupted
        if rows.terms is not None:
            rows.terms[slot] = end.own, end.group

    # ------------------------------------------------------------------ whose slot it is
    def _find(self, ids: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """The slots of these agents, and those of them that a new agent has taken."""
        slot_of = self._slot_of
        numbers = ids.tolist()
        self._counter.see(max(numbers, default=-1))
        unknown = sorted(
            (number, int(group))
            for number, group in zip(numbers, groups.tolist(), strict=True)
            if number not in slot_of
        )
        new = []
        for number, group in unknown:
            slot = self._claim(number, group)
            slot_of[number] = slot
            self.ids[slot] = number
            self.alive[slot] = True
            self._group[slot] = group
            new.append(slot)
        return np.array([slot_of[number] for number in numbers], np.int64), new

    def _claim(self, number: int, group: int) -> int:
        """The slot of a new agent: the one that its id was foreseen for, in its own group.

        Where the forecast fails, because agents of several behaviours ended at once, or others
        were made, it is the slot of the nearest id before, which keeps their order.
        """
        if not self._free:
            silent = np.flatnonzero(self.alive & (self._silence >= PATIENCE))
            if not len(silent):
                raise WorldError(
                    f"agent {number} of '{self.spec.name}' is one more than the {self.count} "
                    f"slots of its player: pass num_agents={self.count + 1}, or as many as the "
                    "scene ever has"
                )
            slot = int(silent[np.argmax(self._silence[silent])])
            self._vacate(slot)
            if not self._resetting:
                self._mark_lost(np.array([slot]))
        free = [slot for slot in self._free if group and self._group[slot] == group]
        free = free or list(self._free)
        before = [slot for slot in free if self._free[slot] <= number]
        slot = max(before, key=self._free.__getitem__) if before else free[0]
        del self._free[slot]
        return slot

    def _vacate(self, slot: int, coming: int = -1) -> None:
        """Take the agent out of a slot; the agent `coming` will be the next, if that is known."""
        self._slot_of.pop(int(self.ids[slot]))
        self._free[slot] = coming
        self.ids[slot] = -1
        self.alive[slot] = False
        self._silence[slot] = 0
        self._known = None


@dataclass(frozen=True)
class _End:
    """An end that is still to be told."""

    reward: float
    own: float
    group: float
    interrupted: bool


class _Choice:
    """What each slot was told last."""

    def __init__(self, spec: BehaviorSpec, count: int) -> None:
        self._branches = spec.branches
        self._continuous = np.zeros((count, spec.continuous), np.float32)
        self._discrete = np.zeros((count, len(spec.branches)), np.int32)

    def clear(self) -> None:
        """Begin with zeros."""
        self._continuous[:] = 0.0
        self._discrete[:] = 0

    def keep_all(self, continuous: np.ndarray | None, discrete: np.ndarray | None) -> None:
        """Remember the actions of all slots."""
        if continuous is not None:
            self._continuous[:] = continuous
        if discrete is not None:
            self._discrete[:] = discrete

    def keep(
        self, slots: np.ndarray, continuous: np.ndarray | None, discrete: np.ndarray | None
    ) -> None:
        """Remember the actions of these slots."""
        if continuous is not None:
            self._continuous[slots] = continuous[slots]
        if discrete is not None:
            self._discrete[slots] = discrete[slots]

    def actions(self, slots: np.ndarray, mask: np.ndarray | None) -> Actions:
        """The actions of these slots; a choice that is forbidden now gives way to another."""
        continuous = self._continuous[slots] if self._continuous.shape[1] else None
        if not self._branches:
            return Actions(continuous, None)
        discrete = self._discrete[slots]
        if mask is not None:
            discrete = allowed(discrete, mask[slots], self._branches)
        return Actions(continuous, discrete)


def allowed(discrete: np.ndarray, mask: np.ndarray, branches: tuple[int, ...]) -> np.ndarray:
    """Replace choices that the mask forbids by the first that it allows.

    Args:
        discrete: (n, branches) whole numbers.
        mask: (n, sum of branches) bool, True = allowed.
        branches: number of choices of each.
    """
    chosen = discrete.copy()
    rows = np.arange(len(chosen))
    start = 0
    for branch, size in enumerate(branches):
        part = mask[:, start : start + size]
        wrong = ~part[rows, chosen[:, branch]]
        chosen[wrong, branch] = part[wrong].argmax(axis=1)
        start += size
    return chosen
