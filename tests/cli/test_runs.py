"""The verbs on a real run, trained once by a real process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from rlgym.cli.main import main
from rlgym.training.logging import read_metrics, unknown_names

SMALL = (
    *("--preset", "none", "--num-envs", "4", "--backend", "sync", "--algo.num-steps", "32"),
    *("--algo.minibatch-size", "64", "--algo.epochs", "1", "--eval.episodes", "2"),
    *("--checkpoint.every", "256", "--network.hidden", "16"),
)


def rlgym(*words, **kwargs):
    command = [sys.executable, "-m", "rlgym", *words]
    kwargs = {"capture_output": True, "text": True, "timeout": 100, **kwargs}
    return subprocess.run(command, **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of 1,024 steps and what its process printed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = rlgym("train", "CartPole-v1", *SMALL, "--total-steps", "1024", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run's folder to work on."""
    return str(shutil.copytree(trained[0], tmp_path / "run"))


def test_training_says_where_it_is_and_what_came_of_it(trained):
    folder, done = trained
    assert f"CartPole-v1 into {folder}" in done.stderr
    assert "100% 1,024/1,024 steps | return" in done.stdout
    assert "\x1b" not in done.stdout, "no terminal, no escape codes"
    assert "all 1024 steps are done; return " in done.stdout
    assert f"rlgym eval {folder}" in done.stdout
    assert {"config.yaml", "system.json", "metrics.jsonl", "latest.json", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }


