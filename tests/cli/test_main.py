import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces

import rlgym
from rlgym.cli.main import VERBS, main, usage
from rlgym.cli.runs import no_run, read_run, require_fit
from rlgym.config import preset_for
from rlgym.errors import SpaceError, UserError
from rlgym.spaces import Layout


def python(*words, **kwargs):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, **kwargs
    )


def failure(capsys, *words):
    """Return the one line of a call that is a mistake."""
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def test_help_teaches_and_loads_nothing_heavy():
    program = (
        "import sys\nfrom rlgym.cli.main import main\nstatus = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'tyro', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(status)"
    )
    started = time.perf_counter()
    done = python("-c", program)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.count("\n  rlgym ") == 3, "three examples"
    assert seconds < 2.0, "0.05 s alone; the bound leaves room for a busy machine"


def test_the_module_is_the_command():
    done = python("-m", "rlgym", "--version")
    assert (done.returncode, done.stdout) == (0, f"rlgym {rlgym.__version__}\n")


def test_no_words_is_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == usage() + "\n"


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"bench", "doctor"}))
def test_each_verb_has_help_with_a_line_per_flag(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: rlgym {verb}" in shown and shown.count("\n") > 5


def test_verbs_without_torch_stay_without_it():
    program = (
        "import sys\nfrom rlgym.cli.main import main\n"
        "for words in (['envs', 'CartPole'], ['train', 'CartPole-v1', '--print-config']):\n"
        "    assert main(words) == 0\nassert 'torch' not in sys.modules"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_a_wrong_verb_names_the_nearest(capsys):
    assert "did you mean 'train'?" in failure(capsys, "trian")
    assert "there are train, resume" in failure(capsys, "xyz")


SEEDED = ("eval", "record", "play", "export", "doctor", "sim2sim")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval"], "RUN is missing: see rlgym eval --help"),
        (["eval", "nowhere"], "nowhere holds no run"),
        (["eval", "a", "b"], "unexpected 'b'"),
        (["eval", "a", "--episods", "3"], "--episods is not a flag: did you mean '--episodes'?"),
        (["eval", "a", "--episodes"], "--episodes needs a value"),
        (["eval", "a", "--episodes", "many"], "--episodes: expected a whole number, got 'many'"),
        (["eval", "a", "--episodes", "0"], "--episodes must be at least 1"),
        (["eval", "a", "--which", "first"], "--which: 'first' is not a choice"),
        (["resume", "nowhere"], "nowhere holds no run"),
        (["resume", "nowhere", "-x"], "-x is not a flag"),
        (["resume"], "RUN is missing: rlgym resume takes one folder of a run"),
        (["resume", "a", "b"], "unexpected 'b'"),
        (["resume", "a", "--totl-steps", "3"], "did you mean '--total-steps'?"),
        (["record", "CartPole-v1"], "CartPole-v1 is not a run: add --policy zero"),
        (["record", "CartPole-v1", "--out", "a.avi"], "ends in .mp4 or .gif"),
        *(([verb, "a", "--seed", "-1"], "--seed must be at least 0, not -1") for verb in SEEDED),
        *(([verb, "a", "--seed", "9" * 20], "--seed must be below 2**63") for verb in SEEDED),
        (["record", "CartPole-v1", "--policy", "zero", "--fps", "-5"], "--fps must be at least"),
        (["record", "CartPole-v1", "--policy", "zero", "--fps", "0"], "--fps must be at least"),
        (["play", "a", "--episodes", "0"], "--episodes must be at least 1"),
        (["sim2sim", "a", "--episodes", "0"], "--episodes must be at least 1"),
        (["doctor", "CartPole-v1", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["export", "a", "--manifest", "x"], "--manifest goes with the .onnx of another trainer"),
        (["export", "a", "--samples", "x"], "--samples goes with the .onnx of another trainer"),
        (["record", "CartPol-v1", "--policy", "zero"], "did you mean CartPole-v1"),
        (["envs", "cartpoel"], "no id contains 'cartpoel': CartPole-v1 is near"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in failure(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_shows_where_it_came_from(capsys, monkeypatch):
    monkeypatch.setattr("rlgym.cli.envs.worlds", lambda: 1 / 0)
    assert main(["envs"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown and "please report it" in shown


def test_envs_lists_worlds_with_what_they_need(capsys):
    assert main(["envs", "--json"]) == 0
    listed = {world["id"]: world for world in json.loads(capsys.readouterr().out)}
    assert listed["CartPole-v1"]["preset"] == "cartpole-ppo"
    assert listed["panda_gym:PandaReach-v3"]["source"] == "panda_gym"
    assert listed["rlgym/Memory-v0"]["source"] == "rlgym"
    assert "CartPole-v0" not in listed and "Hopper-v3" not in listed, "superseded or removed"
    assert main(["envs", "cartpole-v1"]) == 0
    assert "CartPole-v1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        ("Pendulum-v1", "presets pendulum-ppo, pendulum-sac"),
        ("CartPole-v1", "presets cartpole-ppo, cartpole-device-ppo"),
        ("rlgym/Imitate-v0", "presets imitate-a1-ppo, imitate-a1-walk-ppo, "),
        ("Acrobot-v1", "preset acrobot-ppo"),
    ],
)
def test_envs_names_all_presets_and_first_the_one_that_train_takes(capsys, world, expected):
    assert main(["envs", world]) == 0
    assert f"  {expected}" in capsys.readouterr().out
    assert main(["envs", world, "--json"]) == 0
    listed = next(each for each in json.loads(capsys.readouterr().out) if each["id"] == world)
    assert listed["preset"] == listed["presets"][0] == preset_for(world)


def test_a_world_that_misses_a_package_says_which(capsys, monkeypatch):
    monkeypatch.setattr("rlgym.cli.envs.importlib.util.find_spec", lambda name, package=None: None)
    assert main(["envs", "hopper"]) == 0
    shown = capsys.readouterr().out
    assert 'pip install "rlgym-lab[mujoco]"' in shown
    assert 'more with panda_gym: pip install "rlgym-lab[worlds]"' in shown


# ----------------------------------------------------------------------------------- what is no run


def test_the_newest_run_is_newest_by_its_time_and_a_part_of_a_run_names_the_run(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, when in (("a", 2e9), ("b", 1e9)):
        os.makedirs(f"runs/{name}/checkpoints/step-000000010")
        with open(f"runs/{name}/config.yaml", "w") as file:
            file.write("env_id: CartPole-v1\n")
        os.utime(f"runs/{name}/config.yaml", (when, when))
    newest = os.path.join("runs", "a")
    assert str(no_run("gone")).endswith(f"(there is no such folder): the newest here is {newest}")
    for part in ("checkpoints/step-000000010", "checkpoints", "config.yaml"):
        assert str(no_run(f"runs/b/{part}")).endswith(f": give {os.path.join('runs', 'b')}")


@pytest.mark.parametrize(
    ("files", "expected"),
    [(["config.yaml"], "import it again with --env ID"), (["metrics.jsonl"], "rlgym.resume")],
)
def test_a_run_without_a_world_says_how_it_gets_one(tmp_path, files, expected):
    for name in {"config.yaml", *files}:
        (tmp_path / name).write_text("env_id: callable:make_world\n")
    with pytest.raises(UserError, match=expected):
        read_run(str(tmp_path))


BOX = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    ("obs", "action", "expected"),
    [
        (spaces.Box(-9, 9, (3,), np.float32), spaces.Discrete(2), None),
        (spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2), "has the observations Box"),
        (spaces.Dict(a=BOX), spaces.Discrete(2), "and the policy Box"),
        (BOX, spaces.Discrete(3), r"actions Discrete\(3\) and the policy Discrete\(2\)"),
        (
            spaces.Box(-1, np.arange(1, 10, dtype=np.float32) / 7),
            spaces.Discrete(2),
            r"float32\[9\]\) and the",
        ),
    ],
)
def test_a_world_that_does_not_fit_the_policy_is_refused(obs, action, expected):
    loaded = SimpleNamespace(obs_layout=Layout(BOX), action_layout=Layout(spaces.Discrete(2)))
    env = SimpleNamespace(single_observation_space=obs, single_action_space=action)
    if expected is None:
        return require_fit(loaded, env)
    with pytest.raises(SpaceError, match=expected):
        require_fit(loaded, env)


def test_what_a_policy_does_not_know_of_a_world_is_passed_over():
    known, more = spaces.Dict(a=BOX), spaces.Dict(a=BOX, b=BOX)
    loaded = SimpleNamespace(obs_layout=Layout(known), action_layout=Layout(BOX))
    require_fit(loaded, SimpleNamespace(single_observation_space=more, single_action_space=BOX))


# ----------------------------------------------------------------------------------------- the help


def help_of(capsys, verb):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out


def test_the_help_of_export_lists_every_format(capsys):
    from rlgym.export.bundle import FORMATS

    words = set(help_of(capsys, "export").replace(",", " ").replace(".", " ").split())
    assert set(FORMATS) <= words and "at least 32" in help_of(capsys, "export")


def test_import_takes_the_worlds_arguments_as_the_other_verbs_do(capsys, monkeypatch):
    pytest.importorskip("stable_baselines3")
    asked = {}

    def import_run(model, run_dir, **options):
        asked.update(options)
        raise UserError("enough")

    monkeypatch.setattr("rlgym.interop.sb3_models.import_run", import_run)
    failure(capsys, "import", "sb3", "a.zip", "--env", "Pendulum-v1", "--env.g", "3")
    assert asked["env"] == "Pendulum-v1" and asked["env_kwargs"] == {"g": 3}
    assert "--env-kwargs '{" in help_of(capsys, "import")
