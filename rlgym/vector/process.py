"""Worlds in worker processes: several per worker, one shared slab, a timeout on every wait.

A step costs one byte to each worker and one back; observations, rewards, flags and actions stay in
shared memory. A worker that dies or does not answer is replaced: its slots end as truncated, with
the last observation they delivered as `final_obs`, and a report says what it was doing.
"""

from __future__ import annotations

import itertools
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlgym import errors
from rlgym.errors import ContractError, UserError, WorldError
from rlgym.spaces import Layout, map_tree, tree_items
from rlgym.vector.arrays import StepArrays
from rlgym.vector.contract import VectorEnv, check_counts
from rlgym.vector.crash import default_folder, write_report
from rlgym.vector.slot import Episode, fresh_seed
from rlgym.vector.snapshot import decode, encode
from rlgym.vector.workers import wire
from rlgym.vector.workers.link import Crew, Link, default_workers, shares
from rlgym.vector.workers.worker import plan, traits_from_document

LONGEST_TIMEOUT = 1e6
"""Seconds; what is longer, or infinite, the operating system's clocks cannot count."""
START_TIMEOUT = 60.0
"""Least number of seconds that a worker gets to import, build its worlds and reset them."""
REPLAY_SECONDS = 0.05
"""Extra seconds of patience per action that a restored episode repeats."""
CLOSE_SECONDS = 5.0
"""Time that worlds get to close before their worker is killed."""

Arrays = dict[str, np.ndarray]


class _LostError(Exception):
    """A worker died or froze while it was asked for something."""

    def __init__(self, link: Link, frozen: bool, doing: str) -> None:
        super().__init__(doing)
        self.link, self.frozen, self.doing = link, frozen, doing


