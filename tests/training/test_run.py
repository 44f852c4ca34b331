"""`train` and `load_policy` from Python: what a run writes, who may steer it, what it survives."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import rlgym
from rlgym.config import EvalConfig, TrainConfig, load_config
from rlgym.errors import CheckpointError, ConfigError, SpaceError, UserError, WorldError
from rlgym.training import checkpoint
from rlgym.training.worlds import make_worlds
from tests.training.runs import StopAt, digest, scalars, settings, train

TOY = "rlgym.envs.toy:rlgym/"


def test_two_runs_with_one_seed_are_equal_and_with_two_are_not(tmp_path):
    runs = [
        train("CartPole-v1", tmp_path / str(i), backend="sync", total_steps=400, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    ]
    assert digest(runs[0]) == digest(runs[1]) != digest(runs[2])
    assert scalars(tmp_path / "0") == scalars(tmp_path / "1")


def test_sync_and_process_end_with_the_same_parameters(tmp_path):
    runs = [
        train("Pendulum-v1", tmp_path / backend, backend=backend, total_steps=400)
        for backend in ("sync", "process")
    ]
    assert digest(runs[0]) == digest(runs[1])


def test_global_generators_are_neither_used_nor_changed(tmp_path):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    first = train("CartPole-v1", tmp_path / "a", backend="sync", total_steps=200)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    torch.manual_seed(99)
    assert digest(train("CartPole-v1", tmp_path / "b", backend="sync", total_steps=200)) == digest(
        first
    )


def test_run_folder(tmp_path):
    run = train("CartPole-v1", tmp_path / "run", backend="sync", total_steps=500)
    names = {path.name for path in run.run_dir.iterdir()}
    assert {"config.yaml", "system.json", "metrics.jsonl", "evaluations.jsonl"} <= names
    assert {"checkpoints", "latest.json", "best.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = load_config(run.run_dir / "config.yaml")
    assert config == run.config
    assert (config.backend, config.num_groups, config.torch_threads) == ("sync", 2, 1)
    assert "torch" in json.loads((run.run_dir / "system.json").read_text())["versions"]
    assert run.stopped == "all 500 steps are done"


def test_threads_and_precision_are_the_runs_own_and_put_back(tmp_path):
    seen = []

    class Look:
        def on_rollout(self, run, buffer):
            seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))

    threads = torch.get_num_threads()
    settings = {"backend": "sync", "total_steps": 500, "torch_threads": threads + 1}
    train("CartPole-v1", tmp_path, hooks=Look(), matmul_precision="medium", **settings)
    assert set(seen) == {(threads + 1, "medium")}
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, "highest")


def test_scalars_have_the_names_of_the_field(tmp_path):
    train(TOY + "RewardTerms-v0", tmp_path, backend="sync", total_steps=400)
    train(TOY + "Counter-v0", tmp_path / "success", backend="sync", total_steps=400)
    lines = scalars(tmp_path, but=())
    names = set().union(*lines)
    for name in (
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/iterations"),
        *("time/time_elapsed", "time/total_timesteps", "perf/collect", "perf/learn", "perf/idle"),
        *("perf/transfer", "perf/steps_per_second", "train/approx_kl", "train/learning_rate"),
        *("env/progress", "env/effort", "health/restarts", "health/unreplayed"),
        *("eval/mean_reward", "eval/std_reward", "eval/mean_ep_length"),
    ):
        assert name in names, name
    assert any("rollout/success_rate" in line for line in scalars(tmp_path / "success"))
    assert [line["time/iterations"] for line in lines if "time/iterations" in line] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_logged_returns_are_the_worlds_own(tmp_path):
    wrappers = {"reward_scale": 0.01, "clip_reward": 0.005}
    run = train("CartPole-v1", tmp_path, backend="sync", total_steps=400, wrappers=wrappers)
    assert list(run.state.returns) == list(run.state.lengths)  # one point a step
    assert run.buffer.rewards.max() == pytest.approx(0.005)
    assert run.result.mean == run.result.mean_length


def test_existing_run_is_kept_unless_told_otherwise(tmp_path):
    first = train("CartPole-v1", tmp_path, backend="sync", total_steps=100)
    with pytest.raises(UserError, match="overwrite"):
        train("CartPole-v1", tmp_path, backend="sync", total_steps=100)
    with pytest.raises(WorldError):  # a mistake costs nothing of the old run
        train("CartPool-v1", tmp_path, overwrite=True)
    assert checkpoint.newest(tmp_path).step == first.state.env_steps
    (tmp_path / "notes.txt").write_text("mine")
    train("CartPole-v1", tmp_path, backend="sync", total_steps=200, overwrite=True)
    steps = {line["step"] for line in scalars(tmp_path)}
    assert steps == {96, 192, 288}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        train("CartPole-v1", tmp_path, overwrite=True)


class Unplugged(gymnasium.Env):
    """No first reset works."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        if seed:  # 0 is to look at it
            raise OSError("no robot")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_what_fails_before_the_first_step_leaves_no_folder(tmp_path):
    demos = {"name": "sac", "demonstrations": str(tmp_path / "nowhere.npz")}
    with pytest.raises(UserError, match=r"nowhere\.npz"):
        rlgym.train("Pendulum-v1", run_dir=tmp_path / "run", algo=demos, console="off")
    with pytest.raises(WorldError, match="first reset of world 0 failed: OSError: no robot"):
        train(Unplugged, tmp_path / "run")
    assert not list(tmp_path.glob("run/*.yaml"))


