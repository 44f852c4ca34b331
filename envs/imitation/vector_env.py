"""The imitation task behind the contract of vector envs: one batch is one vector env.

env = rlgym.make_vec("rlgym/Imitate-v0", 256, env_kwargs={"robot": "a1", "clip": "trot"})
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlgym.envs.imitation.batch import device_env
from rlgym.envs.imitation.build import Clips, build_task
from rlgym.envs.imitation.deployment import deployment
from rlgym.envs.imitation.picture import Picture, check_mode
from rlgym.envs.imitation.random import as_seeds
from rlgym.envs.imitation.reward import TERMS
from rlgym.envs.imitation.spec import Spec
from rlgym.envs.imitation.task import ImitationTask, StepResult
from rlgym.errors import ConfigError, StateError
from rlgym.spaces import map_tree, tree_items
from rlgym.vector.contract import Output, VectorEnv
from rlgym.vector.crash import default_folder, write_report
from rlgym.vector.slot import WorldTraits
from rlgym.vector.snapshot import UNFIT, require_rows

MAX_REPORTS = 20
"""Reports of worlds that blew up; more of them tell nothing new."""


def make_imitation(
    num_envs: int = 1,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    output: Output = "torch",
    engine: str = "mujoco",
    robot: str = "a1",
    clip: Clips = "trot",
    spec: str | Spec = "modern",
    randomize: Any = None,
    terrain: Any = "flat",
    push: float = 0.0,
    evaluation: bool = False,
    render_mode: str | None = None,
    num_workers: int | None = None,
    timeout: float = 60.0,
    max_restarts: int = 10,
    crash_dir: str | Path | None = None,
    **changes: Any,
) -> VectorEnv:
    """Build `num_envs` worlds in which a robot imitates clips.

    Those of the engine "warp" are a `DeviceVectorEnv` (see `rlgym.envs.imitation.batch`), the
    others an `ImitationVectorEnv`.

    Args:
        num_envs: slots.
        device: of the tensors that are returned, and of the engine "warp".
        seed: slot i is seeded with `seed + i`.
        output: "torch" or "numpy".
        render_mode: "rgb_array" to render slots, "human" to show slot 0 in a window.
        crash_dir: folder for reports of worlds whose physics blew up.
        engine, robot, clip, spec, randomize, terrain, push, evaluation, num_workers, timeout,
            max_restarts, changes: see `rlgym.envs.imitation.build.build_task`.

    Raises:
        UserError: an unknown engine, robot, clip, spec or setting, or what the engine cannot do.
    """
    if engine == "warp" and render_mode is not None and not evaluation:
        raise ConfigError(
            "the engine 'warp' draws no pictures: use the engine 'mujoco' for them, whose worlds "
            "are the same"
        )
    task = build_task(
        num_envs,
        seed=seed,
        engine=engine,
        robot=robot,
        clip=clip,
        spec=spec,
        randomize=randomize,
        terrain=terrain,
        push=push,
        evaluation=evaluation,
        num_workers=num_workers,
        timeout=timeout,
        max_restarts=max_restarts,
        device=device,
        **changes,
    )
    if task.engine.name == "warp":
        return device_env(task, seed=seed, output=output)
    return ImitationVectorEnv(
        task,
        device=device,
        seed=seed,
        output=output,
        render_mode=render_mode,
        crash_dir=crash_dir,
    )


class ImitationVectorEnv(VectorEnv):
    """An `ImitationTask` as a vector env of one group.

    Where the engine can be brought back to a state bit for bit, so can the env (`snapshot`,
    `restore`), and nothing is recorded on the way; else a restored env begins new episodes, which
    health["unreplayed"] counts. health["blow_ups"] counts worlds whose physics broke: such a slot
    is lost for one step, and what it was doing is written down.

    Args:
        task: the batch; closed with the env.
        render_mode: "rgb_array" to render slots, "human" to show slot 0 in a window.
        crash_dir: folder for reports; None: "rlgym-crashes" in the folder for temporary files.
        kwargs: see `VectorEnv`.
    """

    def __init__(
        self,
        task: ImitationTask,
        *,
        render_mode: str | None = None,
        crash_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        check_mode(render_mode)
        traits = WorldTraits(
            observation_space=task.observation_space,
            action_space=task.action_space,
            reward_terms=TERMS,
            has_mask=False,
            render_fps=1.0 / task.control_dt,
            spec_id="rlgym/Imitate-v0",
        )
        super().__init__(traits, task.num_envs, **kwargs)
        self.task = task
        self.render_mode = render_mode
        self.crash_dir = Path(crash_dir) if crash_dir is not None else default_folder()
        self.crash_reports: list[str] = []
        self.health["blow_ups"] = 0
        self._engine_mark: dict[str, np.ndarray] = {}
        self._task_mark: dict[str, np.ndarray] = {}
        self._exact = "snapshot" in task.engine.capabilities
        self._picture = Picture(task)
        self.cause = np.zeros(task.num_envs, np.int8)
        """(num_envs,) index into `termination.CAUSES`; counts where the last step terminated."""

    # ------------------------------------------------------------------ reset and step
    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        given = np.array([seed is not None for seed in seeds])
        self.task.seed(given, as_seeds(seed or 0 for seed in seeds))
        self._write_obs(self.arrays.obs, *self.task.reset())
        self._show()

    def _send(self, group: int) -> None:
        pass  # the actions are in place; the worlds step when they are asked for

    def _recv(self, group: int) -> None:
        arrays, result = self.arrays, self.task.step(np.asarray(self.arrays.actions, np.float64))
        lost = np.flatnonzero(result.broken)
        if lost.size:
            last = map_tree(lambda array: array[lost], arrays.obs)
        self._write_obs(arrays.final_obs, result.final_obs, result.final_privileged)
        self._write_obs(arrays.obs, result.obs, result.privileged)
        arrays.reward[:] = result.reward
        arrays.terminated[:] = result.terminated
        arrays.truncated[:] = result.truncated
        self.cause = result.cause
        arrays.active[:] = True
        for column, values in enumerate(result.terms.values()):
            arrays.extras[:, column] = values
        if lost.size:
            self._lose(lost, last, result)
        self._show()

    def _write_obs(self, target: Any, policy: np.ndarray, privileged: np.ndarray | None) -> None:
        if privileged is None:
            target[:] = policy
        else:
            target["policy"][:] = policy
            target["privileged"][:] = privileged

    def _lose(self, lost: np.ndarray, last: Any, result: StepResult) -> None:
        """Treat worlds that blew up as lost slots: without reward, with their last valid obs."""
        arrays = self.arrays
        for (_, final), (_, values) in zip(
            tree_items(arrays.final_obs), tree_items(last), strict=True
        ):
            final[lost] = values
        arrays.reward[lost] = 0.0
        arrays.active[lost] = False
        arrays.extras[lost] = np.nan
        self.health["lost_slots"] += len(lost)
        losses = list(getattr(self.task.engine, "losses", ()))[self.health["restarts"] :]
        if losses:  # a process took its worlds with it: the physics is not to blame
            self.health["restarts"] += len(losses)
            print(f"rlgym: {'; '.join(losses)}; episodes there end as truncated", file=sys.stderr)
            return
        self.health["blow_ups"] += len(lost)
        for row in lost.tolist():
            if len(self.crash_reports) == MAX_REPORTS:
                return
            what = f"the physics of slot {row} blew up"
            facts = {"world": "rlgym/Imitate-v0", "what": what, "health": self.health}
            report = write_report(self.crash_dir, facts | {"state": result.lost[row]})
            self.crash_reports.append(report)
            print(
                f"rlgym: {what}; its episode ends as truncated; report: {report}", file=sys.stderr
            )

    def deployment(self) -> dict[str, Any]:
        """What a robot must know of the task; see `rlgym.envs.imitation.deployment`."""
        return deployment(self.task)

    def render_slot(self, row: int) -> Any:
        """Frame (H, W, 3) uint8 of a slot, the reference as a ghost; None without "rgb_array"."""
        return self._picture.frame(row) if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self.render_mode == "human":
            self._picture.show(0)

    # ------------------------------------------------------------------ saving
    def _mark(self) -> None:
        if self._exact:
            self._task_mark = self.task.arrays()
            self._engine_mark = self.task.engine.snapshot()

    def snapshot(
        self, *, at_mark: bool = False, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Arrays that bring another env of the same arguments to this moment; see `VectorEnv`."""
        self._require_open()
        if not at_mark:
            self.mark()
        if self._marked is None:
            raise StateError("snapshot before the first reset: call reset() once")
        arrays = {f"obs:{key}": value for key, value in tree_items(self._marked["obs"])}
        arrays |= {name: self._marked[name] for name in ("returns", "lengths")}
        arrays |= {f"task:{name}": value for name, value in self._task_mark.items()}
        return arrays | {f"engine:{name}": value for name, value in self._engine_mark.items()}

    def restore(self, snapshot: dict[str, np.ndarray]) -> Any:
        """Go on from a snapshot, or begin new episodes where the engine cannot; see `VectorEnv`."""
        self._require_open()
        require_rows(snapshot, self.num_envs)
        self._begin()
        exact = self._exact and self._go_on(snapshot)
        if not exact:
            self.task.seed(np.ones(self.num_envs, np.bool_), self._fresh_seeds(snapshot))
            self._write_obs(self.arrays.obs, *self.task.reset())
            self.health["unreplayed"] += self.num_envs
        self._started = True
        self.mark()
        obs, info = self._publish_reset()
        replayed = np.full(self.num_envs, exact)
        info["replayed"] = (
            replayed if self.output == "numpy" else torch.from_numpy(replayed).to(self.device)
        )
        return obs, info

    def _go_on(self, snapshot: dict[str, np.ndarray]) -> bool:
        """Bring everything back; False where the snapshot is of another version or engine."""
        try:
            state = self.task.engine.restore(_part(snapshot, "engine:"))
            self.task.load(_part(snapshot, "task:"), state)
            for key, array in tree_items(self.arrays.obs):
                array[:] = snapshot[f"obs:{key}"]
        except UNFIT:
            return False
        self._returns[:] = snapshot["returns"]
        self._lengths[:] = snapshot["lengths"]
        return True

    def _fresh_seeds(self, snapshot: dict[str, np.ndarray]) -> np.ndarray:
        """Seeds for new episodes that are not those which the first run began with."""
        steps = int(snapshot["lengths"].sum())
        sequence = np.random.SeedSequence([self.seed, self.num_envs, steps])
        return as_seeds(sequence.generate_state(self.num_envs))

    def _close(self) -> None:
        self._picture.close()
        self.task.close()


def _part(snapshot: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, under the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in snapshot.items()
        if name.startswith(prefix)
    }
