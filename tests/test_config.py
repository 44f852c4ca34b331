import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import rlgym.settings as settings
from rlgym.config import (
    ALGOS,
    NetworkConfig,
    PPOConfig,
    SACConfig,
    TrainConfig,
    asks_for_tensors,
    default_config,
    from_dict,
    load_config,
    load_preset,
    merge,
    preset_for,
    presets,
    save_config,
    starting_config,
    to_dict,
)
from rlgym.errors import ConfigError


def error_of(changes):
    with pytest.raises(ConfigError) as caught:
        from_dict(changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_config_loads_as_the_same_config(tmp_path):
    config = TrainConfig(
        env_id="a:B-v1",
        env={"render_mode": "rgb_array", "terrain": [1, 2.5, None], "size": np.float32(0.5)},
        time_limit=1e-7,
        algo=PPOConfig(learning_rate=3e-5, target_kl=None, clip_schedule="linear"),
        network=NetworkConfig(hidden=(), privileged=("mass", "friction")),
    )
    save_config(config, tmp_path / "config.yaml")
    expected = dataclasses.replace(config, env={**config.env, "size": 0.5})
    assert load_config(tmp_path / "config.yaml") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_saved_algorithm_is_named_so_that_another_can_stand_there():
    assert to_dict(TrainConfig())["algo"]["name"] == "ppo"


def test_another_algorithm_is_chosen_by_its_name():
    @dataclasses.dataclass(frozen=True)
    class Other:
        tau: float = 0.005

    variants = {**ALGOS, "other": Other}
    changed = settings.change(
        TrainConfig(), {"algo": {"name": "other", "tau": "1e-2"}}, variants, str
    )
    assert changed.algo == Other(tau=0.01)


def test_sac_starts_from_defaults_of_its_own(tmp_path):
    named = from_dict({"algo": "sac", "env_id": "A-v0"})
    assert named == from_dict({"algo": {"name": "sac"}, "env_id": "A-v0"})
    assert named == default_config("A-v0", "sac")
    assert (named.num_envs, named.network.hidden, named.network.squash) == (1, (256, 256), True)
    assert named.algo == SACConfig() and to_dict(named)["algo"]["name"] == "sac"
    save_config(named, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == named
    with pytest.raises(ConfigError, match="no algorithm 'sacc': did you mean 'sac'"):
        default_config("A-v0", "sacc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algo": {"epochs": 2}},
            "algo.epochs is not a setting: it is one of ppo: choose algo ppo",
        ),
        ({"algo": {"tua": 0.1}}, "algo.tua is not a setting: did you mean algo.tau?"),
        ({"algo": {"tau": 1.5}}, "algo.tau must be at most 1, it is 1.5"),
        ({"algo": {"tau": 0}}, "algo.tau must be above 0, it is 0"),
        ({"algo": {"hindsight": 1.2}}, "algo.hindsight must be from 0 to 1, it is 1.2"),
        ({"algo": {"learning_starts": -1}}, "algo.learning_starts must be 0 or more"),
        ({"algo": {"n_step": 0}}, "algo.n_step must be at least 1, it is 0"),
        ({"algo": {"updates_per_step": 0}}, "algo.updates_per_step must be above 0"),
        ({"algo": {"batch_size": 2.5}}, "algo.batch_size: expected a whole number, got 2.5"),
        ({"network": {"recurrent": "gru"}}, "network.recurrent is 'gru', and SAC has no memory"),
        ({"network": {"std": "global"}}, "network.std is 'global', and SAC's deviation follows"),
        ({"network": {"squash": False}}, "network.squash is false, and SAC bounds its actions"),
        ({"algo": {"buffer_size": 4}, "num_envs": 3}, "algo.buffer_size is 4, and 3 worlds with"),
    ],
)
def test_what_sac_cannot_be_given_is_one_line(changes, message):
    changes = {**changes, "algo": {"name": "sac", **changes.get("algo", {})}}
    assert error_of(changes).startswith(message)


def test_settings_of_sac_are_not_ppos():
    message = error_of({"algo": {"tau": 0.1}})
    assert message == "algo.tau is not a setting: it is one of sac: choose algo sac"


def test_gradient_steps_that_are_due():
    algo = SACConfig(learning_starts=10, updates_per_step=0.75)
    assert [algo.updates_due(steps) for steps in (0, 10, 11, 12, 14)] == [0, 0, 0, 1, 3]


def test_a_person_starts_from_the_preset_of_world_and_algorithm():
    assert starting_config("Nowhere-v0", "auto", "sac") == default_config("Nowhere-v0", "sac")
    assert starting_config("CartPole-v1", "auto", None) == load_preset("cartpole-ppo")
    assert starting_config("CartPole-v1", None, None) == TrainConfig("CartPole-v1")
    assert type(starting_config("Pendulum-v1", "auto", "sac").algo) is SACConfig
    with pytest.raises(ConfigError, match="'cartpole-ppo' is not for sac: leave one of the two"):
        starting_config("CartPole-v1", "cartpole-ppo", "sac")
    with pytest.raises(ConfigError, match="no algorithm 'ppp'"):
        starting_config("CartPole-v1", "auto", "ppp")


