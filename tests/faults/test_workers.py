"""Workers that die, freeze and raise: what is lost, what is said, and what is left behind."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import rlgym
from rlgym.envs.toy.counter import Counter
from rlgym.errors import WorldError
from tests.vector.worlds import Doomed, Parent, Sleeper, SlowToBuild

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals")

ROOT = Path(rlgym.__file__).resolve().parents[1]
ZEROS = np.zeros(4, np.int64)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make vector envs whose reports go to a folder of the test; whatever is left is closed."""
    made = []

    def build(factory: Any = Counter, num_envs: int = 4, **kwargs: Any) -> Any:
        from rlgym.registry import WorldSpec
        from rlgym.vector.process import ProcessVectorEnv

        settings = {"num_workers": 2, "crash_dir": tmp_path / "crashes", **kwargs}
        env = ProcessVectorEnv(WorldSpec(factory), num_envs, **settings)
        made.append(env)
        return env

    yield build
    for env in made:
        env.close()


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    """A file that lets one `Doomed` world do its act once."""
    path = tmp_path / "fuse"
    path.write_text("1")
    return path


def doomed(act: str, fuse: Path, **kwargs: Any) -> Any:
    return functools.partial(Doomed, act, fuse=str(fuse), **kwargs)


def report(env: Any, number: int = -1) -> dict[str, Any]:
    return json.loads(Path(env.crash_reports[number]).read_text())


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    """Whether the processes end within some seconds; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    left.append(pid)
        if not left:
            return True
        time.sleep(0.02)
    return False


# --------------------------------------------------------------------------- death
def test_a_worker_killed_mid_step_loses_its_slots_and_nothing_else(make: Any, capfd: Any) -> None:
    env = make(functools.partial(Sleeper, 0.1))
    twin = rlgym.make_vec(Counter, 4, backend="sync", env_kwargs={"length": 1000})
    env.reset(seed=0)
    twin.reset(seed=0)
    for _ in range(2):
        env.step(ZEROS)
        twin.step(ZEROS)
    before = env.arrays.obs.copy()
    env.send(ZEROS)
    time.sleep(0.05)
    victim = env.worker_pids[1]
    os.kill(victim, signal.SIGKILL)
    obs, reward, terminated, truncated, info = env.recv()
    expected = twin.step(ZEROS)
    assert gone([victim])
    for mine, theirs in zip((obs, reward), expected, strict=False):
        assert mine[:2].tolist() == theirs[:2].tolist()
    assert info["active"].tolist() == [True, True, False, False]
    assert truncated.tolist() == [False, False, True, True]
    assert not terminated.any()
    assert reward[2:].tolist() == [0.0, 0.0]
    assert info["final_obs"][2:].tolist() == before[2:].tolist()
    assert obs[2:, 1].tolist() == [0.0, 0.0]  # another episode's first observation
    assert info["episode_length"].tolist() == [3, 3, 2, 2]  # the lost step does not count
    assert info["episode_return"][2:].tolist() == [3.0, 3.0]  # 1 + 2
    assert env.health["restarts"] == 1
    assert env.health["lost_slots"] == 2
    assert env.health["timeouts"] == env.health["world_errors"] == 0
    said = capfd.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "worker 1 was killed by SIGKILL" in said
    assert env.crash_reports[0] in said
    found = report(env)
    assert [slot["slot"] for slot in found["slots"]] == [2, 3]
    assert found["slots"][0]["seed"] == 2
    assert found["slots"][0]["steps_in_episode"] == 2
    assert found["slots"][0]["action"] == {"": 0}
    assert found["world_in_progress"] in (2, 3)
    obs, reward, _, truncated, info = env.step(ZEROS)  # life goes on
    assert info["active"].all()
    assert not truncated.any()
    assert obs[:, 1].tolist() == [4, 4, 1, 1]


def test_the_worlds_that_replace_lost_ones_are_the_same_every_time(make: Any) -> None:
    names = []
    for _ in range(2):
        env = make()
        env.reset(seed=7)
        os.kill(env.worker_pids[0], signal.SIGKILL)
        first = env.step(ZEROS)[0][:2, 0].tolist()
        os.kill(env.worker_pids[0], signal.SIGKILL)
        names.append((first, env.step(ZEROS)[0][:2, 0].tolist()))
        assert env.health["restarts"] == 2
    assert names[0] == names[1]
    assert names[0][0] != names[0][1]


def test_groups_that_were_not_sent_keep_what_they_had(make: Any) -> None:
    env = make(functools.partial(Counter, 100), num_groups=2)
    env.reset(seed=0)
    env.step(ZEROS)
    obs = env.arrays.obs.copy()
    env.send(ZEROS[:2], 0)
    time.sleep(0.1)  # group 0 has been stepped, and is valid although its worker dies now
    os.kill(env.worker_pids[0], signal.SIGKILL)
    time.sleep(0.1)
    assert env.recv(0)[4]["active"].all()
    env.send(ZEROS[:2], 0)
    _, _, _, truncated, info = env.recv(0)
    assert truncated.tolist() == [True, False]
    assert info["final_obs"][0].tolist() == [obs[0, 0], 2.0]
    episodes = json.loads(bytes(env.snapshot()["episodes"]))
    assert [e is None for e in episodes] == [s in env._links[0].slots and s >= 2 for s in range(4)]
    # the lost slot of group 1 still shows the observation that its next action answers
    assert env.arrays.obs[2:].tolist() == obs[2:].tolist()
    env.send(ZEROS[:2], 1)
    _, reward, _, truncated, info = env.recv(1)
    lost = [slot - 2 for slot in env._links[0].slots if slot >= 2]
    assert truncated.tolist() == [row in lost for row in (0, 1)]
    assert info["active"].tolist() == [row not in lost for row in (0, 1)]
    assert info["final_obs"][lost].tolist() == obs[2:][lost].tolist()
    assert reward[lost].tolist() == [0.0]
    assert env.step(ZEROS)[4]["active"].all()
    assert env.health["restarts"] == 1


def test_both_groups_in_flight_are_lost_together(make: Any) -> None:
    env = make(functools.partial(Sleeper, 0.1), num_groups=2, num_workers=1)
    env.reset(seed=0)
    env.send(ZEROS[:2], 0)
    env.send(ZEROS[:2], 1)
    os.kill(env.worker_pids[0], signal.SIGKILL)
    for group in (0, 1):
        _, _, _, truncated, info = env.recv(group)
        assert truncated.all()
        assert not info["active"].any()
    assert env.health["restarts"] == 1
    assert env.health["lost_slots"] == 4
    assert env.step(ZEROS)[4]["active"].all()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("exit@step", "ended with status 7"),
        ("kill@step", "was killed by SIGKILL"),
        ("segv@step", "was killed by SIGSEGV"),
        ("leave@step", "ended with status"),
    ],
)
def test_a_world_that_ends_its_process(
    make: Any, fuse: Path, capfd: Any, act: str, says: str
) -> None:
    env = make(doomed(act, fuse, at=3, seed=1))
    env.reset(seed=0)
    for step in range(1, 6):
        active = env.step(ZEROS)[4]["active"]
        assert active.tolist() == ([False, False, True, True] if step == 3 else [True] * 4)
    assert says in capfd.readouterr().err
    assert report(env)["world_in_progress"] == 1
    if act in ("segv@step", "leave@step"):
        assert "_happen" in report(env)["traceback"]


def test_a_worker_killed_in_a_reset_is_replaced_and_the_reset_done(make: Any, fuse: Path) -> None:
    fuse.unlink()
    env = make(doomed("kill@reset", fuse, seed=6))
    env.reset(seed=0)
    fuse.write_text("1")
    obs, info = env.reset(seed=5)
    assert info["active"].all()
    assert env.health["restarts"] == 1
    twin = rlgym.make_vec(Counter, 4, backend="sync")
    assert obs.tolist() == twin.reset(seed=5)[0].tolist()


def test_a_reset_wipes_out_what_was_lost_before_it(make: Any) -> None:
    env = make(functools.partial(Counter, 1))
    twin = rlgym.make_vec(Counter, 4, backend="sync", env_kwargs={"length": 1})
    env.reset(seed=0)
    os.kill(env.worker_pids[0], signal.SIGKILL)
    assert env.reset(seed=2)[0].tolist() == twin.reset(seed=2)[0].tolist()
    for _ in range(5):
        mine, theirs = env.step(ZEROS), twin.step(ZEROS)
        done = mine[2] | mine[3]
        assert mine[4]["final_obs"][done].tolist() == theirs[4]["final_obs"][done].tolist()
        assert mine[4]["active"].all()


def test_a_replacement_that_is_killed_too_is_replaced_again(make: Any, fuse: Path) -> None:
    env = make(doomed("kill@build", fuse.with_name("other")))
    env.reset(seed=0)
    fuse.with_name("other").write_text("11")  # the next two worlds that are built
    os.kill(env.worker_pids[0], signal.SIGKILL)
    assert env.step(ZEROS)[4]["active"].tolist() == [False, False, True, True]
    assert env.health["restarts"] == 3
    assert env.step(ZEROS)[4]["active"].all()


# --------------------------------------------------------------------------- frozen
def test_a_frozen_worker_is_replaced_in_time(make: Any, capfd: Any) -> None:
    env = make(timeout=0.5)
    env.reset(seed=0)
    os.kill(env.worker_pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    active = env.step(ZEROS)[4]["active"]
    assert time.monotonic() - begin > 0.5
    assert active.tolist() == [False, False, True, True]
    assert env.health["timeouts"] == env.health["restarts"] == 1
    assert "worker 0 does not answer (0.5 s)" in capfd.readouterr().err


def test_an_endless_loop_is_ended_and_the_report_shows_where(make: Any, fuse: Path) -> None:
    env = make(doomed("loop@step", fuse, at=2, seed=3), timeout=0.5)
    env.reset(seed=0)
    env.step(ZEROS)
    assert env.step(ZEROS)[4]["active"].tolist() == [True, True, False, False]
    found = report(env)
    assert found["world_in_progress"] == 3
    assert "worlds.py" in found["traceback"]
    assert "_happen" in found["traceback"]
    assert env.step(ZEROS)[4]["active"].all()


def test_a_worker_frozen_in_a_reset_is_replaced(make: Any, fuse: Path) -> None:
    fuse.unlink()
    env = make(doomed("stop@reset", fuse, seed=2), timeout=0.5)
    env.reset(seed=0)
    fuse.write_text("1")
    assert env.reset(seed=1)[1]["active"].all()
    assert env.health["timeouts"] == 1


def test_a_snapshot_does_not_wait_for_a_frozen_worker(make: Any) -> None:
    env = make(functools.partial(Counter, 100))
    env.reset(seed=0)
    env.step(ZEROS)
    env.mark()
    os.kill(env.worker_pids[1], signal.SIGSTOP)
    begin = time.monotonic()
    snapshot = env.snapshot(at_mark=True, timeout=0.3)
    assert time.monotonic() - begin < 2.0
    assert json.loads(bytes(snapshot["episodes"]))[2:] == [None, None]
    os.kill(env.worker_pids[1], signal.SIGCONT)
    assert env.step(ZEROS)[4]["active"].all()  # its late answer confuses nobody
    other = make(functools.partial(Counter, 100))
    assert other.restore(snapshot)[1]["replayed"].tolist() == [True, True, False, False]


def test_closing_does_not_wait_for_a_frozen_worker(make: Any) -> None:
    env = make(timeout=0.5)
    env.reset()
    pids = env.worker_pids
    os.kill(pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    env.close()
    assert time.monotonic() - begin < 2.0
    assert gone(pids, 0.1)


def test_closing_does_not_wait_again_for_a_worker_that_gave_no_snapshot(make: Any) -> None:
    env = make(timeout=20.0)
    env.reset()
    env.mark()
    pids = env.worker_pids
    os.kill(pids[0], signal.SIGSTOP)
    env.snapshot(at_mark=True, timeout=0.3)
    begin = time.monotonic()
    env.close()
    assert time.monotonic() - begin < 3.0, "the 5 s that worlds have to close"
    assert gone(pids, 0.1)


# --------------------------------------------------------------------------- exceptions
def test_one_world_that_raises_loses_one_slot(make: Any, fuse: Path, capfd: Any) -> None:
    env = make(doomed("raise@step", fuse, at=3, seed=2))
    twin = rlgym.make_vec(Counter, 4, backend="sync", env_kwargs={"length": 100})
    env.reset(seed=0)
    twin.reset(seed=0)
    pids = env.worker_pids
    for step in range(1, 6):
        obs, reward, _, truncated, info = env.step(ZEROS)
        theirs = twin.step(ZEROS)
        others = [0, 1, 3]
        assert obs[others].tolist() == theirs[0][others].tolist()
        assert info["active"].tolist() == [True, True, step != 3, True]
        assert truncated.tolist() == [False, False, step == 3, False]
        if step == 3:
            assert reward[2] == 0.0
            assert info["final_obs"][2, 1] == 2.0
            assert obs[2, 1] == 0.0
    assert env.worker_pids == pids
    assert env.health["world_errors"] == env.health["lost_slots"] == 1
    assert env.health["restarts"] == 0
    assert "world 2 raised RuntimeError: the arm came off" in capfd.readouterr().err
    found = report(env)
    assert found["episode"]["seed"] == 2
    assert found["episode"]["actions"] == [0, 0, 0]
    assert "the arm came off" in found["traceback"]


def test_a_world_that_raises_in_a_later_reset_is_rebuilt(make: Any, fuse: Path) -> None:
    fuse.unlink()
    env = make(doomed("raise@reset", fuse, seed=2))
    env.reset(seed=0)
    fuse.write_text("1")
    obs, info = env.reset(seed=1)
    assert info["active"].all()
    assert obs[:, 1].tolist() == [0, 0, 0, 0]
    assert env.health["world_errors"] == 1
    assert not env.step(ZEROS)[3].any()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("raise@build", "cannot be built: RuntimeError: the arm came off"),
        ("raise@reset", "first reset failed: RuntimeError: the arm came off"),
        ("kill@build", "worker 0 was killed by SIGKILL in the start of"),
        ("exit@reset", "worker 0 ended with status 7 in the start of"),
    ],
)
def test_a_world_that_never_works_is_one_clear_error(
    make: Any, fuse: Path, capfd: Any, act: str, says: str
) -> None:
    fuse.write_text("1" * 100)
    begin = time.monotonic()
    with pytest.raises(WorldError, match=says):
        make(doomed(act, fuse))
    assert time.monotonic() - begin < 20.0
    assert not psutil.Process().children()
    assert capfd.readouterr().err == ""


def test_a_failed_start_does_not_wait_for_slow_worlds(make: Any, fuse: Path) -> None:
    slow = functools.partial(SlowToBuild, fuse=str(fuse))
    begin = time.monotonic()
    with pytest.raises(WorldError, match="the arm came off"):
        make(slow)
    assert time.monotonic() - begin < 20.0


@pytest.mark.parametrize("act", ["raise@reset", "exit@reset"])
def test_a_first_reset_that_fails_in_a_worker_is_one_clear_error(
    make: Any, fuse: Path, act: str
) -> None:
    fuse.unlink()
    env = make(doomed(act, fuse))
    fuse.write_text("1" * 100)
    with pytest.raises(WorldError, match=r"first reset of world|in a reset of"):
        env.reset()
    assert env.health["restarts"] == 0
    assert not psutil.Process().children()


def test_a_world_that_lies_about_its_spaces_is_an_error(make: Any) -> None:
    env = rlgym.make_vec("rlgym/Liar-v0", 2, backend="process", num_workers=1)
    env.reset()
    with pytest.raises(ValueError, match="shape"):
        env.step(ZEROS[:2])
    env.close()


# --------------------------------------------------------------------------- the budget
def test_a_spent_budget_ends_everything_with_one_error(make: Any) -> None:
    env = make(max_restarts=2)
    env.reset()
    for _ in range(2):
        os.kill(env.worker_pids[0], signal.SIGKILL)
        env.step(ZEROS)
    pids = env.worker_pids
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorldError, match="max_restarts=2 is spent") as caught:
        env.step(ZEROS)
    assert env.crash_reports[-1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert env.closed
    assert gone(pids, 0.1)


def test_worlds_that_keep_raising_spend_the_budget_too(make: Any) -> None:
    env = make("rlgym/Crash-v0", max_restarts=3)
    env.reset()
    with pytest.raises(WorldError, match="told to crash at step 3, and max_restarts=3 is spent"):
        for _ in range(10):
            env.step(ZEROS)
    assert env.closed


def test_reports_that_cannot_be_written_do_not_end_the_run(make: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = make(crash_dir=tmp_path / "file" / "below")
    env.reset()
    os.kill(env.worker_pids[0], signal.SIGKILL)
    assert env.step(ZEROS)[4]["active"].sum() == 2
    assert env.crash_reports[0].startswith("not written")


# --------------------------------------------------------------------------- signals and orphans
def test_workers_leave_signals_to_the_parent(make: Any) -> None:
    env = make()
    env.reset()
    for pid in env.worker_pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.1)
    assert env.step(ZEROS)[4]["active"].all()
    assert env.health["restarts"] == 0


def test_what_a_world_started_ends_with_its_worker(make: Any) -> None:
    env = make(Parent, 2, num_workers=2)
    children = [int(pid) for pid in env.reset()[0][:, 0]]
    assert all(psutil.pid_exists(pid) for pid in children)
    os.kill(env.worker_pids[0], signal.SIGKILL)
    obs = env.step(ZEROS[:2])[0]
    assert gone(children[:1])
    env.close()
    assert gone([children[1], int(obs[0, 0])])


@pytest.mark.parametrize("state", ["asleep", "stopped", "stuck in C"])
def test_workers_end_when_the_parent_is_killed(tmp_path: Path, state: str) -> None:
    if state != "asleep" and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent whatever it does")
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time, numpy as np, rlgym
            from tests.vector.worlds import Sleeper
            env = rlgym.make_vec(Sleeper, 2, backend="process", num_workers=2,
                                 env_kwargs={{"seconds": 600, "stuck": {state == "stuck in C"}}})
            env.reset()
            env.send(np.zeros(1, np.int64), 0)
            time.sleep(0.1)
            print(*env.worker_pids, flush=True)
            time.sleep(600)
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    if state == "stopped":
        os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    ended = gone(pids, 5.0)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert ended


@pytest.mark.slow
def test_a_run_outlives_fifty_random_deaths(make: Any) -> None:
    env = make(functools.partial(Counter, 20), 8, num_groups=2, max_restarts=1000, timeout=2.0)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    lost = steps = 0
    while env.health["restarts"] < 50:
        if rng.random() < 0.05:
            how = signal.SIGSTOP if rng.random() < 0.1 else signal.SIGKILL
            os.kill(env.worker_pids[rng.integers(2)], how)
        _, _, terminated, truncated, info = env.step(np.zeros(8, np.int64))
        assert not (terminated & truncated).any()
        lost += int((~info["active"]).sum())
        steps += 1
    assert env.health["lost_slots"] == 50 * 4
    assert lost <= 50 * 4
    assert lost >= 50 * 4 - 4  # the last worker's second group may still have its loss ahead
