"""Clips and sets of them: numbers worked by hand, and a plain loop as the oracle of sampling."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlgym.envs.imitation.clips import Clip, ClipSet, require_may_ship
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ClipError

A1 = get_robot("a1")
HUMANOID = get_robot("humanoid")
POSE = np.array(A1.default_pose)


def yaw(angle):
    return np.array([0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)])


def ramp(frames=5, dt=0.1, turn=0.0, seed=None, **changes):
    """A clip of A1 that moves .1 m a frame, turns `turn` rad a frame, and bends all its joints."""
    steps = np.arange(frames)
    pos = np.stack([0.5 + 0.1 * steps, 0.3 + 0.0 * steps, 0.3 + 0.01 * steps], 1)
    q = POSE + 0.02 * steps[:, None]
    if seed is not None:
        q = POSE + np.random.default_rng(seed).uniform(-0.2, 0.2, (frames, 12))
    quat = np.stack([yaw(turn * step) for step in steps])
    fields = {"name": "ramp", "robot": "a1", "joint_names": A1.joints, "dt": dt}
    return Clip(**{**fields, "root_pos": pos, "root_quat": quat, "q": q, **changes})


def at(clip, *times):
    return ClipSet([clip], A1).sample(np.zeros(len(times), np.int64), np.array(times))


def test_between_two_frames_everything_is_linear():
    ref = at(ramp(turn=0.2), 0.15)
    # halfway from frame 1 to frame 2; the clip's first frame lies over the origin
    assert ref.root_pos[0] == pytest.approx([0.15, 0.0, 0.315])
    assert ref.root_quat[0] == pytest.approx(yaw(0.3))
    assert ref.q[0] == pytest.approx(POSE + 0.03)
    assert ref.root_linvel[0] == pytest.approx([1.0, 0.0, 0.1])
    assert ref.root_angvel[0] == pytest.approx([0.0, 0.0, 2.0])
    assert ref.qd[0] == pytest.approx(np.full(12, 0.2))


def test_feet_are_those_of_the_sampled_pose():
    ref = at(ramp(turn=0.2, seed=0), 0.13, 0.77)
    expected = foot_positions(A1, ref.root_pos, ref.root_quat, ref.q)
    assert ref.foot_pos == pytest.approx(expected)
    assert ref.foot_pos.shape == (2, 4, 3)


def test_velocities_are_forward_differences_and_the_last_is_repeated():
    clip = ramp(frames=3)
    clip = replace(clip, q=POSE + np.array([[0.0], [0.1], [0.4]]))
    # at frames: 1, 3 and 3 rad/s; linear between
    speeds = at(replace(clip, loop=False), 0.0, 0.05, 0.1, 0.15, 0.2).qd[:, 0]
    assert speeds == pytest.approx([1.0, 2.0, 3.0, 3.0, 3.0])


def test_a_loop_goes_on_from_where_its_cycle_ended():
    clip = ramp()  # 0.4 s, 0.4 m
    first, third = at(clip, 0.15), at(clip, 0.15 + 2 * clip.duration)
    assert third.root_pos[0] == pytest.approx(first.root_pos[0] + [0.8, 0.0, 0.0])
    assert third.q == pytest.approx(first.q)
    back = at(replace(clip, cycle_position=False), 0.15 + 2 * clip.duration)
    assert back.root_pos == pytest.approx(first.root_pos)


def test_times_before_the_start_belong_to_earlier_cycles():
    ref = at(ramp(), -0.25)  # the cycle before, at .15 s
    assert ref.root_pos[0] == pytest.approx([0.15 - 0.4, 0.0, 0.315])


def test_turning_cycles_add_up_as_the_original_adds_them():
    clip = ramp(frames=6, turn=0.17, cycle_heading=True)
    shift, turn = np.array([0.5, 0.0, 0.0]), 5 * 0.17
    pos, angle = np.zeros(3), 0.0
    for cycle in range(7):  # motion_imitation sums the net motions, each in its cycle's heading
        time = cycle * clip.duration + 0.23
        ref, once = at(clip, time), at(clip, 0.23)
        c, s = math.cos(angle), math.sin(angle)
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        assert ref.root_pos[0] == pytest.approx(pos + rotation @ once.root_pos[0])
        assert ref.root_linvel[0] == pytest.approx(rotation @ once.root_linvel[0])
        assert abs(ref.root_quat[0] @ yaw(angle + 0.17 * 2.3)) == pytest.approx(1)
        pos, angle = pos + rotation @ shift, angle + turn


def test_a_clip_that_does_not_loop_stays_at_its_ends():
    clips = ClipSet([ramp(loop=False)], A1)
    ids = np.zeros(3, np.int64)
    times = np.array([-1.0, 0.4, 9.0])
    ref = clips.sample(ids, times)
    assert ref.root_pos[:, 0] == pytest.approx([0.0, 0.4, 0.4])
    assert clips.over(ids, times).tolist() == [False, True, True]
    assert not ClipSet([ramp()], A1).over(ids, times).any()


def test_a_batch_of_clips_equals_each_clip_alone():
    clips = [ramp(seed=1), ramp(frames=9, dt=0.03, turn=0.1, seed=2, cycle_heading=True)]
    clips.append(ramp(frames=4, seed=3, loop=False))
    rng = np.random.default_rng(0)
    ids, times = rng.integers(0, 3, 50), rng.uniform(-1, 6, 50)
    together = ClipSet(clips, A1).sample(ids, times)
    for row, (clip, time) in enumerate(zip(ids, times, strict=True)):
        alone = at(clips[clip], time)
        for name, values in vars(alone).items():
            assert getattr(together, name)[row] == pytest.approx(values[0], abs=1e-12), name


def test_poses_of_many_times_equal_samples():
    clips = ClipSet([ramp(seed=1), ramp(turn=0.2, seed=2, cycle_heading=True)], A1)
    ids, times = np.array([0, 1, 1]), np.array([[0.1, 0.5], [0.2, 3.0], [0.0, 0.4]])
    poses = clips.pose(ids, times)
    assert poses.q.shape == (3, 2, 12)
    for k in range(2):
        ref = clips.sample(ids, times[:, k])
        for name in ("root_pos", "root_quat", "q"):
            assert getattr(poses, name)[:, k] == pytest.approx(getattr(ref, name))


def test_torch_gives_the_numbers_of_numpy():
    clips = ClipSet([ramp(seed=1), ramp(turn=0.2, seed=2, cycle_heading=True)], A1)
    ids, times = np.array([0, 1, 1, 0]), np.array([0.11, 3.03, 0.27, 1.9])
    ref = clips.sample(ids, times)
    moved = clips.to("cpu")
    other = moved.sample(torch.as_tensor(ids), torch.as_tensor(times, dtype=torch.float32))
    for name, values in vars(other).items():
        assert values.dtype == torch.float32
        assert values.numpy() == pytest.approx(getattr(ref, name), abs=3e-5), name
    assert isinstance(clips.duration, np.ndarray)  # the original set is left as it was


def test_spherical_joints_are_slerped_and_turn_in_the_childs_frame():
    """The chest turns about its own x after a quarter turn about z: that is its rate."""
    quarter = yaw(math.pi / 2)
    q = np.tile(np.array(HUMANOID.default_pose), (2, 1))
    half = math.sin(0.2), math.cos(0.2)
    q[0, :4] = quarter
    # quarter turn about z, then about the child's own x by .4 rad: product z * x
    q[1, :4] = [
        quarter[3] * half[0],
        quarter[2] * half[0],
        quarter[2] * half[1],
        half[1] * quarter[3],
    ]
    q[1, 12] -= 0.3  # the right knee, a hinge
    level = np.tile(yaw(0.0), (2, 1))
    spherical = HUMANOID.spherical
    fields = {"root_pos": np.zeros((2, 3)), "root_quat": level, "q": q, "spherical": spherical}
    clip = Clip("turn", "humanoid", HUMANOID.joints, 0.5, **fields, loop=False)
    ref = ClipSet([clip], HUMANOID).sample(np.zeros(1, np.int64), np.array([0.25]))
    middle = math.sin(0.1), math.cos(0.1)
    expected = [quarter[3] * middle[0], quarter[2] * middle[0]]
    expected += [quarter[2] * middle[1], middle[1] * quarter[3]]
    assert ref.q[0, :4] == pytest.approx(expected)
    assert ref.q[0, 12] == pytest.approx(q[0, 12] - 0.15)
    assert ref.qd.shape == (1, 28)
    assert ref.qd[0, :3] == pytest.approx([0.8, 0.0, 0.0])
    assert ref.qd[0, 9] == pytest.approx(-0.6)
    assert ref.qd[0, 3:9] == pytest.approx(0)


def test_the_sign_of_a_quaternion_means_nothing():
    clip = ramp(turn=0.2)
    flipped = clip.root_quat * np.array([1, -1, -1, 1, -1])[:, None]
    ref, other = at(clip, 0.05, 0.33), at(replace(clip, root_quat=flipped), 0.05, 0.33)
    assert other.root_quat == pytest.approx(ref.root_quat)
    assert other.root_angvel == pytest.approx(ref.root_angvel)


def test_mean_pose_counts_a_loops_last_frame_once():
    clip = replace(ramp(frames=3), q=POSE + np.array([[0.0], [0.3], [0.0]]))
    assert ClipSet([clip], A1).mean_pose[0] == pytest.approx(POSE + 0.15)
    once = ClipSet([replace(clip, loop=False)], A1)
    assert once.mean_pose[0] == pytest.approx(POSE + 0.1)


def test_columns_follow_the_names_of_joints():
    clip = ramp(seed=4)
    order = np.random.default_rng(0).permutation(12)
    names = tuple(A1.joints[k] for k in order)
    shuffled = replace(clip, joint_names=names, q=clip.q[:, order])
    assert shuffled.for_robot(A1).q == pytest.approx(clip.q)
    assert at(shuffled, 0.12).q == pytest.approx(at(clip, 0.12).q)


BAD = [
    ({"q": np.zeros((5, 11))}, "q of shape .5, 11.; 5 frames and 12 joints need .5, 12."),
    ({"root_pos": np.zeros((5, 2))}, "root_pos of shape"),
    ({"root_quat": np.tile([0, 0, 0, 1.5], (5, 1))}, "frame 0 of root_quat is no rotation"),
    ({"root_quat": np.zeros((5, 4))}, "quaternion of norm 0 instead of 1"),
    ({"q": np.full((5, 12), np.nan)}, "frame 0 of q is not finite"),
    ({"root_pos": np.array([[0.0, 0, 0]] * 3 + [[0, np.inf, 0]] * 2)}, "frame 3 of root_pos"),
    ({"dt": 0.0}, "has no duration: 5 frames of 0.0 s"),
    ({"dt": -1.0}, "has no duration"),
    ({"dt": float("nan")}, "has no duration"),
    ({"joint_names": ("FR_hip_joint",) * 12}, "names a joint twice"),
    ({"joint_names": (*A1.joints[:11], "FR_hipp_joint")}, "'FR_hipp_joint' that a1 has not"),
    ({"q": np.degrees(np.tile(POSE, (5, 1)))}, "FR_upper_joint from 51.6 to 51.6 rad, far beyond"),
    ({"spherical": (True,)}, "for 1 of 12 joints whether they are spherical"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_an_unsound_clip_is_refused_in_one_line(changes, message):
    with pytest.raises(ClipError, match=message) as caught:
        ClipSet([replace(ramp(), **changes)], A1)
    assert "\n" not in str(caught.value)


def test_one_frame_has_no_duration():
    with pytest.raises(ClipError, match="has no duration: 1 frames"):
        ramp(frames=1).check()


def test_a_clip_without_all_joints_says_which_is_absent():
    clip = replace(ramp(), joint_names=A1.joints[:11], q=np.zeros((5, 11)))
    with pytest.raises(ClipError, match="says nothing of a1's joint 'RL_lower_joint'"):
        ClipSet([clip], A1)


def test_a_set_needs_a_clip():
    with pytest.raises(ClipError, match="at least one"):
        ClipSet([], A1)


def test_a_licence_that_forbids_it_keeps_a_clip_from_being_shipped():
    mine = replace(ramp(), licence="CC BY-NC 4.0", source="dog.txt")
    with pytest.raises(ClipError, match=r"must not be shipped .*CC BY-NC 4.0; source: dog"):
        require_may_ship([replace(mine, may_ship=True), mine])
    require_may_ship([replace(mine, may_ship=True)])