def test_a_run_of_which_nothing_was_saved_may_be_begun_anew(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="nothing was saved: --overwrite begins it anew"):
        train("CartPole-v1", tmp_path)
    with pytest.raises(UserError, match=r"rlgym train --config .* --overwrite"):
        rlgym.resume(tmp_path, console="off")
    train("CartPole-v1", tmp_path, overwrite=True, total_steps=200)


@pytest.mark.parametrize("world", [None, 3, gymnasium.make("CartPole-v1")], ids=str)
def test_a_world_that_is_built_already_is_refused(tmp_path, world):
    with pytest.raises(UserError, match="pass its id, its class or a function that builds one"):
        train(world, tmp_path)


@pytest.mark.parametrize("hooks", [3, StopAt, object()], ids=["number", "class", "no method"])
def test_what_is_no_hook_is_refused(tmp_path, hooks):
    with pytest.raises(UserError, match="console is 'loud': auto or live or plain or off"):
        rlgym.train("CartPole-v1", run_dir=tmp_path, console="loud")
    with pytest.raises(UserError, match="is no hook: give an object with on_start or"):
        train("CartPole-v1", tmp_path, hooks)
    assert not list(tmp_path.iterdir())


def test_default_folder_names_world_algorithm_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(TOY + "Counter-v0", None, backend="sync", total_steps=50, seed=7)
    assert run.run_dir.parent.name == "runs"
    assert run.run_dir.name.startswith("rlgym-Counter-v0-ppo-7-")


def test_unknown_setting_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="total_steps"):
        train("CartPole-v1", tmp_path, total_step=3)


def test_whole_config_is_taken_as_it_is(tmp_path):
    config = TrainConfig(total_steps=100, num_envs=2, backend="sync")
    run = rlgym.train(config, run_dir=tmp_path, console="off", algo={"num_steps": 16})
    assert run.config.num_envs == 2 and run.config.algo.num_steps == 16
    assert run.config.preset is None


def test_preset_of_the_world_is_the_default(tmp_path):
    run = rlgym.train("CartPole-v1", run_dir=tmp_path, console="off", total_steps=300)
    assert run.config.preset == "cartpole-ppo"


class Watcher:
    def __init__(self):
        self.seen = []

    def on_start(self, run):
        self.seen.append("start")

    def on_rollout(self, run, buffer):
        assert buffer is run.buffer
        self.seen.append("rollout")

    def on_update(self, run, metrics):
        assert metrics["time/total_timesteps"] == run.state.env_steps
        self.seen.append("update")

    def on_evaluation(self, run, score):
        assert score == run.result.mean and run.result.episodes == 2
        self.seen.append("evaluation")

    def on_end(self, run):
        self.seen.append("end")


def test_hooks_are_called_in_order(tmp_path):
    watcher = Watcher()
    train("CartPole-v1", tmp_path, [watcher, StopAt(10**9)], backend="sync", total_steps=150)
    expected = ["start", "rollout", "update", "rollout", "update", "evaluation", "end"]
    assert watcher.seen == expected


def test_hook_ends_the_run(tmp_path):
    run = train("CartPole-v1", tmp_path, [Watcher(), StopAt(200)], backend="sync")
    assert run.state.env_steps == 288
    assert "hook" in run.stopped
    assert checkpoint.newest(tmp_path).step == 288


def test_failing_hook_saves_the_boundary(tmp_path):
    class Failing:
        def on_update(self, run, metrics):
            if run.state.updates == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train("CartPole-v1", tmp_path, Failing(), backend="sync", checkpoint={"every": 0})
    assert checkpoint.newest(tmp_path).step == 288


