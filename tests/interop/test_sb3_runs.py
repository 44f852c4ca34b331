"""SB3's models as runs of ours, runs of ours as SB3's models, and VecNormalize's statistics."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rlgym
from rlgym.cli.main import main
from rlgym.errors import CheckpointError, SpaceError, UserError
from rlgym.interop import sb3_models
from rlgym.interop.sb3_normalize import read_statistics
from rlgym.training import checkpoint
from tests.interop.sb3_worlds import ARM, BOX, IMAGE, QUICK, World, model_of, observations

SMALL = {"net_arch": [8]}


def pendulum(kind, path, steps=64):
    model = kind(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={**SMALL}, **QUICK[kind]
    )
    model.learn(steps)
    model.save(path)
    return model


# -------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", [PPO, pytest.param(SAC, marks=pytest.mark.slow), TD3])
def test_an_imported_model_is_a_run_like_any_other(kind, tmp_path, capsys):
    model = pendulum(kind, tmp_path / "model.zip")
    run = str(tmp_path / "run")
    command = ["import", "sb3", str(tmp_path / "model.zip"), "--env", "Pendulum-v1"]
    assert main([*command, "--run-dir", run]) == 0
    assert f"rlgym eval {run}" in capsys.readouterr().out
    obs = observations(model.observation_space, 50)
    theirs, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(rlgym.load_policy(run).act(obs), theirs, atol=2e-6)

    assert main(["eval", run, "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 64
    assert main([*command, "--run-dir", run]) == 2
    assert "holds a run already" in capsys.readouterr().err

    before = checkpoint.newest(run).tensors("model")
    finished = rlgym.resume(run, 128, console="off", eval={"episodes": 1})
    assert finished.state.env_steps >= 128
    after = checkpoint.newest(run).tensors("model")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_settings_are_taken_over(tmp_path):
    settings = {"gamma": 0.9, "clip_range": 0.3, "ent_coef": 0.01, "target_kl": 0.02}
    model_of(PPO, BOX, ARM, learning_rate=lambda _: 1e-4, **settings).save(tmp_path / "model")
    config = sb3_models.load(tmp_path / "model.zip").config
    algo = config.algo
    assert (algo.num_steps, algo.minibatch_size, algo.epochs, config.num_envs) == (32, 16, 2, 1)
    assert (algo.gamma, algo.clip, algo.entropy_coef, algo.target_kl) == (0.9, 0.3, 0.01, 0.02)
    assert algo.learning_rate == 3e-4  # a function stands in the file as a pickle only
    assert config.seed == 0 and config.total_steps == 64

    model = model_of(SAC, BOX, ARM, policy_kwargs=SMALL, tau=0.02, ent_coef="auto_0.3")
    model.save(tmp_path / "model")
    algo = sb3_models.load(tmp_path / "model.zip").config.algo
    assert (algo.tau, algo.batch_size, algo.buffer_size) == (0.02, 16, 300)
    assert algo.target_entropy == -2.0 and algo.temperature is None
    temperature = float(model.log_ent_coef.detach().exp())
    assert 0 < abs(temperature - 0.3) < 0.05
    assert algo.initial_temperature == pytest.approx(temperature)


def test_without_a_world_the_policy_alone_is_saved(tmp_path, capsys):
    model = model_of(PPO, BOX, ARM)
    model.save(tmp_path / "model")
    run = tmp_path / "run"
    assert main(["import", "sb3", str(tmp_path / "model.zip"), "--run-dir", str(run)]) == 0
    assert "import it again with --env ID" in capsys.readouterr().out
    obs = observations(BOX)
    np.testing.assert_allclose(
        rlgym.load_policy(run).act(obs), model.predict(obs, deterministic=True)[0], atol=1e-6
    )
    assert main(["eval", str(run)]) == 2
    assert "Python function" in capsys.readouterr().err


def test_frames_that_were_stacked_are_stacked_again(tmp_path):
    rlgym.register("tests/Dim-v0", Dim)
    stacked = spaces.Box(0, 255, (12, 36, 40), np.uint8)  # what VecFrameStack and SB3 make of it
    model_of(PPO, stacked, spaces.Discrete(2), 32, policy_kwargs=SMALL).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="--frame-stack"):
        sb3_models.load(tmp_path / "model.zip", env="tests/Dim-v0")
    policy = sb3_models.load(tmp_path / "model.zip", env="tests/Dim-v0", frame_stack=4)
    assert policy.observation_space.shape == (36, 40, 12)


def Dim():  # noqa: N802 - stands for a world's class
    return World(IMAGE, spaces.Discrete(2))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sb3"], "MODEL is missing"),
        (["tf", "model.zip"], "'tf' is not known: rlgym import sb3 MODEL.zip"),
        (["sb3", "absent.zip"], "there is no such file"),
        (["sb3", "model.zip", "--env", "Nowhere-v0"], "Nowhere"),
        (["sb3", "model.zip", "--env", "CartPole-v1"], "was trained with the observation_space"),
        (["sb3", "model.zip", "--vec-normalize", "gone.npz"], "no such file of statistics"),
        (["sb3", "model.zip", "--frame-stack", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_of(PPO, BOX, ARM, 0).save("model")
    assert main(["import", *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    shown = capsys.readouterr().out
    assert "rlgym import sb3 ppo_pendulum.zip --env Pendulum-v1" in shown and "--trust" in shown


# ------------------------------------------------------------------------ out, and training there


def test_a_run_goes_on_training_in_sb3(tmp_path):
    run = tmp_path / "run"
    algo = {"num_steps": 32, "minibatch_size": 32, "epochs": 2}
    network = {"normalize_obs": True, "hidden": (8,)}
    rlgym.train(
        *["Pendulum-v1"],
        **{"run_dir": run, "total_steps": 256, "num_envs": 2, "backend": "sync", "preset": None},
        **{"algo": algo, "network": network, "eval": {"episodes": 1}, "console": "off"},
    )
    policy = rlgym.load_policy(run)
    env = rlgym.make_vec("Pendulum-v1", 2, backend="sync")
    model = sb3_models.to_sb3_model(run, env)
    obs = 3 * np.asarray(observations(policy.observation_space))
    scaled = model.get_vec_normalize_env().normalize_obs(obs)
    theirs, _ = model.predict(scaled, deterministic=True)
    np.testing.assert_allclose(policy.act(obs), theirs, atol=2e-6)
    assert theirs.std() > 1e-3
    assert model.num_timesteps == policy.step == 256 and model.n_steps == 32
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 320
    env.close()


def test_a_soft_run_goes_on_training_in_sb3(tmp_path):
    run = tmp_path / "run"
    rlgym.train(
        *["Pendulum-v1"],
        **{"run_dir": run, "total_steps": 120, "preset": None, "backend": "sync"},
        **{"algo": {"name": "sac", "learning_starts": 50, "buffer_size": 500}, "console": "off"},
        **{"network": {"hidden": (8,)}, "eval": {"episodes": 1}},
    )
    policy = rlgym.load_policy(run)
    env = rlgym.make_vec("Pendulum-v1", 1, backend="sync")
    model = sb3_models.to_sb3_model(policy, env)
    assert isinstance(model, SAC)
    obs = observations(policy.observation_space)
    theirs, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(policy.act(obs), theirs, atol=2e-6)
    before = theirs.copy()
    model.learn(80)
    assert np.abs(model.predict(obs, deterministic=True)[0] - before).max() > 1e-4
    env.close()


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_off_policy_algorithms_of_sb3_train_on_our_worlds(kind):
    from rlgym.interop.sb3 import to_sb3

    env = to_sb3(rlgym.make_vec("Pendulum-v1", 2, backend="sync"))
    model = kind("MlpPolicy", env, device="cpu", policy_kwargs={**SMALL}, **QUICK[kind])
    model.learn(120)
    assert model.num_timesteps >= 120 and model._n_updates > 0
    env.close()


def test_another_world_is_refused_on_the_way_out(tmp_path):
    model_of(PPO, BOX, ARM, 0).save(tmp_path / "model")
    policy = sb3_models.load(tmp_path / "model.zip")
    with pytest.raises(SpaceError, match="the world has the actions"):
        sb3_models.to_sb3_model(policy, World(BOX, BOX))
    with pytest.raises(UserError, match="env is a str"):
        sb3_models.to_sb3_model(policy, "Pendulum-v1")
    with pytest.raises(UserError, match="neither a run's folder nor a policy"):
        sb3_models.to_sb3_model(3)


# ------------------------------------------------------------------------------ VecNormalize

KEYED = spaces.Dict({"joint": spaces.Box(-9, 9, (2,)), "goal": BOX, "kind": spaces.Discrete(2)})


def normalized(space, clip=1.0, epsilon=1e-8):
    """A VecNormalize that has seen something, and a model behind it."""
    keys = ["joint", "goal"] if isinstance(space, spaces.Dict) else None
    env = VecNormalize(
        DummyVecEnv([lambda: World(space, ARM)]),
        **{"clip_obs": clip, "epsilon": epsilon, "norm_obs_keys": keys},
    )
    space.seed(0)
    policy = "MultiInputPolicy" if keys else "MlpPolicy"
    model = PPO(policy, env, seed=0, device="cpu", **QUICK[PPO])
    model.learn(64)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    return env, model


def arrays_of(env):
    rms = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    found = {"clip": np.array(env.clip_obs), "epsilon": np.array(env.epsilon)}
    for key, one in rms.items():
        end = f"/{key}" if key else ""
        found |= {f"mean{end}": one.mean, f"var{end}": one.var, f"count{end}": np.array(one.count)}
    return found


def write(arrays, path):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        safetensors.numpy.save_file(whole, path)
    else:
        document: dict = {}
        for name, value in arrays.items():
            kind, _, key = name.partition("/")
            if key:
                document.setdefault(kind, {})[key] = value.tolist()
            else:
                document[kind] = value.tolist()
        path.write_text(json.dumps(document))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".json"])
@pytest.mark.parametrize("space", [spaces.Box(-9, 9, (3,)), KEYED], ids=["box", "dict"])
def test_statistics_come_in_as_numbers(space, suffix, tmp_path):
    env, model = normalized(space, epsilon=1e-3)
    model.save(tmp_path / "model")
    write(arrays_of(env), tmp_path / f"norm{suffix}")
    policy = sb3_models.load(
        tmp_path / "model.zip", observation_space=space, vec_normalize=tmp_path / f"norm{suffix}"
    )
    obs = observations(space)
    scaled = env.normalize_obs(obs)
    theirs, _ = model.predict(scaled, deterministic=True)
    assert theirs.std() > 0.1
    np.testing.assert_allclose(policy.act(obs), theirs, atol=5e-6)
    values = scaled["joint"] if isinstance(scaled, dict) else scaled
    assert np.abs(values).max() == pytest.approx(1.0)  # the clip was at work
    norm = next(iter(policy.policy.obs_norm.values()))
    assert float(norm.count) == pytest.approx(64, abs=2)


def test_the_pickle_is_read_only_when_it_is_trusted(tmp_path):
    space = spaces.Box(-9, 9, (3,))
    env, _ = normalized(space)
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(CheckpointError, match=r"docs/sb3\.md, or add --trust"):
        read_statistics(tmp_path / "vecnormalize.pkl")
    statistics = read_statistics(tmp_path / "vecnormalize.pkl", trust=True)
    np.testing.assert_array_equal(statistics.mean[""], env.obs_rms.mean)
    assert (statistics.clip, statistics.count) == (1.0, env.obs_rms.count)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"var": np.array([-1.0, 1, 1])}, "no variance"),
        ({"mean": np.zeros(4), "var": np.ones(4)}, r"mean \[4\] and var \[4\]"),
        ({"mean": np.array([np.nan, 0, 0])}, "not made of finite numbers"),
        ({"mean/a": np.zeros(3)}, "needs mean and var"),
        ({"mean/a": np.zeros(3), "var/a": np.ones(3)}, r"statistics of \['', 'a'\]"),
        ({"clip": np.array(-1.0)}, "negative"),
        ({"returns": np.array(1.0)}, "none of mean, var"),
    ],
)
def test_wrong_statistics_are_refused(change, reason, tmp_path):
    model_of(PPO, BOX, ARM, 0).save(tmp_path / "model")
    arrays = {"mean": np.zeros(3), "var": np.ones(3), "count": np.array(5)} | change
    np.savez(tmp_path / "norm.npz", **arrays)
    with pytest.raises(CheckpointError, match=reason):
        sb3_models.load(tmp_path / "model.zip", vec_normalize=tmp_path / "norm.npz")
