"""The players of one scene, and each of its behaviours as a vector env over all of them.

    world = UnityWorld("builds/Soccer.x86_64", num_players=4)
    views = world.views()                     # {"Striker": VectorEnv, "Goalie": VectorEnv}
    for view in views.values():
        view.send(actions[view.behavior], group)
    for view in views.values():
        result[view.behavior] = view.recv(group)

A group of a view is a player. A player goes on when the actions of all its behaviours are there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlgym.envs.unity.connector import Player, PlayerFrozen, PlayerLost
from rlgym.envs.unity.launch import find_player
from rlgym.envs.unity.link import Link, Scene
from rlgym.envs.unity.parameters import Parameters, Sampler
from rlgym.envs.unity.side_channels import (
    SideChannels,
    Stats,
    drain,
    engine_parts,
    parameter_part,
)
from rlgym.errors import ConfigError, StateError, WorldError
from rlgym.settings import suggest
from rlgym.vector.crash import default_folder, write_report
from rlgym.vector.slot import fresh_seed

if TYPE_CHECKING:
    from rlgym.envs.unity.vector_env import UnityVectorEnv

Sync = Literal["auto", "all", "any"]

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start a player that keeps dying."""


class UnityWorld:
    """Several players of the same scene.

    Args:
        target: path of a build, "editor", or "standin".
        num_players: processes that run side by side.
        behavior: the behaviour to take part in; a name without its team stands for all its teams,
            which one policy then plays. None: every behaviour is a view of its own.
        num_agents: slots of each behaviour in each player; None: as many as it shows at the start.
        sync: "all" steps every agent at once; "any" returns as soon as one asks, and the others are
            not active; "auto" looks at what the scene does.
        seed: player p is started with seed + p. Unity takes a seed only when it starts.
        reseed: restart the players when a reset names a seed, so that it begins the same episodes.
        timeout: seconds to wait for a player.
        max_restarts: players replaced before the world gives up.
        crash_dir: folder for reports of lost players.
        time_scale: how much faster than real time; the physics of a scene may change with it.
        no_graphics: without a window; cameras of the scene see nothing then.
        width, height, quality_level, target_frame_rate, capture_frame_rate: Unity's settings; None
            leaves what the build has.
        parameters: environment parameters; see `rlgym.envs.unity.parameters`.
        total_steps: of the run, for curricula that are judged by progress.
        evaluation: let curricula stand at their last lesson.
        side_channels: the user's own; see `rlgym.envs.unity.side_channels`.
        group_reward_weight: how much a group's reward counts beside the agent's own.
        args: further arguments of the player.
        num_areas: copies of the training area, for scenes that make them.
        transport: "direct", or "grpc" for the official library's server, should a player not get
            along with ours.
        log_folder: where the players' logs stay.
        options: of the stand-in.

    Attributes:
        everyone: agents step all at once.
        scene: what the players showed at the start.

    Raises:
        WorldError: the player does not start, or shows no agents.
        ConfigError: a setting that makes no sense.
    """

    def __init__(
        self,
        target: str,
        *,
        num_players: int = 1,
        behavior: str | None = None,
        num_agents: int | None = None,
        sync: Sync = "auto",
        seed: int = 0,
        reseed: bool = False,
        timeout: float = 60.0,
        max_restarts: int = 10,
        crash_dir: str | Path | None = None,
        time_scale: float = 20.0,
        no_graphics: bool = True,
        width: int | None = None,
        height: int | None = None,
        quality_level: int | None = None,
        target_frame_rate: int | None = -1,
        capture_frame_rate: int | None = 60,
        parameters: Mapping[str, Any] | None = None,
        total_steps: int | None = None,
        evaluation: bool = False,
        side_channels: Iterable[Any] = (),
        group_reward_weight: float = 1.0,
        args: Sequence[str] = (),
        num_areas: int = 1,
        transport: Literal["direct", "grpc"] = "direct",
        log_folder: str | Path | None = None,
        **options: Any,
    ) -> None:
        if num_players < 1:
            raise ConfigError(f"num_players is {num_players}: ask for at least 1")
        if num_players > 1 and target == "editor":
            raise ConfigError("there is one editor: leave num_players out, or build the scene")
        if sync not in ("auto", "all", "any"):
            raise ConfigError(f"there is no sync {sync!r}: choose from auto, all, any")
        if isinstance(args, str):
            raise ConfigError("args is a text: give a list, such as ['--level', '3']")
        self.name = f"unity:{target}"
        self.num_players = num_players
        self.group_reward_weight = group_reward_weight
        self.parameters = Parameters(parameters, total_steps=total_steps, at_end=evaluation)
        self.stats = Stats()
        self.max_restarts = max_restarts
        self.crash_dir = Path(crash_dir) if crash_dir is not None else default_folder()
        self.crash_reports: list[str] = []
        self._seed = seed
        self._reseed = reseed
        self._channels = list(side_channels)
        self._engine = engine_parts(
            time_scale=time_scale,
            width=width,
            height=height,
            quality_level=quality_level,
            target_frame_rate=target_frame_rate,
            capture_frame_rate=capture_frame_rate,
        )
        self._launch = find_player(target, **options)
        self._player_settings: dict[str, Any] = {
            "timeout": timeout,
            "no_graphics": no_graphics,
            "args": tuple(args),
            "num_areas": num_areas,
            "transport": transport,
            "log_folder": log_folder,
        }
        self._restarts = [0] * num_players
        self._views: dict[str, UnityVectorEnv] = {}
        self._behavior = behavior
        self._waiting_for_reset: set[str] = set()
        self.links = [
            Link(
                lambda number=number: self._make_player(number),
                SideChannels(self.stats, self._channels),
                timeout,
            )
            for number in range(num_players)
        ]
        try:
            self.scene = self._open(num_agents)
            self._keys = self._choose(behavior)
        except BaseException:
            self._quit(grace=0.5)
            raise
        self.everyone = sync == "all" or (sync == "auto" and not self.scene.staggered)

    # ------------------------------------------------------------------ players
    def _make_player(self, number: int) -> Player:
        seed = self._seed + number
        if self._restarts[number]:  # the one before may have died of its seed
            seed = fresh_seed(self._seed, number, self._restarts[number])
        return Player(self._launch, seed=seed, number=number, **self._player_settings)

    def _configure(self, number: int) -> None:
        """Queue what a new player must be told before its first reset."""
        self.links[number].channels.queue(self._engine)
        self._tell_parameters(number, self.parameters.values())

    def tell_parameters(self) -> None:
        """Tell every player what the environment parameters are, with its next message."""
        for number in range(self.num_players):
            self._tell_parameters(number, self.parameters.values())

    def _tell_parameters(self, number: int, values: Mapping[str, float | Sampler]) -> None:
        parts = [
            parameter_part(name, value, (self._seed + number + 31 * at) & 0x7FFFFFFF)
            for at, (name, value) in enumerate(values.items())
        ]
        self.links[number].channels.queue(parts)

    def _open(self, num_agents: int | None) -> Scene:
        """Start all players side by side, and see what is in them."""
        for link in self.links:
            link.start()
        scenes = []
        for number, link in enumerate(self.links):
            link.connect()
            self._configure(number)
            self._flush_channels()
            scenes.append(link.watch())
        whole = scenes[0]
        for number, scene in enumerate(scenes[1:], start=1):
            for name, spec in scene.specs.items():
                if whole.specs.setdefault(name, spec) != spec:
                    raise WorldError(
                        f"behaviour '{name}' differs between player 0 and player {number}: start "
                        "players of one build"
                    )
                whole.counts[name] = max(whole.counts.get(name, 0), scene.counts.get(name, 0))
            whole.in_groups = whole.in_groups or scene.in_groups
            whole.staggered = whole.staggered or scene.staggered
        if num_agents is not None:
            for name, count in whole.counts.items():
                if count > num_agents:
                    raise ConfigError(
                        f"num_agents is {num_agents}, and {self.name} has {count} agents of "
                        f"'{name}': leave num_agents out, or pass {count} or more"
                    )
            whole.counts = dict.fromkeys(whole.counts, num_agents)
        return whole

    # ------------------------------------------------------------------ behaviours
    def _choose(self, behavior: str | None) -> dict[str, list[str]]:
        """View -> the behaviours whose agents it holds."""
        names = sorted(self.scene.specs)
        if behavior is None:
            return {name: [name] for name in names}
        if behavior in names:
            return {behavior: [behavior]}
        teams = [name for name in names if name.partition("?")[0] == behavior]
        if not teams:
            raise ConfigError(
                f"{self.name} has no behaviour '{behavior}': {suggest(behavior, names)}"
            )
        first = self.scene.specs[teams[0]]
        for name in teams[1:]:
            spec = self.scene.specs[name]
            if (spec.observations, spec.continuous, spec.branches) != (
                first.observations,
                first.continuous,
                first.branches,
            ):
                raise ConfigError(
                    f"the teams of '{behavior}' see or do different things: choose one of "
                    f"{', '.join(teams)}"
                )
        return {behavior: teams}

    def behaviors(self, view: str) -> list[str]:
        """The behaviours (the teams) whose agents a view holds."""
        return self._keys[view]

    def views(self, **kwargs: Any) -> dict[str, UnityVectorEnv]:
        """Each behaviour, or the chosen one, as a vector env; the same ones at each call.

        Args:
            kwargs: device, output and seed of the vector envs.
        """
        if not self._views:
            from rlgym.envs.unity.vector_env import UnityVectorEnv

            self._views = {name: UnityVectorEnv(self, name, **kwargs) for name in self._keys}
        return self._views

    # ------------------------------------------------------------------ reset and step
    def reset(self, view: UnityVectorEnv, seed: int | None) -> None:
        """Begin every episode anew; the first view that asks does it for all of them."""
        if view.behavior in self._waiting_for_reset:
            self._waiting_for_reset.discard(view.behavior)
            return
        if any(link.sent or link.stepping for link in self.links):
            raise StateError("reset while a step of another behaviour is pending: recv() it first")
        self._waiting_for_reset = set(self._views) - {view.behavior}
        if seed is not None and self._reseed:
            self._seed = seed
            self._restart_all()
        self._flush_channels()
        for link in self.links:
            link.reset()
        for number, link in enumerate(self.links):
            try:
                link.finish_reset()
            except (PlayerLost, PlayerFrozen) as error:
                self._replace(number, error)
            for slots in link.slots.values():
                slots.rows.active[:] = slots.asking

    def _restart_all(self) -> None:
        """Start other players, because Unity takes a seed only when it starts."""
        for link in self.links:
            link.quit()
        for link in self.links:
            link.start()
        for number, link in enumerate(self.links):
            link.connect()
            self._configure(number)
            for slots in link.slots.values():
                slots.lose_all()

    def send(self, view: UnityVectorEnv, number: int) -> None:
        """Note that a view's actions for a player are there; with the last of them it goes on."""
        link = self.links[number]
        link.sent.add(view.behavior)
        if len(link.sent) == len(self._views):
            link.sent.clear()
            link.stepping = True
            self._waiting_for_reset.clear()
            self._flush_channels()
            link.begin_step(self.everyone, lambda name: self._actions(number, name))

    def recv(self, view: UnityVectorEnv, number: int) -> None:
        """Wait until a player's step is complete.

        Raises:
            StateError: the actions of another behaviour are missing.
            WorldError: the player was lost, and too many before it.
        """
        link = self.links[number]
        if not link.stepping:
            if view.behavior in link.sent:
                missing = sorted(set(self._views) - link.sent)
                raise StateError(
                    f"the player goes on when all behaviours have sent: call send of "
                    f"{', '.join(missing)} before recv"
                )
            return
        try:
            lost = link.finish_step(self.everyone, lambda name: self._actions(number, name))
        except (PlayerLost, PlayerFrozen) as error:
            self._replace(number, error)
            lost = 0
        finally:
            link.stepping = False
        if lost:
            self._count("lost_slots", lost)

    def _actions(self, number: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        for view in self._views.values():
            if name in view.members:
                return view.actions_of(number, name)
        raise StateError(f"no view holds '{name}'")  # pragma: no cover

    def _flush_channels(self) -> None:
        if self._channels:
            parts = drain(self._channels)
            for link in self.links:
                link.channels.queue(parts)

    def count(self, steps: int, returns: Sequence[float]) -> None:
        """Count steps and ended episodes for the curricula; players are told what changes."""
        changed = self.parameters.count(steps, list(returns))
        if changed:
            for number in range(self.num_players):
                self._tell_parameters(number, changed)

    # ------------------------------------------------------------------ losses
    def _replace(self, number: int, error: PlayerLost | PlayerFrozen) -> None:
        """Start another player in the place of one that was lost.

        Raises:
            WorldError: more than `max_restarts` were lost.
        """
        link = self.links[number]
        alive = sum(int(slots.alive.sum()) for slots in link.slots.values())
        self._count("lost_slots", alive)
        for slots in link.slots.values():
            slots.lose_all()
        pause = 0.0
        while True:
            link.quit(grace=0.0)
            self._tell_of(number, error)
            if sum(self._restarts) > self.max_restarts:
                raise WorldError(
                    f"players of {self.name} were lost {sum(self._restarts)} times, more than "
                    f"max_restarts={self.max_restarts}; the last: {error}"
                ) from error
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 2.0 * pause or 0.5)
            try:
                link.start()
                link.connect()
                self._configure(number)
                link.reset()
                link.finish_reset()
                return
            except (PlayerLost, PlayerFrozen) as again:
                error = again

    def _tell_of(self, number: int, error: PlayerLost | PlayerFrozen) -> None:
        """Count a lost player, write down what is known of it, and say so in one line."""
        self._restarts[number] += 1
        self._count("restarts", 1)
        if isinstance(error, PlayerFrozen):
            self._count("timeouts", 1)
        what = str(error).splitlines()[0]
        facts = {
            "world": self.name,
            "what": what,
            "exit_code": getattr(error, "exit_code", None),
            "log": error.log,
        }
        report = write_report(self.crash_dir, facts)
        self.crash_reports.append(report)
        print(
            f"rlgym: {what}; its episodes end as truncated and it is started again; report: "
            f"{report}",
            file=sys.stderr,
        )

    def _count(self, name: str, count: int) -> None:
        for view in self._views.values():
            view.health[name] += count

    def scalars(self) -> dict[str, float]:
        """Statistics of the scene since the last call, and where its curricula stand."""
        found = {f"unity/{name}": value for name, value in self.stats.take().items()}
        lessons = self.parameters.curricula.items()
        return found | {f"unity/lesson/{name}": float(one.index) for name, one in lessons}

    # ------------------------------------------------------------------ the end
    def close(self, view: UnityVectorEnv) -> None:
        """End the players when the last view is closed."""
        self._waiting_for_reset.discard(view.behavior)
        if all(one is view or one.closed for one in self._views.values()):
            self._quit()

    def _quit(self, grace: float = 5.0) -> None:
        for link in self.links:
            link.quit(grace)
