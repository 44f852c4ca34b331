"""A run that is cut and continued ends as one that was not, to the last bit."""

import random

import pytest

import rlgym
from rlgym.errors import UserError
from rlgym.training import checkpoint
from tests.training.runs import StopAt, digest, evaluations, scalars, settings, train

TOY = "rlgym.envs.toy:rlgym/"
RUNS = {
    "cartpole": ("CartPole-v1", {}),
    "pendulum": (
        "Pendulum-v1",
        {
            "network": {"normalize_obs": True},
            "wrappers": {"normalize_reward": True},
            "algo": {"learning_rate_schedule": "linear", "clip_schedule": "linear"},
        },
    ),
    "dict": (TOY + "DictObs-v0", {}),
    "gsde": ("Pendulum-v1", {"network": {"std": "gsde", "gsde_every": 7}}),
    "frames": (TOY + "TruncationTrap-v0", {"wrappers": {"frame_stack": 3}}),
    "kl": (TOY + "Masked-v0", {"algo": {"learning_rate_schedule": "kl", "target_kl": 0.01}}),
    "gru": (TOY + "Memory-v0", {"network": {"recurrent": "gru", "recurrent_size": 8}}),
}

QUICK = ("cartpole", "pendulum", "dict", "gru")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name not in QUICK]


def cut_points(name, count=3):
    """Random environment steps, the same in every run of the tests."""
    return sorted(random.Random(name).sample(range(100, 1100), count))


def train_with_cuts(name, backend, folder):
    world, changes = RUNS[name]
    cuts = cut_points(name)
    run = train(world, folder, hooks=StopAt(cuts[0]), backend=backend, **changes)
    for steps in [*cuts[1:], 10**9]:
        run = rlgym.resume(folder, hooks=StopAt(steps), console="off")
        assert run.health["unreplayed"] == 0
    return run


def without_ends(lines, whole):
    """Leave out the evaluations that a cut run makes at each of its ends."""
    steps = {line["step"] for line in whole if "eval/mean_reward" in line}
    return [line for line in lines if "eval/mean_reward" not in line or line["step"] in steps]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_cut_run_on_sync_ends_as_the_uncut_one(name, tmp_path):
    world, changes = RUNS[name]
    whole = train(world, tmp_path / "whole", backend="sync", **changes)
    cut = train_with_cuts(name, "sync", tmp_path / "cut")
    assert digest(cut) == digest(whole)
    expected = scalars(tmp_path / "whole")
    assert len(expected) >= 13
    assert without_ends(scalars(tmp_path / "cut"), expected) == expected
    ends = {line["step"] for line in evaluations(tmp_path / "whole")}
    again = [line for line in evaluations(tmp_path / "cut") if line["step"] in ends]
    assert again == evaluations(tmp_path / "whole")
    assert cut.state.returns == whole.state.returns and cut.state.episodes == whole.state.episodes


@pytest.mark.parametrize("name", ["dict", pytest.param("gru", marks=pytest.mark.slow)])
def test_cut_run_on_worker_processes_ends_as_the_uncut_one_on_sync(name, tmp_path):
    world, changes = RUNS[name]
    whole = train(world, tmp_path / "whole", backend="sync", **changes)
    cut = train_with_cuts(name, "process", tmp_path / "cut")
    assert digest(cut) == digest(whole)
    expected = scalars(tmp_path / "whole")
    assert without_ends(scalars(tmp_path / "cut"), expected) == expected


def test_cutting_by_total_steps_and_raising_it(tmp_path):
    whole = train("CartPole-v1", tmp_path / "whole", backend="sync")
    train("CartPole-v1", tmp_path / "cut", backend="sync", total_steps=500)
    run = rlgym.resume(tmp_path / "cut", 1200, console="off")
    assert digest(run) == digest(whole)
    assert run.state.env_steps == whole.state.env_steps
    assert rlgym.config.load_config(tmp_path / "cut" / "config.yaml").total_steps == 1200


