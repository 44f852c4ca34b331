"""The same robot from the same file, in PyBullet and in MuJoCo, moves the same way."""

from __future__ import annotations

import numpy as np
import pytest

from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.robots import get_robot

pytest.importorskip("mujoco")

SERVO = Actuation(time_step=0.001, substeps=33, servo="explicit")
ONE = np.ones(1, bool)
SECONDS = 3.0


def open_loop(name, robot, clip, phase, height=0.002, **settings):
    """Play a clip's joint angles as targets for 3 s; joint angles (steps, 12), base (steps, 3)."""
    if name == "bullet":
        settings |= {"num_workers": 0}
    entry = get_robot(robot)
    clips = ClipSet([load_clip(clip, entry)], entry)
    engine = make_engine(name, robot, SERVO, 1, **settings)
    first = np.zeros(1, int)
    ref = clips.sample(first, np.array([phase]))
    previous = ref.q.copy()
    place = ref.root_pos * [0.0, 0.0, 1.0] + [0.0, 0.0, height]
    engine.reset(ONE, place, ref.root_quat, ref.root_linvel, ref.root_angvel, ref.q, ref.qd)
    angles, places = [], []
    for step in range(round(SECONDS / SERVO.control_dt)):
        target = clips.sample(first, np.array([phase + (step + 1) * SERVO.control_dt])).q.copy()
        state = engine.step(previous, target)
        previous = target
        angles.append(state.q[0].copy())
        places.append(state.root_pos[0].copy())
    engine.close()
    return np.array(angles), np.array(places)


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize(
    "robot", ["a1", "laikago", "aliengo", pytest.param("mini_cheetah", marks=pytest.mark.slow)]
)
def test_an_open_loop_trot_is_the_same_in_both_engines(robot):
    differences = []
    for phase in (0.0, 0.2):
        angles, places = zip(
            *(open_loop(name, robot, "trot", phase) for name in ("bullet", "mujoco")), strict=True
        )
        differences.append(rms(*angles))
        assert rms(places[0][:, 2], places[1][:, 2]) < 0.01
    assert max(differences) < 0.02


def test_in_the_air_the_engines_agree_to_a_tenth_of_a_milliradian():
    """No contacts: what is left are masses, inertias, gravity, gains and signs."""
    for robot in ("a1", "laikago"):
        angles = [
            open_loop(name, robot, "trot", 0.0, height=50.0)[0][:30]
            for name in ("bullet", "mujoco")
        ]
        assert rms(*angles) < 1e-4


def test_merging_links_changes_nothing_but_the_time_it_takes():
    whole, _ = open_loop("bullet", "a1", "trot", 0.2, merge=False)
    merged, _ = open_loop("bullet", "a1", "trot", 0.2, merge=True)
    assert rms(whole, merged) < 0.005
