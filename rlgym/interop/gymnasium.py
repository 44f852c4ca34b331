"""The ways from rlgym to Gymnasium: our worlds by id, and a slot of any vector env as a world."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np

import rlgym.envs.imitation  # registers its world
import rlgym.envs.toy
from rlgym.errors import ContractError, StateError
from rlgym.registry import VECTOR_ENTRY_POINTS, make_vec
from rlgym.spaces import map_tree
from rlgym.vector.contract import VectorEnv


def register() -> None:
    """Register every rlgym world with Gymnasium; importing this module does it too.

    Worlds that are batches already come as a `SingleEnv` of one slot.
    `gymnasium.make("rlgym.interop.gymnasium:rlgym/Memory-v0")` needs no import at all.
    """
    rlgym.envs.toy.register()
    for world_id in VECTOR_ENTRY_POINTS:
        if world_id not in gymnasium.registry:
            gymnasium.register(world_id, entry_point=partial(_single, world_id))


def _single(world_id: str, **kwargs: Any) -> SingleEnv:
    return SingleEnv(make_vec(world_id, 1, env_kwargs=kwargs))


class SingleEnv(gymnasium.Env):
    """A vector env of one slot as a plain Gymnasium world, for tools that want one.

    A vector env has begun the next episode when it reports an ending; `reset()` without a seed
    hands that episode out, so no step is lost.

    Args:
        env: a vector env with `num_envs=1`, which the world closes.

    Raises:
        ContractError: when it has more slots.
    """

    def __init__(self, env: VectorEnv) -> None:
        """Take over the spaces of one slot."""
        if env.num_envs != 1:
            raise ContractError(f"{env.num_envs} slots are not one world: use num_envs=1")
        self.env = env
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.metadata = {**env.metadata, "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self._state: str = "new"
        self._next: tuple[Any, dict[str, Any]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, or hand out the one that has begun."""
        super().reset(seed=seed)
        if self._next is None or seed is not None or options is not None:
            obs, info = self.env.reset(seed=seed, options=options)
            self._next = self._value(obs), self._scalars(info)
        first, self._next = self._next, None
        self._state = "running"
        return first

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the slot.

        Raises:
            StateError: before reset, and after an episode ended.
        """
        if self._state != "running":
            raise StateError(f"step of a world that is {self._state}: call reset() first")
        layout = self.env.action_layout
        actions = layout.alloc(1)
        layout.write(action, actions, 0)
        if self.env.output == "numpy":
            actions = layout.nest(actions)
        obs, reward, terminated, truncated, info = self.env.step(actions)
        ended = bool(terminated[0]) or bool(truncated[0])
        scalars = self._scalars(info)
        value = self._value(obs)
        if ended:
            mask = {k: scalars.pop(k) for k in ("action_mask",) if k in scalars}
            self._next, self._state = (value, mask), "over"
            value = self._value(info["final_obs"])
        return value, float(reward[0]), bool(terminated[0]), bool(truncated[0]), scalars

    def render(self) -> Any:
        """Frame of the slot's world."""
        return self.env.render_slot(0)

    def close(self) -> None:
        """Close the vector env."""
        self.env.close()

    def _value(self, obs: Any) -> Any:
        tree = map_tree(_array, self.env.obs_layout.flatten(obs))
        return self.env.obs_layout.read(map_tree(np.copy, tree), 0)

    def _scalars(self, info: dict[str, Any]) -> dict[str, Any]:
        """The slot's own entries of a batch's info: its mask, reward terms and declared keys."""
        scalars: dict[str, Any] = {}
        if "action_mask" in info:
            scalars["action_mask"] = _array(info["action_mask"])[0].copy()
        for key in self.env.info_keys:
            if key in info and not np.isnan(_array(info[key])[0]):
                scalars[key] = float(info[key][0])
        if info.get("reward_terms"):
            scalars["reward_terms"] = {k: float(v[0]) for k, v in info["reward_terms"].items()}
        return scalars


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy(force=True)


register()
