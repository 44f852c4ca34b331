"""The filter against scipy's, and targets worked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import signal

from rlgym.envs.imitation.action import (
    act,
    asking_for,
    butterworth,
    commanded_angles,
    reset_filter,
    start_filter,
)
from rlgym.envs.imitation.joints import to_angles
from rlgym.envs.imitation.spec import SPECS, ActionSpec
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ConfigError
from tests.envs.imitation.batches import as_torch, assert_same, poses

A1, HUMANOID = get_robot("a1"), get_robot("humanoid")
POSE = np.array([A1.default_pose])
DT = 0.033
FREE = ActionSpec(scale=1.0, limit_margin=None)


# ----- Filter ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cutoff", "rate"), [(4.0, 1 / 0.033), (8.0, 50.0), (0.5, 1000.0)])
def test_coefficients_are_scipys(cutoff: float, rate: float) -> None:
    b, a = np.array(signal.butter(2, cutoff, fs=rate))
    found = butterworth(cutoff, rate)
    np.testing.assert_allclose([found.b0, 2 * found.b0, found.b0], b, rtol=1e-9)
    np.testing.assert_allclose([1.0, found.a1, found.a2], a, rtol=1e-9)


def test_filtering_is_scipys_from_the_measured_angles_on() -> None:
    draw = np.random.default_rng(0)
    actions = draw.normal(size=(40, 3, 12))
    start = draw.normal(size=(3, 12))
    b, a = np.array(signal.butter(2, 4.0, fs=1 / DT))
    # scipy's state after it has been fed `start` for ever
    zi = signal.lfilter_zi(b, a)[:, None, None] * start
    expected, _ = signal.lfilter(b, a, POSE + actions, axis=0, zi=zi)
    memory, spec = start_filter(start), replace(FREE, cutoff=4.0)
    for t in range(40):
        target, memory = act(memory, actions[t], spec, A1, POSE, DT)
        np.testing.assert_allclose(target, expected[t], atol=1e-9)


def test_a_filter_that_is_reset_forgets_in_its_rows_only() -> None:
    spec = replace(FREE, cutoff=4.0)
    memory = start_filter(np.zeros((2, 12)))
    for _ in range(5):
        _, memory = act(memory, np.ones((2, 12)), spec, A1, POSE, DT)
    rested = reset_filter(memory, np.array([True, False]), POSE + np.zeros((2, 12)))
    after, _ = act(rested, np.zeros((2, 12)), spec, A1, POSE, DT)
    np.testing.assert_allclose(after[0], POSE[0], atol=1e-12)  # at rest where it was measured
    unreset, _ = act(memory, np.zeros((2, 12)), spec, A1, POSE, DT)
    np.testing.assert_array_equal(after[1], unreset[1])
    assert abs(after[1] - POSE[0]).min() > 0.1


def test_the_cutoff_is_where_the_gain_is_minus_3_db() -> None:
    spec, rate, cutoff = replace(FREE, cutoff=4.0), 200.0, 4.0
    memory, peak = start_filter(np.zeros((1, 12))), 0.0
    for t in range(2000):
        wave = np.full((1, 12), math.sin(2 * math.pi * cutoff * t / rate))
        out, memory = act(memory, wave, spec, A1, 0 * POSE, 1 / rate)
        peak = max(peak, out[0, 0]) if t > 1000 else 0.0
    assert peak == pytest.approx(math.sqrt(0.5), rel=1e-2)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, 16.0, math.nan])
def test_an_impossible_cutoff_names_the_setting(cutoff: float) -> None:
    with pytest.raises(ConfigError, match=r"action.cutoff is .* below 15.2, or null"):
        act(start_filter(POSE), POSE, replace(FREE, cutoff=cutoff), A1, POSE, DT)


# ----- Targets -----------------------------------------------------------------------------------


def test_zero_asks_for_the_offset_and_one_for_a_scale_beside_it() -> None:
    memory, spec = start_filter(POSE), ActionSpec(scale=0.25)
    target, _ = act(memory, np.zeros((3, 12)), spec, A1, POSE, DT)
    np.testing.assert_allclose(target, np.tile(POSE, (3, 1)))
    target, _ = act(memory, np.ones((3, 12)), spec, A1, POSE, DT)
    np.testing.assert_allclose(target, np.tile(POSE + 0.25, (3, 1)))
    rows = np.concatenate([POSE, POSE + 0.1, POSE - 0.1])  # an offset for each slot's clip
    target, _ = act(memory, np.zeros((3, 12)), spec, A1, rows, DT)
    np.testing.assert_allclose(target, rows)


def test_targets_stop_a_margin_beyond_the_limits() -> None:
    lower, upper = np.array(A1.lower), np.array(A1.upper)
    memory, spec = start_filter(POSE), ActionSpec(scale=1.0, limit_margin=0.3)
    far = np.stack([np.full(12, 99.0), np.full(12, -99.0)])
    target, _ = act(memory, far, spec, A1, POSE, DT)
    np.testing.assert_allclose(target, np.stack([upper + 0.3, lower - 0.3]))
    unlimited, _ = act(memory, far, FREE, A1, POSE, DT)
    np.testing.assert_allclose(unlimited, POSE + far)


def test_the_reference_specification_adds_the_pose_and_filters_without_limits() -> None:
    laikago = get_robot("laikago")
    pose, spec = np.array([laikago.default_pose]), SPECS["reference"].action
    action = np.full((1, 12), 6.0)
    np.testing.assert_allclose(commanded_angles(action, spec, laikago, pose), pose + 6.0)
    target, _ = act(start_filter(pose), action, spec, laikago, pose, DT)
    b, _ = np.array(signal.butter(2, 4.0, fs=1 / DT))
    np.testing.assert_allclose(target, pose + b[0] * 6.0)


def test_actions_that_ask_for_a_pose_get_it() -> None:
    for robot, spec in ((A1, ActionSpec()), (HUMANOID, SPECS["humanoid"].action)):
        offset = np.array([robot.default_pose])
        wanted = poses(np.random.default_rng(0), robot, 5, 0.3)
        action = asking_for(wanted, spec, robot, offset)
        target, _ = act(start_filter(action), action, spec, robot, offset, DT)
        np.testing.assert_allclose(to_angles(robot, target), to_angles(robot, wanted), atol=1e-9)


def test_spherical_joints_are_asked_for_by_rotation_vectors() -> None:
    offset = np.array([HUMANOID.default_pose])
    action = np.zeros((1, HUMANOID.nv))
    action[0, :3] = [0.4, 0.0, 0.0]  # the chest's; its offset is no turn at all
    spec = ActionSpec(scale=0.5, limit_margin=None)
    target, _ = act(start_filter(action), action, spec, HUMANOID, offset, DT)
    np.testing.assert_allclose(target[0, :4], [math.sin(0.1), 0.0, 0.0, math.cos(0.1)])
    np.testing.assert_allclose(target[0, 4:], offset[0, 4:], atol=1e-12)


@pytest.mark.parametrize("robot", [A1, HUMANOID])
def test_torch_agrees(robot) -> None:
    draw = np.random.default_rng(0)
    actions = draw.normal(size=(5, 4, robot.nv))
    offset = poses(draw, robot, 4, 0.2)
    spec = ActionSpec(scale=0.5, cutoff=4.0, limit_margin=0.1)
    ours = start_filter(to_angles(robot, offset))
    theirs = start_filter(to_angles(robot, as_torch(offset)))
    for action in actions:
        mask = draw.random(4) < 0.3
        ours = reset_filter(ours, mask, to_angles(robot, offset))
        theirs = reset_filter(theirs, as_torch(mask), to_angles(robot, as_torch(offset)))
        target, ours = act(ours, action, spec, robot, offset, DT)
        found, theirs = act(theirs, as_torch(action), spec, robot, as_torch(offset), DT)
        assert_same(target, found)
        assert_same(tuple(ours), tuple(theirs))


def test_float32_stays_float32() -> None:
    pose = torch.tensor(POSE).float()
    spec = ActionSpec(cutoff=4.0)
    target, memory = act(start_filter(pose), torch.zeros(1, 12), spec, A1, pose, DT)
    assert target.dtype == memory.y1.dtype == torch.float32
