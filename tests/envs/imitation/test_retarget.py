"""Clips of one quadruped on another: geometry that must hold, and mirrors."""

from dataclasses import replace

import numpy as np
import pytest

from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.gaits import generate, leg_scale
from rlgym.envs.imitation.kinematics import feet_in_base, foot_positions
from rlgym.envs.imitation.retarget import mirror, retarget
from rlgym.envs.imitation.rotations import heading, to_rpy
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ClipError

A1, LAIKAGO, HUMANOID = (get_robot(name) for name in ("a1", "laikago", "humanoid"))


def feet(clip, robot):
    return foot_positions(robot, clip.root_pos, clip.root_quat, clip.q)


def test_onto_itself_nothing_changes():
    clip = generate(A1, "turn")
    same = retarget(clip, A1, A1)
    assert same.q == pytest.approx(clip.q, abs=1e-9)
    assert same.root_pos == pytest.approx(clip.root_pos, abs=1e-6)


@pytest.mark.parametrize("robot", ["laikago", "mini_cheetah", "aliengo"])
def test_feet_move_as_before_times_the_ratio_of_legs(robot):
    source = get_robot(robot)
    clip = generate(source, "trot")
    moved = retarget(clip, source, A1)
    ratio = leg_scale(A1) / leg_scale(source)
    assert moved.robot == "a1" and moved.joint_names == A1.joints
    assert moved.root_pos[:, 0] == pytest.approx(ratio * clip.root_pos[:, 0])
    new, old = feet(moved, A1), feet(clip, source)
    assert np.diff(new, axis=0) == pytest.approx(ratio * np.diff(old, axis=0), abs=1e-9)
    assert new[..., 2].min() == pytest.approx(A1.feet[0].radius, abs=1e-6)
    for leg, other in zip(A1.legs, source.legs, strict=True):
        number = A1.legs.index(leg)
        below = new[0, number, 0] - moved.root_pos[0, 0] - leg.hip[0]
        assert below == pytest.approx(
            ratio * (old[0, number, 0] - clip.root_pos[0, 0] - other.hip[0]), abs=1e-9
        )


def test_laikago_walk_on_a1_stands_where_it_steps():
    clip = load_clip("laikago_walk", A1)
    path = feet(clip, A1)
    assert np.median(path[..., 2].min(1)) == pytest.approx(0.02, abs=1e-6)
    assert clip.q[-1] == pytest.approx(clip.q[0])  # the loop is closed
    assert clip.root_pos[-1, 2] == pytest.approx(clip.root_pos[0, 2])
    assert (clip.q >= A1.lower).all() and (clip.q <= A1.upper).all()
    slip = np.linalg.norm(np.diff(path[..., :2], axis=0), axis=-1)
    low = (path[:-1, :, 2] < 0.03) & (path[1:, :, 2] < 0.03)
    assert low.mean() > 0.3 and np.median(slip[low]) < 0.005


def test_a_level_base_keeps_feet_on_the_ground_and_the_heading():
    clip = load_clip("laikago_walk", LAIKAGO)
    level = retarget(clip, LAIKAGO, A1, level=True)
    roll, pitch, _ = to_rpy(level.root_quat)
    assert max(np.abs(roll).max(), np.abs(pitch).max()) < 1e-9
    assert heading(level.root_quat) == pytest.approx(heading(clip.root_quat))
    assert np.median(feet(level, A1)[..., 2].min(1)) == pytest.approx(0.02, abs=1e-6)


def test_a_scale_shrinks_the_motion():
    clip = generate(A1, "trot")
    half = load_clip(clip, A1).root_pos[-1, 0] / 2
    small = load_clip({"file": "laikago_walk", "scale": 0.6}, A1)
    assert np.ptp(small.root_pos[:, 0]) == pytest.approx(0.336 * 0.6, abs=0.001)
    assert retarget(clip, A1, A1, scale=0.5).root_pos[-1, 0] == pytest.approx(half)


def test_a_leg_that_is_too_short_points_at_the_foots_place():
    clip = generate(A1, "trot")
    tall = retarget(clip, A1, A1, scale=1.45, close=False)
    wanted = 1.45 * (feet_in_base(A1, clip.q) - hips(A1))
    got = feet_in_base(A1, tall.q) - hips(A1)
    # with the thigh and the shank of .2 m, and a knee that stays .916 rad from straight
    length = 0.4 * np.cos(0.916297857297 / 2)
    reach = np.hypot(got[..., 0], got[..., 2])
    assert reach.max() == pytest.approx(length, abs=1e-6)
    short = np.hypot(wanted[..., 0], wanted[..., 2]) > length + 1e-3
    assert 0.2 < short.mean() < 0.8
    slope = (wanted[..., 0] / wanted[..., 2])[short]
    assert (got[..., 0] / got[..., 2])[short] == pytest.approx(slope, abs=1e-6)
    assert tall.q[:, 2::3].max() == pytest.approx(-0.916297857297)


def hips(robot):
    return np.array([leg.hip for leg in robot.legs])


def test_what_legs_cannot_reach_is_refused():
    with pytest.raises(
        ClipError, match=r"beyond a1: in frame .* misses its place by .* another sc"
    ):
        retarget(generate(A1, "trot"), A1, A1, scale=2.0)
    with pytest.raises(ClipError, match="a scale of nan makes no sense"):
        retarget(generate(A1, "trot"), A1, A1, scale=float("nan"))
    with pytest.raises(ClipError, match="humanoid has no four legs"):
        retarget(generate(A1, "trot"), A1, HUMANOID)


def test_a_mirrored_turn_goes_the_other_way():
    clip = generate(A1, "trot", {"yaw_rate": 0.7, "side": 0.1})
    other = mirror(clip, A1)
    clips = ClipSet([clip, other], A1)
    left, right = (clips.sample(np.array([k]), np.array([1.3])) for k in (0, 1))
    assert right.root_angvel == pytest.approx(-left.root_angvel)
    flip = np.array([1.0, -1.0, 1.0])
    assert right.root_pos == pytest.approx(left.root_pos * flip)
    assert right.foot_pos[:, [1, 0, 3, 2]] == pytest.approx(left.foot_pos * flip)
    assert mirror(other, A1).q == pytest.approx(clip.q)


def test_a_mirrored_humanoid_has_its_feet_across():
    clip = load_clip("turn_left1", HUMANOID)
    other = mirror(clip, HUMANOID)
    flip = np.array([1.0, -1.0, 1.0])
    times = np.array([0.0, 0.4, 0.9])
    clips = ClipSet([clip, other], HUMANOID)
    left = clips.sample(np.zeros(3, np.int64), times)
    right = clips.sample(np.ones(3, np.int64), times)
    # right ankle, left ankle, right wrist, left wrist; the points of feet lie off their middle
    assert right.foot_pos[:, [3, 2]] == pytest.approx(left.foot_pos[:, [2, 3]] * flip, abs=1e-6)
    assert heading(other.root_quat) == pytest.approx(-heading(clip.root_quat))


def test_a_mirror_needs_a_joint_across():
    lopsided = replace(HUMANOID, joints=("left_arm", *HUMANOID.joints[1:]))
    clip = replace(load_clip("humanoid3d_walk", HUMANOID), joint_names=lopsided.joints)
    with pytest.raises(ClipError, match="no joint 'right_arm' across from 'left_arm'"):
        mirror(clip, lopsided)
