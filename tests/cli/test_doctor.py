"""`rlgym doctor`: machine, worlds that misbehave, runs with known numbers, NaN dumps."""

import json
import shutil

import pytest
import torch

import rlgym
from rlgym.cli import doctor
from rlgym.cli.diagnosis import advice, diagnose, shares
from rlgym.cli.main import main
from rlgym.errors import WorldError
from rlgym.training import checkpoint
from rlgym.vector.guard import NaNGuard


def ask(capsys, *argv):
    """Exit status and the JSON that `rlgym doctor ... --json` prints."""
    status = main(["doctor", *argv, "--json"])
    return status, json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------------- machine
def test_machine(capsys):
    status, told = ask(capsys)
    assert status == 0
    assert told["packages"]["torch"] == torch.__version__
    assert told["devices"].endswith("cpu")
    assert told["rlgym"].startswith(rlgym.__version__)


def test_machine_without_a_package(capsys, monkeypatch):
    requirements = {"": ["numpy", "no-such-package"], "video": ["no-such-codec", "numpy"]}
    monkeypatch.setattr(doctor, "_requirements", lambda: requirements)
    status, told = ask(capsys)
    assert status == 1
    assert told["packages"]["no-such-package"] == "absent"
    assert told["extras"] == {"video": "lacks no-such-codec"}
    assert "no-such-package absent: pip install" in told["findings"][0]["message"]


def test_table(capsys):
    assert main(["doctor"]) == 0
    assert "nothing wrong was found" in capsys.readouterr().out


# ---------------------------------------------------------------------- worlds
def test_a_good_world(capsys):
    status, told = ask(capsys, "rlgym/Counter-v0", "--steps", "40", "--env", "{length: 3}")
    assert status == 0
    assert [finding["severity"] for finding in told["findings"]] == ["note"]
    assert told["backend_for_8"].startswith("sync")


def asked(tmp_path, world, **kwargs):
    """What the process that tests a world writes down, without the process."""
    question = {"world": world, "kwargs": kwargs, "steps": 30, "seed": 0, "seconds": 5.0}
    path = tmp_path / "answer.json"
    doctor.answer(json.dumps({**question, "answer": str(path)}))
    return json.loads(path.read_text())


def test_a_liar_and_its_arguments(tmp_path):
    told = asked(tmp_path, "rlgym/Liar-v0", lie="outside")
    assert "is outside Box" in told["findings"][0]["message"]
    assert "no argument 'lye'" in asked(tmp_path, "rlgym/Liar-v0", lye="outside")["error"]


def test_what_a_world_cannot_do_is_told_once(tmp_path):
    rules = [f["rule"] for f in asked(tmp_path, "rlgym/Unreplayable-v0")["findings"]]
    assert rules == ["seed", "replay", "values"]


def test_a_world_that_exits(capsys):
    status, told = ask(capsys, "rlgym/Exit-v0")
    assert status == 1
    assert "status 13" in told["findings"][0]["message"]


def test_a_world_that_hangs(capsys):
    status, told = ask(capsys, "rlgym/Freeze-v0", "--timeout", "6")
    assert status == 1
    assert told["findings"][0]["rule"] == "hang"


def test_an_unknown_world_is_one_line(capsys):
    assert main(["doctor", "CartPole-v9"]) == 2
    err = capsys.readouterr().err
    assert "did you mean CartPole-v1" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("word", ["runs/nope", "./nope"])
