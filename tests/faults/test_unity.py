"""Players that die, freeze, lie or never speak: a run survives them, or says what is wrong."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rlgym
from rlgym.errors import UserError, WorldError

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
posix = pytest.mark.skipif(os.name != "posix", reason="looks at processes as POSIX has them")


@pytest.fixture
def faulty(tmp_path):
    """Make a vector env of a scene in which something goes wrong."""
    made = []

    def make(fault=None, scene="3dball", timeout=30, **settings):
        env = rlgym.make_vec(
            "unity:standin",
            scene=scene,
            fault=fault,
            timeout=timeout,
            crash_dir=tmp_path / "crashes",
            **settings,
        )
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(
    ("kind", "code"), [("crash", 3), pytest.param("abort", -6, marks=pytest.mark.slow)]
)
def test_a_player_that_dies_is_replaced(faulty, tmp_path, capfd, kind, code):
    env = faulty(f"{kind}@40", agents=2, num_players=2, max_steps=10_000)
    pids = [link.player.pid for link in env.world.links]
    obs, _ = env.reset(seed=0)
    lost_in, before = [], obs.clone()
    for step in range(40):
        obs, reward, terminated, truncated, info = env.step(torch.zeros(4, 2))
        lost = info["lost"] > 0
        if lost.any():
            assert torch.equal(truncated, lost) and torch.equal(~info["active"], lost)
            lost_in.append((step, int(lost.sum()) + int(terminated.sum())))
            assert (reward[lost] == 0).all() and not terminated[lost].any()
            assert torch.equal(info["final_obs"][lost], before[lost])
            assert torch.isfinite(obs).all() and not torch.equal(obs[lost], before[lost])
        before = obs.clone()
    assert len(lost_in) >= 1 and lost_in[0][1] == 4  # an end that was known is told as it was
    assert env.health["restarts"] == 2 * len(lost_in) and env.health["timeouts"] == 0
    report = Path(env.world.crash_reports[0]).read_text()
    assert f'"exit_code": {code}' in report and f"Planned fault '{kind}'" in report
    assert "it is started again" in capfd.readouterr().err
    assert not any(is_alive(pid) for pid in pids)


def test_a_player_that_freezes_is_replaced(faulty):
    env = faulty("hang@30", agents=2, timeout=2)
    pid = env.world.links[0].player.pid
    env.reset(seed=0)
    for _ in range(25):
        env.step(torch.zeros(2, 2))
    assert env.health["timeouts"] == env.health["restarts"] >= 1 and not is_alive(pid)


def test_a_player_may_die_in_a_reset(faulty):
    env = faulty("crash@14", agents=2)
    for _ in range(4):  # a message each, after those of the first look at the scene
        obs, _ = env.reset(seed=0)
    assert env.health["restarts"] == 1 and obs.abs().sum() > 0
    for _ in range(3):
        env.step(torch.zeros(2, 2))


def test_too_many_losses_end_the_run(faulty):
    env = faulty("crash@14", agents=1, max_restarts=2)
    with pytest.raises(WorldError, match=r"lost 3 times, more than max_restarts=2.*exit code 3"):
        for _ in range(60):
            env.reset(seed=0)
            env.step(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fault": "crash@start"}, "ended with exit code 3 before it connected"),
        slow({"fault": "crash@handshake"}, "ended with exit code 3"),
        slow({"fault": "crash@reset"}, "ended with exit code 3"),
        slow({"fault": "hang@start", "timeout": 1}, "did not connect within 1 s"),
        slow({"fault": "hang@reset", "timeout": 2}, "within 2 s"),
        ({"scene": "silent", "timeout": 2}, "Decision Requester"),
        slow({"scene": "empty", "timeout": 2}, "Agent with a Decision Requester"),
        ({"protocol": "2.0.0"}, "speaks version 2.0.0"),
        slow({"fault": "garbage@5"}, "ended the session|no message of"),
        slow({"fault": "reshape@5"}, r"observes \[\(9,\)\]"),
    ],
)
def test_a_player_that_cannot_be_used_says_why(faulty, settings, text):
    begin = time.monotonic()
    with pytest.raises(WorldError, match=text):
        faulty(**settings)
    assert time.monotonic() - begin < 20


def test_observations_that_change_their_shape_end_the_run(faulty):
    env = faulty("reshape@30", agents=2)
    env.reset(seed=0)
    with pytest.raises(WorldError, match=r"observes \[\(9,\)\]"):
        for _ in range(40):
            env.step(torch.zeros(2, 2))


@pytest.mark.parametrize("kind", ["nan", pytest.param("inf", marks=pytest.mark.slow)])
def test_observations_that_are_not_finite_stop_training(tmp_path, kind):
    settings = {"algo": {"num_steps": 64, "minibatch_size": 64}, "network": {"hidden": [4]}}
    env = {"scene": "3dball", "agents": 2, "fault": f"{kind}@40"}
    with pytest.raises(UserError, match="is not finite"):
        rlgym.train(
            "unity:standin",
            env=env,
            preset=None,
            run_dir=tmp_path / "run",
            total_steps=1000,
            console="off",
            **settings,
        )


@pytest.mark.slow
def test_a_run_goes_on_after_its_player_has_died(tmp_path):
    run = rlgym.train(
        "unity:standin",
        env={"scene": "3dball", "agents": 2, "num_players": 2, "fault": "crash@60"},
        preset=None,
        run_dir=tmp_path / "run",
        total_steps=400,
        console="off",
        algo={"num_steps": 32, "minibatch_size": 64, "epochs": 1},
        network={"hidden": [4]},
        eval={"episodes": 1, "env": {"fault": None, "max_steps": 20}},
    )
    assert run.health["restarts"] >= 2 and run.state.env_steps >= 400
    assert run.result is not None and run.result.episodes == 1


SCRIPT = """
import os, signal, sys, rlgym
env = rlgym.make_vec("unity:standin", scene="3dball", agents=1, num_players=2, timeout=30)
env.reset(seed=0)
print(*(link.player.pid for link in env.world.links), flush=True)
env.send(env.action_space.sample()[:1], 0)
{end}
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["raise RuntimeError('mine')", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)"]
)
def test_no_player_outlives_a_script(end):
    begin = time.monotonic()
    script = SCRIPT.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    assert until(lambda: not any(is_alive(pid) for pid in pids))
    assert time.monotonic() - begin < 40
