"""What runs in a worker process: its slots, driven by bytes and frames from the parent.

Torch-free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np

from rlgym.errors import UserError, WorldError
from rlgym.space_json import space_from_json, space_to_json
from rlgym.spaces import Layout
from rlgym.vector.arrays import StepArrays
from rlgym.vector.crash import episode_facts
from rlgym.vector.slot import Loss, Slot, WorldTraits, inspect_world, step_slots
from rlgym.vector.snapshot import decode, encode
from rlgym.vector.workers import slab, wire
from rlgym.vector.workers.life import Arrays, Pipe, describe, live


def main(config: dict[str, Any]) -> None:
    """Serve until told to close, or until the parent is gone; see `life.live`."""
    live(config, lambda pipe: Worker(pipe, config["number"]).serve())


def plan(
    num_envs: int, num_workers: int, traits: WorldTraits, info_keys: tuple[str, ...]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Every array of the slab: those of a step, and what each worker is doing.

    That is the row it steps at present, and the seconds it has spent stepping.
    """
    actions = Layout(traits.action_space)
    return StepArrays.plan(
        num_envs,
        Layout(traits.observation_space),
        actions,
        actions.mask_size if traits.has_mask else 0,
        len(traits.reward_terms) + len(info_keys),
    ) | {
        "doing": ((num_workers,), np.dtype(np.int64)),
        "busy": ((num_workers,), np.dtype(np.float64)),
    }


class _Watched(list[Slot]):
    """Slots that note which one is being used, for the parent that finds this process dead."""

    def __init__(self, slots: list[Slot], doing: np.ndarray) -> None:
        super().__init__(slots)
        self._doing = doing

    def __iter__(self) -> Iterator[Slot]:
        for slot in super().__iter__():
            self._doing[0] = slot.number
            yield slot
        self._doing[0] = -1