def test_a_folder_that_is_not_there_is_no_unknown_world(capsys, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", word]) == 2
    assert f"{word} holds no run (there is no such folder)" in capsys.readouterr().err


# ---------------------------------------------------------------------- runs
def line(step, **scalars):
    base = {"step": step, "perf/collect": 2.0, "perf/idle": 1.5, "perf/policy": 0.3}
    base |= {"perf/transfer": 0.0, "perf/learn": 1.0, "perf/steps_per_second": 1000.0}
    base |= {"time/time_elapsed": 4.0 * step, "time/fps": 900.0}
    return base | {name.replace("__", "/"): value for name, value in scalars.items()}


def test_shares_by_hand():
    parts = shares([line(1), line(2)])  # 8 s in all: 3 idle, .6 policy, .4 collect, 2 learn
    expected = {"idle": 3, "policy": 0.6, "transfer": 0, "collect": 0.4, "learn": 2, "other": 2}
    assert parts == pytest.approx({part: seconds / 8 for part, seconds in expected.items()})
    assert advice(parts).startswith("38% of the time goes to waiting for the worlds")


@pytest.mark.parametrize(("algo", "said"), [("ppo", "fewer epochs"), ("sac", "updates_per_step")])
def test_advice_names_settings_that_the_algorithm_has(algo, said):
    assert said in advice({"learn": 1.0}, algo)


@pytest.mark.parametrize(
    ("scalars", "rule"),
    [
        ({"train__approx_kl": 0.2}, "kl"),
        ({"train__clip_fraction": 0.6}, "clip"),
        ({"train__explained_variance": -0.5}, "values"),
        ({"train__std": 0.001}, "std"),
        ({"train__loss": None}, "finite"),
        ({"health__restarts": 2.0}, "restarts"),
        ({"health__nan_skips": 1.0}, "nan_skips"),
    ],
)
def test_what_looks_wrong_is_found(scalars, rule):
    lines = [line(step, **scalars) for step in range(1, 25)]
    assert [finding.rule for finding in diagnose(lines)] == [rule]


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ([20.0] * 24, "nothing was learned"),
        ([*range(20), 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], "best checkpoint"),
    ],
)
def test_returns(returns, message):
    lines = [line(i, rollout__ep_rew_mean=value) for i, value in enumerate(returns, 1)]
    assert [finding.rule for finding in diagnose(lines)] == ["return"]
    assert message in diagnose(lines)[0].message


def test_a_run_that_slows_down():
    lines = [line(i, perf__steps_per_second=1000.0 / i) for i in range(1, 30)]
    assert [finding.rule for finding in diagnose(lines)] == ["speed"]


def test_a_good_run_is_left_in_peace():
    scalars = {"train__approx_kl": 0.01, "train__explained_variance": 0.9, "train__std": 0.5}
    lines = [line(i, rollout__ep_rew_mean=float(i), **scalars) for i in range(1, 30)]
    assert diagnose(lines) == []


