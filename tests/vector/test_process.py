"""Worlds in worker processes: the same numbers as in this process, and nothing left behind."""

import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlgym
from rlgym.envs.toy.counter import Counter
from rlgym.errors import ContractError, SpaceError, StateError, WorldError
from rlgym.spaces import tree_items
from rlgym.vector.process import ProcessVectorEnv
from rlgym.vector.workers import link as link_module
from rlgym.vector.workers.link import ThreadInbox, shares
from tests.vector.worlds import Talker

ROOT = Path(rlgym.__file__).resolve().parents[1]


def make(world: Any, num_envs: int = 4, **kwargs: Any) -> Any:
    return rlgym.make_vec(world, num_envs, backend="process", **{"num_workers": 2, **kwargs})


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


def assert_same(ours: Any, theirs: Any, where: Any = "") -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], (where, key))
    elif isinstance(ours, tuple):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, (where, i))
    else:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=str(where))


def comparable(result: Any) -> Any:
    """A step's result without what does not count: final observations of unfinished episodes."""
    obs, reward, terminated, truncated, info = result
    done = np.asarray(terminated) | np.asarray(truncated)
    info = dict(info)
    final = info.pop("final_obs")
    parts = {k: np.asarray(v)[done] for k, v in tree_items(final)}
    return obs, reward, terminated, truncated, info, parts


def allowed(env: Any, rng: np.random.Generator) -> Any:
    """Random actions that the action mask allows."""
    if not env.mask_size:
        env.action_space.seed(int(rng.integers(1 << 30)))
        return env.action_layout.flatten(env.action_space.sample())
    ends = np.cumsum(env.action_layout.leaves[0].num_choices)[:-1]
    parts = np.split(env.arrays.action_mask * rng.random(env.arrays.action_mask.shape), ends, 1)
    return np.stack([part.argmax(1) for part in parts], 1)


# --------------------------------------------------------------------------- equal to sync
@pytest.mark.parametrize(
    ("world", "num_envs", "num_workers", "num_groups", "steps"),
    [
        ("CartPole-v1", 8, 2, 2, 2000),
        ("Pendulum-v1", 5, 2, 1, 600),
        ("rlgym/DictObs-v0", 6, 4, 2, 1000),
        ("rlgym/TupleObs-v0", 4, 3, 2, 500),
        ("rlgym/Mixed-v0", 6, 2, 3, 500),
        ("rlgym/Dot-v0", 4, 2, 2, 500),
        ("rlgym/MaskedMulti-v0", 4, 2, 1, 500),
        ("rlgym/RewardTerms-v0", 3, 2, 1, 500),
    ],
)
def test_process_equals_sync_bit_for_bit(
    world: str, num_envs: int, num_workers: int, num_groups: int, steps: int
) -> None:
    sync = rlgym.make_vec(world, num_envs, backend="sync", num_groups=num_groups)
    process = make(world, num_envs, num_workers=num_workers, num_groups=num_groups)
    assert process.observation_space == sync.observation_space
    assert process.action_space == sync.action_space
    assert process.traits == sync.traits
    assert_same(process.reset(seed=3), sync.reset(seed=3))
    rng = np.random.default_rng(0)
    for step in range(steps):
        actions = allowed(sync, rng)
        assert_same(comparable(process.step(actions)), comparable(sync.step(actions)), step)
        if step == steps // 2:
            assert_same(process.reset(seed=None), sync.reset(seed=None))
    assert not any(process.health.values())
    process.close()


def test_groups_by_send_and_recv_equal_whole_steps() -> None:
    whole = make("CartPole-v1", 6, num_groups=1)
    halves = make("CartPole-v1", 6, num_groups=2)
    assert_same(halves.reset(seed=1), whole.reset(seed=1))
    rng = np.random.default_rng(1)
    halves.send(np.zeros(3, np.int64), 1)
    actions = np.zeros(6, np.int64)
    for _ in range(300):
        halves.send(actions[:3], 0)
        expected = whole.step(actions)
        for group in (1, 0):
            rows = halves.group_slice(group)
            got = halves.recv(group)
            for mine, theirs in zip(got[:4], expected[:4], strict=True):
                assert_same(mine, theirs[rows])
        actions = rng.integers(0, 2, 6)
        halves.send(actions[3:], 1)
    halves.recv(1)
    whole.close()
    halves.close()


def test_a_snapshot_continues_on_either_backend() -> None:
    sync = rlgym.make_vec("CartPole-v1", 4, backend="sync")
    process = make("CartPole-v1", 4)
    rng = np.random.default_rng(2)
    sync.reset(seed=5)
    process.reset(seed=5)
    for _ in range(57):
        actions = rng.integers(0, 2, 4)
        sync.step(actions)
        process.step(actions)
    snapshots = sync.snapshot(), process.snapshot()
    assert_same(snapshots[1], snapshots[0])
    others = make("CartPole-v1", 4, num_workers=1), rlgym.make_vec("CartPole-v1", 4, backend="sync")
    for env, snapshot in zip(others, snapshots, strict=True):
        obs, info = env.restore(snapshot)
        assert info["replayed"].all()
        assert_same(obs, process.arrays.obs)
    for _ in range(100):
        actions = rng.integers(0, 2, 4)
        expected = comparable(sync.step(actions))
        for env in (process, *others):
            assert_same(comparable(env.step(actions)), expected)
    process.close()
    others[0].close()