@pytest.mark.parametrize("world", ["CartPole-v1", "Pendulum-v1"])
def test_saving_never_alters_the_run(world, tmp_path):
    never = train(world, tmp_path / "never", backend="sync", checkpoint={"every": 0})
    always = train(world, tmp_path / "always", backend="sync", checkpoint={"every": 1})
    assert digest(always) == digest(never)
    assert scalars(tmp_path / "always") == scalars(tmp_path / "never")


def test_evaluating_never_alters_the_run(tmp_path):
    never = train("Pendulum-v1", tmp_path / "never", eval={"every": 0}, backend="sync")
    often = train(
        "Pendulum-v1",
        tmp_path / "often",
        eval={"every": 1, "deterministic": False},
        backend="sync",
    )
    assert digest(often) == digest(never)


def test_step_axis_and_tensorboard_go_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("CartPole-v1", tmp_path, hooks=StopAt(300), backend="sync")
    rlgym.resume(tmp_path, console="off")
    steps = [line["step"] for line in scalars(tmp_path) if "train/loss" in line]
    assert steps == [96 * i for i in range(1, 14)]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    elapsed = [event.value for event in events.Scalars("time/time_elapsed")]
    assert elapsed == sorted(elapsed)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    train("CartPole-v1", tmp_path, backend="sync", total_steps=960)
    newest = checkpoint.newest(tmp_path)
    assert newest.step == 960
    (newest.path / "model.safetensors").write_bytes(b"torn by a crash")
    run = rlgym.resume(tmp_path, console="off", total_steps=1200)
    whole = train("CartPole-v1", tmp_path / "whole", backend="sync")
    assert digest(run) == digest(whole)
    lines = [line for line in scalars(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in lines] == [96 * i for i in range(1, 14)]


def test_world_that_cannot_be_replayed_starts_a_new_episode(tmp_path, capsys):
    world = TOY + "Unreplayable-v0"
    train(world, tmp_path, hooks=StopAt(300), backend="sync")
    capsys.readouterr()
    run = rlgym.resume(tmp_path, console="plain")
    assert run.state.env_steps >= 1200
    told = [line for line in capsys.readouterr().out.splitlines() if "replayed" in line]
    assert len(told) == 1
    assert run.health["unreplayed"] > 0
    lines = scalars(tmp_path)
    assert lines[0]["health/unreplayed"] == 0
    last = [line for line in lines if "health/unreplayed" in line][-1]
    assert last["health/unreplayed"] == run.health["unreplayed"]


def test_checkpoint_without_worlds_starts_new_episodes(tmp_path):
    run = train("CartPole-v1", tmp_path, hooks=StopAt(300), backend="sync")
    saved = checkpoint.newest(tmp_path)
    files = {name: saved.tensors(name) for name in ("model", "optimizer", "rng")}
    documents = {name: saved.document(name) for name in ("state", "policy")}
    checkpoint.save(tmp_path, saved.step, {**files, "env": {}}, documents)
    run = rlgym.resume(tmp_path, console="off")
    assert run.health["unreplayed"] == 4
    assert run.state.env_steps >= 1200


def test_finished_run_says_how_to_go_on(tmp_path):
    train("CartPole-v1", tmp_path, backend="sync", total_steps=100)
    with pytest.raises(UserError, match="--total-steps"):
        rlgym.resume(tmp_path, console="off")


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        rlgym.resume(tmp_path / "nothing")


def test_run_of_a_callable_needs_it_again(tmp_path):
    import gymnasium

    def my_world():
        return gymnasium.make("CartPole-v1")

    whole = train(my_world, tmp_path / "whole", backend="sync")
    train(my_world, tmp_path / "cut", hooks=StopAt(300), backend="sync")
    with pytest.raises(UserError, match=r"world=.*my_world"):
        rlgym.resume(tmp_path / "cut", console="off")
    run = rlgym.resume(tmp_path / "cut", world=my_world, console="off")
    assert digest(run) == digest(whole)


def test_settings_can_change_on_resume(tmp_path):
    train("CartPole-v1", tmp_path, hooks=StopAt(300), backend="sync")
    run = rlgym.resume(tmp_path, console="off", algo={"learning_rate": 1e-5})
    assert run.config.algo.learning_rate == 1e-5
    assert settings()["algo"]["num_steps"] == run.config.algo.num_steps
