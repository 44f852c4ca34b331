"""The rules of how a vector env behaves, each with what it tells when it is broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rlgym.errors import StateError, UserError
from rlgym.spaces import Tree, map_tree, tree_items
from rlgym.vector.check.rules_of_output import (
    STATISTICS,
    rule_attributes,
    rule_groups,
    rule_outputs,
)
from rlgym.vector.check.trial import (
    Found,
    Frame,
    Trial,
    differences,
    outside,
    raises,
    same,
    to_frame,
)
from rlgym.vector.contract import VectorEnv


# ---------------------------------------------------------------------- a fresh env
def rule_before_reset(trial: Trial) -> Found:
    """Stepping what was never reset is refused."""
    env = trial.env
    problem = raises(StateError, lambda: env.send(trial.act(), 0))
    if problem:
        yield "error", f"send before the first reset {problem}: raise StateError"


# ---------------------------------------------------------------------- any env
def rule_long_run(trial: Trial) -> Found:
    """Values stay finite and in their spaces over the long run that other rules look at."""
    env = trial.env
    trial.first_obs = trial.reset(trial.seed)
    trial.actions, trial.frames = [], []
    until = time.perf_counter() + trial.seconds
    while len(trial.frames) < trial.steps and time.perf_counter() < until:
        trial.actions.append(trial.act())
        trial.frames.append(trial.step(trial.actions[-1]))
    lies = [
        (step, row, problem)
        for step, frame in enumerate(trial.frames)
        for row in range(env.num_envs)
        if (problem := outside(env.obs_layout, frame.obs, row))
    ]
    if lies:
        step, row, problem = lies[0]
        yield (
            "error",
            f"observation {problem} (step {step + 1}, slot {row}, {len(lies)} times): correct the "
            "space, the world, or wrap it in NaNGuard",
        )
    if any(not np.isfinite(frame.reward).all() for frame in trial.frames):
        yield "error", "a reward is not finite: correct the world, or wrap it in NaNGuard"
    if not any(frame.done.any() for frame in trial.frames):
        yield (
            "note",
            f"no episode ended in {len(trial.frames)} steps: raise steps to test endings",
        )


def rule_statistics(trial: Trial) -> Found:
    """`episode_return` and `episode_length` are the sums of rewards and active steps."""
    env = trial.env
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    for step, frame in enumerate(trial.frames, start=1):
        returns += frame.reward
        lengths += frame.info["active"]
        for row in np.flatnonzero(frame.done):
            told, length = frame.info["episode_return"][row], frame.info["episode_length"][row]
            where = f"at step {step}, slot {row}"
            wrong = not np.isclose(told, returns[row], rtol=1e-4, atol=1e-3)
            if wrong and not getattr(env, "changes_rewards", False):
                yield (
                    "error",
                    f"episode_return is {told}, the rewards sum to {returns[row]} {where}",
                )
                return
            if length != lengths[row]:
                yield (
                    "error",
                    f"episode_length is {length} after {lengths[row]} active steps {where}",
                )
                return
        returns[frame.done], lengths[frame.done] = 0.0, 0


def rule_final_obs(trial: Trial) -> Found:
    """An ending step shows the old episode in `final_obs` and the new one in `obs`."""
    layout, before = trial.env.obs_layout, trial.first_obs
    equal, endings, still, others = 0, 0, 0, 1
    for frame in trial.frames:
        for row in range(trial.env.num_envs):
            if not frame.done[row]:
                others += 1
                still += same(_row(before, row), _row(frame.obs, row))
                continue
            endings += 1
            equal += same(_row(frame.info["final_obs"], row), _row(frame.obs, row))
            problem = outside(layout, frame.info["final_obs"], row)
            if problem:
                yield "error", f"final_obs {problem}: copy the episode's last observation there"
                return
        before = frame.obs
    chance = (still / others) ** endings  # that a world with few observations looks like this
    if endings and equal == endings and chance < 1e-3:
        yield (
            "error",
            f"final_obs equals obs at all {endings} endings: obs must be the next episode's first "
            "observation, final_obs the last of the old (SAME_STEP)",
        )


def rule_active(trial: Trial) -> Found:
    """A slot that did not act keeps its observation; a lost one is truncated without reward."""
    before = trial.first_obs
    for step, frame in enumerate(trial.frames, start=1):
        waits = "lost" in frame.info  # what came of its last action may be told while a slot waits
        for row in np.flatnonzero(~frame.info["active"]).tolist():
            where = f"inactive slot {row} at step {step}"
            if waits and frame.info["lost"][row] == 0.0:
                continue
            if not frame.done[row]:
                if not same(_row(before, row), _row(frame.obs, row)):
                    yield "error", f"{where} shows a new observation: repeat the previous one"
                continue
            if frame.terminated[row] or not frame.truncated[row]:
                yield "error", f"{where} ended as terminated: a lost slot is truncated"
            if frame.reward[row] != 0.0:
                yield "error", f"{where} was lost with reward {frame.reward[row]}: give 0"
            if not same(_row(before, row), _row(frame.info["final_obs"], row)):
                yield "error", f"{where}: final_obs is not its last valid observation"
        before = frame.obs


def rule_action_mask(trial: Trial) -> Found:
    """Each component of the action has an allowed choice at every step."""
    env = trial.env
    if not env.mask_size:
        return
    counts = [count for leaf in env.action_layout.leaves for count in leaf.num_choices]
    for step, frame in enumerate(trial.frames, start=1):
        parts = np.split(frame.info["action_mask"], np.cumsum(counts)[:-1], axis=1)
        if not all(part.any(axis=1).all() for part in parts):
            yield (
                "error",
                f"the action mask of step {step} forbids every choice: allow at least one",
            )
            return
    if trial.frames and all(not frame.info["action_mask"].any() for frame in trial.frames):
        yield "error", "the action mask is never True: True means allowed"
    if env.health["world_errors"]:
        yield (
            "error",
            f"worlds raised {env.health['world_errors']} times on actions that the mask allows",
        )


def rule_buffers(trial: Trial) -> Found:
    """Torch output is overwritten in place; numpy output is copied.

    Tensor worlds may make new tensors: nothing waits for the host that has to allocate them.
    """
    env = trial.env
    trial.reset(trial.seed)
    first, second = [], []
    for kept in (first, second):
        obs, reward, terminated, truncated, info = env.step(trial.act())
        kept += [a for _, a in tree_items(env.obs_layout.flatten(obs))]
        kept += [reward, terminated, truncated, info["active"], info["episode_return"]]
        trial.mask = to_frame(env, (obs, reward, terminated, truncated, info)).info.get(
            "action_mask"
        )
    for a, b in zip(first, second, strict=True):
        new = isinstance(a, torch.Tensor) and a.data_ptr() != b.data_ptr()
        if new and env.kind == "host":
            yield "error", "step returned a new tensor: write into the same buffers each step"
            return
        if isinstance(a, np.ndarray) and np.shares_memory(a, b):
            yield "error", "numpy output is overwritten by the next step: return copies"
            return


def rule_seeds(trial: Trial) -> Found:
    """Slot i is seeded with seed + i, or the i-th of a list; the same seed gives the same run."""
    env, seed = trial.env, trial.seed
    count = env.num_envs
    actions, frames = trial.run(trial.short, seed)
    trial.reset(seed)
    again = trial.again(actions)
    worst = trial.compare(frames, again)
    if worst:
        trial.reproducible = False  # nothing can be compared with a second run
        yield (
            "warning",
            f"the same seed and actions give another {worst}: seed all randomness in "
            "reset(seed=...), or results cannot be reproduced",
        )
        return
    one = trial.reset(seed + 1)
    base = trial.reset(seed)
    if count > 1 and not same(_row(one, 0), _row(base, 1)):
        yield "error", f"slot 1 of reset(seed={seed}) is not slot 0 of reset(seed={seed + 1})"
    listed = trial.reset([seed + row for row in range(count)])
    if not same(listed, base):
        yield "error", "reset with a list of seeds differs from the same seeds counted up"
    problem = raises(UserError, lambda: env.reset(seed=[seed] * (count + 1)))
    if problem:
        yield "error", f"reset with {count + 1} seeds for {count} slots {problem}: raise UserError"


def rule_reset_without_seed(trial: Trial) -> Found:
    """A reset without seed goes on: it does not begin the same episode again."""
    start = trial.reset(trial.seed)
    if any(not same(start, trial.reset(None)) for _ in range(10)):
        return
    if not same(start, trial.reset(trial.seed + 1234)):
        yield "error", "reset() without seed repeats the seeded episode: let the generators go on"


def rule_send_recv(trial: Trial) -> Found:
    """`send` and `recv` group by group give what `step` gives."""
    env = trial.env
    if not trial.reproducible:
        return
    actions, frames = trial.run(trial.short, trial.seed)
    trial.reset(trial.seed)
    for step, (action, frame) in enumerate(zip(actions, frames, strict=True), start=1):
        flat = env.action_layout.flatten(action)
        for group in range(env.num_groups):
            rows = env.group_slice(group)
            env.send(env.action_layout.nest(map_tree(lambda a, rows=rows: a[rows], flat)), group)
        for group in reversed(range(env.num_groups)):
            rows = env.group_slice(group)
            part = to_frame(env, env.recv(group))
            other = trial.compare([part], [_rows(frame, rows)])
            if other:
                yield (
                    "error",
                    f"recv({group}) gives another {other} than step in rows {rows.start} to "
                    f"{rows.stop - 1} (step {step})",
                )
                return


def rule_order(trial: Trial) -> Found:
    """Calls out of order are refused and leave the env as it was."""
    env = trial.env
    trial.reset(trial.seed)
    flat = env.action_layout.flatten(trial.act())
    rows = env.group_slice(0)
    actions = env.action_layout.nest(map_tree(lambda a: a[rows], flat))
    calls: dict[str, Callable[[], Any]] = {
        "send twice": lambda: env.send(actions, 0),
        "reset while a step is pending": lambda: env.reset(seed=trial.seed),
        "mark while a step is pending": env.mark,
    }
    problem = raises(StateError, lambda: env.recv(0))
    if problem:
        yield "error", f"recv before send {problem}: raise StateError"
        return
    env.send(actions, 0)
    for name, call in calls.items():
        problem = raises(StateError, call)
        if problem:
            yield "error", f"{name} {problem}: raise StateError"
            return
    env.recv(0)


def rule_wrong_actions(trial: Trial) -> Found:
    """Actions of the wrong shape are refused before any world sees them."""
    env = trial.env
    trial.reset(trial.seed)
    flat = env.action_layout.flatten(trial.act())
    short = env.action_layout.nest(map_tree(lambda a: a[:-1], flat))
    problem = raises(UserError, lambda: env.step(short))
    if problem:
        yield (
            "error",
            f"{env.num_envs - 1} actions for {env.num_envs} slots {problem}: raise SpaceError",
        )
    trial.reset(trial.seed)


def rule_snapshot(trial: Trial) -> Found:
    """A snapshot changes nothing, and the run goes on from it identically."""
    env, half = trial.env, max(trial.short // 2, 1)
    actions, frames = trial.run(trial.short, trial.seed)
    trial.reset(trial.seed)
    trial.again(actions[:half])
    snapshot = env.snapshot()
    rest = trial.again(actions[half:])
    worst = trial.compare(frames[half:], rest)
    if worst and trial.reproducible:
        yield "error", f"after snapshot() the run has another {worst}: it must change nothing"
    kinds = {type(value).__name__ for value in snapshot.values()}
    if kinds != {"ndarray"} or any(value.dtype == object for value in snapshot.values()):
        yield "error", f"snapshot holds {sorted(kinds)}: numpy arrays only, so that it can be saved"
        return
    other = trial.fresh() if trial.fresh else env
    try:
        yield from _restored(trial, other, snapshot, actions[half:], rest)
    finally:
        if other is not env:
            other.close()


def _restored(
    trial: Trial, env: VectorEnv, snapshot: Any, actions: list[Any], expected: list[Frame]
) -> Found:
    _, info = env.restore(snapshot)
    replayed = np.asarray(torch.as_tensor(info["replayed"]).cpu())
    if replayed.shape != (env.num_envs,):
        yield "error", "restore's info['replayed'] is not one flag per slot"
        return
    if not replayed.all():
        yield (
            "warning",
            f"{int((~replayed).sum())} of {env.num_envs} slots cannot be replayed: a resumed run "
            "begins new episodes there (draw all randomness from self.np_random)",
        )
        if env.health["unreplayed"] < int((~replayed).sum()):
            yield "error", "health['unreplayed'] does not count the slots that were not replayed"
        return
    for step, (frame, action) in enumerate(zip(expected, actions, strict=True), start=1):
        worst = differences(frame, trial.step(action, env))
        if worst:
            yield (
                "error",
                f"{step} steps after restore the run has another {worst[0]}, although every slot "
                "was said to be replayed",
            )
            return


def rule_mark(trial: Trial) -> Found:
    """`snapshot(at_mark=True)` describes the last mark, not the present."""
    env = trial.env
    actions, _ = trial.run(4, trial.seed)
    trial.reset(trial.seed)
    trial.again(actions[:2])
    env.mark()
    now = env.snapshot()
    env.mark()
    trial.again(actions[2:])
    then = env.snapshot(at_mark=True)
    if now.keys() != then.keys() or any(not np.array_equal(now[key], then[key]) for key in now):
        yield "error", "snapshot(at_mark=True) is not what snapshot() was at the mark"


def rule_numpy_output(trial: Trial) -> Found:
    """Numpy output is what Gymnasium's own vector tools expect."""
    env = trial.env
    if env.output != "numpy":
        return
    obs, _ = env.reset(seed=trial.seed)
    trial.reset(trial.seed)
    for _ in range(trial.short):
        if not env.observation_space.contains(obs):
            yield "error", "obs is not in observation_space: nest it as batch_space does"
            return
        obs, _, terminated, truncated, info = env.step(trial.act())
        trial.mask = info.get("action_mask")
        for key in ("_final_obs", *(f"_{name}" for name in STATISTICS)):
            if key not in info or not np.array_equal(info[key], terminated | truncated):
                yield "error", f"info[{key!r}] is not terminated | truncated"
                return