def test_time_limit_ends_the_run(tmp_path):
    run = train("CartPole-v1", tmp_path, backend="sync", total_steps=10**8, time_limit=0.3)
    assert "time limit" in run.stopped and run.state.env_steps < 10**7


def test_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    run = train("CartPole-v1", tmp_path, backend="sync", eval={"every": 96}, checkpoint={"keep": 1})
    lines = [json.loads(x) for x in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["mean"])
    assert checkpoint.best(tmp_path).step == best["step"]
    assert json.loads((tmp_path / "best.json").read_text())["score"] == best["mean"]
    assert run.state.best_score == best["mean"]


def test_evaluation_worlds_may_have_other_arguments():
    config = TrainConfig("Pendulum-v1", num_envs=2, env={"g": 9.0}, eval=EvalConfig(env={"g": 1.0}))
    for evaluation, gravity in ((False, 9.0), (True, 1.0)):
        env = make_worlds(config, None, ".", evaluation=evaluation)
        assert env.unwrapped._slots[0].world.unwrapped.g == gravity
        env.close()


def test_without_evaluations_training_returns_choose_the_best(tmp_path):
    settings = {"eval": {"every": 0}, "checkpoint": {"every": 96, "keep": 1}}
    train("CartPole-v1", tmp_path, backend="sync", **settings)
    means = {
        line["step"]: line["rollout/ep_rew_mean"]
        for line in scalars(tmp_path)
        if "rollout/ep_rew_mean" in line
    }
    assert checkpoint.best(tmp_path).step == max(means, key=means.get)


def test_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys):
    real = checkpoint.save
    calls = []

    def full_at_first(*args, **kwargs):
        calls.append(args[1])
        if len(calls) == 2:
            raise CheckpointError("the disk is full")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full_at_first)
    changes = settings(eval={"every": 0}, checkpoint={"every": 300})
    run = rlgym.train(
        "CartPole-v1", run_dir=tmp_path, preset=None, console="plain", backend="sync", **changes
    )
    assert run.state.env_steps >= 1200
    assert len(calls) >= 4
    assert checkpoint.newest(tmp_path).step == run.state.env_steps
    assert capsys.readouterr().out.count("disk is full") == 1


def test_lost_worlds_cost_their_episodes_only(tmp_path, capsys):
    once = {"fault": "crash", "at_step": 30, "once_file": str(tmp_path / "crashed")}
    run = train(TOY + "Crash-v0", tmp_path / "run", backend="sync", env=once, total_steps=500)
    assert run.health["lost_slots"] == 1
    last = [line for line in scalars(run.run_dir) if "health/lost_slots" in line][-1]
    assert last["health/lost_slots"] == 1
    assert run.state.env_steps == 96 * 6 - 1  # the lost slot's step was no step
    (report,) = (run.run_dir / "crashes").iterdir()
    assert "told to crash at step 30" in json.loads(report.read_text())["traceback"]
    assert str(report) in capsys.readouterr().err
    assert all(p.isfinite().all() for p in run.policy.parameters())


def test_nan_from_a_world_halts_and_keeps_what_was_learned(tmp_path):
    with pytest.raises(WorldError, match=r"not finite|NaN"):
        train(TOY + "NaN-v0", tmp_path, backend="sync", env={"at_step": 60})
    assert checkpoint.newest(tmp_path).step == 192


# ---------------------------------------------------------------------- policies


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    return train("CartPole-v1", folder, backend="sync", total_steps=500)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_policy_acts_on_one_observation_or_a_batch(cartpole, kind):
    policy = rlgym.load_policy(cartpole.run_dir, which="last")
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    batch = policy.act(kind(obs))
    assert batch.shape == (5,) and batch.dtype == np.int64
    ones = [policy.act(kind(row)) for row in obs]
    assert all(isinstance(action, int | np.integer) for action in ones)
    assert ones == batch.tolist()
    expected = cartpole.policy.act(torch.from_numpy(obs), deterministic=True)[0]
    assert batch.tolist() == expected.tolist()


def test_policy_samples_from_its_own_generator(cartpole):
    policy = rlgym.load_policy(cartpole.run_dir)
    obs = np.zeros((200, 4), np.float32)
    policy.reset(seed=1)
    first = policy.act(obs, deterministic=False)
    assert 0 < first.sum() < 200
    policy.reset(seed=1)
    assert (policy.act(obs, deterministic=False) == first).all()