class ProcessVectorEnv(VectorEnv):
    """Worlds in worker processes.

    Args:
        factory: builds one world; sent to the workers once.
        num_envs: number of slots.
        num_groups: groups for send/recv.
        num_workers: processes; None: one per core, less one for this process where there are at
            least four. Never more than there are slots.
        timeout: seconds to wait for a step, a reset or a snapshot before a worker counts as frozen.
        max_restarts: replaced workers and raising worlds before the env gives up.
        crash_dir: folder for reports; None: "rlgym-crashes" in the folder for temporary files.
        info_keys: see `VectorEnv`.
        kwargs: see `VectorEnv`.

    Raises:
        WorldError: when a world cannot be sent, built or reset, with the world's own words.
    """

    backend = "process"

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        num_envs: int,
        *,
        num_groups: int = 1,
        num_workers: int | None = None,
        timeout: float = 60.0,
        max_restarts: int = 10,
        crash_dir: str | Path | None = None,
        info_keys: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        """Start the workers, ask one of them what the worlds are like, share the memory."""
        self.closed = True  # until there is something to close
        check_counts(num_envs, num_groups)
        if num_groups > wire.MAX_GROUPS:
            raise ContractError(f"{num_groups} groups: at most {wire.MAX_GROUPS} are possible")
        if timeout <= 0:
            raise ContractError(f"timeout is {timeout}: give a positive number of seconds")
        if num_workers is not None and num_workers < 1:
            raise ContractError(f"num_workers is {num_workers}: ask for at least 1")
        self.timeout = timeout = min(timeout, LONGEST_TIMEOUT)
        self.max_restarts = max_restarts
        self.crash_dir = Path(crash_dir) if crash_dir is not None else default_folder()
        self.crash_reports: list[str] = []
        self.factory = factory
        self._name = getattr(factory, "name", getattr(factory, "__name__", repr(factory)))
        self._factory = wire.to_bytes((factory, wire.own_registration(factory)), self._name)
        self._start_timeout = max(timeout, START_TIMEOUT)
        self._ids = itertools.count()
        rows = shares(num_envs, num_groups, num_workers or default_workers())
        self._links = [Link(number, groups) for number, groups in enumerate(rows)]
        self._crew = Crew(self._links, timeout)
        self._finalizer = weakref.finalize(self, self._crew.stop)
        try:
            answers = self._finish({link: self._ask_load(link) for link in self._links})
            self._traits = answers[self._inspector()][0]["traits"]
            found = traits_from_document(self._traits)
            mapped = self._crew.slab.allocate(plan(num_envs, len(rows), found, info_keys))
            self._doing, self._busy = mapped.pop("doing"), mapped.pop("busy")
            self._doing[:] = -1
            super().__init__(
                found,
                num_envs,
                arrays=StepArrays.from_arrays(
                    mapped, Layout(found.observation_space), Layout(found.action_space)
                ),
                num_groups=num_groups,
                info_keys=info_keys,
                **kwargs,
            )
            self._base_seeds = [self.seed + i for i in range(num_envs)]
            self._losses = [0] * num_envs
            self._finish({link: self._ask_attach(link, None) for link in self._links})
        except BaseException as error:
            failed = self._failed_start(error) if isinstance(error, _LostError) else None
            self._finalizer()
            if failed is not None:
                raise failed from None
            raise
        self._prepare_groups()
        self.closed = False

    def busy_seconds(self) -> float:
        """Seconds that the workers have been stepping so far, each on average."""
        return float(self._busy.mean())

    def _inspector(self) -> Link:
        return next(link for link in self._links if 0 in link.slots)

    def _prepare_groups(self) -> None:
        """Sort out once what each step of a group touches."""
        self._serving = [
            [link for link in self._links if link.groups[g][1] > link.groups[g][0]]
            for g in range(self.num_groups)
        ]
        self._delivered = map_tree(np.copy, self.arrays.obs)  # in this process's own memory
        pairs = list(zip(tree_items(self._delivered), tree_items(self.arrays.obs), strict=True))
        self._keep = [
            [(kept[rows], obs[rows]) for (_, kept), (_, obs) in pairs] for rows in self._slices
        ]
        self._bytes = [bytes([g]) for g in range(self.num_groups)]

    # ------------------------------------------------------------------ the hot path
    def _send(self, group: int) -> None:
        for kept, obs in self._keep[group]:
            kept[...] = obs  # what a slot delivered last, should its worker be lost
        byte = self._bytes[group]
        for link in self._serving[group]:
            link.pending[group] += 1
            link.post(byte)

    def _recv(self, group: int) -> None:
        serving = self._serving[group]
        slowest = None
        for link in serving:
            if link.pending[group] > 0:
                begin = time.perf_counter()
                while link.pending[group] > 0:
                    if link.ended or not self._crew.inbox.wait_for(link):
                        lost = _LostError(link, not link.ended, f"a step of group {group}")
                        self._replace(lost)
                if time.perf_counter() - begin > 20e-6:
                    slowest = link
            if link.events:
                self._take_events(link)
            if link.fresh and group in link.fresh:
                self._deliver_loss(link, group)
        if slowest is not None and slowest is not serving[0]:
            serving.remove(slowest)  # wait for it first: the others will be done, and one waking
            serving.insert(0, slowest)  # instead of one for each is what a step costs least

    def _deliver_loss(self, link: Link, group: int) -> None:
        """Give lost slots the last observation that they delivered, from memory of our own."""
        link.fresh.discard(group)
        rows = slice(*link.groups[group])
        for (_, final), (_, kept) in zip(
            tree_items(self.arrays.final_obs), tree_items(self._delivered), strict=True
        ):
            final[rows] = kept[rows]

    # ------------------------------------------------------------------ requests and answers
    def _ask(self, link: Link, operation: str, arrays: Arrays | None = None, **fields: Any) -> int:
        identity = next(self._ids)
        link.answers.clear()  # of requests that nobody waits for any more
        frame = wire.pack({"op": operation, "id": identity, **fields}, arrays)
        link.write(frame, self._crew.inbox, time.monotonic() + self.timeout)
        return identity

    def _ask_load(self, link: Link) -> int:
        first = not hasattr(self, "_traits") and link is self._inspector()
        return self._ask(link, "load", {"factory": self._factory}, inspect=first)

    def _ask_attach(self, link: Link, fresh: list[int] | None) -> int:
        return self._ask(
            link,
            "attach",
            {},
            numbers=link.slots,
            groups=link.groups,
            num_envs=self.num_envs,
            num_workers=len(self._links),
            handle=self._crew.slab.handle,
            info_keys=list(self.info_keys),
            traits=self._traits,
            fresh=fresh,
        )

    def _wait(
        self, asked: dict[Link, int], timeout: float, hasty: bool = False
    ) -> dict[Link, bool]:
        """Wait for answers; the links that owe theirs: True = frozen, False = ended.

        A hasty wait is over as soon as one worker has failed, whatever the others do.
        """
        deadline = time.monotonic() + timeout
        while True:
            owing = [link for link, identity in asked.items() if identity not in link.answers]
            left = deadline - time.monotonic()
            if hasty and any(link.ended for link in owing):
                return {link: False for link in owing if link.ended}
            if hasty and any("error" in a for link in asked for a, _ in link.answers.values()):
                return {}
            if not owing or left <= 0 or all(link.ended for link in owing):
                return {link: not link.ended for link in owing}
            self._crew.inbox.pump(left)

    def _finish(self, asked: dict[Link, int]) -> dict[Link, tuple[dict[str, Any], Arrays]]:
        """Wait until workers have started; the first that failed is raised as an error."""
        owing = self._wait(asked, self._start_timeout, hasty=True)
        for link, identity in asked.items():
            if identity in link.answers:
                _raise(link.answers[identity][0].get("error"))
        for link, frozen in owing.items():
            raise _LostError(link, frozen, "the start")
        return {link: link.answers.pop(identity) for link, identity in asked.items()}

    def _order(
        self,
        links: list[Link],
        operation: str,
        request: Callable[[Link], tuple[Arrays, dict[str, Any]]],
        timeout: float,
    ) -> tuple[dict[Link, Arrays], list[Link]]:
        """Have workers do something; those that were lost over it are replaced and listed.

        Raises:
            UserError: what a worker answered instead of doing it.
        """
        asked = {}
        for link in links:
            arrays, fields = request(link)
            asked[link] = self._ask(link, operation, arrays, **fields)
        owing = self._wait(asked, timeout)
        answers = {link: link.answers.pop(asked[link]) for link in links if link not in owing}
        for link, (document, _) in answers.items():
            _raise(document.get("error"))
            self._take_events(link)
        for link, frozen in owing.items():
            lost = _LostError(link, frozen, f"a {operation}")
            if not self._started and operation == "reset":
                raise self._failed_start(lost)
            self._replace(lost)
        return {link: arrays for link, (_, arrays) in answers.items()}, list(owing)

    # ------------------------------------------------------------------ resets, records, replays
    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        arrays = {} if options is None else {"options": wire.to_bytes(options, "reset options")}
        for slot, seed in enumerate(seeds):
            if seed is not None:
                self._base_seeds[slot] = seed
        patience = self.timeout if self._started else self._start_timeout
        try:
            links = self._links
            while links:
                _, links = self._order(
                    links,
                    "reset",
                    lambda link: (arrays, {"seeds": [seeds[slot] for slot in link.slots]}),
                    patience,
                )
        except UserError:
            if not self._started:
                self.close()
            raise
        for link in self._links:
            link.fresh.clear()

    def _restart_slot(self, row: int, seed: int) -> None:
        links = [link for link in self._links if row in link.slots]
        self._order(links, "restart", lambda _: ({}, {"slot": row, "seed": seed}), self.timeout)

    def _mark(self) -> None:
        for link in self._links:
            link.post(bytes([wire.MARK]))

    def _records(self, timeout: float | None) -> list[Episode | None]:
        asked = {link: self._ask(link, "records") for link in self._links if not link.ended}
        owing = self._wait(asked, self.timeout if timeout is None else timeout)
        records: list[Episode | None] = [None] * self.num_envs
        for link, identity in asked.items():
            link.silent = link in owing
            if not link.silent:
                document, arrays = link.answers.pop(identity)
                _raise(document.get("error"))
                episodes = decode(arrays, len(link.slots), self.action_layout)
                for slot, episode in zip(link.slots, episodes, strict=True):
                    records[slot] = episode
        return records

    def _episode(self, slot: int, ended: bool) -> Episode | None:
        links = [link for link in self._links if slot in link.slots]
        fields = {"slot": slot, "ended": ended}
        answers, _ = self._order(links, "episode", lambda _: ({}, fields), self.timeout)
        return next((decode(a, 1, self.action_layout)[0] for a in answers.values()), None)

    def _replay(self, episodes: list[Episode | None], fresh_seeds: list[int]) -> np.ndarray:
        def request(link: Link) -> tuple[Arrays, dict[str, Any]]:
            own = [episodes[slot] for slot in link.slots]
            unused = np.zeros(len(own))
            obs = self.obs_layout.alloc(len(own))
            marked = {"obs": obs, "returns": unused, "lengths": unused}
            fields = {"fresh": [fresh_seeds[slot] for slot in link.slots]}
            return encode(own, marked, self.action_layout), fields

        actions = sum(len(episode.actions) for episode in episodes if episode is not None)
        patience = self._start_timeout + REPLAY_SECONDS * actions
        replayed = np.zeros(self.num_envs, np.bool_)
        answers, lost = self._order(self._links, "replay", request, patience)
        for link, arrays in answers.items():
            replayed[link.slots] = arrays["replayed"]
        while lost:
            _, lost = self._order(
                lost,
                "reset",
                lambda link: ({}, {"seeds": [fresh_seeds[slot] for slot in link.slots]}),
                self._start_timeout,
            )
        for link in self._links:
            link.fresh.clear()
        return replayed

    @property
    def worker_pids(self) -> list[int]:
        """Process id of each worker, as it is now."""
        return [link.pid for link in self._links]

    def render_slot(self, row: int) -> Any:
        """Frame of the world in slot `row`, (H, W, 3); None when it does not render."""
        self._require_open()
        links = [link for link in self._links if row in link.slots]
        answers, _ = self._order(links, "render", lambda _: ({}, {"slot": row}), self.timeout)
        return next((arrays.get("frame") for arrays in answers.values()), None)

    def _close(self) -> None:
        self._finalizer.detach()
        self._crew.stop(min(CLOSE_SECONDS, self.timeout))

    # ------------------------------------------------------------------ losses
    def _failed_start(self, lost: _LostError) -> WorldError:
        phrase, trace = lost.link.evidence(lost.frozen)
        error = WorldError(
            f"worker {lost.link.number} {phrase} in {lost.doing} of {self._name}: "
            f"build and reset one in this process to see why"
        )
        if trace:
            error.add_note(trace)
        return error

    def _replace(self, lost: _LostError) -> None:
        """Kill a worker and start another, until one stands or the budget is spent.

        Raises:
            WorldError: when the budget is spent, or the new worlds raise.
        """
        link = lost.link
        waiting = [group for group, count in enumerate(link.pending) if count > 0]
        while True:
            self._count_lost_worker(lost)
            seeds = [fresh_seed(self._base_seeds[s], s, self._losses[s]) for s in link.slots]
            try:
                link.kill(self._crew.inbox)
                link.launch(self._crew.slab, self._crew.inbox)
                link.fresh = {g for g, (start, stop) in enumerate(link.groups) if stop > start}
                self._finish({link: self._ask_load(link)})
                self._finish({link: self._ask_attach(link, seeds)})
            except _LostError as again:
                lost = again
                continue
            except UserError as error:
                self.close()
                raise WorldError(
                    f"worker {link.number} was lost and its new worlds fail: {error}"
                ) from error
            except BaseException:  # Ctrl-C: whoever goes on finds it lost again
                link.ended = True
                for group in waiting:
                    link.pending[group] = 1
                raise
            for group in waiting:
                link.pending[group] = 1
                link.post(self._bytes[group])
            return

    def _count_lost_worker(self, lost: _LostError) -> None:
        link, health = lost.link, self.health
        phrase, trace = link.evidence(lost.frozen)
        if lost.frozen:
            phrase = f"{phrase} ({self.timeout:g} s)"
            health["timeouts"] += 1
        health["lost_slots"] += len(link.slots)
        for slot in link.slots:
            self._losses[slot] += 1
        doing = int(self._doing[link.number])
        where = f" at world {doing}" if doing >= 0 else ""
        what = f"worker {link.number} {phrase} in {lost.doing}{where}"
        report = self._write_report(
            what,
            trace,
            slots=[self._slot_facts(slot) for slot in link.slots],
            world_in_progress=doing if doing >= 0 else None,
        )
        self._spend(what, report)
        health["restarts"] += 1
        span = f"{link.slots[0]}" if len(link.slots) == 1 else f"{link.slots}"
        _say(
            f"{what}; its slots {span} end as truncated and a new worker starts "
            f"({self._spent()} of {self.max_restarts} restarts); report: {report}"
        )

    def _take_events(self, link: Link) -> None:
        events, link.events = link.events, []
        for event in events:
            if event["event"] == "error":
                _raise(event["error"])
            slot, reason = event["slot"], event["reason"]
            self._losses[slot] += 1
            self.health["lost_slots"] += 1
            what = f"world {slot} raised {reason}"
            report = self._write_report(
                what, event["traceback"], slots=[self._slot_facts(slot)], episode=event["episode"]
            )
            self._spend(what, report)
            self.health["world_errors"] += 1
            _say(f"{what}; its episode ends as truncated; report: {report}")

    def _spent(self) -> int:
        return self.health["restarts"] + self.health["world_errors"]

    def _spend(self, what: str, report: str) -> None:
        if self._spent() >= self.max_restarts:
            self.close()
            raise WorldError(
                f"{what}, and max_restarts={self.max_restarts} is spent: mend the world or raise "
                f"max_restarts; report: {report}"
            )

    def _slot_facts(self, slot: int) -> dict[str, Any]:
        return {
            "slot": slot,
            "seed": self._base_seeds[slot],
            "losses": self._losses[slot],
            "steps_in_episode": int(self._lengths[slot]),
            "action": {key: a[slot] for key, a in tree_items(self.arrays.actions)},
            "last_observation": {key: a[slot] for key, a in tree_items(self._delivered)},
        }

    def _write_report(self, what: str, trace: str, **facts: Any) -> str:
        report = {"world": self._name, "what": what, "health": self.health, "traceback": trace}
        path = write_report(self.crash_dir, {**report, **facts})
        self.crash_reports.append(path)
        return path


def _raise(error: dict[str, str] | None) -> None:
    """Raise what a worker answered."""
    if error is None:
        return
    kind = getattr(errors, error["type"], None)
    own = isinstance(kind, type) and issubclass(kind, UserError)
    text = error["message"] if own else f"{error['type']}: {error['message']}"
    problem = kind(text) if own else WorldError(text)  # type: ignore[misc]
    problem.add_note(f"In the worker:\n{error['traceback']}")
    raise problem


def _say(text: str) -> None:
    print(f"rlgym: {text}", file=sys.stderr)
