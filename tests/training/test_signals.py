"""SIGINT and SIGTERM: real signals to real processes, mid-rollout, with worlds that hang."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

import rlgym
from rlgym.training import checkpoint
from rlgym.training.signals import Interrupted, Signals
from tests.training.runs import SMALL, digest, evaluations, scalars, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

SCRIPT = """
import json, sys
import rlgym
from tests.training.runs import train
request = json.loads(sys.argv[1])
world, settings, resume = request["world"], request["settings"], request["resume"]
if resume:
    rlgym.resume(request["folder"], console="off")
else:
    if ":" in world and "/" not in world:
        from tests.training.signal_worlds import Hanging as world
    train(world, request["folder"], **settings)
"""
HANGING = "signal_worlds:Hanging"


def start(world, folder, resume=False, **settings):
    """Train in a process of its own."""
    request = {"world": world, "folder": str(folder), "settings": settings, "resume": resume}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(request)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_lines(folder, count, process, seconds=60):
    """Wait until a run has logged `count` iterations."""
    end = time.monotonic() + seconds
    path = folder / "metrics.jsonl"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        if path.is_file() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not reach {count} iterations")


def finish(process, seconds=10.0):
    """Wait for the end, at most as long as we promise; the exit code."""
    begin = time.monotonic()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s") from None
    return process.returncode, time.monotonic() - begin


SLOW_ROLLOUTS = {"env": {"step_seconds": 0.001}, "total_steps": 960, "eval": {"every": 0}}


@pytest.mark.parametrize("backend", ["sync", pytest.param("process", marks=pytest.mark.slow)])
def test_run_cut_by_sigterm_mid_rollout_ends_as_the_uncut_one(backend, tmp_path):
    world = "rlgym.envs.toy:rlgym/Counter-v0"
    settings = {**SLOW_ROLLOUTS, "backend": backend, "algo": {**SMALL["algo"], "num_steps": 48}}
    whole = train(world, tmp_path / "whole", **{**settings, "env": {}})
    folder = tmp_path / "cut"
    process = start(world, folder, **settings)
    wait_for_lines(folder, 2, process)
    time.sleep(0.1)  # a rollout takes 0.2 s
    process.send_signal(signal.SIGTERM)
    code, _ = finish(process)
    assert code == 143
    saved = checkpoint.newest(folder)
    assert 0 < saved.step < 960
    assert len([line for line in scalars(folder) if "train/loss" in line]) == saved.step // 192
    run = rlgym.resume(folder, console="off")
    assert run.health["unreplayed"] == 0
    assert digest(run) == digest(whole)
    assert scalars(folder) == scalars(tmp_path / "whole")


def test_killed_run_goes_on_from_its_newest_checkpoint(tmp_path):
    world = "rlgym.envs.toy:rlgym/Counter-v0"
    settings = {**SLOW_ROLLOUTS, "backend": "sync", "checkpoint": {"every": 200}}
    whole = train(world, tmp_path / "whole", **{**settings, "env": {}})
    process = start(world, tmp_path / "cut", **settings)
    wait_for_lines(tmp_path / "cut", 6, process)
    process.kill()
    process.wait()
    assert checkpoint.newest(tmp_path / "cut").step in (480, 672, 864)
    run = rlgym.resume(tmp_path / "cut", console="off")
    assert digest(run) == digest(whole)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


def test_ctrl_c_says_what_it_does_and_exits_with_130(tmp_path):
    process = start("CartPole-v1", tmp_path, total_steps=10**7, backend="sync")
    wait_for_lines(tmp_path, 3, process)
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    assert code == 130
    said = process.stderr.read()
    assert said.count("SIGINT") == 1 and "Traceback" not in said
    saved = checkpoint.newest(tmp_path)
    assert saved.step == scalars(tmp_path)[-1]["step"]


STUCK = {
    "sleep": {"backend": "sync", "how": "sleep"},
    "c": {"backend": "sync", "how": "c"},
    "swallow": {"backend": "sync", "how": "swallow"},
    "worker": {"backend": "process", "how": "c"},
}


def test_stuck_world_does_not_keep_the_run_from_saving(tmp_path):
    processes = {}  # all at once: most of the time is waiting
    for name, case in STUCK.items():
        processes[name] = start(
            HANGING,
            tmp_path / name,
            backend=case["backend"],
            env={"how": case["how"], "at_step": 60},
            total_steps=10**6,
            eval={"every": 0},
        )
    for name, process in processes.items():
        wait_for_lines(tmp_path / name, 2, process)  # 24 steps each; the third rollout hangs
    time.sleep(1.0)
    sent = time.monotonic()
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    for name, process in processes.items():
        code, _ = finish(process, sent + 10.0 - time.monotonic())
        assert code == 143, name
        assert name != "sleep" or time.monotonic() < sent + 5.0
        assert checkpoint.newest(tmp_path / name).step == 192, name
        assert name != "worker" or process.stderr.read().count("SIGTERM") == 1


def test_second_signal_exits_at_once(tmp_path):
    settings = {"env": {"how": "c", "at_step": 60}, "total_steps": 10**6, "eval": {"every": 0}}
    process = start(HANGING, tmp_path, backend="sync", **settings)
    wait_for_lines(tmp_path, 2, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, seconds = finish(process)
    assert code == 130 and seconds < 2


# ---------------------------------------------------------------------- in this process


class Terminated(gymnasium.Env):
    """Episodes of 8 steps; SIGTERM comes in the given step of all these worlds' lives."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    at_step = steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.age += 1
        Terminated.steps += 1
        if Terminated.steps == Terminated.at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros(2, np.float32), 1.0, False, self.age >= 8, {}