def test_a_snapshot_at_the_mark_may_be_taken_while_a_step_is_pending() -> None:
    env = make("CartPole-v1", 4)
    env.reset(seed=0)
    zeros = np.zeros(2, np.int64)
    env.step(np.zeros(4, np.int64))
    env.mark()
    obs = env.arrays.obs.copy()
    env.send(zeros, 0)
    snapshot = env.snapshot(at_mark=True)
    env.recv(0)
    assert not np.array_equal(env.arrays.obs, obs)
    got, info = env.restore(snapshot)
    assert info["replayed"].all()
    assert_same(got, obs)
    env.close()


def test_worlds_that_cannot_be_replayed_start_anew_and_are_counted() -> None:
    env = make("rlgym/Unreplayable-v0", 2)
    env.reset(seed=0)
    env.step(np.zeros(2, np.int64))
    obs, info = env.restore(env.snapshot())
    assert info["replayed"].tolist() == [False, False]
    assert obs[:, 0].tolist() == [float(int(n)) for n in obs[:, 0]]
    assert env.health["unreplayed"] == 2
    env.close()


# --------------------------------------------------------------------------- who has which rows
@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 60))
def test_every_row_has_one_worker(size: int, num_groups: int, num_workers: int) -> None:
    num_envs = size * num_groups
    rows = shares(num_envs, num_groups, num_workers)
    assert 1 <= len(rows) <= min(num_workers, num_envs)
    owners = [row for worker in rows for start, stop in worker for row in range(start, stop)]
    assert sorted(owners) == list(range(num_envs))
    loads = [sum(stop - start for start, stop in worker) for worker in rows]
    assert min(loads) >= 1
    if num_workers <= size:
        assert len(rows) == num_workers
        for worker in rows:  # each worker has a part of each group
            assert all(stop > start for start, stop in worker)


def test_shares_by_hand() -> None:
    assert shares(8, 2, 2) == [[(0, 2), (6, 8)], [(2, 4), (4, 6)]]
    assert shares(5, 1, 2) == [[(0, 2)], [(2, 5)]]
    assert shares(4, 2, 4) == [
        [(0, 1), (2, 2)],
        [(0, 0), (3, 4)],
        [(1, 2), (2, 2)],
        [(0, 0), (2, 3)],
    ]


def test_counts_that_do_not_fit_are_refused_before_anything_starts() -> None:
    before = psutil.Process().children()
    with pytest.raises(ContractError, match="use num_envs 6 or num_groups 1"):
        make("CartPole-v1", 5, num_groups=2)
    with pytest.raises(ContractError, match="num_workers is 0"):
        make("CartPole-v1", 4, num_workers=0)
    with pytest.raises(ContractError, match="timeout"):
        make("CartPole-v1", 4, timeout=0)
    assert psutil.Process().children() == before


# --------------------------------------------------------------------------- what a world may be
def test_prints_do_not_disturb_and_workers_have_no_torch() -> None:
    env = make(Talker, 2)
    obs, _ = env.reset(options={"gift": (4, "a tuple stays a tuple")})
    assert obs.tolist() == [[4.0, 0.0], [4.0, 0.0]]
    obs = env.step(np.zeros(2, np.int64))[0]
    assert obs.tolist() == [[4.0, 1.0], [4.0, 1.0]]  # standard input is empty, not the commands
    assert (env.render_slot(1) == np.full((2, 3, 3), 7)).all()
    env.close()


def test_closures_lambdas_and_keyword_arguments_travel() -> None:
    length = 3
    env = make(lambda extra: Counter(length=length + extra), 2, env_kwargs={"extra": 100})
    env.reset()
    for _ in range(50):
        _, _, terminated, truncated, _ = env.step(np.zeros(2, np.int64))
        assert not (terminated | truncated).any()
    env.close()


def test_code_that_a_worker_could_not_import_is_sent_along(tmp_path: Path) -> None:
    path = tmp_path / "hidden_world.py"
    path.write_text(
        "from rlgym.envs.toy.counter import Counter\n"
        "class Hidden(Counter):\n"
        "    def reset(self, **kwargs):\n"
        "        obs, info = super().reset(**kwargs)\n"
        "        return obs * 0 + 42, info\n"
    )
    spec = importlib.util.spec_from_file_location("hidden_world", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hidden_world"] = module
    try:
        spec.loader.exec_module(module)
        env = make(module.Hidden, 2)
        assert (env.reset()[0] == 42).all()
        env.close()
    finally:
        del sys.modules["hidden_world"]


def test_what_cannot_be_sent_says_so() -> None:
    lock = threading.Lock()
    with pytest.raises(WorldError, match=r'cannot be sent to worker processes.*backend="sync"'):
        make(lambda: Counter(length=lock.locked()), 2)


# --------------------------------------------------------------------------- scripts
def run_script(tmp_path: Path, text: str, stdin: bool = False) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "-"] if stdin else [sys.executable, str(path)],
        input=path.read_text() if stdin else None,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


