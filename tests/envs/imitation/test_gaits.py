"""Generated gaits: feet that stand do not slip, feet that swing lift, for every quadruped."""

from dataclasses import asdict

import numpy as np
import pytest

from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.gaits import FRAMES, GAITS, Gait, generate, leg_scale, parse_gait
from rlgym.envs.imitation.rotations import heading
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ClipError

A1 = get_robot("a1")
QUADRUPEDS = ("a1", "laikago", "mini_cheetah", "aliengo")
CYCLES = [name for name, gait in GAITS.items() if isinstance(gait, Gait)]
MOTIONS = [name for name in GAITS if name not in CYCLES]


def feet(robot, clip):
    """(F, 4, 3) of each frame, in the world."""
    times = np.arange(clip.num_frames) * clip.dt
    times[-1] -= 1e-9  # still in this cycle
    return ClipSet([clip], robot).sample(np.zeros(len(times), np.int64), times).foot_pos


def standing(gait):
    """(FRAMES, 4) the foot stands, from this frame to the next."""
    phase = (np.arange(FRAMES)[:, None] / FRAMES - np.array(gait.phases)) % 1
    return (phase < gait.duty - 1 / FRAMES) & (phase >= 0)


@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("robot", QUADRUPEDS)
def test_standing_feet_stand_still_on_the_ground(robot, name):
    robot, gait = get_robot(robot), GAITS[name]
    clip = generate(robot, name)
    path = feet(robot, clip)
    stands = standing(gait)
    assert stands.mean() == pytest.approx(gait.duty, abs=0.02)
    slip = np.linalg.norm(np.diff(path, axis=0)[..., :2], axis=-1) / clip.dt
    assert slip[stands].max() < 0.01  # m/s
    heights = path[:-1][stands][:, 2] - robot.feet[0].radius
    assert np.abs(heights).max() < 1e-6
    lifted = path[..., 2].max(0) - robot.feet[0].radius
    assert lifted == pytest.approx(gait.swing * leg_scale(robot), rel=0.01)


@pytest.mark.parametrize("name", CYCLES)
def test_a_cycle_ends_as_it_began_without_a_jump(name):
    clip = generate(A1, name)
    assert clip.duration == pytest.approx(GAITS[name].period)
    assert clip.q[-1] == pytest.approx(clip.q[0], abs=1e-9)
    speed = np.diff(clip.q, axis=0) / clip.dt
    step = np.abs(np.diff(np.concatenate([speed, speed[:1]]), axis=0)).max()
    assert step < 1.5  # rad/s, from one 2.5 ms piece to the next


def test_the_issues_clips_are_the_tables():
    trot, pace, bound = (GAITS[name] for name in ("trot", "pace", "bound"))
    wanted = {"speed": 0.55, "period": 0.5, "duty": 0.55, "swing": 0.06}
    assert wanted.items() <= asdict(trot).items() and wanted.items() <= asdict(bound).items()
    assert {**wanted, "speed": 0.8, "period": 0.4}.items() <= asdict(pace).items()
    # FR, FL, RR, RL: diagonal, lateral and fore-aft pairs
    assert trot.phases == (0, 0.5, 0.5, 0)
    assert pace.phases == (0, 0.5, 0, 0.5)
    assert bound.phases == (0, 0, 0.5, 0.5)
    clip = generate(A1, "trot")
    assert clip.root_pos[:, 2] == pytest.approx(0.27, abs=0.002)
    assert clip.root_pos[-1, 0] == pytest.approx(0.55 * 0.5)
    assert clip.may_ship and clip.loop and clip.joint_names == A1.joints