@pytest.mark.parametrize(
    "cuts",
    [
        (64 + 2 * 8 + 5, 0),  # in the rollout after the evaluation at 64
        (64 + 8 + 5, 8 + 5, 0),  # in that evaluation, and again in the rollout after it
    ],
)
def test_an_evaluation_that_is_done_is_not_repeated(tmp_path, cuts):
    changes = {"num_envs": 1, "num_groups": 1, "backend": "sync", "total_steps": 128}
    changes |= {"algo": {"num_steps": 16}, "eval": {"every": 32, "episodes": 1}}
    changes |= {"checkpoint": {"every": 0}}
    scored = SimpleNamespace(at=[])
    scored.on_evaluation = lambda run, score: scored.at.append(run.state.env_steps)
    for number, cut in enumerate(cuts):
        Terminated.steps, Terminated.at_step = 0, cut
        with pytest.raises(SystemExit) if cut else contextlib.nullcontext():
            if number == 0:
                train(Terminated, tmp_path, scored, **changes)
            else:
                rlgym.resume(tmp_path, world=Terminated, console="off", hooks=scored)
    assert scored.at == [32, 64, 96, 128]
    assert [line["step"] for line in evaluations(tmp_path)] == scored.at


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Signals(lambda: None) as signals:
        assert signal.getsignal(signal.SIGTERM) not in before
        assert signals.exit_code is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_signal_outside_interruptible_work_waits_for_it():
    done = []
    with Signals(lambda: None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the update went on")
        with pytest.raises(Interrupted), signals.interruptible():
            done.append("never")
    assert done == ["the update went on"]
    assert signals.exit_code == 143


def test_signal_inside_interruptible_work_breaks_it_off():
    with (
        Signals(lambda: None) as signals,
        pytest.raises(Interrupted, match="SIGINT"),
        signals.interruptible(),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signals.exit_code == 130


def test_work_that_swallows_the_signal_is_dropped_at_its_end():
    done = []
    with Signals(lambda: None) as signals, pytest.raises(Interrupted):
        with signals.interruptible():
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            done.append("the step went on")
        done.append("the update, while the watcher saves")
    assert done == ["the step went on"]


def test_outside_the_main_thread_nothing_is_installed():
    import threading

    seen = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with Signals(lambda: None) as signals, signals.interruptible():
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


class KillDuringUpdate:
    """Hook that sends SIGTERM between two minibatches of the third update."""

    def on_start(self, run):
        step, calls = run.learner.optimizer.step, []

        def step_and_kill(*args):
            calls.append(1)
            result = step(*args)
            if len(calls) == 2 * 6 + 3:  # 2 epochs of 3 minibatches an update
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        run.learner.optimizer.step = step_and_kill


@pytest.mark.parametrize("slow", [True, False])
def test_signal_during_an_update(slow, tmp_path, monkeypatch):
    """A slow update is dropped with its rollout; a quick one is finished first."""
    monkeypatch.setattr("rlgym.training.session.SLOW_UPDATE", -1.0 if slow else 1e9)
    whole = train("Pendulum-v1", tmp_path / "whole", backend="sync", total_steps=800)
    with pytest.raises(SystemExit) as ended:
        train(
            "Pendulum-v1",
            tmp_path / "cut",
            KillDuringUpdate(),
            backend="sync",
            total_steps=800,
            checkpoint={"every": 0},
        )
    assert ended.value.code == 143
    assert checkpoint.newest(tmp_path / "cut").step == (192 if slow else 288)
    run = rlgym.resume(tmp_path / "cut", console="off")
    assert digest(run) == digest(whole)


class KillDuringEvaluation:
    def on_start(self, run):
        act, calls = run.policy.act, []

        def act_and_kill(*args, **kwargs):
            calls.append(kwargs.get("deterministic", False))
            if calls.count(True) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return act(*args, **kwargs)

        run.policy.act = act_and_kill


def test_signal_during_an_evaluation_repeats_it_on_resume(tmp_path):
    whole = train("CartPole-v1", tmp_path / "whole", backend="sync", total_steps=800)
    with pytest.raises(SystemExit):
        train(
            "CartPole-v1", tmp_path / "cut", KillDuringEvaluation(), backend="sync", total_steps=800
        )
    assert checkpoint.newest(tmp_path / "cut").step == 576
    run = rlgym.resume(tmp_path / "cut", console="off")
    assert digest(run) == digest(whole)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")
