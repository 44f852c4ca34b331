"""A SAC run that is cut and continued ends as one that was not: parameters, buffer, generators."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest

import rlgym
from rlgym.training import checkpoint, replay_store
from tests.training.runs import digest, digest_of

TOY = "rlgym.envs.toy:rlgym/"
SMALL = {
    "num_envs": 2,
    "total_steps": 500,
    "seed": 3,
    "algo": {"name": "sac", "learning_starts": 60, "batch_size": 16, "buffer_size": 300},
    "network": {"hidden": (16, 16)},
    "eval": {"every": 200, "episodes": 1},
    "checkpoint": {"every": 70},
}
"""The ring is full before the end, and segments leave it."""


def train(world, run_dir, hooks=None, **changes):
    settings = dict(SMALL)
    for name, value in changes.items():
        section = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = {**settings[name], **value} if section else value
    return rlgym.train(world, run_dir=run_dir, preset=None, console="off", hooks=hooks, **settings)


def contents(run):
    """Hashes of what the run learned and would draw next, and of all rows that it holds."""
    replay = run.replay
    state = {f"state/{name}": value for name, value in replay.state().items()}
    replay.mark_unsaved()
    return digest(run), digest_of(state | replay.unsaved())


def train_with_cuts(name, folder, count=3, **changes):
    """Stop at random steps, and resume each time."""
    world, more = RUNS[name]
    cuts = sorted(random.Random(name).sample(range(40, 490), count))
    run = train(world, folder, StopAtStep(cuts[0]), **{**more, **changes})
    for steps in [*cuts[1:], 10**9]:
        run = rlgym.resume(folder, hooks=StopAtStep(steps), console="off")
        assert run.health["unreplayed"] == 0
    assert run.state.env_steps >= 500
    return run


class StopAtStep:
    """Hook that ends a run after the iteration in which `steps` were done, logged or not."""

    def __init__(self, steps):
        self.steps = steps

    def on_rollout(self, run, buffer):
        return run.state.env_steps >= self.steps


RUNS = {
    "pendulum": ("Pendulum-v1", {}),
    "demanding": (
        "Pendulum-v1",
        {
            "network": {"normalize_obs": True},
            "wrappers": {"normalize_reward": True},
            "algo": {
                "n_step": 3,
                "prioritized": True,
                "layer_norm": True,
                "num_steps": 4,
                "learning_rate_schedule": "linear",
            },
        },
    ),
    "overlap": ("Pendulum-v1", {"algo": {"overlap": True, "updates_per_step": 0.5}}),
    "discrete": (TOY + "Masked-v0", {}),
    "dict": (TOY + "DictObs-v0", {}),
    "frames": ("Pendulum-v1", {"wrappers": {"frame_stack": 3}}),
}
QUICK = ("pendulum", "demanding", "overlap")


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name not in QUICK)],
)
def test_cut_run_ends_as_the_uncut_one(name, tmp_path, small_segments):
    world, changes = RUNS[name]
    whole = train(world, tmp_path / "whole", backend="sync", **changes)
    cut = train_with_cuts(name, tmp_path / "cut", backend="sync")
    assert contents(cut) == contents(whole)
    saved = checkpoint.newest(tmp_path / "cut", pytest.fail)
    assert sum(name.startswith("replay-0") for name in saved.files) >= 3, "it goes on linking"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pendulum", "overlap", "demanding"])
@pytest.mark.parametrize(("backend", "groups"), [("sync", 1), ("process", 2)])
def test_cut_run_on_worker_processes_ends_as_the_uncut_one(
    name, backend, groups, tmp_path, small_segments
):
    """One on worker processes, or in this process with the same groups: rows of one product."""
    world, changes = RUNS[name]
    whole = train(world, tmp_path / "whole", backend=backend, num_groups=groups, **changes)
    cut = train_with_cuts(name, tmp_path / "cut", backend="process", num_groups=groups)
    assert contents(cut) == contents(whole)


@pytest.fixture
def small_segments(monkeypatch):
    """So that a small run has segments, drops some, and has tails."""
    monkeypatch.setattr(replay_store, "SEGMENT_BYTES", 1500)


# --- a large buffer -------------------------------------------------------------------------------


class Wide(gymnasium.Env):
    """A world whose observations have 100 kB, so that a buffer is large after few steps."""

    observation_space = gymnasium.spaces.Box(0, 1e9, (25_000,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.zeros(25_000, np.float32)
        return self.obs.copy(), {}

    def step(self, action):
        self.obs[:] = self.obs[0] + 1
        return self.obs.copy(), 0.0, False, bool(self.obs[0] == 50), {}


WIDE = {
    "num_envs": 1,
    "algo": {"name": "sac", "learning_starts": 10**9, "buffer_size": 100_000},
    "network": {"hidden": (8,)},
    "eval": {"every": 0, "episodes": 1},
    "backend": "sync",
}
SCRIPT = """
import json, sys, time
import rlgym
from tests.training.test_resume_sac import WIDE, Wide

class Tell:
    def on_rollout(self, run, buffer):
        if run.state.env_steps == request["wait"]:
            print("filled", flush=True)
        if run.state.env_steps >= request["wait"]:
            time.sleep(0.01)

request = json.loads(sys.argv[1])
settings = {**WIDE, "total_steps": 10**7, "checkpoint": {"every": request["every"], "keep": 1}}
settings["algo"]["buffer_size"] = request["rows"]
rlgym.train(Wide, run_dir=sys.argv[2], preset=None, console="off", hooks=Tell(), **settings)
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("steps", "every"), [(500, 170), pytest.param(22_000, 0, marks=pytest.mark.slow)]
)
def test_a_run_with_a_large_buffer_exits_in_time_and_has_saved_all_of_it(tmp_path, steps, every):
    """50 MB, and 2.2 GB saved whenever 128 MB are new."""
    request = json.dumps({"wait": steps, "every": every, "rows": steps * 2})
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, request, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "filled\n"
        before = {file.stat().st_ino for file in tmp_path.rglob("replay-0*")}
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        crowded = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)  # saving takes a processor too
        assert process.wait(timeout=60 if crowded else 10) == 143
        seconds = time.monotonic() - begin
    finally:
        process.kill()
    print(f"{steps * 0.1:.0f} MB: {seconds:.1f} s")
    saved = checkpoint.newest(tmp_path, pytest.fail)
    assert saved.step >= steps
    sizes = {name: size for name, (size, _) in saved.files.items() if name.startswith("replay-")}
    assert 0.99 * steps * 100_000 < sum(sizes.values()) < 1.1 * (saved.step + 10) * 100_000
    linked = [n for n in sizes if (saved.path / n).stat().st_ino in before]
    assert len(linked) >= 2 and len(linked) >= len(before) - 1
    new = sum(size for name, size in sizes.items() if name not in linked)
    assert new < sum(sizes.values()) / 2, "the rest was written before"
    run = rlgym.resume(tmp_path, saved.step + 3, world=Wide, console="off")
    assert run.replay.size == saved.step + 3
    drawn = run.replay.sample(64, run.shuffle)
    whole = drawn.weights > 0
    assert whole.sum() > 50
    assert (drawn.next_obs[whole, 7] == drawn.obs[whole, -1] + 1).all()
