"""Rollouts by Ray actors, on this machine or on others: each steps worlds of its own.

An actor has vector env, policy copy and `HostCollector` as one machine alone would have them. What
travels is a policy's parameters there, and a whole rollout with the policy's version back: a round
trip takes milliseconds, far too long for single steps. The extra `ray` brings Ray.

PPO waits for all actors, since it may learn only from what its present policy did. SAC takes what
the first of them brings; the others go on with the policy that they have.
"""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

import numpy as np
import ray
import ray.exceptions
import torch
from torch import Tensor

from rlgym import __version__
from rlgym.errors import PeerLostError, UserError, WorldError
from rlgym.rollout.buffer import Finals, RolloutBuffer
from rlgym.rollout.collector import CollectStats, HostCollector, set_generator
from rlgym.space_json import space_from_json, space_to_json
from rlgym.spaces import Layout, Tree, map_tree, tree_items

LOST = (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError)
"""What a call raises whose actor is gone, or does not answer."""


def versions() -> dict[str, str]:
    """What must be the same wherever policies and rollouts travel."""
    return {
        "rlgym": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__.partition("+")[0],
        "numpy": np.__version__.partition(".")[0],
    }


class Actor:
    """One process of the cluster: its worlds, and its copy of the policy.

    Args:
        make: builds its vector env.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        torch.set_num_threads(1)
        self.env = make()

    def describe(self) -> dict[str, Any]:
        """What the worlds are like, and what runs here."""
        env = self.env
        return {
            "versions": versions(),
            "node": platform.node(),
            "observation_space": space_to_json(env.single_observation_space),
            "action_space": space_to_json(env.single_action_space),
            "mask_size": env.mask_size,
            "reward_term_names": tuple(env.reward_term_names),
            "num_groups": env.num_groups,
            "backend": env.unwrapped.backend,
        }

    def prepare(
        self, policy: Any, num_steps: int, keep_finals: bool, noise_seed: int, seeds: list[int]
    ) -> dict[str, Any]:
        """Take a policy and begin new episodes; the first observations, and masks."""
        env = self.env
        self.policy = policy
        layouts = env.obs_layout, env.action_layout
        shape = getattr(policy, "state_shape", None)
        self.buffer = RolloutBuffer(
            num_steps, env.num_envs, *layouts, "cpu", env.mask_size, shape, keep_finals
        )
        generator = torch.Generator().manual_seed(noise_seed)
        self.collector = HostCollector(env, policy, self.buffer, generator)
        obs, info = env.reset(seed=seeds)
        self.collector.start(obs, info)
        mask = info.get("action_mask")
        return {"obs": _arrays(obs), "mask": None if mask is None else mask.numpy()}

    def collect(self, weights: dict[str, np.ndarray], version: int, random: bool) -> dict[str, Any]:
        """Do one rollout with these parameters; everything that came of it."""
        self.policy.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
        if hasattr(self.policy, "random"):
            self.policy.random = random
        stats, buffer = self.collector.collect(), self.buffer
        masks = buffer.all_masks
        trees = (buffer.initial_state, buffer.last_state)
        return {
            "version": version,
            "obs": _arrays(buffer.all_obs),
            "actions": _arrays(buffer.actions),
            "host": buffer.host,
            "bootstrap": buffer.bootstrap.numpy(),
            "masks": None if masks is None else masks.numpy(),
            "states": [None if tree is None else _arrays(tree) for tree in trees],
            "finals": [(f.t, f.slots, _arrays(f.obs)) for f in buffer.finals],
            "stats": vars(stats),
            "health": dict(self.env.health),
        }

    def close(self) -> None:
        """Close the worlds."""
        self.env.close()


class RemoteWorlds:
    """The worlds of all actors, as far as a run has to do with them: spaces, seeds, health.

    Args:
        make: builds the vector env of one actor; sent to each of them.
        num_envs: slots of all actors together.
        address: "local" starts Ray on this machine, "auto" or host:port joins a cluster.
        actors: how many.
        cpus: cores that Ray sets aside for each.
        patience: seconds to wait for an actor's start or rollout before it counts as lost.
        max_restarts: actors replaced before the run gives up.

    Attributes:
        health: counts of all actors' worlds since the start, and of lost actors.

    Raises:
        UserError: no cluster there, no room for the actors, or other versions on another machine.
    """

    kind: Literal["remote"] = "remote"

    def __init__(
        self,
        make: Callable[[], Any],
        num_envs: int,
        *,
        address: str = "local",
        actors: int = 2,
        cpus: float = 1.0,
        patience: float = 600.0,
        max_restarts: int = 10,
    ) -> None:
        self.num_envs, self.patience, self.max_restarts = num_envs, patience, max_restarts
        self.share = num_envs // actors
        self.closed = False
        self._owns_ray = _connect(address, actors * cpus)
        self._kind = ray.remote(num_cpus=cpus, max_restarts=0)(Actor)
        self._make = make
        self._replaced = 0
        self.lag = 0.0
        self.health = {"restarts": 0, "lost_slots": 0, "unreplayed": 0}
        self._health: list[dict[str, int]] = [{} for _ in range(actors)]
        try:
            self.actors: list[Any] = [self._kind.remote(make) for _ in range(actors)]
            told = self._first_answers()
            for document in told:
                check_versions(versions(), document["versions"], document["node"])
        except BaseException:
            self.close()
            raise
        first = told[0]
        self.single_observation_space = space_from_json(first["observation_space"])
        self.single_action_space = space_from_json(first["action_space"])
        self.obs_layout = Layout(self.single_observation_space)
        self.action_layout = Layout(self.single_action_space)
        self.mask_size = first["mask_size"]
        self.reward_term_names = first["reward_term_names"]
        self.num_groups, self.backend = first["num_groups"], first["backend"]
        self.unwrapped = self
        self.device = torch.device("cpu")
        self.seeds: list[int] = []

    def _first_answers(self) -> list[dict[str, Any]]:
        try:
            return ray.get([a.describe.remote() for a in self.actors], timeout=self.patience)
        except ray.exceptions.GetTimeoutError:
            room = ray.cluster_resources().get("CPU", 0)
            raise UserError(
                f"{len(self.actors)} actors did not start within {self.patience:.0f} s on a "
                f"cluster of {room:g} cores: ask for fewer with --collect.actors or "
                "--collect.cpus, or wait longer with --collect.patience"
            ) from None
        except ray.exceptions.RayError as error:
            raise WorldError(f"an actor did not start: {_cause(error)}") from None

    # ------------------------------------------------------------------ what a run asks for
    def reset(self, *, seed: list[int]) -> tuple[Any, dict[str, Any]]:
        """Note the slots' seeds; episodes begin when the collector sends the policy."""
        self.seeds = seed
        return None, {}

    def scalars(self) -> dict[str, float]:
        """How many of the learner's policies later than the acting one there were, on average."""
        return {"perf/policy_lag": self.lag}

    def mark(self) -> None:
        """Nothing is noted: a resumed run begins new episodes."""

    def snapshot(self, **_: Any) -> dict[str, np.ndarray]:
        """Nothing: the worlds' state stays with the actors."""
        return {}

    def collector(
        self, policy: Any, buffer: RolloutBuffer, generator: torch.Generator
    ) -> RayCollector:
        """What fills a run's buffer from these worlds."""
        return RayCollector(self, policy, buffer, generator)

    def close(self) -> None:
        """End the actors, and Ray where it was started for them; may be called twice."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(Exception):
            ray.get([actor.close.remote() for actor in self.actors], timeout=10)
        for actor in getattr(self, "actors", []):
            with contextlib.suppress(Exception):
                ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()

    # ------------------------------------------------------------------ for the collector
    def columns(self, index: int) -> slice:
        """The slots of an actor."""
        return slice(index * self.share, (index + 1) * self.share)

    def replace(self, index: int, error: Exception) -> None:
        """Start an actor in place of a lost one.

        Raises:
            PeerLostError: too many were lost.
        """
        with contextlib.suppress(Exception):
            ray.kill(self.actors[index])
        self.health["restarts"] += 1
        self.health["lost_slots"] += self.share
        self._replaced += 1
        if self._replaced > self.max_restarts:
            raise PeerLostError(
                f"actor {index} is lost, after {self.max_restarts} were replaced ({_cause(error)})"
                ": see to its machine, or allow more with --max-restarts"
            )
        self.actors[index] = self._kind.remote(self._make)
        self._health[index] = {}

    def note_health(self, index: int, health: dict[str, int]) -> None:
        """Add what an actor counted since its last rollout."""
        for name, count in health.items():
            before = self._health[index].get(name, 0)
            self.health[name] = self.health.get(name, 0) + count - before
        self._health[index] = health


class RayCollector:
    """Fills a run's buffer with the rollouts of actors; a `HostCollector` to whoever drives it.

    A lost actor is replaced, and what it was doing is gone: its slots begin new episodes. The
    buffer of a learner that keeps every transition (`keep_finals`) is filled by whoever is ready,
    the other slots' rows are inactive.

    Args:
        worlds: of the actors.
        policy: the learner's; its parameters are sent along with every order.
        buffer: as long as one rollout, as wide as all worlds.
        generator: source of the seeds of the actors' noise.
    """

    def __init__(
        self, worlds: RemoteWorlds, policy: Any, buffer: RolloutBuffer, generator: torch.Generator
    ) -> None:
        self.worlds, self.policy, self.buffer = worlds, policy, buffer
        self.generator = generator
        self.version = 0
        self._begun: list[Any] = [None] * len(worlds.actors)
        """By actor: the answer that it owes; None while it is idle."""
        self._asked = [0.0] * len(worlds.actors)
        """By actor: when it was asked for that."""
        self._prepared = False
        self._begins = np.zeros(worlds.num_envs, np.bool_)
        """Slots that begin new episodes, of which nothing has come yet."""

    def start(self, obs: Any, info: dict[str, Any]) -> None:
        """Episodes begin with the first rollout, when the actors get the policy."""

    def mark(self) -> None:
        """Nothing is noted: see `RemoteWorlds.mark`."""

    def state(self) -> dict[str, Tensor]:
        """The generator; a resumed run begins new episodes."""
        starts = torch.ones(self.worlds.num_envs, dtype=torch.bool)
        return {"generator": self.generator.get_state(), "episode_start": starts}

    def load_state(self, state: dict[str, Tensor], replayed: Tensor | None = None) -> None:
        """Take back the generator."""
        set_generator(self.generator, state["generator"])

    def collect(self) -> CollectStats:
        """Fill the buffer; see `begin` and `finish`."""
        self.begin()
        return self.finish()

    def begin(self) -> None:
        """Send the policy to whoever is idle."""
        begin = perf_counter()
        if not self._prepared:
            self._prepare(list(range(len(self._begun))))
            self._prepared = True
        self.version += 1
        state = self.policy.state_dict().items()
        weights = {name: tensor.numpy(force=True).copy() for name, tensor in state}
        random = getattr(self.policy, "random", False)
        self._order = (ray.put(weights), self.version, random)
        for index, owed in enumerate(self._begun):
            if owed is None:
                self._dispatch(index)
        self._seconds = perf_counter() - begin

    def finish(self) -> CollectStats:
        """Wait for all actors, or for the first where the learner keeps every transition."""
        begin = perf_counter()
        buffer, worlds = self.buffer, self.worlds
        answers = self._answers(1 if buffer.keep_finals else len(self._begun))
        waited = perf_counter() - begin
        stats = CollectStats()
        self._clear(answers)
        finals: list[Finals] = []
        for index, answer in answers.items():
            finals += self._fill(worlds.columns(index), answer)
            worlds.note_health(index, answer["health"])
            stats.add(CollectStats(**answer["stats"]))
        buffer.finals[:] = sorted(finals, key=lambda final: final.t)
        sent = perf_counter()
        buffer.upload()
        end = perf_counter()
        stats.policy /= len(answers)
        # actors that go on meanwhile were busy for longer than this took
        stats.busy = float("nan") if buffer.keep_finals else stats.busy / len(answers)
        stats.transfer = end - sent
        stats.seconds = self._seconds + end - begin
        stats.idle = waited
        worlds.lag = sum(self.version - a["version"] for a in answers.values()) / len(answers)
        return stats

    # ------------------------------------------------------------------ orders and answers
    def _prepare(self, actors: list[int]) -> None:
        """Give actors the policy and have them begin new episodes."""
        worlds, buffer = self.worlds, self.buffer
        policy = ray.put(copy.deepcopy(self.policy).cpu())
        asked: dict[int, Any] = {}
        for index in actors:
            draw = torch.randint(
                2**31, (2,), generator=self.generator, device=self.generator.device
            ).tolist()
            seeds = worlds.seeds[worlds.columns(index)]
            if self._prepared:  # in place of a lost one: other episodes
                seeds = [(seed + draw[1]) % 2**31 for seed in seeds]
            actor = worlds.actors[index]
            order = (policy, buffer.num_steps, buffer.keep_finals, draw[0], seeds)
            asked[index] = actor.prepare.remote(*order)
        for index, ref in asked.items():
            try:
                first: Any = ray.get(ref, timeout=worlds.patience)
            except LOST as error:
                worlds.replace(index, error)
                self._prepare([index])
                continue
            except ray.exceptions.RayTaskError as error:
                raise WorldError(f"actor {index}: {_cause(error)}") from None
            rows = worlds.columns(index)
            _write(buffer.last_obs, first["obs"], rows)
            self._begins[rows] = True
            if buffer.all_masks is not None:
                buffer.all_masks[-1, rows] = torch.tensor(first["mask"]).to(buffer.device)

    def _dispatch(self, index: int) -> None:
        self._begun[index] = self.worlds.actors[index].collect.remote(*self._order)
        self._asked[index] = perf_counter()

    def _answers(self, needed: int) -> dict[int, dict[str, Any]]:
        """At least `needed` rollouts, by actor; those that are lost over it are replaced."""
        found: dict[int, dict[str, Any]] = {}
        while len(found) < needed:
            owed = {ref: i for i, ref in enumerate(self._begun) if ref is not None}
            due = {ref: self._asked[i] + self.worlds.patience for ref, i in owed.items()}
            left = max(min(due.values()) - perf_counter(), 0.0)
            ready, _ = ray.wait(list(owed), num_returns=1, timeout=left)
            more, _ = ray.wait(list(owed), num_returns=len(owed), timeout=0)
            done, now = {*ready, *more}, perf_counter()
            late = {ref for ref in owed if ref not in done and due[ref] <= now}
            for ref in [*done, *late]:
                index = owed[ref]
                self._begun[index] = None
                try:
                    found[index] = ray.get(ref, timeout=0 if ref in late else None)
                except LOST as error:
                    self.worlds.replace(index, error)
                    self._prepare([index])
                    self._dispatch(index)
                except ray.exceptions.RayTaskError as error:
                    raise WorldError(f"actor {index}: {_cause(error)}") from None
        return dict(sorted(found.items()))

    # ------------------------------------------------------------------ into the buffer
    def _clear(self, answers: dict[int, Any]) -> None:
        """Make the slots of those who brought nothing inactive, at their newest observation."""
        host = self.buffer.host
        for index in set(range(len(self._begun))) - set(answers):
            rows = self.worlds.columns(index)
            for name in ("rewards", "terminated", "truncated", "active", "episode_start"):
                host[name][:, rows] = 0
            # what a lost actor's slots saw last is still to be theirs, and not the new episode's
            host["episode_start"][0, rows] = self._begins[rows]
            for _, tensor in tree_items(self.buffer.all_obs):
                tensor[:-1, rows] = tensor[-1:, rows]
            if self.buffer.all_masks is not None:
                self.buffer.all_masks[:-1, rows] = self.buffer.all_masks[-1:, rows]
        self._begins[:] = False

    def _fill(self, rows: slice, answer: dict[str, Any]) -> list[Finals]:
        """Copy a rollout into an actor's columns; its last observations, numbered as ours."""
        buffer = self.buffer
        _write(buffer.all_obs, answer["obs"], (slice(None), rows))
        _write(buffer.actions, answer["actions"], (slice(None), rows))
        for name, array in answer["host"].items():
            buffer.host[name][:, rows] = array
        buffer.bootstrap[:, rows] = torch.tensor(answer["bootstrap"]).to(buffer.device)
        if buffer.all_masks is not None:
            buffer.all_masks[:, rows] = torch.tensor(answer["masks"]).to(buffer.device)
        for target, source in zip(
            (buffer.initial_state, buffer.last_state), answer["states"], strict=True
        ):
            if target is not None:
                _write(target, source, rows)
        return [
            Finals(
                t,
                slots + rows.start,
                map_tree(lambda array: torch.tensor(array).to(buffer.device), obs),
            )
            for t, slots, obs in answer["finals"]
        ]