def test_speed_side_and_yaw_rate_move_the_base():
    clip = generate(A1, "trot", {"speed": 0.3, "side": -0.1, "yaw_rate": 0.6})
    clips = ClipSet([clip], A1)
    times = np.array([0.1, 1.7])  # the second one in another cycle
    ref = clips.sample(np.zeros(2, np.int64), times)
    yaw = heading(ref.root_quat)
    assert yaw == pytest.approx(0.6 * times)
    c, s = np.cos(yaw), np.sin(yaw)
    velocity = np.stack([0.3 * c + 0.1 * s, 0.3 * s - 0.1 * c], 1)
    assert ref.root_linvel[:, :2] == pytest.approx(velocity, abs=2e-3)
    assert ref.root_angvel == pytest.approx(np.array([[0, 0, 0.6]] * 2), abs=1e-6)
    # on a circle about the point that the base does not leave: radius v / w
    centre = np.array([0.1, 0.3]) / 0.6
    radius = np.linalg.norm(ref.root_pos[:, :2] - centre, axis=1)
    assert radius == pytest.approx(np.hypot(0.3, 0.1) / 0.6, abs=1e-4)


def test_a_pronk_falls_freely_while_no_foot_is_down():
    clip, gait = generate(A1, "pronk"), GAITS["pronk"]
    z = clip.root_pos[:, 2]
    fall = np.diff(z, 2) / clip.dt**2
    in_air = np.arange(1, FRAMES) / FRAMES
    in_air = (in_air > gait.duty + 0.01) & (in_air < 0.99)
    assert fall[in_air] == pytest.approx(-9.81, rel=1e-3)
    assert np.abs(np.diff(z) / clip.dt).max() == pytest.approx(9.81 * 0.4 * 0.4 / 2, rel=0.02)
    assert fall.max() < 9.81


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("robot", QUADRUPEDS)
def test_standing_up_and_sitting_keep_the_feet_where_they_are(robot, name):
    robot = get_robot(robot)
    clip = generate(robot, name)
    assert not clip.loop
    path = feet(robot, clip)
    assert np.abs(path - path[0]).max() < 1e-3
    speed = np.abs(np.diff(clip.q, axis=0)) / clip.dt
    assert speed[0].max() < 0.01 and speed[-1].max() < 1e-6


def test_stand_up_ends_in_the_stance():
    clip = generate(A1, "stand_up")
    assert clip.root_pos[-1, 2] - clip.root_pos[0, 2] == pytest.approx(0.09)
    assert np.abs(clip.q[-1] - A1.default_pose).max() < 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trot", ("trot", {})),
        ("trot:speed=.8,period=.4", ("trot", {"speed": ".8", "period": ".4"})),
        ("bound: phases=0/0/.4/.4", ("bound", {"phases": ["0", "0", ".4", ".4"]})),
    ],
)
def test_parameters_in_a_name(text, expected):
    assert parse_gait(text) == expected


BAD = [
    ("trott", {}, "no gait 'trott': did you mean 'trot'"),
    ("trot", {"sped": 1}, "trot's sped is not a setting: did you mean trot's speed"),
    ("trot", {"speed": "fast"}, "trot's speed: expected a number, got 'fast'"),
    ("trot", {"speed": float("nan")}, "trot's speed: expected a number"),
    ("trot", {"period": 0}, "period is 0.0 s: choose one from 0.05 to 10"),
    ("trot", {"duty": 1.0}, "duty is 1.0: choose a share"),
    ("trot", {"phases": [0, 0.5]}, "has 2 phases: give four"),
    ("trot", {"swing": -0.1}, "feet are lifted, not sunk"),
    ("trot", {"speed": 5}, "FR_(upper|lower)_joint would turn|too short"),
    ("trot", {"height": 0.2}, "would turn|too short"),
    ("sit", {"seconds": 0}, "needs seconds from"),
    ("walk", {"phases": [0, float("inf"), 0, 0]}, "expected a number"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD, ids=[row[2] for row in BAD])
def test_a_gait_that_cannot_be_is_refused_in_one_line(name, changes, message):
    with pytest.raises(ClipError, match=message) as caught:
        generate(A1, name, changes)
    assert "\n" not in str(caught.value)


def test_a_word_without_a_value_is_refused():
    with pytest.raises(ClipError, match="'speed' in 'trot:speed' is no parameter"):
        parse_gait("trot:speed")


def test_gaits_need_four_legs():
    with pytest.raises(ClipError, match="humanoid has no four legs"):
        generate(get_robot("humanoid"), "trot")