SCRIPT = """
    import gymnasium, numpy as np, rlgym
    from rlgym.envs.toy.counter import Counter
    with open("ran.txt", "a") as file:
        file.write("x")
    class Mine(Counter):
        pass
    gymnasium.register("Mine-v0", entry_point=lambda length: Mine(length), kwargs={"length": 4})
    env = rlgym.make_vec("Mine-v0", 2, backend="process", num_workers=2)
    env.reset(seed=1)
    print(env.step(np.ones(2, np.int64))[1].tolist())
    print(env.worker_pids)
"""


@pytest.mark.parametrize("stdin", [False, True])
def test_a_script_without_a_guard_runs_once(tmp_path: Path, stdin: bool) -> None:
    done = run_script(tmp_path, SCRIPT, stdin)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[1.5, 1.5]"
    assert (tmp_path / "ran.txt").read_text() == "x"
    assert not alive(
        [int(p) for p in lines[1].strip("[]").split(",")]
    )  # never closed by the script
    assert done.stderr == ""


def test_an_exception_leaves_no_worker(tmp_path: Path) -> None:
    done = run_script(tmp_path, textwrap.dedent(SCRIPT) + "\nraise RuntimeError('mine')")
    assert done.returncode == 1
    assert "RuntimeError: mine" in done.stderr
    assert not alive([int(p) for p in done.stdout.splitlines()[1].strip("[]").split(",")])


# --------------------------------------------------------------------------- nothing left behind
def open_descriptors() -> int:
    return psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0


def cycle(times: int) -> None:
    def maps() -> int:
        path = Path("/proc/self/maps")
        return path.read_text().count("memfd:rlgym") if path.exists() else 0

    make(Counter, 2).close()  # what is only made once
    gc.collect()
    before = open_descriptors(), maps(), len(psutil.Process().children()), threading.active_count()
    for i in range(times):
        env = make(Counter, 2)
        env.reset()
        env.send(np.zeros(1, np.int64), 0)
        if i % 2:
            env.recv(0)
        env.close()
    del env
    gc.collect()
    after = open_descriptors(), maps(), len(psutil.Process().children()), threading.active_count()
    assert after == before


def test_opening_and_closing_leaves_nothing() -> None:
    cycle(5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_opening_and_closing_a_hundred_times_leaves_nothing() -> None:
    cycle(100)


def test_an_env_that_is_let_go_ends_its_workers() -> None:
    env = make(Counter, 2)
    pids = env.worker_pids
    env.reset()
    assert len(alive(pids)) == 2
    del env
    gc.collect()
    assert not alive(pids)


def test_close_is_final_and_may_be_repeated() -> None:
    env = make(Counter, 2)
    obs, _ = env.reset()
    pids = env.worker_pids
    env.close()
    env.close()
    assert not alive(pids)
    assert obs.shape == (2, 2)  # what was handed out stays readable
    assert obs[:, 1].tolist() == [0.0, 0.0]
    with pytest.raises(StateError, match="closed"):
        env.step(np.zeros(2, np.int64))


def test_workers_outlive_the_thread_that_made_them() -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(make(Counter, 2)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    env = made[0]
    env.reset()
    env.step(np.zeros(2, np.int64))
    assert not any(env.health.values())
    env.close()


def test_the_way_without_poll_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows cannot poll pipes: a thread per worker reads them there, and can here."""
    monkeypatch.setattr(link_module, "Inbox", lambda spin, timeout: ThreadInbox(timeout))
    sync = rlgym.make_vec("CartPole-v1", 4, backend="sync")
    env = make("CartPole-v1", 4)
    assert isinstance(env._crew.inbox, ThreadInbox)
    assert_same(env.reset(seed=0), sync.reset(seed=0))
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.integers(0, 2, 4)
        assert_same(comparable(env.step(actions)), comparable(sync.step(actions)))
    os.kill(env.worker_pids[0], 9)
    time.sleep(0.1)
    assert env.step(actions)[4]["active"].sum() == 2
    assert_same(env.snapshot()["lengths"], env._lengths)
    env.close()


def test_wrong_actions_are_refused_before_a_world_steps() -> None:
    env = make(Counter, 4)
    env.reset()
    with pytest.raises(SpaceError, match="one row per slot"):
        env.step(np.zeros(3, np.int64))
    assert env.step(np.zeros(4, np.int64))[0][:, 1].tolist() == [1, 1, 1, 1]
    assert isinstance(env, ProcessVectorEnv)
    env.close()