class Worker:
    """The slots of one process, and the commands that the parent gives them."""

    def __init__(self, pipe: Pipe, number: int) -> None:
        self._pipe, self._number = pipe, number
        self._groups: list[_Watched | None] = []
        self._starts: list[int] = []
        self._slots: list[Slot] = []
        self._fresh: dict[int, int] = {}
        """Slot -> seed, where the episode of the process before this one has not been ended yet."""
        self._marked: set[int] = set()
        self._busy = np.zeros(1)
        self._started = False

    # ------------------------------------------------------------------ the loop
    def serve(self) -> None:
        """Do what the parent says until it says close, or hangs up."""
        pipe = self._pipe
        while byte := pipe.next():
            if byte[0] < wire.MAX_GROUPS:
                begin = perf_counter()
                self._step(byte[0])
                self._busy[0] += perf_counter() - begin
                pipe.done(byte)
            elif byte[0] == wire.MARK:
                self._mark()
            elif not pipe.obey(self):
                break
        for slot in self._slots:
            with contextlib.suppress(Exception):
                slot.close()

    # ------------------------------------------------------------------ building
    def do_load(self, arrays: Arrays, inspect: bool) -> tuple[Any, Arrays]:
        """Take the factory; one worker also builds a world to say what they are like."""
        self._factory, spec = wire.from_bytes(arrays["factory"])
        if spec is not None:
            gymnasium.registry.setdefault(spec.id, spec)
        if not inspect:
            return {}, {}
        probe = self._build()  # not kept: it has been reset once, which the other worlds have not
        traits = inspect_world(probe)
        probe.close()
        return {"traits": _traits_document(traits)}, {}

    def _build(self) -> gymnasium.Env:
        try:
            return self._factory()
        except UserError:
            raise
        except Exception as error:
            name = getattr(self._factory, "name", repr(self._factory))
            raise WorldError(f"{name} cannot be built: {type(error).__name__}: {error}") from error

    def do_attach(
        self,
        arrays: Arrays,
        numbers: list[int],
        groups: list[list[int]],
        num_envs: int,
        num_workers: int,
        handle: str,
        info_keys: list[str],
        traits: dict[str, Any],
        fresh: list[int] | None,
    ) -> tuple[Any, Arrays]:
        """Map the slab and build a world for each slot."""
        found = traits_from_document(traits)
        keys = tuple(info_keys)
        mapped = slab.attach(handle, plan(num_envs, num_workers, found, keys))
        self._obs_layout, self._action_layout = (
            Layout(found.observation_space),
            Layout(found.action_space),
        )
        self._doing = mapped.pop("doing")[self._number :]
        self._busy = mapped.pop("busy")[self._number :]
        self._arrays = StepArrays.from_arrays(mapped, self._obs_layout, self._action_layout)
        self._slots = [
            Slot(self._build, number, self._obs_layout, self._action_layout, found, keys)
            for number in numbers
        ]
        by_number = {slot.number: slot for slot in self._slots}
        self._starts = [start for start, _ in groups]
        self._groups = [
            _Watched([by_number[n] for n in range(start, stop)], self._doing)
            if stop > start
            else None
            for start, stop in groups
        ]
        self._fresh = dict(zip(numbers, fresh, strict=True)) if fresh is not None else {}
        self._started = fresh is not None
        return {}, {}

    # ------------------------------------------------------------------ stepping
    def _step(self, group: int) -> None:
        slots, start = self._groups[group], self._starts[group]
        if slots is None:
            return
        try:
            if self._fresh and start in self._fresh:
                losses = self._begin_fresh(slots)
            else:
                losses = step_slots(slots, self._arrays, start)
            for loss in losses:
                self._report(loss)
        except UserError as error:
            self._pipe.write({"event": "error", "group": group, "error": describe(error)})

    def _begin_fresh(self, slots: _Watched) -> list[Loss]:
        """End the episodes that were lost with the process before this one, and begin new ones."""
        arrays, losses = self._arrays, []
        for slot in slots:
            row = slot.number
            arrays.reward[row] = 0.0
            arrays.terminated[row] = False
            arrays.truncated[row] = True
            arrays.active[row] = False
            arrays.extras[row] = np.nan
            seed = self._fresh.pop(row)
            try:
                slot.reset(seed, None, arrays, row)
            except UserError:
                raise
            except Exception as error:
                losses.append(slot.lose(error, arrays, row))
        return losses

    def _report(self, loss: Loss) -> None:
        self._pipe.write(
            {
                "event": "loss",
                "slot": loss.slot,
                "reason": loss.reason,
                "traceback": loss.traceback,
                "episode": episode_facts(loss.episode),
            }
        )

    # ------------------------------------------------------------------ resets and replays
    def do_reset(self, arrays: Arrays, seeds: list[int | None]) -> tuple[Any, Arrays]:
        """Begin an episode in every slot."""
        options = wire.from_bytes(arrays["options"]) if "options" in arrays else None
        self._fresh.clear()
        for slot, seed in zip(_Watched(self._slots, self._doing), seeds, strict=True):
            self._reset(slot, seed, options)
        self._started = True
        return {}, {}

    def do_restart(self, arrays: Arrays, slot: int, seed: int) -> tuple[Any, Arrays]:
        """Begin an episode in one slot."""
        self._reset(self._slot(slot), seed, None)
        return {}, {}

    def _reset(self, slot: Slot, seed: int | None, options: dict[str, Any] | None) -> None:
        loss = slot.begin(seed, options, self._arrays, slot.number, self._started)
        if loss is not None:
            self._report(loss)

    def _mark(self) -> None:
        self._marked = {slot.number for slot in self._slots if slot.number not in self._fresh}
        for slot in self._slots:
            slot.mark()

    def do_records(self, arrays: Arrays) -> tuple[Any, Arrays]:
        """Each slot's episode as it stood at the last mark."""
        records = [
            slot.record(at_mark=True) if slot.number in self._marked else None
            for slot in self._slots
        ]
        return {}, encode(records, self._unused(len(records)), self._action_layout)

    def do_episode(self, arrays: Arrays, slot: int, ended: bool) -> tuple[Any, Arrays]:
        """One slot's episode as it stands now, or the one that it ended last."""
        own = self._slot(slot)
        record = own.ended if ended else own.record()
        return {}, encode([record], self._unused(1), self._action_layout)

    def do_replay(self, arrays: Arrays, fresh: list[int]) -> tuple[Any, Arrays]:
        """Replay the given episodes; a new one with its fresh seed where that fails."""
        self._fresh.clear()
        episodes = decode(arrays, len(self._slots), self._action_layout)
        done = np.zeros(len(self._slots), np.bool_)
        slots = _Watched(self._slots, self._doing)
        for i, (slot, episode) in enumerate(zip(slots, episodes, strict=True)):
            done[i] = episode is not None and slot.replay(episode, self._arrays, slot.number)
            if not done[i]:
                self._reset(slot, fresh[i], None)
        self._started = True
        return {}, {"replayed": done}

    def _unused(self, count: int) -> dict[str, Any]:
        zeros = np.zeros(count, np.float64)
        return {"obs": self._obs_layout.alloc(count), "returns": zeros, "lengths": zeros}

    # ------------------------------------------------------------------ the rest
    def do_render(self, arrays: Arrays, slot: int) -> tuple[Any, Arrays]:
        """One frame of a slot's world; nothing when it does not render."""
        frame = self._slot(slot).world.render()
        return {}, {"frame": frame} if isinstance(frame, np.ndarray) else {}

    def _slot(self, number: int) -> Slot:
        return next(slot for slot in self._slots if slot.number == number)


def _traits_document(traits: WorldTraits) -> dict[str, Any]:
    return {
        "observation_space": space_to_json(traits.observation_space),
        "action_space": space_to_json(traits.action_space),
        "reward_terms": list(traits.reward_terms),
        "has_mask": traits.has_mask,
        "render_fps": traits.render_fps,
        "spec_id": traits.spec_id,
    }


def traits_from_document(document: Mapping[str, Any]) -> WorldTraits:
    """Build the traits that a worker found."""
    return WorldTraits(
        observation_space=space_from_json(document["observation_space"]),
        action_space=space_from_json(document["action_space"]),
        reward_terms=tuple(document["reward_terms"]),
        has_mask=document["has_mask"],
        render_fps=document["render_fps"],
        spec_id=document["spec_id"],
    )