def test_what_python_programs_hold_is_taken():
    rates = {"learning_rate": np.float32(0.5), "normalize_advantages": np.bool_(False)}
    given = {"seed": np.int64(3), "network": {"hidden": np.array([8, 4])}, "algo": rates}
    merged = merge(TrainConfig(), given)
    assert (merged.seed, merged.network.hidden) == (3, (8, 4))
    assert (merged.algo.learning_rate, merged.algo.normalize_advantages) == (0.5, False)
    assert merge(TrainConfig(), {"network": {"hidden": 64}, "algo": None}).network.hidden == (64,)
    demos = {"algo": {"demonstrations": Path("swings.npz")}}
    assert merge(default_config("A-v0", "sac"), demos).algo.demonstrations == "swings.npz"


def test_a_folder_of_a_run_stands_for_its_config(tmp_path):
    save_config(TrainConfig(seed=5), tmp_path / "config.yaml")
    assert load_config(tmp_path).seed == 5


def test_a_section_may_be_given_as_its_dataclass():
    assert merge(TrainConfig(), {"algo": PPOConfig(epochs=3)}).algo.epochs == 3


def test_merge_changes_only_what_is_given():
    base = from_dict({"algo": {"epochs": 3}, "env": {"a": 1}})
    merged = merge(base, {"algo": {"gamma": 0.9}, "env": {"b": 2}, "network": {"hidden": [8]}})
    assert (merged.algo.epochs, merged.algo.gamma) == (3, 0.9)
    assert merged.env == {"a": 1, "b": 2}
    assert merged.network.hidden == (8,)
    assert base.env == {"a": 1}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"algo": {"learnign_rate": 1}}, ["algo.learnign_rate", "algo.learning_rate?"]),
        ({"learning_rate": 1}, ["did you mean algo.learning_rate?"]),
        ({"network": {"learning_rate": 1}}, ["did you mean algo.learning_rate?"]),
        ({"num-envs": 1}, ["did you mean num_envs?"]),
        ({"wrappers": {"zzz": 1}}, ["wrappers has reward_scale, normalize_reward"]),
        ({7: 1}, ["7 is not a setting"]),
    ],
)
def test_an_unknown_key_names_the_nearest_or_all(changes, parts):
    message = error_of(changes)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": "many"}, "num_envs: expected a whole number, got 'many'"),
        ({"num_envs": 1.5}, "num_envs: expected a whole number, got 1.5"),
        ({"num_envs": True}, "num_envs: expected a whole number, got True"),
        ({"num_envs": None}, "num_envs: expected a whole number, got None"),
        ({"algo": {"gamma": "high"}}, "algo.gamma: expected a number, got 'high'"),
        ({"algo": {"gamma": float("nan")}}, "algo.gamma: expected a number, got nan"),
        (
            {"algo": {"normalize_advantages": "yes"}},
            "algo.normalize_advantages: expected true or false, got 'yes'",
        ),
        ({"device": 3}, "device: expected a text, got 3"),
        ({"network": {"hidden": "wide"}}, "network.hidden: expected a list, each a whole number"),
        ({"network": {"hidden": [64, "x"]}}, "network.hidden: expected a whole number, got 'x'"),
        ({"env": [1]}, "env: expected keys with values, got [1]"),
        ({"algo": 3}, "algo: expected settings (num_steps, "),
        ({"algo": NetworkConfig()}, "algo: expected settings (num_steps, "),
        ({"algo": {"name": "ppp"}}, "algo.name: there is no 'ppp': did you mean 'ppo'?"),
        ({"backend": "procces"}, "backend: 'procces' is not a choice: did you mean 'process'?"),
        ({"num_envs": 0}, "num_envs must be at least 1, it is 0"),
        ({"algo": {"gamma": 1.5}}, "algo.gamma must be from 0 to 1, it is 1.5"),
        ({"network": {"hidden": [64, 0]}}, "network.hidden must be widths of at least 1"),
        ({"time_limit": -1}, "time_limit must be above 0, it is -1.0"),
    ],
)
def test_a_wrong_value_says_what_is_expected(changes, message):
    assert error_of(changes).startswith(message)


def test_what_yaml_cannot_write_otherwise_is_understood():
    text = "{total_steps: 1e6, algo: {learning_rate: 1e-3}, wrappers: {nan_guard: off}}"
    values = yaml.safe_load(text)
    assert values["algo"]["learning_rate"] == "1e-3" and values["wrappers"]["nan_guard"] is False
    config = from_dict(values)
    assert config.total_steps == 1_000_000 and isinstance(config.total_steps, int)
    assert config.algo.learning_rate == 0.001
    assert config.wrappers.nan_guard == "off"
    assert from_dict({"seed": "9007199254740993"}).seed == 9007199254740993  # 2**53 + 1


