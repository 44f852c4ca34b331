"""`rlgym sim2sim` on a real run that has learned next to nothing."""

import json
import shutil
import sys

import pytest

import rlgym
from rlgym.cli.main import main
from rlgym.cli.runs import read_run
from rlgym.report import sim2sim

pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of A1 in MuJoCo."""
    folder = tmp_path_factory.mktemp("runs") / "trot"
    rlgym.train(
        "rlgym/Imitate-v0",
        run_dir=folder,
        preset=None,
        console="off",
        env={"robot": "a1", "clip": "trot"},
        num_envs=16,
        total_steps=256,
        algo={"num_steps": 16, "minibatch_size": 256, "epochs": 1},
        network={"hidden": [16], "log_std_init": -1.0},
        eval={"episodes": 1, "env": {"evaluation": True}},
    )
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run's folder to work on."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_page_stands_in_the_run(run, capsys):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    words = ["--engines", "mujoco", "--disturbances", "nominal,", "--episodes", "2"]
    assert main(["sim2sim", str(run), *words, "--film-seconds", "0.1"]) == 0
    shown = capsys.readouterr()
    folder = run / "sim2sim"
    assert shown.out.startswith("MuJoCo: 0.") and str(folder / "index.html") in shown.out
    assert "mujoco nominal: trained policy 0." in shown.err
    report = json.loads((folder / "report.json").read_text())
    assert [cell["disturbance"] for cell in report["cells"]] == ["nominal"]
    nominal = report["cells"][0]["measured"]
    assert set(nominal) == {"policy", "open_loop", "standing"}
    assert report["cells"][0]["time_step"] == pytest.approx(1 / 210)
    assert nominal["open_loop"]["score"] > 0.6 > 0.5 > nominal["standing"]["score"] > 0.3
    assert nominal["policy"]["trace"]["t"], "the policy's joints are drawn"
    assert (folder / "joints-mujoco.svg").is_file()
    with imageio.get_reader(folder / "mujoco.mp4") as film:
        assert len([picture for picture in film]) == 3, "0.1 s at 33.3 ms a step"
    assert "<video src='mujoco.mp4'" in (folder / "index.html").read_text("utf-8")
    assert report["about"]["trained_in"] == "MuJoCo" and report["about"]["env_steps"] == 256


def test_without_imageio_there_is_a_page_without_films(run, capsys, monkeypatch):
    late = sim2sim.Disturbance("a second late", {"latency": (1.0, 1.0)})
    monkeypatch.setitem(sim2sim.DISTURBANCES, "late", late)
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    assert main(["sim2sim", str(run), "--engines", "mujoco", "--disturbances", "late"]) == 0
    shown = capsys.readouterr()
    assert 'no films: films need imageio.v2: pip install "rlgym-lab[video]"' in shown.err
    assert "mujoco late: not measured: randomize.latency goes up to 1.0 s" in shown.err
    assert shown.out.startswith("nothing was measured\n")
    page = (run / "sim2sim" / "index.html").read_text("utf-8")
    assert "randomize.latency goes up to" in page, "a row says what the engine cannot do"
    assert "<video" not in page


def test_ctrl_c_keeps_what_was_measured(run, capsys, monkeypatch):
    measured = sim2sim.play
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(*args, **kwargs)

    monkeypatch.setattr(sim2sim, "play", interrupted)
    document = sim2sim.compare(run, read_run(str(run)), engines=["mujoco"], actors=["standing"],
                               episodes=1, tell=print)  # fmt: skip
    assert [cell["disturbance"] for cell in document["cells"]] == ["nominal"]
    assert "stopped: what was measured until here is kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engines", "mujco"], "there is no 'mujco' here: did you mean 'mujoco'?"),
        (["--disturbances", "push"], "there is no 'push' here: did you mean 'push-"),
        (["--episodes", "0"], "--episodes must be at least 1, not 0"),
        (["--engines", ","], "--engines names none"),
    ],
)
def test_mistakes_are_one_line(run, words, said, capsys):
    assert main(["sim2sim", str(run), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (run / "sim2sim").exists()


def test_a_run_of_other_worlds_is_refused(tmp_path, capsys):
    folder = tmp_path / "cartpole"
    settings = {"num_envs": 2, "backend": "sync", "algo": {"num_steps": 32, "minibatch_size": 32}}
    rlgym.train(
        "CartPole-v1", run_dir=folder, preset=None, console="off", total_steps=64, **settings
    )
    assert main(["sim2sim", str(folder), "--film-seconds", "0"]) == 2
    assert (
        "trained in CartPole-v1: sim2sim is for runs of rlgym/Imitate-v0" in capsys.readouterr().err
    )


def test_play_and_record_take_arguments_of_the_world(run, tmp_path, capsys):
    pytest.importorskip("imageio.v2")
    out = tmp_path / "other.gif"
    words = ["record", str(run), "--env.clip", "pace", "--max-steps", "2", "--out", str(out)]
    assert main(words) == 0 and out.stat().st_size > 1000
    assert main([*words, "--env.robto", "a1"]) == 2
    assert "robto" in capsys.readouterr().err
