"""What can be wrong with a single Gymnasium world, told before it costs a training run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rlgym.errors import SpaceError, UserError, WorldError
from rlgym.spaces import Layout, tree_items
from rlgym.vector.arrays import StepArrays
from rlgym.vector.check.trial import Finding, Found, sample_action
from rlgym.vector.slot import Slot, inspect_world, step_slots

LARGE = 50.0
"""An unbounded observation beyond this is worth normalising."""


def check_world(
    factory: Callable[[], gymnasium.Env],
    *,
    steps: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    close: bool = True,
) -> list[Finding]:
    """Test one world: spaces, values, seeds, endings, replay.

    Args:
        factory: builds the world; called twice when it gives another one each time.
        steps: steps of the longest test.
        seconds: time after which the longest test stops.
        seed: seed of the world and of the actions.
        close: close the worlds at the end.
    """
    findings: list[Finding] = []
    world = factory()
    try:
        for rule in (rule_spaces, rule_values, rule_seed, rule_replay):
            name = rule.__name__.removeprefix("rule_")
            try:
                found = rule(world, factory, steps, seconds, seed)
                findings += [Finding(severity, name, message) for severity, message in found]
            except Exception as error:
                findings.append(Finding("error", name, _told(error)))
            if any(finding.severity == "error" for finding in findings):
                break  # later rules could only stumble over the same
    finally:
        if close:
            world.close()
    return findings


def rule_spaces(world: gymnasium.Env, factory: Any, steps: int, seconds: float, seed: int) -> Found:
    """Both spaces are of kinds that can be batched, and actions have bounds."""
    layouts = {"observation": Layout(world.observation_space), "action": Layout(world.action_space)}
    for name, layout in layouts.items():
        for leaf in layout.leaves:
            low = getattr(leaf.space, "low", None)
            if name == "action" and low is not None and not np.isfinite(low).all():
                fix = "give finite low and high, or actions are sampled around 0 and never clipped"
                yield "note", f"action {leaf.key!r} has no bounds: {fix}"
    inspect_world(world)


def rule_values(world: gymnasium.Env, factory: Any, steps: int, seconds: float, seed: int) -> Found:
    """Observations lie in their space and are finite; rewards and flags are what they should be."""
    walk = Walk(world, seed)
    yield from walk.judge(walk.reset(seed))
    until = time.perf_counter() + seconds
    taken = 0
    while taken < steps and time.perf_counter() < until:
        taken += 1
        step = walk.step()
        yield from walk.judge(step[0])
        yield from _judge_rest(*step[1:], step=taken)
        if step[2] or step[3]:
            walk.reset(None)
    limit = world.spec.max_episode_steps if world.spec else None
    if not walk.endings and limit is None:
        yield (
            "warning",
            f"no episode ended in {taken} steps and there is no time limit: register it with "
            "max_episode_steps, or wrap it in gymnasium.wrappers.TimeLimit",
        )
    if walk.largest > LARGE:
        yield (
            "note",
            f"observations reach {walk.largest:.3g} in magnitude: train with "
            "--network.normalize-obs",
        )


def rule_seed(world: gymnasium.Env, factory: Any, steps: int, seconds: float, seed: int) -> Found:
    """The same seed and actions give the same observations."""
    runs = []
    for _ in range(2):
        walk = Walk(world, seed)
        seen = [walk.reset(seed)]
        for _ in range(min(steps, 30)):
            obs, _, terminated, truncated, _ = walk.step()
            seen.append(obs)
            if terminated or truncated:
                break
        runs.append([walk.flat(obs) for obs in seen])
    if len(runs[0]) != len(runs[1]) or any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(*runs, strict=False)
    ):
        yield (
            "warning",
            "the same seed and actions give other observations: call super().reset(seed=seed) and "
            "draw from self.np_random only, or results cannot be reproduced",
        )


def rule_replay(world: gymnasium.Env, factory: Any, steps: int, seconds: float, seed: int) -> Found:
    """An episode that began without a seed can be replayed on a fresh world."""
    traits = inspect_world(world)
    obs_layout, action_layout = Layout(world.observation_space), Layout(world.action_space)
    mask_size = action_layout.mask_size if traits.has_mask else 0
    make = lambda: StepArrays.alloc(  # noqa: E731
        1, obs_layout, action_layout, mask_size, len(traits.reward_terms)
    )
    for moment in (0, 3):  # right after a reset, and in the middle of an episode
        slot = Slot(lambda: world, 0, obs_layout, action_layout, traits, ())
        stepper = Stepper(slot, make(), seed)
        slot.reset(seed, None, stepper.arrays, 0)
        stepper.reach(moment, steps, time.perf_counter() + seconds / 2)
        episode, expected = slot.record(), stepper.look_ahead()
        again = Slot(factory, 0, obs_layout, action_layout, traits, ())
        other = Stepper(again, make(), seed)
        try:
            same = again.replay(episode, other.arrays, 0) and other.look_ahead() == expected
        finally:
            if again.world is not world:
                again.close()
        if not same:
            yield (
                "warning",
                "an episode cannot be replayed from the state of np_random, so a resumed run "
                "begins new ones or differs: draw all randomness from self.np_random, and let "
                "reset() forget everything of the episode before",
            )
            return


class Stepper:
    """One slot that takes random actions of its own accord."""

    def __init__(self, slot: Slot, arrays: StepArrays, seed: int) -> None:
        """Nothing is stepped yet."""
        self.slot, self.arrays = slot, arrays
        self.rng = np.random.default_rng(seed)

    def reach(self, moment: int, steps: int, until: float) -> None:
        """Step until an unseeded episode has `moment` actions, or steps or time run out."""
        for _ in range(steps):
            episode = self.slot.episode
            if episode.seed is None and len(episode.actions) >= moment:
                return
            if time.perf_counter() > until:
                return
            self.step(self.rng)

    def step(self, rng: np.random.Generator) -> None:
        """Take one random allowed action.

        Raises:
            WorldError: when the world raises.
        """
        arrays, layout = self.arrays, self.slot._action_layout
        mask = arrays.action_mask[0] if arrays.action_mask.shape[1] else None
        values = sample_action(layout, rng, mask)
        for (_, array), value in zip(tree_items(arrays.actions), values, strict=True):
            array[0] = value
        losses = step_slots([self.slot], arrays, 0)
        if losses:
            raise WorldError(f"the world raised {losses[0].reason}")

    def look_ahead(self) -> list[bytes]:
        """The present observation, and what comes of three actions, the same on every call."""
        arrays, rng = self.arrays, np.random.default_rng(0)
        seen = [array.tobytes() for _, array in tree_items(arrays.obs)]
        for _ in range(3):
            self.step(rng)
            parts = (arrays.reward, arrays.terminated, arrays.truncated)
            seen += [part.tobytes() for part in parts]
            if parts[1][0] or parts[2][0]:
                break  # the next episode is another matter
            seen += [array.tobytes() for _, array in tree_items(arrays.obs)]
        return seen


class Walk:
    """A random walk through one world, in its own values."""

    def __init__(self, world: gymnasium.Env, seed: int) -> None:
        """Prepare a row to write observations to."""
        self.world = world
        self.endings, self.largest = 0, 0.0
        self._layout, self._actions = Layout(world.observation_space), Layout(world.action_space)
        self._row = self._layout.alloc(1)
        self._rng = np.random.default_rng(seed)
        self._mask: np.ndarray | None = None

    def reset(self, seed: int | None) -> Any:
        """Reset; gives the observation."""
        obs, info = self.world.reset(seed=seed)
        self._read_mask(info)
        return obs

    def step(self) -> tuple[Any, Any, Any, Any, Any]:
        """Take a random allowed action.

        Raises:
            UserError: when the world does not return five values.
        """
        tree = self._actions.alloc(1)
        values = sample_action(self._actions, self._rng, self._mask)
        for (_, array), value in zip(tree_items(tree), values, strict=True):
            array[0] = value
        result = self.world.step(self._actions.read(tree, 0))
        if not (isinstance(result, tuple) and len(result) == 5):
            raise UserError(
                "step() does not return (obs, reward, terminated, truncated, info): it follows the "
                "old Gym interface; wrap it with shimmy, or return five values"
            )
        self.endings += bool(result[2]) or bool(result[3])
        self._read_mask(result[4])
        return result

    def judge(self, obs: Any) -> Found:
        """Compare an observation with the space that was declared."""
        try:
            self._layout.write(obs, self._row, 0)
        except SpaceError as error:
            yield "error", str(error)
            return
        for (key, array), leaf in zip(tree_items(self._row), self._layout.leaves, strict=True):
            value = array[0]
            name = f"observation {key!r}" if key else "the observation"
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                yield "error", f"{name} is not finite: {_short(value)}; correct the world"
                continue
            native = np.asarray(value, leaf.space.dtype)
            whole = isinstance(leaf.space, gymnasium.spaces.Discrete)
            if not leaf.space.contains(int(native) if whole else native):
                bad = _short(value)
                yield "error", f"{name} = {bad} is outside {leaf.space}: correct the space"
            if leaf.dtype.kind == "f" and value.size:
                self.largest = max(self.largest, float(np.abs(value).max()))

    def flat(self, obs: Any) -> np.ndarray:
        """An observation as one vector."""
        self._layout.write(obs, self._row, 0)
        return np.concatenate([a[0].reshape(-1).astype(float) for _, a in tree_items(self._row)])

    def _read_mask(self, info: dict[str, Any]) -> None:
        own = getattr(self.world.unwrapped, "action_masks", None)
        mask = info.get("action_mask", own() if own else None)
        parts = mask if isinstance(mask, tuple) else (mask,)
        flat = [np.asarray(part, bool).reshape(-1) for part in parts if part is not None]
        self._mask = np.concatenate(flat) if flat else None


def _judge_rest(reward: Any, terminated: Any, truncated: Any, info: Any, step: int) -> Found:
    try:
        number = float(reward)
    except (TypeError, ValueError):
        yield "error", f"the reward of step {step} is {_short(reward)}: return one float"
    else:
        if not math.isfinite(number):
            yield "error", f"the reward of step {step} is {number}: correct the world"
    for name, flag in {"terminated": terminated, "truncated": truncated}.items():
        if not isinstance(flag, (bool, np.bool_)) and flag not in (0, 1):
            yield "error", f"{name} of step {step} is {_short(flag)}: return a bool"
    if not isinstance(info, dict):
        yield "error", f"info of step {step} is {type(info).__name__}: return a dict"


def _told(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return (
        text if isinstance(error, UserError) else f"the world raised {type(error).__name__}: {text}"
    )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 90 else text[:87] + "..."
