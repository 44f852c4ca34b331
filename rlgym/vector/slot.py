"""One world in its slot: stepping, automatic reset, and the record for its replay.

Torch-free: `sync` uses it in process, workers use it in theirs, so both do the very same thing.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from rlgym.errors import SpaceError, UserError, WorldError
from rlgym.spaces import Layout, tree_items
from rlgym.vector.arrays import StepArrays

HISTORY_LIMIT = 200_000
"""Steps of an episode that are remembered for replay; a longer episode starts anew on resume."""


@dataclass(frozen=True)
class WorldTraits:
    """What a vector env must know of its worlds before it can allocate; plain data."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    reward_terms: tuple[str, ...]
    """Names in `metadata["reward_terms"]`; `info["reward_terms"]` gives their values."""
    has_mask: bool
    """True when `reset`'s info, or the world's `action_masks()`, gives an action mask."""
    render_fps: float
    spec_id: str


def inspect_world(world: gymnasium.Env) -> WorldTraits:
    """Read the traits of a fresh world; it is reset once to see whether it masks actions.

    Raises:
        WorldError: when the world's first reset fails.
    """
    try:
        result = world.reset(seed=0)
    except UserError:
        raise
    except Exception as error:
        raise WorldError(
            f"the world's first reset failed: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise WorldError(
            "the world's reset() must return (observation, info), it follows the old Gym API: "
            "wrap it with shimmy, or return a tuple"
        )
    metadata = world.unwrapped.metadata or {}
    return WorldTraits(
        observation_space=world.observation_space,
        action_space=world.action_space,
        reward_terms=tuple(metadata.get("reward_terms", ())),
        has_mask="action_mask" in result[1]
        or callable(getattr(world.unwrapped, "action_masks", None)),
        render_fps=float(metadata.get("render_fps") or 30.0),
        spec_id=world.spec.id if world.spec else type(world.unwrapped).__name__,
    )


@dataclass
class Episode:
    """How an episode began and what was done in it: enough to replay it on a fresh world."""

    seed: int | None = None
    """Seed given to the reset that began it; None when the world's own generator went on."""
    options: dict[str, Any] | None = None
    rng: dict[str, Any] | None = None
    """State of the world's `np_random` before that reset (only when no seed was given)."""
    actions: list[Any] = field(default_factory=list)
    """Actions since, as the world received them; a new list for each episode."""


@dataclass(frozen=True)
class Loss:
    """A slot whose world raised: reported to whoever counts and writes it down."""

    slot: int
    reason: str
    traceback: str
    episode: Episode


