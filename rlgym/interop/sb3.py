"""Stable-Baselines3's vector envs as ours, and ours as theirs.

SB3's `VecEnv` merges `terminated` and `truncated` into `done` and tells the difference in
`info["TimeLimit.truncated"]`; the last observation of an episode is
`info["terminal_observation"]`
(https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from rlgym.errors import ContractError, SpaceError, WorldError
from rlgym.settings import short
from rlgym.spaces import Tree, map_tree, tree_items
from rlgym.vector.contract import VectorEnv
from rlgym.vector.slot import Episode, WorldTraits


def to_sb3(env: VectorEnv) -> VecEnv:
    """Give a vector env of ours to Stable-Baselines3.

    Args:
        env: any vector env, of either output; the adapter closes it.

    Raises:
        SpaceError: for observations that SB3 does not know, such as nested dicts.
    """
    return SB3VecEnv(env)


def from_sb3(vec_env: VecEnv, *, seed: int = 0, **kwargs: Any) -> VectorEnv:
    """Use a vector env of Stable-Baselines3 as one of ours.

    Its worlds cannot be asked how an episode came about, so a resumed run begins new episodes.

    Args:
        vec_env: the env; the adapter closes it.
        seed: seed of the first reset.
        kwargs: num_groups must stay 1; device, output and info_keys as in `rlgym.make_vec`.
    """
    return FromSB3(vec_env, seed=seed, **kwargs)


class SB3VecEnv(VecEnv):
    """A vector env of ours behind SB3's interface; see `to_sb3`."""

    def __init__(self, env: VectorEnv) -> None:
        """Take over spaces; nested observations are refused."""
        if not isinstance(env, VectorEnv):
            raise ContractError(
                f"to_sb3 takes a vector env, not {short(env)}: make one with rlgym.make_vec"
            )
        space = env.single_observation_space
        if isinstance(space, (spaces.Dict, spaces.Tuple)) and any(
            isinstance(part, (spaces.Dict, spaces.Tuple)) for part in _parts(space)
        ):
            fix = "flatten them with gymnasium.wrappers.FlattenObservation"
            raise SpaceError(f"SB3 takes no nested observations: {fix}")
        self.env = env
        self.actions: Any = None
        super().__init__(env.num_envs, space, env.single_action_space)

    def reset(self) -> Any:
        """Reset every slot, with the seeds and options that were set for it."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        options = next((option for option in self._options if option), None)
        obs, info = self.env.reset(seed=seeds, options=options)
        self.reset_infos = self._infos(info)
        self._reset_seeds()
        self._reset_options()
        return self._out(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions of every group."""
        layout = self.env.action_layout
        self.actions = layout.flatten(actions)
        for group in range(self.env.num_groups):
            rows = self.env.group_slice(group)
            part = map_tree(lambda a, rows=rows: np.asarray(a)[rows], self.actions)
            self.env.send(layout.nest(part), group)

    def step_wait(self) -> Any:
        """Receive every group and give SB3's four values."""
        parts = [self.env.recv(group) for group in range(self.env.num_groups)]
        obs = self._joined([self._out(part[0]) for part in parts])
        finals = self._joined([self._out(part[4]["final_obs"]) for part in parts])
        reward, terminated, truncated = (
            np.concatenate([_array(part[i]) for part in parts]) for i in (1, 2, 3)
        )
        infos = [info for part in parts for info in self._infos(part[4], len(part[1]))]
        returns, lengths = (
            np.concatenate([_array(part[4][key]) for part in parts])
            for key in ("episode_return", "episode_length")
        )
        done = terminated | truncated
        for row, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            if done[row]:
                info["terminal_observation"] = _row(finals, row)
                # what SB3's Monitor would write, so that its logger sees episodes
                info["episode"] = {"r": float(returns[row]), "l": int(lengths[row]), "t": 0.0}
        return obs, reward, done, infos

    def close(self) -> None:
        """Close the worlds."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Give an attribute of the vector env, the same for every slot.

        The worlds themselves may live in other processes, so theirs cannot be given.
        """
        if attr_name == "render_mode":
            value = None
        elif hasattr(self.env, attr_name):
            value = getattr(self.env, attr_name)
        else:
            raise AttributeError(f"the vector env has no attribute {attr_name!r}")
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: worlds may live in other processes.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"cannot set {attr_name!r}: pass it to make_vec as env_kwargs")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call what a vector env can answer for a slot: "render" and "action_masks".

        Raises:
            AttributeError: for another method.
        """
        rows = list(self._get_indices(indices))
        if method_name == "render":
            return [self.env.render_slot(row) for row in rows]
        if method_name == "action_masks" and self.env.mask_size:
            return [self.env.unwrapped.arrays.action_mask[row].copy() for row in rows]
        raise AttributeError(f"a vector env cannot call {method_name!r} in its worlds")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None
    ) -> list[bool]:
        """True for SB3's Monitor: the adapter reports episodes as it does."""
        told = wrapper_class.__name__ == "Monitor"
        return [told for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Frames of all worlds."""
        return [self.env.render_slot(row) for row in range(self.num_envs)]

    def _out(self, obs: Any) -> Any:
        tree = self.env.obs_layout.flatten(obs)
        return self.env.obs_layout.nest(map_tree(lambda value: _array(value).copy(), tree))

    @staticmethod
    def _joined(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return np.concatenate(parts)

    def _infos(self, info: dict[str, Any], count: int | None = None) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(count or self.num_envs)]
        columns = {key: _array(info[key]) for key in self.env.info_keys if key in info}
        columns |= {k: _array(v) for k, v in info.get("reward_terms", {}).items()}
        if "action_mask" in info:
            columns["action_mask"] = _array(info["action_mask"])
        for key, column in columns.items():
            for row, own in enumerate(infos):
                if column.dtype == np.bool_ or not np.isnan(column[row]):
                    own[key] = column[row].copy()
        return infos


class FromSB3(VectorEnv):
    """A vector env of SB3 behind our contract; see `from_sb3`."""

    def __init__(self, vec_env: VecEnv, **kwargs: Any) -> None:
        """Read its spaces; actions and observations are copied into our own arrays."""
        if not isinstance(vec_env, VecEnv):
            raise ContractError(
                f"from_sb3 takes a vector env of Stable-Baselines3, not {short(vec_env)}: "
                "any other goes to rlgym.make_vec"
            )
        if kwargs.get("num_groups", 1) != 1:
            raise ContractError("an SB3 VecEnv steps all its worlds at once: use num_groups=1")
        self.vec_env = vec_env
        traits = WorldTraits(
            observation_space=vec_env.observation_space,
            action_space=vec_env.action_space,
            reward_terms=(),
            has_mask=False,
            render_fps=30.0,  # VecEnv does not keep its worlds' metadata
            spec_id=type(vec_env).__name__,
        )
        super().__init__(traits, vec_env.num_envs, **kwargs)

    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        self.vec_env._seeds = list(seeds)  # VecEnv.seed takes one number only
        if options:
            self.vec_env.set_options(options)
        self._write(self.vec_env.reset(), self.arrays.obs)

    def _send(self, group: int) -> None:
        self.vec_env.step_async(self.action_layout.nest(map_tree(np.copy, self.arrays.actions)))

    def _recv(self, group: int) -> None:
        arrays = self.arrays
        obs, reward, done, infos = self.vec_env.step_wait()
        self._write(obs, arrays.obs)
        arrays.reward[:] = reward
        arrays.active[:] = True
        for row, info in enumerate(infos):
            out_of_time = bool(done[row]) and bool(info.get("TimeLimit.truncated", False))
            arrays.truncated[row] = out_of_time
            arrays.terminated[row] = bool(done[row]) and not out_of_time
            for i, key in enumerate(self.info_keys):
                arrays.extras[row, i] = info.get(key, np.nan)
            if done[row]:
                if "terminal_observation" not in info:
                    raise WorldError(
                        f"{self.traits.spec_id} gives no terminal_observation: wrap its worlds "
                        "with stable_baselines3's DummyVecEnv or SubprocVecEnv"
                    )
                self.obs_layout.write(info["terminal_observation"], arrays.final_obs, row)

    def _mark(self) -> None:
        pass  # nothing to remember: these worlds cannot be replayed

    def _records(self, timeout: float | None) -> list[Episode | None]:
        return [None] * self.num_envs

    def _episode(self, slot: int, ended: bool) -> Episode | None:
        return None

    def _replay(self, episodes: list[Episode | None], fresh_seeds: list[int]) -> np.ndarray:
        self._reset_slots(list(fresh_seeds), None)
        return np.zeros(self.num_envs, np.bool_)

    def _restart_slot(self, row: int, seed: int) -> None:
        raise WorldError("SB3 cannot reset one world alone: use rlgym.make_vec for these worlds")

    def render_slot(self, row: int) -> Any:
        """Frame of the world in slot `row`."""
        return self.vec_env.get_images()[row]

    def _close(self) -> None:
        self.vec_env.close()

    def _write(self, obs: Any, target: Tree[np.ndarray]) -> None:
        arrays = dict(tree_items(target))
        for key, value in tree_items(self.obs_layout.flatten(obs)):
            arrays[key][:] = value


def _parts(space: Any) -> list[gymnasium.Space]:
    return list(space.values()) if isinstance(space, spaces.Dict) else list(space)


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy(force=True)


def _row(nested: Any, row: int) -> Any:
    if isinstance(nested, dict):
        return {key: value[row] for key, value in nested.items()}
    return tuple(v[row] for v in nested) if isinstance(nested, tuple) else nested[row]
