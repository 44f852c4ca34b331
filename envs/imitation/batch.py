"""The imitation task on an accelerator: engine, task and observations are tensors of one device.

A step is three launches: what the engine is to do, physics, and all that follows from it. The first
and the last are recorded where the device has graphs; physics is a graph of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlgym.device import GraphedFn, Mode
from rlgym.envs.imitation.arrays import choose_rows, renewed
from rlgym.envs.imitation.deployment import deployment
from rlgym.envs.imitation.reward import TERMS
from rlgym.envs.imitation.task import Asked, ImitationTask
from rlgym.spaces import Tree, map_tree, tree_items
from rlgym.vector.contract import Output
from rlgym.vector.device import DeviceVectorEnv, TensorStep, same_names
from rlgym.vector.slot import WorldTraits

MAX_LINES = 20
"""Lines about worlds that blew up or lost contacts; more of them tell nothing new."""


def device_env(task: ImitationTask, *, seed: int = 0, output: Output = "torch") -> DeviceVectorEnv:
    """Make a vector env of a task whose engine's arrays are tensors.

    health["blow_ups"] counts worlds whose physics broke, health["overflows"] worlds that lost
    contacts for want of room; both are read once a rollout.

    Args:
        task: closed with the env.
        seed: slot i is seeded with `seed + i`.
        output: "torch" or "numpy".
    """
    batch = ImitationBatch(task)
    env = DeviceVectorEnv(batch, seed=seed, output=output)
    env.health |= batch.health
    batch.health = env.health
    return env


class ImitationBatch:
    """An `ImitationTask` on torch as a `rlgym.vector.device.TensorBatch`.

    Args:
        task: its engine steps in the parts `load`, `launch` and `read`.
        mode: of the recorded halves, see `GraphedFn`.
    """

    obstacle = "MuJoCo Warp launches a graph of its own in each step"
    truncation_gap = 1

    def __init__(self, task: ImitationTask, mode: Mode = "auto") -> None:
        """Nothing is launched yet."""
        self.task = task
        self._engine: Any = task.engine
        self.num_envs = task.num_envs
        self.device: torch.device = self._engine.device
        self.traits = WorldTraits(
            observation_space=task.observation_space,
            action_space=task.action_space,
            reward_terms=TERMS,
            has_mask=False,
            render_fps=1.0 / task.control_dt,
            spec_id="rlgym/Imitate-v0",
        )
        self.health = {"blow_ups": 0, "overflows": 0}
        """Counts; lost_slots where the env's own take their place."""
        self._broken = torch.zeros((), dtype=torch.int64, device=self.device)
        self._seen: Any = None
        self._lines = 0
        self._before = GraphedFn(self._ask, self.device, mode, "what the engine is asked for")
        self._after = GraphedFn(self._judge, self.device, mode, "the imitation's rewards")

    # ------------------------------------------------------------------ stepping
    @torch.no_grad()
    def reset(self, seeds: list[int | None]) -> Tree[Tensor]:
        """See `TensorBatch`."""
        given = torch.tensor([seed is not None for seed in seeds])
        numbers = torch.tensor([(seed or 0) % (1 << 62) for seed in seeds])
        self.task.seed(given.to(self.device), numbers.to(self.device))
        self._see(self._tree(*self.task.reset()))
        return self._seen

    def prepare(self, num_steps: int) -> None:
        """Read what went wrong in the steps before."""
        lost = int(self._broken)
        self._broken.zero_()
        if lost:
            self.health["blow_ups"] += lost
            self.health["lost_slots"] = self.health.get("lost_slots", 0) + lost
            self._say(f"the physics of {lost} worlds blew up; their episodes end as truncated")
        crowded = self._engine.overflow()
        if crowded:
            self.health["overflows"] += 1
            self._say(crowded)

    def _say(self, text: str) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES:
            print(f"rlgym: {text}", file=sys.stderr)

    @torch.no_grad()
    def step(self, actions: Any) -> TensorStep:
        """See `TensorBatch`."""
        asked = self._before(actions)
        self._engine.launch()
        return TensorStep(**self._after(*asked))

    def _ask(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Do all that comes before physics."""
        asked = self.task.ask(actions)
        self._engine.load(asked.previous, asked.target, asked.push)
        return asked.actions, asked.offset, asked.previous.clone(), asked.target

    def _judge(
        self, actions: Tensor, offset: Tensor, previous: Tensor, target: Tensor
    ) -> dict[str, Any]:
        """Do all that comes after it; returns the fields of a `TensorStep`."""
        result = self.task.judge(
            Asked(actions, offset, previous, target, None), self._engine.read()
        )
        broken = result.broken
        self._broken += broken.sum()
        final = self._tree(result.final_obs, result.final_privileged)
        # a lost slot's last observation is the one before
        final = map_tree(lambda new, old: choose_rows(broken, old, new), final, self._seen)
        self._see(self._tree(result.obs, result.privileged))
        nothing = torch.full_like(result.reward, torch.nan)
        terms = {name: torch.where(broken, nothing, x) for name, x in result.terms.items()}
        return {
            "obs": self._seen,
            "final_obs": final,
            "reward": result.reward,
            "terminated": result.terminated,
            "truncated": result.truncated,
            "going": ~(result.terminated | result.truncated),
            "active": ~broken,
            "info": {"reward_terms": terms},
        }

    def _tree(self, policy: Tensor, privileged: Tensor | None) -> Tree[Tensor]:
        return policy if privileged is None else {"policy": policy, "privileged": privileged}

    def _see(self, obs: Tree[Tensor]) -> None:
        """Remember an observation, where the last one lies."""
        if self._seen is None:
            self._seen = map_tree(torch.clone, obs)
        else:
            self._seen = map_tree(renewed, self._seen, obs)

    # ------------------------------------------------------------------ saving
    def state(self) -> dict[str, Tensor]:
        """See `TensorBatch`."""
        parts = {"task": self.task.memory(), "engine": self._engine.memory()}
        parts["obs"] = dict(tree_items(self._seen))
        return {f"{part}:{name}": x for part, all_ in parts.items() for name, x in all_.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> Tree[Tensor]:
        """See `TensorBatch`."""
        self.reset([None] * self.num_envs)  # makes what a first episode draws
        same_names(state, self.state())
        parts: dict[str, dict[str, Tensor]] = {"task": {}, "engine": {}, "obs": {}}
        for name, tensor in state.items():
            part, _, own = name.partition(":")
            parts[part][own] = tensor
        self.task.load(parts["task"], self._engine.restore(parts["engine"]))
        for name, tensor in tree_items(self._seen):
            tensor.copy_(parts["obs"][name])
        return self._seen

    def deployment(self) -> dict[str, Any]:
        """What a robot must know of the task; see `rlgym.envs.imitation.deployment`."""
        return deployment(self.task)

    def close(self) -> None:
        """See `TensorBatch`."""
        self.task.close()