class Slot:
    """One world and its replay record.

    Args:
        factory: builds the world.
        number: index of the slot in the whole vector env (used in messages and fresh seeds).
        obs_layout: layout of the observation space.
        action_layout: layout of the action space.
        traits: what `inspect_world` found.
        info_keys: scalar info entries to carry.
    """

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        number: int,
        obs_layout: Layout,
        action_layout: Layout,
        traits: WorldTraits,
        info_keys: tuple[str, ...],
    ) -> None:
        """Build the world."""
        self.world = factory()
        self.number = number
        self.episode = Episode()
        self.ended: Episode | None = None  # the one before, for who asks how it ended
        self._factory = factory
        self._obs_layout = obs_layout
        self._action_layout = action_layout
        self._terms = traits.reward_terms
        self._keys = info_keys
        self._has_mask = traits.has_mask
        self._seed = 0
        self._losses = 0
        self._mark: tuple[Episode, int] = (self.episode, 0)

    # ------------------------------------------------------------------ reset and step
    def reset(
        self, seed: int | None, options: dict[str, Any] | None, arrays: StepArrays, row: int
    ) -> None:
        """Begin an episode: with `seed`, or with the world's own generator where it stands."""
        if seed is not None:
            self._seed = seed
            self.episode = Episode(seed=seed, options=options)
        else:
            self.episode = Episode(options=options, rng=_rng_state(self.world))
        obs, info = self.world.reset(seed=seed, options=options)
        self._obs_layout.write(obs, arrays.obs, row)
        if self._has_mask:
            self._write_mask(info, arrays, row)

    def begin(
        self,
        seed: int | None,
        options: dict[str, Any] | None,
        arrays: StepArrays,
        row: int,
        started: bool,
    ) -> Loss | None:
        """As `reset`; a world that raises is replaced, and the loss returned.

        Raises:
            WorldError: it raises in its very first reset (not `started`).
        """
        try:
            self.reset(seed, options, arrays, row)
        except UserError:
            raise
        except Exception as error:
            if not started:
                raise WorldError(
                    f"the first reset of world {row} failed: {type(error).__name__}: {error}"
                ) from error
            loss = self.lose(error, arrays, row)
            arrays.truncated[row] = False  # a reset ends no episode
            arrays.active[row] = True
            return loss
        return None

    def finish(self, obs: Any, arrays: StepArrays, row: int) -> None:
        """End the episode with `obs` as its last, and begin the next (SAME_STEP autoreset)."""
        self._obs_layout.write(obs, arrays.final_obs, row)
        self.ended = self.episode
        self.reset(None, None, arrays, row)

    def lose(self, error: BaseException, arrays: StepArrays, row: int) -> Loss:
        """Give up a world that raised: build another and end the slot's episode as truncated.

        Raises:
            WorldError: when the new world fails as well.
        """
        loss = Loss(
            self.number,
            f"{type(error).__name__}: {error}",
            "".join(traceback.format_exception(error)),
            self.episode,
        )
        with contextlib.suppress(Exception):  # broken already; what matters is the next one
            self.world.close()
        for (_, final), (_, obs) in zip(
            tree_items(arrays.final_obs), tree_items(arrays.obs), strict=True
        ):
            final[row] = obs[row]
        arrays.reward[row] = 0.0
        arrays.terminated[row] = False
        arrays.truncated[row] = True
        arrays.active[row] = False
        arrays.extras[row] = np.nan
        self._losses += 1
        try:
            self.world = self._factory()
            self.reset(fresh_seed(self._seed, self.number, self._losses), None, arrays, row)
        except UserError:
            raise
        except Exception as again:
            raise WorldError(
                f"world {self.number} raised {loss.reason}, and a new one fails too: "
                f"{type(again).__name__}: {again}"
            ) from again
        return loss

    def write_info(self, info: dict[str, Any], arrays: StepArrays, row: int) -> None:
        """Carry the declared reward terms and info keys; NaN where the world gives none."""
        out = arrays.extras[row]
        terms = info.get("reward_terms") or {}
        for i, name in enumerate(self._terms):
            out[i] = terms.get(name, np.nan)
        for i, name in enumerate(self._keys, start=len(self._terms)):
            value = info.get(name)
            out[i] = np.nan if value is None else value

    def write_step_mask(self, info: dict[str, Any], arrays: StepArrays, row: int) -> None:
        """Carry the mask that belongs to the observation of a step that ended no episode."""
        if self._has_mask:
            self._write_mask(info, arrays, row)

    def _write_mask(self, info: dict[str, Any], arrays: StepArrays, row: int) -> None:
        mask = info.get("action_mask")
        if mask is None:
            masks = getattr(self.world.unwrapped, "action_masks", None)
            if masks is None:
                raise WorldError(
                    f"world {self.number} gave info['action_mask'] at first and then none: "
                    "give it at every reset and step"
                )
            mask = masks()
        if isinstance(mask, (tuple, list)) and len(mask) and np.ndim(mask[0]):
            mask = np.concatenate([np.asarray(part).reshape(-1) for part in mask])
        flat = np.asarray(mask).reshape(-1)
        if flat.shape != arrays.action_mask[row].shape:
            raise SpaceError(
                f"world {self.number}'s action mask has {flat.size} flags, its action space has "
                f"{arrays.action_mask.shape[1]} choices: give one flag per choice"
            )
        arrays.action_mask[row] = flat

    # ------------------------------------------------------------------ replay
    def mark(self) -> None:
        """Remember this moment at no cost, so that `record(at_mark=True)` can describe it later."""
        self._mark = (self.episode, len(self.episode.actions))

    def record(self, at_mark: bool = False) -> Episode:
        """The episode so far, or as it stood at the last `mark`."""
        episode, steps = self._mark if at_mark else (self.episode, len(self.episode.actions))
        return Episode(episode.seed, episode.options, episode.rng, episode.actions[:steps])

    def replay(self, episode: Episode, arrays: StepArrays, row: int) -> bool:
        """Bring the world to the end of `episode`; False when the world cannot be driven there."""
        if len(episode.actions) > HISTORY_LIMIT:
            return False
        try:
            if episode.rng is not None and not set_rng_state(self.world, episode.rng):
                return False
            self.reset(episode.seed, episode.options, arrays, row)
            self.episode = Episode(episode.seed, episode.options, episode.rng)
            for action in episode.actions:
                self.episode.actions.append(action)
                obs, _, terminated, truncated, info = self.world.step(action)
                if terminated or truncated:
                    return False  # the episode had gone on
                self._obs_layout.write(obs, arrays.obs, row)
                self.write_step_mask(info, arrays, row)
        except Exception:
            return False
        return True

    def close(self) -> None:
        """Close the world."""
        self.world.close()


