"""Actors of Ray: whole rollouts with the policy that was sent; a lost actor costs its episodes."""

import contextlib
import os
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import rlgym
from rlgym.cli.main import main
from rlgym.config import merge, to_dict
from rlgym.errors import ConfigError, PeerLostError, UserError, WorldError
from rlgym.training import worlds
from tests.training.runs import SMALL, scalars

ray = pytest.importorskip("ray", reason="needs the extra ray")

from rlgym.rollout import ray as actors  # noqa: E402

ACTORS = {"num_envs": 4, "collect": {"ray": "auto", "actors": 2, "cpus": 1, "patience": 60}}


class Fragile(gymnasium.Wrapper):
    """CartPole that cannot go on after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.left = steps

    def step(self, action):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the motor is gone")
        return super().step(action)


class Hanging(gymnasium.Wrapper):
    """Pendulum; the first to find the flag takes it away, and never answers again."""

    def __init__(self, flag: str) -> None:
        super().__init__(gymnasium.make("Pendulum-v1"))
        self.flag = flag

    def step(self, action):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.flag)
            time.sleep(10**6)
        return super().step(action)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    root = os.path.dirname(os.path.dirname(rlgym.__file__))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def train(world, folder, hooks=None, **changes):
    settings = {**SMALL, **ACTORS, "num_groups": None, **changes}
    return rlgym.train(
        world, run_dir=folder, preset=None, console="off", hooks=hooks, backend="sync", **settings
    )


class Watch:
    """Keeps what each rollout brought; kills an actor before the rollout after `kill_at`."""

    def __init__(self, kill_at: int = 0, always: bool = False) -> None:
        self.kill_at, self.always = kill_at, always
        self.active, self.starts, self.lags, self.killed = [], [], [], 0

    def on_rollout(self, run, buffer) -> None:
        self.active.append(buffer.active.numpy().copy())
        self.starts.append(buffer.episode_start[0].numpy().copy())
        self.lags.append(run.env.lag)
        if len(self.active) == self.kill_at or (self.always and self.kill_at):
            ray.kill(run.env.actors[1])
            self.killed += 1


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_ppo_learns_from_all_actors_and_survives_the_loss_of_one(cluster, tmp_path):
    watch = Watch(kill_at=3)
    run = train("CartPole-v1", tmp_path / "run", watch)
    assert run.state.env_steps >= 1200 and run.state.episodes > 10
    assert all(active.all() for active in watch.active)
    assert set(watch.lags) == {0.0}
    assert watch.starts[0].all() and not watch.starts[1].all()
    assert watch.starts[3][2:].all()  # the replaced actor's episodes are new
    assert run.health["restarts"] == 1 and run.health["lost_slots"] == 2
    lines = [line for line in scalars(tmp_path / "run") if "health/restarts" in line]
    assert lines[-1]["health/restarts"] == 1
    assert np.isfinite(run.state.score)

    with pytest.raises(UserError, match=r"Ray cluster 'auto'.*--trust"):
        rlgym.resume(tmp_path / "run", 1500, console="off")
    again = rlgym.resume(tmp_path / "run", 1500, console="off", trust=True)
    assert again.state.env_steps >= 1500 and again.health["unreplayed"] == 4


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_sac_learns_from_whoever_is_ready(cluster, tmp_path):
    algo = {"name": "sac", "num_steps": 16, "batch_size": 16, "learning_starts": 200}
    algo |= {"updates_per_step": 0.3, "buffer_size": 2000}
    network = {"hidden": (16, 16), "squash": True, "std": "state", "normalize_obs": True}
    watch = Watch(kill_at=4)
    run = train("Pendulum-v1", tmp_path / "run", watch, algo=algo, network=network)
    columns = np.stack([active[0, ::2] for active in watch.active])  # (rollouts, actors)
    assert columns.any(0).all() and not columns.all()
    assert all((active == active[0]).all() for active in watch.active)
    assert max(watch.lags) >= 1
    assert run.replay.size > 0.9 * run.state.env_steps
    assert run.learner.updates > 100 and run.health["restarts"] == 1
    # what is learned from happened so, the episodes that were lost included
    batch = run.replay.sample(4000, torch.Generator().manual_seed(0))
    speed = batch.obs[:, 2] + 0.05 * (15 * batch.obs[:, 1] + 3 * 2 * batch.actions[:, 0])
    counts = batch.weights > 0
    torch.testing.assert_close(
        speed.clamp(-8, 8)[counts], batch.next_obs[:, 2][counts], atol=1e-3, rtol=0
    )


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_an_actor_that_hangs_is_replaced_though_others_answer(cluster, tmp_path):
    flag = tmp_path / "hang"

    def hang(run, buffer):
        hang.count += 1
        if hang.count == 4:
            flag.touch()

    hang.count = 0
    algo = {"name": "sac", "num_steps": 16, "batch_size": 16, "learning_starts": 10**6}
    network = {"hidden": (16, 16), "squash": True, "std": "state"}
    settings = {"algo": algo | {"buffer_size": 2000}, "network": network, "total_steps": 10**6}
    settings |= {"collect": {**ACTORS["collect"], "patience": 20}, "time_limit": 60.0}
    settings |= {"env": {"flag": str(flag)}, "eval": {"every": 0, "episodes": 1}}
    run = train(Hanging, tmp_path / "run", SimpleNamespace(on_rollout=hang), **settings)
    assert not flag.exists() and run.health["restarts"] == 1
    assert run.health["lost_slots"] == 2


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_too_many_lost_actors_end_the_run(cluster, tmp_path):
    with pytest.raises(PeerLostError, match=r"actor 1 is lost.*--max-restarts"):
        train("CartPole-v1", tmp_path / "run", Watch(2, always=True), max_restarts=1)


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_a_world_that_fails_on_an_actor_is_quoted(cluster, tmp_path):
    with pytest.raises(WorldError, match="motor is gone"):
        train(Fragile, tmp_path / "run", env={"steps": 30}, max_restarts=0)


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_other_versions_on_another_machine_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(actors, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(UserError, match=r"torch is 1.0 here and .* install the same"):
        train("CartPole-v1", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(400)  # an actor's start takes a core for seconds
def test_a_cluster_without_room_says_how_much_there_is(cluster, tmp_path):
    collect = {**ACTORS["collect"], "cpus": 3, "patience": 5}
    with pytest.raises(UserError, match=r"cluster of 4 cores.*--collect.cpus"):
        train("CartPole-v1", tmp_path / "run", collect=collect)


def test_an_actor_returns_one_rollout_of_the_policy_that_it_was_sent():
    made = []

    def make():
        made.append(rlgym.make_vec("CartPole-v1", 2, backend="sync"))
        return made[0]

    actor = actors.Actor(make)
    told = actor.describe()
    assert told["versions"] == actors.versions() and told["mask_size"] == 0
    env = made[0]
    from rlgym.agents.policy import ActorCritic
    from rlgym.config import NetworkConfig

    layouts = env.obs_layout, env.action_layout
    policy, newer = (
        ActorCritic.build(*layouts, NetworkConfig(hidden=(8,)), seed) for seed in (0, 1)
    )
    first = actor.prepare(policy, 16, False, 5, [1, 2])
    begun = first["obs"].copy()
    assert begun.shape == (2, 4)
    weights = {name: tensor.numpy() for name, tensor in newer.state_dict().items()}
    answer = actor.collect(weights, 7, False)
    assert answer["version"] == 7 and answer["obs"].shape == (17, 2, 4)
    np.testing.assert_array_equal(answer["obs"][0], begun)
    noise = newer.noise(16, 2, torch.Generator().manual_seed(5))
    expected = [
        newer.act(torch.from_numpy(answer["obs"][t]), noise=noise[t])[1].numpy() for t in range(16)
    ]
    np.testing.assert_array_equal(answer["actions"], expected)
    actor.close()


def test_versions_that_differ_are_named_with_their_machine():
    ours = {"rlgym": "1", "torch": "2"}
    actors.check_versions(ours, dict(ours), "arm")
    with pytest.raises(UserError, match="torch is 2 here and 3 on arm"):
        actors.check_versions(ours, {"rlgym": "1", "torch": "3"}, "arm")


def test_settings_that_actors_cannot_share_are_refused():
    config = rlgym.config.TrainConfig()
    with pytest.raises(ConfigError, match="set num_envs to 9"):
        merge(config, {"num_envs": 8, "collect": {"ray": "local", "actors": 3}})
    with pytest.raises(ConfigError, match="set it to 16"):
        merge(config, {"collect": {"ray": "local"}, "algo": {"num_steps": 8}})
    assert to_dict(merge(config, {"collect": {"actors": 5}}))["collect"]["ray"] is None


def test_a_file_that_names_a_cluster_is_not_obeyed(tmp_path, capsys):
    config = merge(rlgym.config.TrainConfig(), {"collect": {"ray": "10.0.0.1:6379"}})
    with pytest.raises(UserError, match=r"Ray cluster '10.0.0.1:6379'.*--trust"):
        rlgym.train(config, run_dir=tmp_path / "run")
    file = tmp_path / "config.yaml"
    rlgym.config.save_config(config, file)
    assert main(["train", "--config", str(file)]) == 2
    assert "asks to join the Ray cluster" in capsys.readouterr().err
    assert main(["train", "--config", str(file), "--collect.ray", "none", "--print-config"]) == 0


def test_processes_of_torchrun_have_no_actors(monkeypatch, tmp_path):
    monkeypatch.setattr(worlds, "is_grouped", lambda: True)
    with pytest.raises(UserError, match="without torchrun"):
        rlgym.train("CartPole-v1", run_dir=tmp_path, collect={"ray": "local"}, console="off")


def test_no_cluster_at_an_address_is_said(monkeypatch):
    monkeypatch.setattr(actors.ray, "is_initialized", lambda: False)  # other tests' cluster
    with pytest.raises(UserError, match=r"no Ray cluster at '127.0.0.1:1'"):
        actors.RemoteWorlds(SimpleNamespace, 2, address="127.0.0.1:1")
