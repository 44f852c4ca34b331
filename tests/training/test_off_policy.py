"""SAC runs from start to end: the schedule of gradient steps, both modes, resume, signals.

`test_resume_sac.py` tries resuming on more worlds, in processes, and with large buffers.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.config import load_config
from rlgym.errors import CheckpointError, ConfigError, UserError
from rlgym.training import checkpoint, off_policy, on_policy
from tests.training.runs import digest, evaluations, scalars

TOY = "rlgym.envs.toy:rlgym/"
WALK = TOY + "RewardTerms-v0"  # one action in [-1, 1], episodes of 20 steps
SMALL = {
    "num_envs": 2,
    "total_steps": 300,
    "seed": 3,
    "backend": "sync",
    "num_groups": 2,
    "network": {"hidden": (16, 16)},
    "algo": {"name": "sac", "learning_starts": 60, "batch_size": 16, "buffer_size": 120},
    "eval": {"every": 150, "episodes": 2},
    "checkpoint": {"every": 100},
}
"""150 iterations of 2 steps; the ring of some 60 rows per slot goes round more than twice."""


class StopAt:
    """Hook that ends a run at the first boundary at or after `steps`."""

    def __init__(self, steps):
        self.steps = steps

    def on_rollout(self, run, buffer):
        return run.state.env_steps >= self.steps


class Updates:
    """Hook that notes (env steps, transitions held, gradient steps, progress) of each update."""

    def __init__(self):
        self.seen = []

    def on_start(self, run):
        update = run.learner.update

        def noted(replay, count, progress, generator):
            self.seen.append((run.state.env_steps, replay.size, count, round(progress, 6)))
            return update(replay, count, progress, generator)

        run.learner.update = noted


def settings(changes):
    sections = ("algo", "network", "eval", "checkpoint")
    merged = {name: {**SMALL[name], **changes.get(name, {})} for name in sections}
    return {**SMALL, **changes, **merged}


def train(world, run_dir, hooks=None, **changes):
    """Train SAC quietly from plain defaults and SMALL."""
    changes = settings(changes)
    return rlgym.train(world, run_dir=run_dir, preset=None, console="off", hooks=hooks, **changes)


def whole_digest(run):
    """Hash of learner and generators, and all that the replay buffer can still give."""
    generator = torch.Generator().manual_seed(0)
    batch = run.replay.sample(500, generator)
    rows = [batch.rewards, batch.discounts, batch.weights, batch.index]
    return digest(run), run.replay.size, [row.tolist() for row in rows]


# ----- The schedule ------------------------------------------------------------------------------


def test_gradient_steps_follow_environment_steps(tmp_path):
    noted = Updates()
    run = train(WALK, tmp_path, noted, total_steps=100, algo={"updates_per_step": 0.75})
    # an iteration's 2 steps make 1.5 gradient steps due: 1 and 2 in turn, after 60 random steps
    expected = [(60 + 2 * i, 60 + 2 * i, 1 + (i + 1) % 2, (60 + 2 * i) / 100) for i in range(1, 21)]
    assert noted.seen == expected
    assert (run.state.owed, run.state.updates, int(run.learner.updates)) == (0, 50, 30)


def test_many_due_steps_are_taken_in_turns(tmp_path):
    noted = Updates()
    train(WALK, tmp_path, noted, total_steps=62, algo={"updates_per_step": 20})
    turn = off_policy.TURN
    assert [count for _, _, count, _ in noted.seen] == [turn, turn, 40 - 2 * turn]


def test_with_overlap_the_learner_updates_while_worlds_step(tmp_path):
    noted = Updates()
    events = []

    class Order:
        def on_start(self, run):
            for part, name in ((run.env, "send"), (run.env, "recv"), (run.learner, "update")):
                self.note(part, name)

        def note(self, part, name):
            method = getattr(part, name)

            def called(*args):
                events.append(name)
                return method(*args)

            setattr(part, name, called)

    run = train(WALK, tmp_path, [noted, Order()], total_steps=66, algo={"overlap": True})
    # the steps to 62 make the first two gradient steps due, taken while the next step is under way
    assert noted.seen == [(62, 62, 2, round(62 / 66, 6)), (64, 64, 2, round(64 / 66, 6))]
    assert events[-10:] == ["send", "send", "update", "recv", "recv"] * 2, "two groups of worlds"
    assert run.state.owed == 2, "the last ones would be taken during the step that is not made"


def test_actions_are_uniformly_random_until_learning_starts(tmp_path):
    actions = []

    class Actions:
        def on_rollout(self, run, buffer):
            actions.append(buffer.actions[:, :, 0].flatten().clone())

    train(
        WALK,
        tmp_path,
        Actions(),
        total_steps=700,
        algo={"learning_starts": 600, "updates_per_step": 0.01},
        network={"log_std_init": -5.0},
    )
    first, rest = torch.cat(actions[:300]), torch.cat(actions[301:])
    assert first.abs().max() <= 1 and abs(float(first.mean())) < 0.1
    assert abs(float(first.std()) - 3**-0.5) < 0.03, "uniform on [-1, 1]"
    assert float(rest.std()) < 0.3, "the policy's own actions have hardly any noise here"


def test_the_same_seed_gives_the_same_run_on_both_backends_and_another_one_another(tmp_path):
    first = train(WALK, tmp_path / "a", total_steps=120)
    again = train(WALK, tmp_path / "b", total_steps=120, backend="process")
    other = train(WALK, tmp_path / "c", total_steps=120, seed=4)
    assert whole_digest(first) == whole_digest(again)
    assert digest(first) != digest(other)


def test_saving_and_evaluating_never_alter_the_run(tmp_path):
    quiet = train(WALK, tmp_path / "a", eval={"every": 0}, checkpoint={"every": 0})
    busy = train(
        WALK,
        tmp_path / "b",
        eval={"every": 20, "deterministic": False},
        checkpoint={"every": 10},
    )
    assert whole_digest(quiet) == whole_digest(busy)


# ----- Resume ------------------------------------------------------------------------------------

RUNS = {
    "walk": (WALK, {"num_envs": 4}),
    "overlap": (WALK, {"algo": {"overlap": True, "num_steps": 2}}),
    "mixed": (TOY + "Mixed-v0", {"algo": {"updates_per_step": 0.3}}),
}
NAMES = ["walk", "overlap", pytest.param("mixed", marks=pytest.mark.slow)]


def train_with_cuts(name, backend, folder):
    world, changes = RUNS[name]
    cuts = sorted(random.Random(name).sample(range(20, 290), 3))
    run = train(world, folder, StopAt(cuts[0]), **{**changes, "backend": backend})
    for steps in [*cuts[1:], 10**9]:
        run = rlgym.resume(folder, hooks=StopAt(steps), console="off")
        assert run.health["unreplayed"] == 0
    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_run_ends_as_the_uncut_one(name, tmp_path):
    world, changes = RUNS[name]
    whole = train(world, tmp_path / "whole", **changes)
    cut = train_with_cuts(name, "sync", tmp_path / "cut")
    assert whole_digest(cut) == whole_digest(whole)
    assert cut.state.returns == whole.state.returns and cut.state.episodes == whole.state.episodes
    ends = {line["step"] for line in evaluations(tmp_path / "whole")}
    again = [line for line in evaluations(tmp_path / "cut") if line["step"] in ends]
    assert again == evaluations(tmp_path / "whole")


class Kill:
    """Hook that sends this process a signal in the middle of what the run does at `steps`."""

    def __init__(self, steps, where):
        self.steps, self.where = steps, where

    def on_start(self, run):
        part, name = {"worlds": (run.env, "recv"), "learner": (run.learner, "update")}[self.where]
        method = getattr(part, name)

        def killing(*args):
            if run.state.env_steps >= self.steps:
                setattr(part, name, method)
                os.kill(os.getpid(), signal.SIGTERM)
            return method(*args)

        setattr(part, name, killing)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("where", ["worlds", "learner"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_signal_leaves_a_boundary_from_which_the_run_goes_on(where, overlap, tmp_path):
    algo = {"overlap": overlap, "updates_per_step": 10, "learning_starts": 90}
    changes = {"total_steps": 110, "algo": algo}
    whole = train(WALK, tmp_path / "whole", **changes)
    with pytest.raises(SystemExit) as caught:
        train(WALK, tmp_path / "cut", Kill(99, where), **changes)
    assert caught.value.code == 128 + signal.SIGTERM
    saved = checkpoint.newest(tmp_path / "cut")
    steps = 102 if overlap else 100  # with overlap the step that was under way is waited for
    assert saved.step == steps
    left = {"worlds": 0, "learner": 20 - off_policy.TURN}[where]
    assert saved.document("state")["owed"] == (20 if overlap else left)
    cut = rlgym.resume(tmp_path / "cut", console="off")
    assert whole_digest(cut) == whole_digest(whole)


def test_a_world_that_cannot_be_replayed_starts_anew_and_its_transition_is_cut(tmp_path):
    world = TOY + "Unreplayable-v0"
    run = train(world, tmp_path, total_steps=80, algo={"learning_starts": 10})
    held = run.replay.size
    run = rlgym.resume(tmp_path, 82, console="off")
    assert run.health["unreplayed"] == 2
    assert run.replay.size <= held + 2


def test_raising_the_rate_of_updates_counts_from_there_on(tmp_path):
    train(WALK, tmp_path, total_steps=100)
    noted = Updates()
    rlgym.resume(tmp_path, 104, hooks=noted, console="off", algo={"updates_per_step": 3.0})
    assert [count for _, _, count, _ in noted.seen] == [6, 6]


def test_a_buffer_of_another_size_is_refused(tmp_path):
    train(WALK, tmp_path, total_steps=100)
    with pytest.raises(CheckpointError):
        rlgym.resume(tmp_path, 110, console="off", algo={"buffer_size": 300})


# ----- What a run leaves -------------------------------------------------------------------------


def test_scalars_are_written_by_the_thousand_and_at_the_end(tmp_path):
    updates = []

    class Seen:
        def on_update(self, run, metrics):
            updates.append(run.state.env_steps)
            return run.state.env_steps >= 2000

    run = train(
        "Pendulum-v1",
        tmp_path,
        Seen(),
        num_envs=3,
        num_groups=1,
        total_steps=2500,
        algo={"updates_per_step": 0.02},
        eval={"every": 0},
    )
    assert updates == [1002, 2001] and run.stopped == "a hook asked for the end"
    lines = [line for line in scalars(tmp_path, but=()) if "time/fps" in line]
    assert [line["step"] for line in lines] == updates
    for name in ("actor_loss", "critic_loss", "ent_coef", "q_mean", "n_updates", "learning_rate"):
        assert all(np.isfinite(line[f"train/{name}"]) for line in lines), name
    assert lines[1]["time/iterations"] == 667 and lines[1]["perf/steps_per_second"] > 0
    assert lines[1]["rollout/ep_len_mean"] == 200 and lines[1]["health/skipped_updates"] == 0


def test_what_was_trained_acts(tmp_path):
    run = train("Pendulum-v1", tmp_path)
    policy = rlgym.load_policy(tmp_path, "last")
    obs = np.array([0.6, -0.8, 1.0], np.float32)
    expected = run.policy.act(torch.from_numpy(obs[None]), deterministic=True)[0][0]
    assert np.array_equal(policy.act(obs), expected.numpy())
    assert policy.action_space.contains(policy.act(obs, deterministic=False))
    document = checkpoint.newest(tmp_path).document("policy")
    assert (document["algo"], document["num_critics"], document["layer_norm"]) == ("sac", 2, False)
    assert load_config(tmp_path / "config.yaml") == run.config


def test_the_algorithm_may_be_named_by_a_text(tmp_path):
    run = rlgym.train(
        "Pendulum-v1",
        algo="sac",
        total_steps=10,
        run_dir=tmp_path,
        console="off",
        eval={"episodes": 1},
    )
    assert rlgym.config.to_dict(run.config)["algo"]["name"] == "sac"
    assert run.config.network.squash and run.config.num_envs == 1


def test_the_time_limit_ends_a_run(tmp_path):
    class Late:
        def on_rollout(self, run, buffer):
            if run.state.env_steps == 40:
                run._session = (0, 3600.0, time.perf_counter())

    run = train(WALK, tmp_path, Late(), time_limit=3600)
    assert "time limit" in run.stopped and run.state.env_steps == 40
    assert checkpoint.newest(tmp_path).step == 40


def test_both_loops_are_short():
    for loop in (on_policy, off_policy):
        assert len(Path(loop.__file__).read_text().splitlines()) <= 80


def test_a_world_that_fails_for_good_costs_one_step(tmp_path):
    class Failing(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Box(-1, 1, (1,), np.float32)
        steps = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps > 40:
                raise RuntimeError("broken on purpose")
            return np.zeros(1, np.float32), 0.0, False, False, {}

    with pytest.raises(UserError, match="broken on purpose"):
        train(
            Failing,
            tmp_path,
            num_envs=1,
            num_groups=1,
            max_restarts=0,
            algo={"learning_starts": 10},
        )
    assert checkpoint.newest(tmp_path).step == 40


# ----- Goals and demonstrations ------------------------------------------------------------------


class Goals(gymnasium.Env):
    """A point that is to be moved to a goal; the reward is 0 there and -1 elsewhere."""

    action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)
    observation_space = spaces.Dict(
        {
            name: spaces.Box(-5, 5, (2,), np.float32)
            for name in ("observation", "achieved_goal", "desired_goal")
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.at = np.zeros(2, np.float32)
        self.goal = self.np_random.uniform(-2, 2, 2).astype(np.float32)
        return self.obs(), {}

    def obs(self):
        return {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}

    def compute_reward(self, achieved, desired, info):
        near = np.linalg.norm(np.asarray(achieved) - desired, axis=-1) < 0.3
        return np.where(near, 0.0, -1.0).astype(np.float32)

    def step(self, action):
        self.t += 1
        self.at = np.clip(self.at + action, -5, 5).astype(np.float32)
        reward = float(self.compute_reward(self.at, self.goal, {}))
        return self.obs(), reward, False, self.t == 8, {"is_success": float(reward == 0)}


def test_hindsight_takes_the_worlds_own_reward_as_the_wrappers_leave_it(tmp_path):
    run = train(
        Goals,
        tmp_path,
        total_steps=100,
        algo={"hindsight": 1.0, "batch_size": 64},
        wrappers={"reward_scale": 0.5},
    )
    rewards = run.replay.sample(4000, torch.Generator().manual_seed(0)).rewards
    assert set(rewards.tolist()) == {0.0, -0.5}
    assert float((rewards == 0).float().mean()) > 0.2, "later goals are often reached"
    assert not (run.buffer.rewards == 0).all()


def test_hindsight_is_refused_where_it_cannot_be(tmp_path):
    with pytest.raises(UserError, match="hindsight"):
        train("Pendulum-v1", tmp_path / "a", algo={"hindsight": 0.5})
    with pytest.raises(ConfigError, match="normalize_reward"):
        changes = {"wrappers": {"normalize_reward": True}, "algo": {"hindsight": 0.5}}
        train(Goals, tmp_path / "b", **changes)
    with pytest.raises(ConfigError, match="frame_stack"):
        changes = {"wrappers": {"frame_stack": 2}, "algo": {"hindsight": 0.5}}
        train(Goals, tmp_path / "c", **changes)


def test_demonstrations_are_in_the_buffer_from_the_start_but_not_again_on_resume(tmp_path):
    generator = np.random.default_rng(0)
    ended = np.arange(40) % 20 == 19
    np.savez(
        tmp_path / "demo.npz",
        observations=generator.normal(size=(40, 3)).astype(np.float32),
        next_observations=generator.normal(size=(40, 3)).astype(np.float32),
        actions=generator.uniform(-2, 2, (40, 1)).astype(np.float32),
        rewards=np.full(40, 7.0, np.float32),
        terminated=np.zeros(40, bool),
        truncated=ended,
    )
    noted = Updates()
    changes = {"algo": {"demonstrations": str(tmp_path / "demo.npz"), "buffer_size": 1000}}
    run = train("Pendulum-v1", tmp_path / "run", noted, total_steps=70, **changes)
    assert noted.seen[0][:2] == (62, 102)
    rewards = run.replay.sample(2000, torch.Generator().manual_seed(0)).rewards
    assert 0.2 < float((rewards == 7).float().mean()) < 0.5
    run = rlgym.resume(tmp_path / "run", 80, console="off")
    assert run.replay.size == 120
    for other in ("nowhere.npz", str(tmp_path / "run")):
        with pytest.raises(UserError, match="start a new one with them"):
            rlgym.resume(tmp_path / "run", 90, console="off", algo={"demonstrations": other})
    with pytest.raises(UserError, match=r"nowhere\.npz"):
        train("Pendulum-v1", tmp_path / "b", algo={"demonstrations": str(tmp_path / "nowhere.npz")})

    # rewards of a file go through the run's wrappers; those of a run went through its own
    changes["wrappers"] = {"reward_scale": 0.5, "clip_reward": 3.0}
    run = train("Pendulum-v1", tmp_path / "c", total_steps=70, **changes)
    rewards = run.replay.sample(2000, torch.Generator().manual_seed(0)).rewards
    assert rewards.max() == 3.0 and rewards.min() >= -3.0
    changes["algo"] = {"demonstrations": str(tmp_path / "c"), "buffer_size": 100}
    run = train("Pendulum-v1", tmp_path / "d", total_steps=64, **changes)
    assert run.replay.size >= 98
    with pytest.raises(UserError, match=r"--wrappers.reward-scale 0.5 --wrappers.clip-reward 3.0"):
        train("Pendulum-v1", tmp_path / "e", algo=changes["algo"])
    with pytest.raises(ConfigError, match="normalize_reward"):
        changes["wrappers"] = {"normalize_reward": True}
        train("Pendulum-v1", tmp_path / "f", **changes)


def test_actions_beyond_the_bounds_are_told(tmp_path, capsys):
    arrays = {"observations": np.zeros((40, 3), np.float32), "rewards": np.zeros(40)}
    arrays |= {"terminated": np.zeros(40, bool), "truncated": np.arange(40) % 20 == 19}
    actions = np.linspace(-2.001, 2.001, 40, dtype=np.float32)[:, None]  # rounding is no doubt
    for name, first in (("well", 1.0), ("wide", 2.1)):
        actions[:10] = first
        np.savez(tmp_path / f"{name}.npz", actions=actions, **arrays)
        shown = {"demonstrations": str(tmp_path / f"{name}.npz")}
        changes = settings({"algo": shown, "clone": {**shown, "steps": 2}, "total_steps": 4})
        rlgym.train("Pendulum-v1", run_dir=tmp_path / name, preset=None, console="plain", **changes)
        told = capsys.readouterr().out
        assert told.count("26.3% of the actions") == 2 * (name == "wide"), told