def step_slots(slots: Sequence[Slot], arrays: StepArrays, start: int) -> list[Loss]:
    """Step the slots in rows `start`, `start + 1`, ...: the hot loop of every host world.

    Reads each slot's action row, writes observation, reward, flags and, where an episode ends, the
    final observation and the first of the next. A world that raises loses its slot (see
    `Slot.lose`).

    Returns:
        The losses; empty in ordinary steps.

    Raises:
        SpaceError: when a world's value does not fit its space.
    """
    stop = start + len(slots)
    losses: list[Loss] = []
    rewards: list[Any] = []
    ends: list[Any] = []
    limits: list[Any] = []
    lost: list[int] = []
    first = slots[0]
    obs_layout, action_layout = first._obs_layout, first._action_layout
    has_mask, has_extras = first._has_mask, bool(arrays.extras.shape[1])
    simple_obs: Any = arrays.obs if obs_layout.single else None
    obs_shape = obs_layout.leaves[0].shape
    actions: Any = arrays.actions
    if action_layout.single and not action_layout.leaves[0].shape:
        # numpy scalars, because Gymnasium's Discrete.contains is twice as slow on python ints
        native = list(actions[start:stop])
    elif action_layout.single:  # one copy for all: a world may keep what it is given
        native = list(np.array(actions[start:stop], action_layout.leaves[0].space.dtype))
    else:
        native = [action_layout.read(actions, row) for row in range(start, stop)]
    if has_extras:
        arrays.extras[start:stop] = np.nan
    for row, slot, action in zip(range(start, stop), slots, native, strict=True):
        history = slot.episode.actions
        if len(history) <= HISTORY_LIMIT:  # one more than the limit says: too long to replay
            history.append(action)
        try:
            obs, reward, terminated, truncated, info = slot.world.step(action)
            rewards.append(reward)
            ends.append(terminated)
            limits.append(truncated)
            if has_extras and info:
                slot.write_info(info, arrays, row)
            if terminated or truncated:
                slot.finish(obs, arrays, row)
            else:
                if simple_obs is not None and getattr(obs, "shape", None) == obs_shape:
                    simple_obs[row] = obs
                else:
                    obs_layout.write(obs, arrays.obs, row)
                if has_mask:
                    slot.write_step_mask(info, arrays, row)
        except UserError:
            raise
        except Exception as error:
            losses.append(slot.lose(error, arrays, row))
            lost.append(row)
            for column, value in ((rewards, 0.0), (ends, False), (limits, True)):
                del column[row - start :]
                column.append(value)
    try:
        arrays.reward[start:stop] = rewards
        arrays.terminated[start:stop] = ends
        arrays.truncated[start:stop] = limits
    except (TypeError, ValueError) as error:
        raise WorldError(
            f"a world's reward or end flag is not one number: {error}; "
            "return float, bool, bool from step()"
        ) from None
    arrays.active[start:stop] = True
    for row in lost:
        arrays.active[row] = False
    return losses


def fresh_seed(seed: int, slot: int, losses: int) -> int:
    """Seed of the world that takes a lost one's place; the same in every run."""
    return int(np.random.SeedSequence([seed, slot, losses]).generate_state(1)[0])


def _rng_state(world: gymnasium.Env) -> dict[str, Any] | None:
    generator = getattr(world.unwrapped, "np_random", None)
    if not isinstance(generator, np.random.Generator):
        return None
    return dict(generator.bit_generator.state)


def set_rng_state(world: gymnasium.Env, state: dict[str, Any]) -> bool:
    """Put a world's `np_random` into a recorded state; False when it has no such generator."""
    generator = getattr(world.unwrapped, "np_random", None)
    if not isinstance(generator, np.random.Generator):
        return False
    if generator.bit_generator.state["bit_generator"] != state["bit_generator"]:
        return False
    generator.bit_generator.state = state
    return True