def test_a_world_of_a_module_in_the_working_folder(tmp_path):
    (tmp_path / "my_lab.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    (tmp_path / "yaml.py").write_text("raise SystemExit('taken from the working folder')\n")

    def call(*words):  # -P: as the installed command, whose path does not begin with this folder
        command = [sys.executable, "-P", "-m", "rlgym", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    steps = ("--total-steps", "256", "--run-dir", "run", "--num-workers", "1")
    done = call("train", "my_lab:Own-v0", *SMALL, "--backend", "process", *steps)
    assert done.returncode == 0, done.stderr
    assert "rlgym eval run --trust" in done.stdout, "what is advised works"
    assert call("eval", "run", "--episodes", "1").returncode == 2
    done = call("eval", "run", "--episodes", "1", "--trust")
    assert done.returncode == 0, done.stderr
    assert "call from the folder that holds it" in call("train", "your_lab:Own-v0").stderr


def test_training_writes_only_names_that_are_listed(trained):
    lines = read_metrics(trained[0])
    names = {name for line in lines for name in line} - {"step", "time"}
    assert unknown_names(names) == []
    assert {"rollout/ep_rew_mean", "train/approx_kl", "time/fps", "eval/mean_reward"} <= names
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 1024, "the x axis is environment steps"


def test_a_run_is_not_replaced_unasked(run, capsys):
    words = ["train", "CartPole-v1", *SMALL, "--total-steps", "128", "--run-dir", run]
    assert main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--console", "off"]) == 0
    assert read_metrics(run)[-1]["step"] == 128
    assert capsys.readouterr().out == ""


def test_eval_prints_a_score_or_one_json_object(run, capsys):
    assert main(["eval", run, "--episodes", "3"]) == 0
    assert re.match(
        r"CartPole-v1, 3 episodes with the policy of step [\d,]+: return \d+\.\d\d ± ",
        capsys.readouterr().out,
    )
    scores = []
    for _ in range(2):
        assert main(["eval", run, "--episodes", "3", "--json", "--which", "last"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1], "the same episodes each time"
    assert scores[0]["step"] == 1024 and len(scores[0]["returns"]) == 3
    assert scores[0]["mean"] == pytest.approx(sum(scores[0]["returns"]) / 3)


def test_eval_of_a_damaged_run_reports_and_uses_the_one_before(run, capsys):
    path = f"{run}/checkpoints/step-000001024/model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(100)
    assert main(["eval", run, "--episodes", "1", "--json", "--which", "last"]) == 0
    shown = capsys.readouterr()
    assert "model.safetensors has 100 bytes" in shown.err and "using step-000000" in shown.err
    assert json.loads(shown.out)["step"] < 1024


def test_eval_of_a_run_whose_best_is_broken_says_which_flag_helps(run, capsys):
    best = json.loads((Path(run) / "best.json").read_text())["checkpoint"]
    (Path(run) / "checkpoints" / best / "model.safetensors").write_bytes(b"")
    assert main(["eval", run, "--episodes", "1"]) == 2
    assert "use the last one instead (--which last)" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["eval", "export", "record"])
def test_a_policy_in_a_world_that_it_does_not_fit_is_one_line(run, capsys, verb):
    if verb == "record":
        pytest.importorskip("imageio.v2")
    config = Path(run) / "config.yaml"
    config.write_text(config.read_text().replace("CartPole-v1", "MountainCar-v0"))
    assert main([verb, run]) == 2
    error = capsys.readouterr().err
    assert "the world has the observations Box" in error and error.count("\n") == 1


def test_resume_goes_on_to_a_new_end(run, capsys):
    assert main(["resume", run]) == 2
    assert "is at its end" in capsys.readouterr().err
    assert main(["resume", run, "--total-steps", "1280"]) == 0
    assert "all 1280 steps are done" in capsys.readouterr().out
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == sorted(steps) and steps[-1] == 1280


def test_resume_changes_settings_and_the_world_from_there_on(run, capsys):
    """CartPole's other reward is 0 a step and -1 at the fall."""
    words = ("--total-steps", "1280", "--algo.learning-rate", "1e-5")
    assert main(["resume", run, *words, "--env.sutton-barto-reward", "true"]) == 0
    shown = capsys.readouterr().out
    assert "return -1.00 in evaluation" in shown
    rates = [
        line["train/learning_rate"]
        for line in read_metrics(run)
        if line["step"] > 1024 and "train/learning_rate" in line
    ]
    assert rates and rates == pytest.approx([1e-5] * len(rates))
    assert main(["resume", run, "--total-steps", "1536"]) == 0
    assert "return -1.00 in evaluation" in capsys.readouterr().out, "the change stays"


def test_resume_refuses_a_change_that_cannot_be_and_keeps_the_run(run, capsys):
    before = (Path(run) / "config.yaml").read_text()
    for words, expected in (
        (("--algo.learning-rate", "much"), "--algo.learning-rate: expected a number"),
        (("--num-envs", "16"), "the snapshot holds 4 slots, this env has 16: use num_envs 4"),
        (("--network.hidden", "32"), "is [2, 4, 16] in the checkpoint and [2, 4, 32] here"),
        (("--env.gravity", "3"), "gravity"),
    ):
        assert main(["resume", run, "--total-steps", "1280", *words]) == 2
        assert expected in capsys.readouterr().err
    assert (Path(run) / "config.yaml").read_text() == before
    assert main(["resume", run, "--total-steps", "1280"]) == 0


def test_record_films_without_a_display(run, capsys, monkeypatch):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["record", run]) == 0
    shown = capsys.readouterr().out
    frames = int(re.search(r"trained-best\.mp4: (\d+) frames", shown)[1])
    with imageio.get_reader(f"{run}/trained-best.mp4") as film:
        pictures = [picture for picture in film]
    assert len(pictures) == frames
    assert pictures[0].shape == (400, 600, 3) and pictures[0].std() > 1, "something is drawn"
    assert main(["record", "CartPole-v1", "--policy", "zero", "--out", f"{run}/z.gif"]) == 0
    words = ["record", "CartPole-v1", "--policy", "random", "--max-steps", "3"]
    assert main([*words, "--out", f"{run}/r.gif"]) == 0
    with imageio.get_reader(f"{run}/r.gif") as film:
        assert 2 <= len(film) <= 3, "pillow joins frames that are equal"
    assert not [name for name in os.listdir(run) if ".part" in name]


def test_record_names_the_extra_that_it_misses(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    assert main(["record", run]) == 2
    assert 'pip install "rlgym-lab[video]"' in capsys.readouterr().err


def test_record_of_a_world_that_cannot_draw(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["record", "rlgym/Counter-v0", "--policy", "zero"]) == 2
    assert "draws no pictures" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_play_needs_a_display_and_says_what_does_not(run, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert main(["play", run]) == 2
    assert f"rlgym record {run} makes a film instead" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs SDL's dummy display")
@pytest.mark.parametrize("policy", ["trained", "zero", "random"])
def test_play_shows_episodes(run, capsys, monkeypatch, policy):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    target = run if policy == "trained" else "CartPole-v1"
    assert main(["play", target, "--policy", policy, "--episodes", "1"]) == 0
    assert re.fullmatch(r"episode 1: return \d+\.00\n", capsys.readouterr().out)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_terminal_gets_the_live_panel_and_is_left_whole(run):
    parent, child = os.openpty()
    command = [sys.executable, "-m", "rlgym", "resume", run, "--total-steps", "1280"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("CI", None)
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux reports the end of a pseudo-terminal as an error
                break
            if not part:
                break
            shown += part
    os.close(parent)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "1,280/1,280 steps" in text and "approx. KL" in text
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") >= 1, "the cursor is back"
    assert text.rstrip().endswith(f"tensorboard --logdir {os.path.dirname(run)}")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    folder = tmp_path / "run"
    words = ("train", "CartPole-v1", *SMALL, "--total-steps", "100000000")
    command = [sys.executable, "-m", "rlgym", *words, "--run-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 60
        while not (folder / "latest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        shown = process.stdout.read().decode()
    assert time.monotonic() - started < 10
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert shown.count(f"rlgym resume {folder} continues it") == 1
    assert shown.count("rlgym resume") == 1
    saved = json.loads((folder / "latest.json").read_text())["step"]
    done = rlgym("resume", str(folder), "--total-steps", str(saved + 256))
    assert done.returncode == 0, done.stderr
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == sorted(steps)
    assert steps[-1] >= saved + 256


def test_a_full_disk_costs_no_training_and_is_an_exit_status(small_disk, capsys):
    folder = small_disk / "run"
    (small_disk / "filler").write_bytes(bytes(3_600_000))
    words = ("train", "CartPole-v1", *SMALL, "--total-steps", "512", "--run-dir", str(folder))
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "step 512 was not saved" in shown.out and "are free on the disk" in shown.out
    assert shown.err.endswith(f"error: the end of this run is not saved in {folder}\n")
    assert read_metrics(folder)[-1]["step"] == 512, "it trained to the end"
    (small_disk / "filler").unlink()
    assert main([*words, "--overwrite"]) == 0
    (small_disk / "filler").write_bytes(bytes(3_600_000))
    assert main(["resume", str(folder), "--total-steps", "1024"]) == 1
    capsys.readouterr()
    assert main(["eval", str(folder), "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 512, "what was saved is intact"