def test_policy_says_what_is_wrong_with_an_observation(cartpole):
    policy = rlgym.load_policy(cartpole.run_dir)
    for wrong in ({"position": np.zeros(4)}, [0.0, None, 0.0, 0.0], [[0.0] * 4, [0.0]], "left"):
        with pytest.raises(SpaceError, match="the policy takes numbers"):
            policy.act(wrong)
    with pytest.raises(SpaceError, match=r"\[5\].*\[4\]"):
        policy.act(np.zeros(5))


def test_best_or_last_or_neither(cartpole, tmp_path):
    assert rlgym.load_policy(cartpole.run_dir, which="last").step == cartpole.state.env_steps
    with pytest.raises(UserError, match="best"):
        rlgym.load_policy(cartpole.run_dir, which="newest")
    with pytest.raises(UserError, match="config"):
        rlgym.load_policy(tmp_path)


class Nested(gymnasium.Env):
    observation_space = spaces.Dict(
        {"arm": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)])}
    )
    action_space = spaces.Dict({"grip": spaces.Discrete(2), "move": spaces.Box(-2, 2, (3,))})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {}

    def observation(self):
        return {"arm": (self.np_random.uniform(-1, 1, 2).astype(np.float32), self.t % 3)}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation(), 0.0, False, self.t == 10, {}


def test_nested_spaces_go_in_and_out_as_the_world_has_them(tmp_path):
    train(Nested, tmp_path, backend="sync", total_steps=100)
    policy = rlgym.load_policy(tmp_path)
    world = Nested()
    obs, _ = world.reset(seed=0)
    for _ in range(3):
        obs, *_ = world.step(policy.act(obs))
    flat = {"arm/0": np.zeros((4, 2), np.float32), "arm/1": np.zeros(4, np.int64)}
    batch = policy.act(flat)
    assert batch["grip"].shape == (4,) and batch["move"].shape == (4, 3)


def test_recurrent_policy_remembers_until_it_is_reset(tmp_path):
    network = {"recurrent": "lstm", "recurrent_size": 8}
    train(TOY + "IdentityBox-v0", tmp_path, backend="sync", total_steps=100, network=network)
    policy = rlgym.load_policy(tmp_path)
    obs = policy.observation_space.sample()
    first, second = policy.act(obs), policy.act(obs)
    assert not np.array_equal(first, second)
    policy.reset()
    np.testing.assert_array_equal(policy.act(obs), first)
    batch = np.stack([obs, obs])
    policy.act(batch)
    policy.reset(rows=[True, False])
    third = policy.act(batch)
    np.testing.assert_allclose(third[0], first, atol=1e-6)
    np.testing.assert_allclose(third[1], second, atol=1e-6)


class Net(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(layout.leaves[0].shape[0], 32), nn.ReLU())

    def forward(self, obs):
        return self.body(obs)


def test_own_network_is_trained_resumed_and_loaded(tmp_path):
    whole = train("CartPole-v1", tmp_path / "a", network=Net, backend="sync", total_steps=500)
    assert any(name.startswith("network.body") for name in whole.policy.state_dict())
    train("CartPole-v1", tmp_path / "b", StopAt(200), network=Net, backend="sync", total_steps=500)
    run = rlgym.resume(tmp_path / "b", network=Net, console="off")
    assert digest(run) == digest(whole)
    with pytest.raises(UserError, match="network="):
        rlgym.load_policy(tmp_path / "a")
    policy = rlgym.load_policy(tmp_path / "a", network=Net)
    assert policy.act(np.zeros(4, np.float32)) in (0, 1)


def test_model_of_another_size_is_named(cartpole, tmp_path):
    saved = checkpoint.newest(cartpole.run_dir)
    files = {name: saved.tensors(name) for name in ("model", "optimizer", "rng", "env")}
    documents = {name: saved.document(name) for name in ("state", "policy")}
    documents["policy"]["network"]["hidden"] = [8, 8]
    checkpoint.save(tmp_path, saved.step, files, documents)
    (tmp_path / "config.yaml").write_text((cartpole.run_dir / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="shape"):
        rlgym.load_policy(tmp_path)


def test_shares_of_time_are_logged(tmp_path):
    train("CartPole-v1", tmp_path, backend="process", num_workers=2, total_steps=300)
    line = scalars(tmp_path, but=())[0]
    assert 0.0 < line["perf/learner_idle"] < 1.0
    assert 0.0 < line["perf/worker_idle"] < 1.0
