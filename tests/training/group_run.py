"""Run as one of several processes: train a little together and say what came of it.

python -m tests.training.group_run RUN_DIR ALGO [--die-at STEPS] [--resume] [--stop-at STEPS]
"""

import argparse
import json
import os
import signal

import numpy as np
import torch

import rlgym
from tests.training.runs import SMALL, digest_of

SAC = {
    **SMALL,
    "algo": {
        **{"name": "sac", "num_steps": 4, "batch_size": 16, "learning_starts": 100},
        **{"updates_per_step": 0.1, "buffer_size": 2000},
    },
}
SAC["network"] = {"hidden": (16, 16), "squash": True, "std": "state"}


class Watch:
    """Dies, or asks for the end, when it is told to; keeps the first observations."""

    def __init__(self, wanted) -> None:
        self.wanted = wanted
        self.first = None
        self.rows = 0

    def on_rollout(self, run, buffer) -> bool:
        if self.first is None:
            self.first = buffer.obs[0].clone()
        self.rows += int(buffer.active.sum())
        follows = run.group.rank == 1
        if self.wanted.die_at and follows and run.state.env_steps >= self.wanted.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return bool(self.wanted.stop_at and follows and run.state.env_steps >= self.wanted.stop_at)

    def on_update(self, run, metrics) -> None:
        assert run.group.leads


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("algo", choices=("ppo", "sac"))
    parser.add_argument("--die-at", type=int, default=0)
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    wanted = parser.parse_args()
    watch = Watch(wanted)
    if wanted.resume:
        run = rlgym.resume(wanted.run_dir, 3600, hooks=watch, console="off")
    else:
        world = "CartPole-v1" if wanted.algo == "ppo" else "Pendulum-v1"
        settings: dict = (SMALL if wanted.algo == "ppo" else SAC) | {"total_steps": 2400}
        settings = settings | {"wrappers": {"normalize_reward": True}}
        settings["network"] = {**settings["network"], "normalize_obs": True}
        run = rlgym.train(
            world, run_dir=wanted.run_dir, preset=None, hooks=watch, console="off", **settings
        )
    moments = run.env.reward_moments
    told = {
        "rank": run.group.rank,
        "digest": digest_of(run.learner.state_dict()),
        "rewards": moments.tolist(),
        "steps": run.state.env_steps,
        "episodes": run.state.episodes,
        "rows": watch.rows,
        "first": np.asarray(watch.first).tolist(),
        "score": run.state.score,
        "stopped": run.stopped,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