def test_a_world_argument_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"env\.reward: a function cannot be saved"):
        save_config(TrainConfig(env={"reward": test_presets_load}), tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_envs: [1", "line 1: expected ',' or ']'"),
        ("- 1\n- 2\n", "expected settings such as"),
        ("algo: &a {gamma: 0.9}\nnetwork: *a\n", "YAML aliases are refused"),
        ("algo:\n  gama: 0.9\n", "algo.gama is not a setting: did you mean algo.gamma?"),
        ("env: " + "[" * 20_000, "nested more than 30 deep"),
        ("algo:\n  gamma: 0.9\n  'gamma': 0.99\n", "line 3: 'gamma' is given twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_configs(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * 100_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(tmp_path / "large.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == TrainConfig()


def agents_of(env):
    """Slots of a scene of the stand-in, which are counted only when it runs."""
    from rlgym.envs.unity.standin.agents import SceneOptions
    from rlgym.envs.unity.standin.channels import Channels
    from rlgym.envs.unity.standin.scenes import build

    rng = np.random.default_rng(0)
    (population,) = build(env.get("scene", "3dball"), SceneOptions(), Channels(), rng)
    return population.num_agents


@pytest.mark.parametrize("name", presets())
def test_presets_load(name):
    config = load_preset(name)
    assert config.preset == name
    kind = next(kind for kind, known in ALGOS.items() if type(config.algo) is known)
    assert name.endswith(f"-{kind}")
    found = preset_for(config.env_id, kind, config.env, config.backend == "device")
    assert found == name, "two presets for one world, its arguments and one algorithm"
    if isinstance(config.algo, PPOConfig):
        rollout = config.algo.num_steps * (config.num_envs or agents_of(config.env))
        assert config.algo.minibatch_size <= rollout, "a minibatch larger than the rollout"
        assert rollout % config.algo.minibatch_size == 0, "minibatches of different sizes"
    else:
        assert config.algo.batch_size <= config.algo.learning_starts <= config.total_steps / 10
        assert config.algo.buffer_size <= config.total_steps, "room that is never filled"
        assert config.network.squash


def test_presets_are_found_by_world():
    assert preset_for("CartPole-v1") == "cartpole-ppo"
    assert preset_for("CartPole-v1", tensors=True) == "cartpole-device-ppo"
    assert preset_for("Acrobot-v1", tensors=True) == "acrobot-ppo"
    assert preset_for("HopperBulletEnv-v0") == "hopper-bullet-ppo"
    assert preset_for("Nowhere-v0") is None
    assert preset_for("CartPole-v1", "sac") is None
    assert preset_for("HopperBulletEnv-v0", "sac") == "hopper-bullet-sac"
    assert load_preset("cartpole-ppo", "CartPole-v0").env_id == "CartPole-v0"
    with pytest.raises(ConfigError, match="did you mean 'cartpole-ppo'"):
        load_preset("cartpole_ppo")


def test_there_is_a_preset_for_each_world_that_is_promised():
    bullet = "pybullet_envs_gymnasium"
    both = {
        *(f"{bullet}:HopperBulletEnv-v0", f"{bullet}:HalfCheetahBulletEnv-v0"),
        *("panda_gym:PandaReach-v3", "HalfCheetah-v5", "Pendulum-v1"),
    }
    assert all(preset_for(world, algo) for world in both for algo in ALGOS)
    assert all(preset_for(w) for w in ("CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0"))


def test_the_backend_chooses_among_presets():
    for asked in ({"backend": "device"}, {"device": "cuda"}, {"device": "cuda:1"}):
        assert asks_for_tensors(asked)
    for asked in ({}, {"device": "cpu"}, {"backend": "sync", "device": "cuda"}):
        assert not asks_for_tensors(asked)


def test_the_arguments_of_a_world_choose_among_its_presets(monkeypatch):
    made = {
        "many-a-ppo": TrainConfig("Many-v0", env={"robot": "a", "clip": "x"}),
        "many-b-ppo": TrainConfig("Many-v0", env={"robot": "b", "clip": "x"}),
    }
    monkeypatch.setattr("rlgym.config.presets", lambda: sorted(made))
    monkeypatch.setattr("rlgym.config.load_preset", lambda name: made[name])
    monkeypatch.setattr("rlgym.config._preset_text", lambda name: made[name].env_id)
    assert preset_for("Many-v0") == "many-a-ppo"
    assert preset_for("Many-v0", env={"robot": "b"}) == "many-b-ppo"
    assert preset_for("Many-v0", env={"robot": "c", "clip": "y"}) == "many-a-ppo"


def test_every_field_has_its_line():
    text = Path(settings.__file__).with_name("config.py").read_text()
    source = text.partition("\nALGOS")[0].splitlines()
    for path in settings.nested_types(TrainConfig):
        name = path.rpartition(".")[2]
        places = [i for i, line in enumerate(source) if line.startswith(f"    {name}: ")]
        assert places, name
        assert all(source[i + 1].startswith('    """') for i in places), name


def test_finding_a_preset_is_quick():
    started = time.process_time()
    preset_for("Nowhere-v0")
    assert time.process_time() - started < 1.0