def check_versions(ours: dict[str, str], theirs: dict[str, str], node: str) -> None:
    """Refuse a machine that has other packages than the learner's.

    Raises:
        UserError: names the machine and the first that differs.
    """
    for name, version in ours.items():
        if theirs.get(name) != version:
            raise UserError(
                f"{name} is {version} here and {theirs.get(name)} on {node}: install the same on "
                "both"
            )


def _connect(address: str, cores: float) -> bool:
    """Join or start Ray; True where it was started, or joined, for us.

    Raises:
        UserError: there is no cluster at this address.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=max(int(-(-cores // 1)), 1),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            if port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray has no one kind of error for it
        raise UserError(
            f"there is no Ray cluster at '{address}' ({str(error).splitlines()[0][:200]}): start "
            "one with ray start --head, or pass --collect.ray local"
        ) from None
    return True


def _cause(error: BaseException) -> str:
    """What an error of Ray is about, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return (lines[-1] if lines else type(cause).__name__)[:300]


def _arrays(tree: Tree[Tensor]) -> Any:
    return map_tree(lambda tensor: tensor.numpy(force=True), tree)


def _write(target: Tree[Tensor], source: Any, rows: Any) -> None:
    """Copy arrays, which Ray's memory does not let anyone write to, into some of the rows."""
    for (_, tensor), (_, array) in zip(tree_items(target), tree_items(source), strict=True):
        tensor[rows] = torch.tensor(array).to(tensor.device)
