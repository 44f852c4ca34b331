"""The imitation task as one ordinary Gymnasium world.

    import rlgym.envs.imitation
    env = gymnasium.make("rlgym/Imitate-v0", robot="a1", clip="trot", engine="mujoco")

It is the batched task with one slot, so numbers agree with `make_vec` of the same id.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from rlgym.envs.imitation.build import Clips, build_task
from rlgym.envs.imitation.picture import MODES, Picture, check_mode
from rlgym.envs.imitation.random import as_seeds
from rlgym.envs.imitation.reward import TERMS
from rlgym.envs.imitation.spec import Spec
from rlgym.envs.imitation.termination import CAUSES
from rlgym.envs.physics.robots import Robot


class Imitate(gymnasium.Env):
    """A robot that is rewarded for moving as a clip does.

    Args:
        render_mode: "rgb_array" or "human".
        engine, robot, clip, spec, randomize, terrain, push, evaluation, num_workers, changes: see
            `rlgym.envs.imitation.build.build_task`.

    Raises:
        UserError: an unknown name or setting, or what the engine cannot do.
    """

    metadata = {
        "render_modes": list(MODES),
        "render_fps": 30,
        "reward_terms": TERMS,
    }

    def __init__(
        self,
        *,
        engine: str = "mujoco",
        robot: str | Robot = "a1",
        clip: Clips = "trot",
        spec: str | Spec = "modern",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        check_mode(render_mode)
        if engine == "warp":
            engine = "mujoco"  # one world gains nothing on a GPU, and is the same here
        self.render_mode = render_mode
        self.task = build_task(1, engine=engine, robot=robot, clip=clip, spec=spec, **settings)
        self.metadata = {**self.metadata, "render_fps": round(1.0 / self.task.control_dt)}
        self._picture = Picture(self.task)
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: that of `seed`, or one that the world's own generator chooses."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**62))
        self.task.seed(np.ones(1, np.bool_), as_seeds([seed]))
        obs = _one(*self.task.reset())
        self._show()
        return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action, (nv,).

        Returns:
            The last element tells "reward_terms" and, where the episode failed, the "cause".
        """
        result = self.task.step(np.asarray(action, np.float64)[None])
        terminated = bool(result.terminated[0])
        info: dict[str, Any] = {"reward_terms": {k: float(v[0]) for k, v in result.terms.items()}}
        if terminated or result.broken[0]:
            info["cause"] = CAUSES[int(result.cause[0])]
        obs = _one(result.final_obs, result.final_privileged)
        self._show()
        return obs, float(result.reward[0]), terminated, bool(result.truncated[0]), info

    def render(self) -> Any:
        """Frame (H, W, 3) uint8 with the reference as a ghost; None without "rgb_array"."""
        return self._picture.frame(0) if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self.render_mode == "human":
            self._picture.show(0)

    def close(self) -> None:
        """Close the engine and the window."""
        self._picture.close()
        self.task.close()


def _one(policy: np.ndarray, privileged: np.ndarray | None) -> Any:
    """Observation of the only slot."""
    first = policy[0].astype(np.float32)
    if privileged is None:
        return first
    return {"policy": first, "privileged": privileged[0].astype(np.float32)}
