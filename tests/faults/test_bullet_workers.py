"""Bullet's worker processes: the same numbers as without them, and what becomes of lost ones."""

import contextlib
import gc
import os
import signal
import sys
import time

import numpy as np
import pytest

from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Actuation
from rlgym.errors import StateError, WorldError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

SERVO = Actuation(time_step=0.001, substeps=4, servo="explicit", interpolate=True, latency=0.002)
WORLDS = 3


def engine_of(num_workers, **settings):
    return make_engine("bullet", "a1", SERVO, WORLDS, num_workers=num_workers, **settings)


def start(engine, mask=(True,) * WORLDS):
    robot = engine.robot
    return engine.reset(
        np.array(mask),
        np.tile([0.0, 0.0, robot.init_height], (WORLDS, 1)),
        np.tile([0.0, 0.0, 0.0, 1.0], (WORLDS, 1)),
        np.zeros((WORLDS, 3)),
        np.zeros((WORLDS, 3)),
        np.tile(robot.default_pose, (WORLDS, 1)),
        np.zeros((WORLDS, robot.nv)),
    )


def walk(engine, steps, seed=0):
    rng = np.random.default_rng(seed)
    pose = np.tile(engine.robot.default_pose, (WORLDS, 1))
    for _ in range(steps):
        state = engine.step(pose, pose + 0.1 * rng.normal(size=pose.shape))
    return state


def assert_equal(ours, theirs):
    for name in ("root_pos", "root_quat", "q", "qd", "torque", "power", "foot_contact"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    np.testing.assert_array_equal(ours.sensed.q, theirs.sensed.q)


def pids(engine):
    return [link.pid for link in engine._crew._links]


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.fixture
def engine():
    engine = engine_of(2, timeout=0.5, max_restarts=2)
    start(engine)
    yield engine
    engine.close()


def test_workers_give_the_numbers_of_one_process(engine):
    alone = engine_of(0)
    start(alone)
    assert_equal(walk(engine, 20), walk(alone, 20))
    start(engine, (False, True, True))
    start(alone, (False, True, True))
    assert_equal(walk(engine, 5, 1), walk(alone, 5, 1))
    other = engine_of(0)
    assert_equal(walk(engine, 1, 2), walk(alone, 1, 2))
    assert_equal(other.restore(engine.snapshot()), alone.restore(alone.snapshot()))
    assert_equal(engine.restore(other.snapshot()), other.restore(alone.snapshot()))
    assert_equal(walk(engine, 2, 3), walk(other, 2, 3))
    other.close()
    alone.close()


def test_a_killed_worker_is_replaced_and_its_worlds_are_reported(engine):
    walk(engine, 2)
    first = engine._crew._links[0]
    lost = np.zeros(WORLDS, bool)
    lost[slice(*first.groups[0])] = True
    kept = walk(engine, 1).root_pos[~lost].copy()
    os.kill(first.pid, signal.SIGKILL)
    state = walk(engine, 1)
    assert state.broken.tolist() == lost.tolist()
    assert engine.losses == [f"worker 0 was killed by SIGKILL (worlds 0 to {lost.sum() - 1})"]
    np.testing.assert_allclose(state.root_pos[lost, 2], engine.robot.init_height + 0.01)
    np.testing.assert_allclose(state.root_pos[~lost], kept, atol=0.05)  # they went on
    start(engine, lost)
    assert not walk(engine, 3).broken.any()


def test_a_frozen_worker_is_replaced_after_the_timeout(engine):
    os.kill(pids(engine)[1], signal.SIGSTOP)
    begin = time.monotonic()
    state = walk(engine, 1)
    assert time.monotonic() - begin >= 0.5
    assert 0 < state.broken.sum() < WORLDS
    assert "does not answer" in engine.losses[0]
    assert not walk(engine, 3).broken.any()


def test_worlds_that_a_reset_lost_beside_those_it_reset_are_reported_by_the_next_step():
    engine = engine_of(1)
    start(engine)
    walk(engine, 2)
    os.kill(pids(engine)[0], signal.SIGKILL)
    start(engine, (True, False, False))
    assert walk(engine, 1).broken.tolist() == [False, True, True]
    assert not walk(engine, 1).broken.any()
    engine.close()


def test_an_engine_that_loses_workers_again_and_again_gives_up():
    engine = engine_of(1, max_restarts=1)
    start(engine)
    for attempt in range(2):
        os.kill(pids(engine)[0], signal.SIGKILL)
        if attempt == 0:
            assert walk(engine, 1).broken.all()
        else:
            with pytest.raises(WorldError, match=r"lost 2 workers .* raise max_restarts"):
                walk(engine, 1)
    engine.close()


def test_no_process_outlives_its_engine():
    engine = engine_of(2)
    running = pids(engine)
    engine.close()
    assert not any(map(is_alive, running))
    with pytest.raises(StateError, match="closed"):
        walk(engine, 1)
    forgotten = engine_of(1)
    running = pids(forgotten)
    del forgotten
    gc.collect()
    assert not any(map(is_alive, running))
