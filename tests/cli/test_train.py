import pytest
import yaml

from rlgym.cli.main import main
from rlgym.cli.train import read_arguments
from rlgym.config import (
    SACConfig,
    TrainConfig,
    default_config,
    from_dict,
    load_preset,
    save_config,
    to_dict,
)


def merged(*words):
    return read_arguments(list(words))[1]


def failure(capsys, *words):
    assert main(["train", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def test_a_mistake_in_a_file_names_the_file(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("algo:\n  lr: 1\n")
    text = failure(capsys, "CartPole-v1", "--config", str(file))
    assert f"{file}: algo.lr is not a setting: did you mean algo.learning_rate?" in text


def test_lists_and_switches_as_people_write_them():
    config = merged("X-v0", "--network.hidden", "32,16", "--algo.normalize-advantages", "no")
    assert config.network.hidden == (32, 16) and not config.algo.normalize_advantages


def test_the_tuned_preset_is_used_and_named():
    _, config, notice = read_arguments(["CartPole-v1"])
    assert config == load_preset("cartpole-ppo")
    assert notice == "using the preset cartpole-ppo (--preset none for plain defaults)"
    assert read_arguments(["rlgym/Memory-v0"])[1:] == (TrainConfig("rlgym/Memory-v0"), "")


def test_a_preset_can_be_chosen_or_left():
    assert merged("CartPole-v1", "--preset", "none") == TrainConfig("CartPole-v1")
    pendulum = merged("CartPole-v1", "--preset", "pendulum-ppo")
    assert pendulum == load_preset("pendulum-ppo", "CartPole-v1")
    assert merged("--preset", "pendulum-ppo").env_id == "Pendulum-v1"


def test_a_preset_knows_the_package_of_its_world():
    assert merged("HopperBulletEnv-v0").env_id == "pybullet_envs_gymnasium:HopperBulletEnv-v0"
    assert merged("other:HopperBulletEnv-v0").env_id == "other:HopperBulletEnv-v0"


def test_flags_change_any_field():
    config = merged(
        *("--algo.learning-rate", "1e-3", "--network.hidden", "32", "16", "--seed=7"),
        *("CartPole-v1", "--algo.value-clip", "none", "--network.squash", "--eval.every", "5000"),
        *("--algo.normalize-advantages", "false", "--network.log-std-init", "-3.29"),
        *("--wrappers.nan-guard", "off", "--total-steps", "1e6", "--time-limit", "2.5"),
    )
    assert config.algo.learning_rate == 1e-3 and config.network.hidden == (32, 16)
    assert config.seed == 7 and config.env_id == "CartPole-v1"
    assert config.algo.value_clip is None and config.network.squash is True
    assert config.eval.every == 5000 and config.algo.normalize_advantages is False
    assert config.network.log_std_init == -3.29 and config.wrappers.nan_guard == "off"
    assert config.total_steps == 1_000_000 and config.time_limit == 2.5
    preset = load_preset("cartpole-ppo")
    assert config.wrappers.reward_scale == preset.wrappers.reward_scale, "the rest is the preset's"
    assert config.algo.num_steps == preset.algo.num_steps


def test_another_algorithm_has_its_own_defaults_and_flags(tmp_path):
    plain = merged("rlgym/Memory-v0", "--algo", "sac")
    assert plain == default_config("rlgym/Memory-v0", "sac")
    config = merged(
        *("Nowhere-v0", "--algo", "sac", "--algo.updates-per-step", "0.5", "--algo.overlap"),
        *("--algo.critic-learning-rate", "1e-3", "--algo.demonstrations", "d.npz"),
    )
    expected = SACConfig(
        updates_per_step=0.5, overlap=True, critic_learning_rate=1e-3, demonstrations="d.npz"
    )
    assert config.algo == expected
    save_config(config, tmp_path / "sac.yaml")
    assert merged("--config", str(tmp_path / "sac.yaml")) == config, "a file names its algorithm"
    tuned = merged("Pendulum-v1", "--algo", "sac")
    assert tuned == load_preset("pendulum-sac")


def test_help_shows_the_flags_of_the_algorithm(capsys):
    with pytest.raises(SystemExit):
        main(["train", "Nowhere-v0", "--algo", "sac", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--algo.updates-per-step FLOAT" in shown and "--algo.epochs" not in shown


def test_arguments_of_the_world_are_yaml():
    config = merged(
        *("X-v0", "--env.render-mode", "rgb_array", "--env.size", "3", "--env.list", "[1, 2.5]"),
        *("--env.flag=true", "--env.nested.key", "text", "--env.nothing", "null"),
    )
    assert config.env == {
        **{"render_mode": "rgb_array", "size": 3, "list": [1, 2.5], "flag": True},
        **{"nested": {"key": "text"}, "nothing": None},
    }


def test_a_file_stands_between_preset_and_flags(tmp_path):
    (tmp_path / "my.yaml").write_text("env_id: Acrobot-v1\nseed: 5\nalgo: {gamma: 0.5, epochs: 2}")
    file = str(tmp_path / "my.yaml")
    config = merged("--config", file, "--algo.epochs", "3")
    assert config == from_dict(
        {"env_id": "Acrobot-v1", "seed": 5, "algo": {"gamma": 0.5, "epochs": 3}}
    ), "a file alone is not mixed with a preset"
    notice = read_arguments(["CartPole-v1", "--config", file])[2]
    assert "without the preset cartpole-ppo (--preset cartpole-ppo adds it)" in notice
    both = merged("CartPole-v1", "--config", file, "--preset", "cartpole-ppo")
    assert (both.env_id, both.seed, both.algo.gamma) == ("CartPole-v1", 5, 0.5)
    assert both.algo.num_steps == load_preset("cartpole-ppo").algo.num_steps


def test_what_is_printed_is_what_would_run(tmp_path, capsys):
    words = ["CartPole-v1", "--algo.gamma", "0.5", "--env.a", "1"]
    assert main(["train", *words, "--print-config"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == to_dict(merged(*words))
    (tmp_path / "printed.yaml").write_text(text)
    assert merged("--config", str(tmp_path / "printed.yaml")) == merged(*words)


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit):
        main(["train", "Pendulum-v1", "--algo.gamma", "0.875", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--algo.gamma FLOAT" in shown and "(default: 0.875)" in shown
    assert "(default: Pendulum-v1)" in shown and "(default: pendulum-ppo)" in shown
    assert "Discount per step." in shown and "--print-config" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "which world? For example: rlgym train CartPole-v1"),
        (["CartPole-v1", "x"], "unexpected 'x'"),
        (["X-v0", "--learning-rate", "1"], "did you mean '--algo.learning-rate'?"),
        (["X-v0", "--algo.learnign-rate", "1"], "did you mean '--algo.learning-rate'?"),
        (["X-v0", "--ovrwrite"], "did you mean '--overwrite'?"),
        (["X-v0", "--algo.gamma"], "--algo.gamma needs a value"),
        (["X-v0", "--algo.gamma", "--seed", "1"], "--algo.gamma needs a value"),
        (["X-v0", "--algo.gamma", "x"], "--algo.gamma: expected a number, got 'x'"),
        (["X-v0", "--num-envs", "1.5"], "--num-envs: expected a whole number, got '1.5'"),
        (["X-v0", "--network.hidden", "a"], "--network.hidden: expected a whole number, got 'a'"),
        (["X-v0", "--backend", "procces"], "did you mean 'process'?"),
        (["X-v0", "--num-envs", "0"], "num_envs must be at least 1, it is 0"),
        (
            ["X-v0", "--algo.tau", "1"],
            "--algo.tau is not a setting: it is one of sac: choose --algo",
        ),
        (["X-v0", "--algo", "sac", "--algo.epochs", "1"], "it is one of ppo: choose --algo ppo"),
        (["X-v0", "--algo", "sac", "--algo.upates-per-step", "1"], "'--algo.updates-per-step'?"),
        (["X-v0", "--algo", "sac", "--network.std", "global"], "set it to state, or to gsde"),
        (["X-v0", "--preset", "cartpole-ppo", "--algo", "sac"], "is not for sac: leave one"),
        (["X-v0", "--algo", "pppo"], "--algo: there is no 'pppo': did you mean 'ppo'?"),
        (["X-v0", "--preset", "carpole-ppo"], "did you mean 'cartpole-ppo'?"),
        (["--config", "absent.yaml"], "absent.yaml: there is no such file"),
        (["X-v0", "--env.a", "!!python/name:os.system"], "is not plain YAML"),
        (["X-v0", "--env", "3"], "--env.KEY VALUE), and the world itself is the first word"),
        (["X-v0", "--lr", "1"], "did you mean '--algo.learning-rate'?"),
        (["X-v0", "--timesteps", "1"], "did you mean '--total-steps'?"),
        (["X-v0", "--net-arch", "1"], "did you mean '--network.hidden'?"),
        (["X-v0", "--algo.n-steps", "1"], "did you mean '--algo.num-steps'?"),
        (["X-v0", "--algo.batch-size", "1"], "did you mean --algo.minibatch-size?"),
        (["X-v0", "--cuda"], "did you mean '--device'?"),
        (["X-v0", "--xyzzy"], "--xyzzy is not a flag: --help lists them"),
        (["X-v0", "--backend", "thread"], "choose from auto, sync, process, device"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in failure(capsys, *words)
    assert list(tmp_path.iterdir()) == []
