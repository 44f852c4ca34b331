"""Changes to the batch between the worlds and the learner, each a vector env over a vector env.

A wrapper sees each part of a step once, as tensors, whichever of `step`, `recv` or numpy output the
user chose. What it remembers stands in `self.state`, which `mark`, `snapshot` and `restore` carry
along. Episode returns in `info` always stay those of the worlds. Statistics of episodes need no
wrapper: every vector env reports `episode_return` and `episode_length`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from rlgym.errors import ContractError
from rlgym.spaces import Layout, Leaf, Tree, map_tree, tree_items
from rlgym.vector.contract import VectorEnv

if TYPE_CHECKING:
    from rlgym.config import WrapperConfig

_SHARED = (
    "kind",
    "traits",
    "num_envs",
    "num_groups",
    "device",
    "output",
    "seed",
    "info_keys",
    "reward_term_names",
    "mask_size",
    "single_observation_space",
    "single_action_space",
    "observation_space",
    "action_space",
    "obs_layout",
    "action_layout",
    "metadata",
    "spec",
    "health",
)


@dataclasses.dataclass(slots=True)
class Batch:
    """The rows of one step on their way through a wrapper, which changes or replaces the parts."""

    obs: Tree[torch.Tensor]
    reward: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    info: dict[str, Any]
    """Tensors, `final_obs` a tree like `obs`."""

    @property
    def done(self) -> torch.Tensor:
        """(n,) bool: rows whose episode ended."""
        return self.terminated | self.truncated


class VectorWrapper(VectorEnv):
    """A vector env over a vector env that changes nothing; subclasses override `_on_*`.

    Attributes:
        env: the wrapped vector env.
        state: tensors that are part of a snapshot, changed in place only.
        changes_rewards: True when rewards are no longer the worlds', here or below.
    """

    changes_rewards = False

    def __init__(self, env: VectorEnv) -> None:
        """Take over what the wrapped env declares; worlds and buffers stay its own."""
        self.env = env
        for name in _SHARED:
            setattr(self, name, getattr(env, name))
        self.changes_rewards = self.changes_rewards or getattr(env, "changes_rewards", False)
        self.state: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}
        depth = 0
        while isinstance(env, VectorWrapper):
            env, depth = env.env, depth + 1
        self._prefix = f"{depth}-{type(self).__name__}:"

    # ------------------------------------------------------------------ what a subclass overrides
    def _on_reset(self, obs: Tree[torch.Tensor], fresh: torch.Tensor) -> Tree[torch.Tensor]:
        """Change the observations of a reset; `fresh` (num_envs,) bool: rows that began anew."""
        return obs

    def _on_step(self, batch: Batch, rows: slice) -> None:
        """Change the rows `rows` of a step."""

    # ------------------------------------------------------------------ the contract
    def group_slice(self, group: int) -> slice:
        return self.env.group_slice(group)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._begin_all(obs, info, torch.ones(self.num_envs, dtype=torch.bool))

    def step(self, actions: Any) -> Any:
        return self._pass(self.env.step(actions), slice(0, self.num_envs))

    def send(self, actions: Any, group: int = 0) -> None:
        self.env.send(actions, group)

    def recv(self, group: int = 0) -> Any:
        return self._pass(self.env.recv(group), self.group_slice(group))

    def mark(self) -> None:
        self.env.mark()
        self._keep()

    def snapshot(
        self, *, at_mark: bool = False, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        snapshot = self.env.snapshot(at_mark=at_mark, timeout=timeout)
        if not at_mark:
            self._keep()
        own = {self._prefix + key: value.cpu().numpy() for key, value in self._kept.items()}
        return snapshot | own

    def restore(self, snapshot: dict[str, np.ndarray]) -> Any:
        for key, value in self.state.items():
            saved = snapshot.get(self._prefix + key)
            if saved is None or saved.shape != tuple(value.shape):
                raise ContractError(
                    f"the snapshot has no {key} of {type(self).__name__}: use the wrappers that "
                    "the run was started with"
                )
        obs, info = self.env.restore(snapshot)
        for key, value in self.state.items():
            value.copy_(torch.from_numpy(np.array(snapshot[self._prefix + key])))
        return self._begin_all(obs, info, ~torch.as_tensor(info["replayed"]).cpu())

    def render_slot(self, row: int) -> Any:
        """Frame of the world in slot `row`."""
        return self.env.render_slot(row)

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()

    @property
    def unwrapped(self) -> VectorEnv:
        """The innermost vector env."""
        return self.env.unwrapped

    # ------------------------------------------------------------------ how a batch passes through
    def _begin_all(self, obs: Any, info: dict[str, Any], fresh: torch.Tensor) -> Any:
        obs = self._on_reset(self._opened(obs), fresh.to(self.device))
        self._keep()
        return self._closed_up(obs), info

    def _pass(self, result: Any, rows: slice) -> Any:
        if self.output == "torch":
            batch = Batch(*result)
            self._on_step(batch, rows)
            return batch.obs, batch.reward, batch.terminated, batch.truncated, batch.info
        obs, *rest, info = result
        # the tensors share the arrays' memory: what is changed in place is changed in both
        tensors = _tensors({key: value for key, value in info.items() if key != "final_obs"})
        tensors["final_obs"] = self._opened(info["final_obs"])
        reward, terminated, truncated = _tensors(tuple(rest))
        batch = Batch(self._opened(obs), reward, terminated, truncated, tensors)
        self._on_step(batch, rows)
        info["final_obs"] = self._closed_up(batch.info["final_obs"])
        rest[0] = batch.reward.numpy().copy()
        return self._closed_up(batch.obs), *rest, info

    def _opened(self, obs: Any) -> Tree[torch.Tensor]:
        if self.output == "torch":
            return obs
        return map_tree(torch.from_numpy, self.env.obs_layout.flatten(obs))

    def _closed_up(self, obs: Tree[torch.Tensor]) -> Any:
        if self.output == "torch":
            return obs
        return self.obs_layout.nest(map_tree(lambda tensor: tensor.numpy().copy(), obs))

    def _keep(self) -> None:
        self._kept = {key: value.clone() for key, value in self.state.items()}


class RewardScale(VectorWrapper):
    """Multiply rewards by a fixed factor.

    Args:
        env: the vector env to wrap.
        factor: the factor.
    """

    changes_rewards = True

    def __init__(self, env: VectorEnv, factor: float) -> None:
        """Allocate the scaled rewards."""
        super().__init__(env)
        self.factor = factor
        # a factor that is a tensor, and views that are made once, cost a third per step
        self._factor = torch.tensor(factor, dtype=torch.float32)
        reward = torch.zeros(self.num_envs, device=self.device)
        slices = [env.group_slice(group) for group in range(env.num_groups)]
        self._out = {rows.start: reward[rows] for rows in slices}
        self._whole = reward

    def _on_step(self, batch: Batch, rows: slice) -> None:
        whole = rows.stop - rows.start == self.num_envs
        out = self._whole if whole else self._out[rows.start]
        batch.reward = torch.mul(batch.reward, self._factor, out=out)


class ClipReward(VectorWrapper):
    """Bound the magnitude of rewards.

    Args:
        env: the vector env to wrap.
        bound: largest magnitude, above 0.
    """

    changes_rewards = True

    def __init__(self, env: VectorEnv, bound: float) -> None:
        """Allocate the clipped rewards."""
        super().__init__(env)
        if not bound > 0:
            raise ContractError(f"clip_reward is {bound}: give a bound above 0")
        self.bound = bound
        self._reward = torch.zeros(self.num_envs, device=self.device)

    def _on_step(self, batch: Batch, rows: slice) -> None:
        out = self._reward[rows]
        batch.reward = torch.clamp(batch.reward, -self.bound, self.bound, out=out)


class RewardNormalize(VectorWrapper):
    """Divide rewards by the running standard deviation of the discounted return.

    The deviation is that of all steps before the present one, the same for all groups of a step. It
    is merged batch by batch (Chan, Golub, LeVeque 1979), of active slots only.

    All of it is done by numpy on the host, in memory that `state` shares: for a row of slots a
    tensor's operation costs several times its arithmetic. Mean, variance and count are float64,
    since a float32 count swallows steps from 2^24 on. On an accelerator each step waits for its
    rewards to come to the host.

    Args:
        env: the vector env to wrap.
        gamma: discount of the return.
        epsilon: added to the variance.
    """

    changes_rewards = True

    def __init__(self, env: VectorEnv, gamma: float = 0.99, epsilon: float = 1e-8) -> None:
        """Begin with a deviation of 1 that weighs next to nothing."""
        super().__init__(env)
        self.gamma, self.epsilon = gamma, epsilon
        # a slot that did not act adds to the reward of its pending transition, undiscounted
        self._decay = np.array([1.0, gamma], np.float32)
        self._returns = np.zeros(self.num_envs, np.float32)
        self._continues = np.zeros(self.num_envs, np.float32)
        self._active = np.zeros(self.num_envs)
        self._moments = np.array([0.0, 1.0, 1e-4])
        reward = torch.zeros(self.num_envs)
        slices = [slice(0, self.num_envs), *map(env.group_slice, range(env.num_groups))]
        self._scaled = {(s.start, s.stop): (reward[s].numpy(), reward[s]) for s in slices}
        self.reward_moments = moments = torch.from_numpy(self._moments)
        self.state = {
            "returns": torch.from_numpy(self._returns),
            "continues": torch.from_numpy(self._continues),
            "active": torch.from_numpy(self._active),
            "mean": moments[0],
            "var": moments[1],
            "count": moments[2],
        }

    def _on_reset(self, obs: Any, fresh: torch.Tensor) -> Any:
        self._continues[fresh.cpu().numpy()] = 0.0
        return obs

    def _on_step(self, batch: Batch, rows: slice) -> None:
        reward = batch.reward.cpu().numpy()
        active = batch.info["active"].cpu().numpy()
        returns, continues = self._returns[rows], self._continues[rows]
        continues *= self._decay.take(active.view(np.int8))
        returns *= continues
        returns += reward
        ended = batch.terminated.cpu().numpy() | batch.truncated.cpu().numpy()
        np.logical_not(ended, continues)
        self._active[rows] = active
        scaled, out = self._scaled[rows.start, rows.stop]
        np.divide(reward, math.sqrt(self._moments.item(1) + self.epsilon), scaled)
        batch.reward = out.to(self.device)
        if rows.stop == self.num_envs:
            self._update()

    def _update(self) -> None:
        """Merge the discounted returns of the slots that acted in this step."""
        weights = self._active
        batch_count = float(weights.dot(weights))  # each is 0 or 1
        if not batch_count:
            return
        mean, var, count = self._moments.tolist()
        spread = self._returns.astype(np.float64)
        spread -= mean
        delta = float(spread.dot(weights)) / batch_count
        spread -= delta
        spread *= spread
        total = count + batch_count
        squares = var * count + float(spread.dot(weights))
        squares += delta * delta * count * batch_count / total
        self._moments[:] = mean + delta * batch_count / total, squares / total, total


class FrameStack(VectorWrapper):
    """Join the latest observations, the newest last.

    Images (uint8, rank 3) are joined along their channel axis, other arrays along the last axis; a
    single number becomes a vector. The first observation of an episode fills the stack.
    `final_obs` is stacked with the episode that it ends. A slot that did not act keeps its stack.

    Args:
        env: the vector env to wrap.
        num_frames: observations in a stack, at least 1.
    """

    def __init__(self, env: VectorEnv, num_frames: int) -> None:
        """Widen the observation space and allocate the stacks."""
        super().__init__(env)
        if num_frames < 1:
            raise ContractError(f"frame_stack is {num_frames}: stack at least 1 observation")
        self.num_frames = num_frames
        leaves = env.obs_layout.leaves
        self._axes = {leaf.key: 1 + _stack_axis(leaf) for leaf in leaves}
        self._widths = {
            leaf.key: leaf.shape[_stack_axis(leaf)] if leaf.shape else 1 for leaf in leaves
        }
        self.single_observation_space = _stacked(env.single_observation_space, num_frames)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.obs_layout = Layout(self.single_observation_space)
        self.traits = dataclasses.replace(
            env.traits, observation_space=self.single_observation_space
        )
        self._obs = self._alloc()
        self._final = self._alloc()
        self.state = {f"stack {key}": stack for key, stack in tree_items(self._obs)}

    def _alloc(self) -> Tree[torch.Tensor]:
        arrays = self.obs_layout.alloc(self.num_envs)
        return map_tree(lambda array: torch.from_numpy(array).to(self.device), arrays)

    def _on_reset(self, obs: Any, fresh: torch.Tensor) -> Any:
        stacks = dict(tree_items(self._obs))
        for key, new in tree_items(obs):
            stack = stacks[key]
            filled = torch.cat([self._frame(new)] * self.num_frames, self._axes[key])
            stack.copy_(torch.where(_like(fresh, stack), filled, stack))
        return self._obs

    def _on_step(self, batch: Batch, rows: slice) -> None:
        done, active = batch.done, batch.info["active"]
        # an agent that waits may end with an observation of its own; a lost one leaves none
        seen = active | (batch.info["lost"] == 0) if "lost" in batch.info else active
        last_frames = dict(tree_items(batch.info["final_obs"]))
        finals = {key: final[rows] for key, final in tree_items(self._final)}
        stacks = {key: stack[rows] for key, stack in tree_items(self._obs)}
        for key, value in tree_items(batch.obs):
            axis, width, stack = self._axes[key], self._widths[key], stacks[key]
            new = self._frame(value)
            old = stack.narrow(axis, width, stack.shape[axis] - width)
            last = torch.cat([old, self._frame(last_frames[key])], axis)
            finals[key].copy_(torch.where(_like(seen, stack), last, stack))
            pushed = torch.where(_like(active, stack), torch.cat([old, new], axis), stack)
            filled = torch.cat([new] * self.num_frames, axis)
            stack.copy_(torch.where(_like(done, stack), filled, pushed))
        batch.info["final_obs"] = finals[""] if self.obs_layout.single else finals
        batch.obs = stacks[""] if self.obs_layout.single else stacks

    @staticmethod
    def _frame(value: torch.Tensor) -> torch.Tensor:
        return value.unsqueeze(1) if value.ndim == 1 else value


def wrap(
    env: VectorEnv, config: WrapperConfig, gamma: float, dump_dir: str | Path = "."
) -> VectorEnv:
    """Put the wrappers that a config asks for around `env`, in the one order that makes sense.

    Args:
        env: the vector env of the worlds.
        config: which wrappers.
        gamma: discount that `normalize_reward` uses.
        dump_dir: folder for the NaN guard's dumps.
    """
    from rlgym.vector.device_wrappers import DeviceRewardNormalize
    from rlgym.vector.guard import NaNGuard

    if env.kind == "device":
        if config.nan_guard == "skip":
            raise ContractError(
                "nan_guard skip drops single episodes of host worlds: tensor worlds take halt "
                "(looked at once per rollout) or off"
            )
    elif config.nan_guard != "off":
        env = NaNGuard(env, config.nan_guard, dump_dir)
    if config.frame_stack != 1:
        env = FrameStack(env, config.frame_stack)
    if config.reward_scale != 1.0:
        env = RewardScale(env, config.reward_scale)
    if config.normalize_reward:
        on_device = env.kind == "device"
        env = DeviceRewardNormalize(env, gamma) if on_device else RewardNormalize(env, gamma)
    if config.clip_reward is not None:
        env = ClipReward(env, config.clip_reward)
    return env


def _stack_axis(leaf: Leaf) -> int:
    """Axis of one value along which frames are joined."""
    if not leaf.is_image:
        return max(len(leaf.shape) - 1, 0)
    return 0 if leaf.shape[0] < leaf.shape[2] else 2  # channels are fewer than pixels


def _stacked(space: Any, num_frames: int) -> Any:
    """The space of `num_frames` joined values."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(k, _stacked(s, num_frames)) for k, s in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_stacked(s, num_frames) for s in space.spaces])
    leaf = Layout(space).leaves[0]
    axis = _stack_axis(leaf)

    def joined(bound: Any) -> np.ndarray:
        return np.concatenate([np.atleast_1d(bound)] * num_frames, axis)

    if isinstance(space, spaces.Box):
        return spaces.Box(joined(space.low), joined(space.high), dtype=space.dtype.type)
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete(
            joined(space.n), dtype=space.dtype.type, start=joined(space.start)
        )
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(
            joined(space.nvec), dtype=space.dtype.type, start=joined(space.start)
        )
    return spaces.MultiBinary(joined(np.zeros(space.shape)).shape)


def _like(flags: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(n,) flags, shaped so that they broadcast over `target` (n, ...)."""
    return flags.reshape(-1, *([1] * (target.ndim - 1)))


def _tensors(nested: Any) -> Any:
    """Tensors that share the memory of numpy arrays, in the same dicts and tuples."""
    if isinstance(nested, dict):
        return {key: _tensors(value) for key, value in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_tensors(value) for value in nested)
    return torch.from_numpy(nested)
