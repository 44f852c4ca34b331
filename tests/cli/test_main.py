import json
import subprocess
import sys
import time

import pytest

import rlgym
from rlgym.cli.main import VERBS, main, usage


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


def test_a_world_that_misses_a_package_says_which(capsys, monkeypatch):
    monkeypatch.setattr("rlgym.cli.envs.importlib.util.find_spec", lambda name, package=None: None)
    assert main(["envs", "hopper"]) == 0
    shown = capsys.readouterr().out
    assert 'pip install "rlgym-lab[mujoco]"' in shown
    assert 'more with panda_gym: pip install "rlgym-lab[worlds]"' in shown
