"""The agents of a Unity scene behind the contract of vector envs: every agent is a slot.

env = rlgym.make_vec("unity:builds/3DBall.x86_64", num_players=4)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlgym.envs.unity.frames import BehaviorSpec, ObservationSpec
from rlgym.envs.unity.slots import Rows, Slots
from rlgym.envs.unity.world import UnityWorld
from rlgym.errors import ConfigError, ContractError, WorldError
from rlgym.settings import suggest
from rlgym.spaces import tree_items
from rlgym.vector.contract import Output, VectorEnv
from rlgym.vector.slot import Episode, WorldTraits

LOST = "lost"
"""Key of `info` that tells a slot that was lost (1) from one whose agent ended while it waited."""


UNSEEN = "a Unity player draws in a window of its own: rlgym play shows it, and nothing films it"


def make_unity(
    target: str,
    num_envs: int | None = None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    output: Output = "torch",
    timeout: float = 60.0,
    max_restarts: int = 10,
    crash_dir: str | Path | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> UnityVectorEnv:
    """Start the players of a scene with one behaviour, or of the one that is chosen.

    Args:
        target: path of a build, "editor", or "standin".
        num_envs: slots, if they are to be checked: the number is the scene's own.
        device: of the tensors that are returned.
        seed: of the first player.
        output: "torch" or "numpy".
        render_mode: "human" shows the players' own windows, in real time.
        timeout, max_restarts, crash_dir, settings: see `UnityWorld`.

    Raises:
        UserError: the player does not start; several behaviours and none chosen; another number of
            agents.
    """
    if render_mode == "human":
        settings = {**settings, "no_graphics": False, "time_scale": 1.0}
    elif render_mode is not None:
        raise WorldError(UNSEEN)
    known = _known_settings(target)
    for name in settings:
        if name not in known:
            raise ConfigError(f"unity: takes no argument {name!r}: {suggest(name, known)}")
    common: dict[str, Any] = {"timeout": timeout, "max_restarts": max_restarts}
    world = UnityWorld(target, seed=seed, crash_dir=crash_dir, **common, **settings)
    views = world.views(device=device, output=output, seed=seed)
    try:
        if len(views) > 1:
            raise ConfigError(_several(world.name, list(views)))
        (view,) = views.values()
        if num_envs is not None and num_envs != view.num_envs:
            raise ContractError(
                f"num_envs is {num_envs}, and {world.name} has {view.num_envs} agents in "
                f"{world.num_players} player(s): leave num_envs out, or give {view.num_envs}"
            )
        return view
    except BaseException:
        for one in views.values():
            one.close()
        raise


def _known_settings(target: str) -> list[str]:
    """Names of what `UnityWorld` takes; of what the stand-in takes, too, where it is meant."""
    known = list(UnityWorld.__init__.__kwdefaults__ or {})
    if target == "standin":
        from rlgym.envs.unity.standin.__main__ import parser

        flags = re.findall(r"--([a-z][a-z-]+)", parser().format_help())
        known += [flag.replace("-", "_") for flag in flags]
    return known


def _several(name: str, views: list[str]) -> str:
    teams = sorted({view.partition("?")[0] for view in views})
    choice = f"pass behavior='{teams[0]}'"
    if len(teams) == 1:
        choice += " to let one policy play all its teams"
    return (
        f"{name} has the behaviours {', '.join(views)}: {choice}, or one of them by its full name; "
        "UnityWorld(...).views() gives them all"
    )


class UnityVectorEnv(VectorEnv):
    """The agents of one behaviour in all players of a world; a group of slots is a player.

    Slots are ordered by player, then team, then the order in which the agents came. Nothing can be
    replayed in Unity: a restored env begins new episodes, which health["unreplayed"] counts; where
    curricula stand is kept. health["empty_episodes"] counts agents that ended before they asked for
    their first decision.

    Args:
        world: owns the players.
        behavior: name of this view; see `UnityWorld.views`.
        kwargs: device, output, seed.
    """

    def __init__(self, world: UnityWorld, behavior: str, **kwargs: Any) -> None:
        self.world = world
        self.behavior = behavior
        self.members = world.behaviors(behavior)
        """The behaviours whose agents are here: one, or all teams of one."""
        self.behavior_spec = spec = world.scene.specs[self.members[0]]
        counts = [world.scene.counts[name] for name in self.members]
        traits = WorldTraits(
            observation_space=observation_space(spec),
            action_space=action_space(spec),
            reward_terms=("own", "group") if world.scene.in_groups else (),
            has_mask=bool(spec.branches),
            render_fps=30.0,
            spec_id=world.name,
        )
        total = sum(counts) * world.num_players
        super().__init__(traits, total, num_groups=world.num_players, info_keys=(LOST,), **kwargs)
        self.health["empty_episodes"] = 0
        self._rows: dict[tuple[int, str], slice] = {}
        self._slots: list[Slots] = []
        start = 0
        for number, link in enumerate(world.links):
            for name, count in zip(self.members, counts, strict=True):
                rows = slice(start, start + count)
                weight = world.group_reward_weight
                slots = Slots(
                    world.scene.specs[name],
                    count,
                    self._views_of(rows),
                    group_weight=weight,
                    counter=link.counter,
                )
                link.slots[name] = slots
                self._slots.append(slots)
                self._rows[number, name] = rows
                start += count
        actions: Any = self.arrays.actions
        if isinstance(actions, dict):
            self._continuous, self._discrete = actions["continuous"], actions["discrete"]
        else:
            self._continuous = actions if spec.continuous else None
            self._discrete = actions if spec.branches else None
        self._marked_curricula = self._curricula()

    def _views_of(self, rows: slice) -> Rows:
        """The parts of this env's arrays that slots write to."""
        a = self.arrays
        num_terms = len(self.reward_term_names)
        return Rows(
            obs=[array[rows] for _, array in tree_items(a.obs)],
            final_obs=[array[rows] for _, array in tree_items(a.final_obs)],
            reward=a.reward[rows],
            terminated=a.terminated[rows],
            truncated=a.truncated[rows],
            active=a.active[rows],
            lost=a.extras[rows, num_terms],
            mask=a.action_mask[rows] if self.mask_size else None,
            terms=a.extras[rows, :num_terms] if num_terms else None,
        )

    def actions_of(self, number: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """This step's continuous and discrete actions of one behaviour in one player."""
        rows = self._rows[number, name]
        return (
            None if self._continuous is None else self._continuous[rows],
            None if self._discrete is None else self._discrete[rows],
        )

    @property
    def agent_ids(self) -> np.ndarray:
        """(num_envs,) int64: the id of the agent in each slot; -1 for an empty one."""
        return np.concatenate([slots.ids for slots in self._slots])

    # ------------------------------------------------------------------ reset and step
    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        self.world.reset(self, seeds[0])

    def _send(self, group: int) -> None:
        self.world.send(self, group)

    def _recv(self, group: int) -> None:
        self.world.recv(self, group)
        self.health["empty_episodes"] = sum(slots.empty_episodes for slots in self._slots)

    def _receive(self, group: int) -> None:
        super()._receive(group)
        if self.world.parameters.curricula:
            rows, a = self.group_slice(group), self.arrays
            done = (a.terminated | a.truncated)[rows] & (self._lost[rows] == 0.0)
            steps = int(np.count_nonzero(a.active[rows]))
            self.world.count(steps, self._episode_return[rows][done].tolist())

    @property
    def _lost(self) -> np.ndarray:
        return self.arrays.extras[:, len(self.reward_term_names)]

    def scalars(self) -> dict[str, float]:
        """What C# scripts recorded since the last call, and the lessons of curricula."""
        return self.world.scalars()

    def deployment(self) -> dict[str, Any]:
        """Under which settings the scene was simulated."""
        return {}

    def render_slot(self, row: int) -> Any:
        """Refused: a player draws itself."""
        raise WorldError(UNSEEN)

    # ------------------------------------------------------------------ saving
    def _curricula(self) -> dict[str, np.ndarray]:
        parameters = self.world.parameters
        lessons = [one.index for one in parameters.curricula.values()]
        return {
            "unity:steps": np.array([parameters.steps], np.int64),
            "unity:lessons": np.array(lessons, np.int64),
        }

    def _mark(self) -> None:
        self._marked_curricula = self._curricula()

    def snapshot(
        self, *, at_mark: bool = False, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Where the curricula stand; a scene itself cannot be described. See `VectorEnv`."""
        return super().snapshot(at_mark=at_mark, timeout=timeout) | self._marked_curricula

    def restore(self, snapshot: dict[str, np.ndarray]) -> Any:
        """Begin new episodes where the curricula stood; see `VectorEnv`."""
        parameters = self.world.parameters
        now = self._curricula()
        saved = {name: snapshot.get(name, np.zeros(0)) for name in now}
        if all(saved[n].dtype == a.dtype and saved[n].shape == a.shape for n, a in now.items()):
            parameters.steps = int(saved["unity:steps"][0])
            lessons = saved["unity:lessons"].tolist()
            for curriculum, index in zip(parameters.curricula.values(), lessons, strict=True):
                curriculum.go_to(index)
            self.world.tell_parameters()
        return super().restore(snapshot)

    def _records(self, timeout: float | None) -> list[Episode | None]:
        return [None] * self.num_envs

    def _episode(self, slot: int, ended: bool) -> Episode | None:
        return None

    def _replay(self, episodes: list[Episode | None], fresh_seeds: list[int]) -> np.ndarray:
        self.world.reset(self, None)
        return np.zeros(self.num_envs, np.bool_)

    def _restart_slot(self, row: int, seed: int) -> None:
        raise WorldError("one agent of a scene cannot be reset alone")  # no slot is ever replayed

    def _close(self) -> None:
        self.world.close(self)


def observation_space(spec: BehaviorSpec) -> spaces.Space:
    """A Box for one observation, else a Dict of obs_0, obs_1, ... in Unity's order."""
    boxes = [_box(one) for one in spec.observations]
    if len(boxes) == 1:
        return boxes[0]
    return spaces.Dict({f"obs_{index}": box for index, box in enumerate(boxes)})


def _box(spec: ObservationSpec) -> spaces.Box:
    shape = spec.decoded_shape
    if spec.compressed:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def action_space(spec: BehaviorSpec) -> spaces.Space:
    """Box(-1, 1) for continuous actions, MultiDiscrete for branches, a Dict of both for both."""
    parts: dict[str, spaces.Space] = {}
    if spec.continuous:
        parts["continuous"] = spaces.Box(-1.0, 1.0, (spec.continuous,), np.float32)
    if spec.branches:
        parts["discrete"] = spaces.MultiDiscrete(list(spec.branches))
    if not parts:
        raise WorldError(f"behaviour '{spec.name}' takes no actions: set them in its parameters")
    return next(iter(parts.values())) if len(parts) == 1 else spaces.Dict(parts)