def test_a_run_folder(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("env_id: CartPole-v1\n")
    lines = [line(i, rollout__ep_rew_mean=float(i)) for i in range(1, 13)]
    text = "\n".join(json.dumps(part) for part in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 13, "cut sh')
    status, told = ask(capsys, str(tmp_path))
    assert status == 0
    assert told["steps"] == 12
    assert told["return"] == "12"
    assert told["time"]["idle"] == "38%"
    assert main(["doctor", str(tmp_path)]) == 0
    assert "waiting for" in capsys.readouterr().out


def break_newest(run):
    (run / "checkpoints/step-000000002/model.safetensors").write_bytes(b"")


def break_all(run):
    for path in run.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: None, []),
        (lambda run: shutil.copytree(run / "checkpoints", run / "checkpoints/step-3.tmp-1"), []),
        (break_newest, [("warning", "checkpoints", "step-000000002/model.safetensors has 0")]),
        (break_all, [("error", "checkpoints", "no whole one is left")] * 2),
        (
            lambda run: shutil.rmtree(run / "checkpoints"),
            [("error", "checkpoints", "holds none, though one was saved")],
        ),
        (
            lambda run: [shutil.rmtree(run / "checkpoints"), (run / "latest.json").unlink()],
            [("warning", "checkpoints", "none was saved yet")],
        ),
        (
            lambda run: shutil.rmtree(run / "checkpoints/step-000000002"),
            [("warning", "latest", "resume goes on from step-000000001")],
        ),
        (
            lambda run: shutil.rmtree(run / "checkpoints/step-000000001"),
            [("error", "best", "--which last")],
        ),
    ],
)
def test_checkpoints_of_a_run_are_verified(capsys, tmp_path, damage, expected):
    (tmp_path / "config.yaml").write_text("env_id: CartPole-v1\nalgo: {name: sac}\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(1, perf__learn=9.0)))
    saved = [checkpoint.save(tmp_path, i, {"model": {"x": torch.ones(2)}}, {}) for i in (1, 2)]
    checkpoint.mark_best(saved[0], 1.0)
    damage(tmp_path)
    status, told = ask(capsys, str(tmp_path))
    assert "algo.updates_per_step" in told["advice"]
    assert status == int(any(severity == "error" for severity, _, _ in expected))
    assert [(f["severity"], f["rule"]) for f in told["findings"]] == [e[:2] for e in expected]
    for finding, (_, _, text) in zip(told["findings"], expected, strict=True):
        assert text in finding["message"]


@pytest.mark.parametrize(
    ("lines", "message"), [(None, "before the first update"), ("{}\n", "no update yet")]
)
def test_a_run_without_numbers(capsys, tmp_path, lines, message):
    (tmp_path / "config.yaml").write_text("env_id: CartPole-v1\n")
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text(lines)
    assert main(["doctor", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(capsys, tmp_path):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "holds no run (no config.yaml in it)" in capsys.readouterr().err


# ---------------------------------------------------------------------- dumps
def test_a_dump_is_seen_again(capsys, tmp_path):
    env = NaNGuard(rlgym.make_vec("rlgym/NaN-v0", 1, backend="sync"), "halt", tmp_path)
    env.reset()
    with pytest.raises(WorldError, match="rlgym doctor"):
        for _ in range(5):
            env.step(torch.zeros(1, dtype=torch.int64))
    status, told = ask(capsys, str(next(tmp_path.iterdir())))
    assert status == 1
    assert told["step"] == 3
    assert told["findings"][0]["rule"] == "nan"
    assert main(["doctor", str(tmp_path / "none.json")]) == 2


# ---------------------------------------------------------------------- lost worlds
def test_what_a_lost_worker_was_doing_is_told_by_the_run_and_by_its_report(capsys, tmp_path):
    run_dir = tmp_path / "run"
    rlgym.train(
        "rlgym/Crash-v0",
        run_dir=run_dir,
        preset=None,
        console="off",
        num_envs=2,
        backend="process",
        total_steps=64,
        env={"fault": "exit", "at_step": 9, "once_file": str(tmp_path / "once")},
        algo={"num_steps": 16, "minibatch_size": 32, "epochs": 1},
        network={"hidden": [8]},
        eval={"every": 0, "episodes": 1},
    )
    (path,) = (run_dir / "crashes").iterdir()
    assert f"report: {path}" in capsys.readouterr().err, "said when it happened"
    status, told = ask(capsys, str(run_dir))
    assert status == 0
    message = next(f["message"] for f in told["findings"] if f["rule"] == "crashes")
    assert message.startswith(f"1 in {run_dir / 'crashes'}, the newest: worker ")
    assert "ended with status 13 in a step of group" in message
    assert message.endswith(f"rlgym doctor {path}")
    status, told = ask(capsys, str(path))
    assert status == 1
    assert told["world"] == "rlgym/Crash-v0"
    assert "seed" in told["slots"] and "last_observation" in told["slots"]
    assert "ended with status 13" in told["findings"][0]["message"]


@pytest.mark.parametrize("content", ["", "[1]", "[" * 100_000, '{"what": "x"}'])
def test_a_report_that_is_none(capsys, tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    assert main(["doctor", str(path)]) == 2
    assert "is not a NaN dump" in capsys.readouterr().err


def test_a_report_cannot_steer_the_terminal(capsys, tmp_path):
    facts = {"what": "a\x1b[2Jb", "world": "w", "time": "now", "traceback": "x\r\ny", "slots": []}
    (tmp_path / "report.json").write_text(json.dumps(facts))
    assert main(["doctor", str(tmp_path / "report.json")]) == 1
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "a?[2Jb" in shown