# ---------------------------------------------------------------------- rules that close the env
def rule_close(trial: Trial) -> Found:
    """Closing twice is harmless; a closed env refuses to go on."""
    env = trial.env
    trial.reset(trial.seed)
    actions = trial.act()
    env.close()
    env.close()
    for name, call in {"step": lambda: env.step(actions), "reset": env.reset}.items():
        problem = raises(StateError, call)
        if problem:
            yield "error", f"{name} after close {problem}: raise StateError"


def rule_close_while_pending(trial: Trial) -> Found:
    """An env can be closed while a step is under way."""
    if trial.fresh is None:
        return
    other = trial.fresh()
    trial.env = other
    trial.reset(trial.seed)
    flat = other.action_layout.flatten(trial.act())
    rows = other.group_slice(0)
    other.send(other.action_layout.nest(map_tree(lambda a: a[rows], flat)), 0)
    other.close()
    if not other.closed:
        yield "error", "close while a step is pending leaves the env open"


RULES_OF_A_FRESH_ENV = [rule_before_reset]
RULES = [
    rule_attributes,
    rule_groups,
    rule_outputs,
    rule_long_run,
    rule_statistics,
    rule_final_obs,
    rule_active,
    rule_action_mask,
    rule_buffers,
    rule_seeds,
    rule_reset_without_seed,
    rule_send_recv,
    rule_order,
    rule_wrong_actions,
    rule_snapshot,
    rule_mark,
    rule_numpy_output,
]
RULES_THAT_CLOSE = [rule_close, rule_close_while_pending]


def _row(tree: Tree[np.ndarray], row: int) -> Tree[np.ndarray]:
    return map_tree(lambda a: a[row], tree)


def _rows(frame: Frame, rows: slice) -> Frame:
    final = map_tree(lambda a: a[rows], frame.info["final_obs"])
    return Frame(
        map_tree(lambda a: a[rows], frame.obs),
        frame.reward[rows],
        frame.terminated[rows],
        frame.truncated[rows],
        {"final_obs": final},
    )
