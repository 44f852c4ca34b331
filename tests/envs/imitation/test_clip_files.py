"""Clip files: each dialect against what it says of the world, and every way to be wrong."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from rlgym.envs.imitation.clip_files import bundled_clips, clip_names, load_clip, save_clip
from rlgym.envs.imitation.clips import Clip, ClipSet
from rlgym.envs.imitation.gaits import generate
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.rotations import heading, multiply, rotate
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ClipError

A1, LAIKAGO, HUMANOID = (get_robot(name) for name in ("a1", "laikago", "humanoid"))
TROT = generate(LAIKAGO, "trot")


def model_frames(clip, robot):
    """Root poses and joint angles as the model file has them."""
    base = np.array(robot.base_rotation)
    quat = multiply(clip.root_quat, base[None])
    q = np.array(robot.sign) * (clip.q + np.array(robot.offset))
    return clip.root_pos, quat, q


def motion_imitation(clip, robot, **changes):
    """A file of that project's format."""
    frames = np.concatenate(model_frames(clip, robot), 1).tolist()
    document = {
        "LoopMode": "Wrap",
        "FrameDuration": clip.dt,
        "EnableCycleOffsetPosition": True,
        "EnableCycleOffsetRotation": False,
        "Frames": frames,
    }
    return json.dumps({**document, **changes})


def same(clip, other):
    assert clip.joint_names == other.joint_names
    assert clip.dt == pytest.approx(other.dt)
    assert clip.root_pos == pytest.approx(other.root_pos)
    assert np.abs((clip.root_quat * other.root_quat).sum(1)) == pytest.approx(1)
    assert clip.q == pytest.approx(other.q)
    return True


# ----- Formats -----------------------------------------------------------------------------------


def test_motion_imitation_in_laikagos_frame(tmp_path):
    path = tmp_path / "my_trot.txt"
    path.write_text(motion_imitation(TROT, LAIKAGO))
    clip = load_clip(path, LAIKAGO)
    assert same(clip, TROT)
    assert (clip.name, clip.robot, clip.loop, clip.cycle_position) == (
        "my_trot",
        "laikago",
        True,
        True,
    )
    assert not clip.may_ship and "user's own" in clip.licence


def test_motion_imitation_of_another_robot_stands_z_up(tmp_path):
    trot = generate(A1, "trot")
    path = tmp_path / "a1.json"
    path.write_text(motion_imitation(trot, A1, LoopMode="Clamp"))
    clip = load_clip(path, "a1")
    assert same(clip, trot) and not clip.loop


def test_laikagos_clip_on_a1_is_retargeted(tmp_path):
    path = tmp_path / "my_trot.txt"
    path.write_text(motion_imitation(TROT, LAIKAGO))
    clip = load_clip(path, A1)
    assert clip.robot == "a1" and "retargeted from laikago" in clip.source
    ratio = 0.4 / (LAIKAGO.legs[0].thigh + LAIKAGO.legs[0].shank)
    assert clip.root_pos[-1, 0] == pytest.approx(ratio * TROT.root_pos[-1, 0])


def test_laikago_walk_walks_forwards_without_slipping():
    """Pins the convention of a file that does not state its own.

    Only with xyzw in the URDF's frame, angles of the SDK and +y ahead do feet that are down stand
    still, at the radius of a toe above the ground.
    """
    clip = load_clip("laikago_walk", LAIKAGO)
    assert (clip.num_frames, clip.duration) == (21, pytest.approx(1.25))
    assert clip.root_pos[-1, 0] - clip.root_pos[0, 0] == pytest.approx(0.336, abs=0.001)
    assert np.abs(heading(clip.root_quat)).max() < 0.05
    feet = foot_positions(LAIKAGO, clip.root_pos, clip.root_quat, clip.q)
    slip = np.linalg.norm(np.diff(feet[..., :2], axis=0), axis=-1)
    low = (feet[:-1, :, 2] < 0.04) & (feet[1:, :, 2] < 0.04)
    assert 0.3 < low.mean() < 0.7
    assert np.median(slip[low]) < 0.005 and slip.max() > 0.06  # m in 62.5 ms
    assert np.median(feet[:-1][low][:, 2]) == pytest.approx(0.03, abs=0.01)
    # right feet are on the right, front feet in front
    assert (feet[..., [0, 2], 1] < 0).all() and (feet[..., [1, 3], 1] > 0).all()
    assert (feet[:, :2, 0].min(1) > feet[:, 2:, 0].max(1)).all()


def test_humanoid_walks_upright_and_forwards():
    clip = load_clip("humanoid3d_walk", HUMANOID)
    assert (clip.num_frames, clip.duration, clip.loop) == (39, pytest.approx(1.267, abs=1e-3), True)
    assert clip.root_pos[-1, 0] == pytest.approx(1.239, abs=0.001)
    assert clip.root_pos[0] == pytest.approx([0, 0, 0.847532])
    up = rotate(clip.root_quat, np.tile([0.0, 0.0, 1.0], (39, 1)))
    assert up[:, 2].min() > 0.95
    # the root's quaternion, worked by hand: w kept, y-up vector (x, y, z) to (x, -z, y)
    assert clip.root_quat[0] == pytest.approx([0.014104, 0.049423, -0.000698, 0.998678], abs=1e-5)
    # columns: knees are hinges, and bend backwards
    assert clip.q.shape == (39, 44 - 8)
    assert clip.q[0, 12] == pytest.approx(-0.249116)
    assert clip.q[0, :4] == pytest.approx([0.009485, -0.04756, -0.004475, 0.998813], abs=1e-5)
    feet = ClipSet([clip], HUMANOID).sample(np.zeros(39, np.int64), np.arange(39) / 30).foot_pos
    ankles = feet[:, :2]
    assert 0 < ankles[..., 2].min() < 0.05
    assert (ankles[:, 0, 1] < ankles[:, 1, 1]).all()  # the right one is on the right


FRAMES = {"backflip": 29, "cartwheel": 164, "dance_a": 98, "jump": 107, "run": 25, "spinkick": 78}


@pytest.mark.parametrize("name", sorted(bundled_clips()))
def test_every_motion_of_pybullet_data_loads(name):
    robot = LAIKAGO if name == "laikago_walk" else HUMANOID
    clip = load_clip(name, robot)
    expected = FRAMES.get(name.removeprefix("humanoid3d_"))
    assert expected is None or clip.num_frames == expected
    assert "zlib" in clip.licence and not clip.may_ship
    assert clip.loop == (not any(word in name for word in ("getup", "3d_kick", "punch")))
    assert clip.cycle_heading == name.startswith("turn_")
    ClipSet([clip], robot)


def test_frames_too_unequal_to_resample_are_refused(tmp_path):
    rows = uneven(50.0)
    rows[5][0] = 1e-4
    path = tmp_path / "bad.txt"
    path.write_text(json.dumps({"Loop": "wrap", "Frames": rows}))
    with pytest.raises(ClipError, match="too unequal in duration"):
        load_clip(path, LAIKAGO)


def test_frames_of_unequal_duration_are_resampled(tmp_path):
    walk = json.loads(bundled_clips()["laikago_walk"].read_text())
    for frame in walk["Frames"][10:]:
        frame[0] = 0.125
    path = tmp_path / "slow.txt"
    path.write_text(json.dumps(walk))
    slow, clip = load_clip(path, LAIKAGO), load_clip("laikago_walk", LAIKAGO)
    # 10 frames at the old pace and 10 at half of it
    assert slow.duration == pytest.approx(10 * 0.0625 + 10 * 0.125)
    assert slow.dt == pytest.approx(0.0625)
    assert slow.q[5] == pytest.approx(clip.q[5])
    assert slow.q[10 + 2 * 7] == pytest.approx(clip.q[17])
    assert slow.q[10 + 2 * 7 + 1] == pytest.approx((clip.q[17] + clip.q[18]) / 2)


@pytest.mark.parametrize("robot", [A1, LAIKAGO, HUMANOID], ids=lambda robot: robot.name)
def test_our_npz_keeps_everything(tmp_path, robot):
    clip = generate(robot, "turn") if robot.legs else load_clip("humanoid3d_run", robot)
    clip = replace(clip, licence="MIT", source="me", may_ship=True)
    again = load_clip(save_clip(clip, tmp_path / "deep" / "clip.npz"), robot)
    for name, value in vars(clip).items():
        if isinstance(value, np.ndarray):
            assert getattr(again, name) == pytest.approx(value), name
        else:
            assert getattr(again, name) == (pytest.approx(value) if name == "dt" else value), name


def test_five_arrays_are_a_clip(tmp_path):
    order = [*range(6, 12), *range(6)]
    arrays = {"root_pos": TROT.root_pos, "root_quat": TROT.root_quat, "fps": 1 / TROT.dt}
    arrays["joint_pos"] = TROT.q[:, order]
    arrays["joint_names"] = np.array(TROT.joint_names)[order]
    np.savez(tmp_path / "mine.npz", **arrays)
    clip = load_clip(tmp_path / "mine.npz", LAIKAGO)
    assert same(clip, TROT)
    assert clip.name == "mine" and not clip.loop and not clip.may_ship


def test_mjlab_npz_has_wxyz_and_the_root_as_first_body(tmp_path):
    pos, quat, q = model_frames(TROT, LAIKAGO)
    # its root is the base link's origin, ours the chassis' centre of mass
    pos = pos - rotate(quat, np.broadcast_to(np.array(LAIKAGO.base_origin), pos.shape))
    bodies = np.stack([quat[:, [3, 0, 1, 2]], np.tile([1.0, 0, 0, 0], (len(quat), 1))], 1)
    np.savez(
        tmp_path / "motion.npz",
        fps=[1 / TROT.dt],
        joint_pos=q.astype(np.float32),
        joint_vel=0 * q,
        body_pos_w=np.stack([pos, 0 * pos], 1),
        body_quat_w=bodies,
    )
    clip = load_clip(tmp_path / "motion.npz", LAIKAGO)
    assert clip.q == pytest.approx(TROT.q, abs=1e-6) and not clip.loop
    assert clip.root_pos == pytest.approx(TROT.root_pos)
    assert np.abs((clip.root_quat * TROT.root_quat).sum(1)) == pytest.approx(1)


@pytest.mark.parametrize("named", [False, True])
def test_csv_has_xyzw_then_the_joints(tmp_path, named):
    trot = generate(A1, "trot")
    order = [*range(3, 12), *range(3)] if named else range(12)
    lines = [
        ",".join(f"{value:.9f}" for value in row)
        for row in np.concatenate([trot.root_pos, trot.root_quat, trot.q[:, order]], 1)
    ]
    if named:
        root = [f"root_{part}" for part in ("x", "y", "z", "qx", "qy", "qz", "qw")]
        lines.insert(0, ",".join([*root, *(A1.joints[k] for k in order)]))
    path = tmp_path / "walk.csv"
    path.write_text("\n".join(lines))
    clip = load_clip({"file": str(path), "fps": 1 / trot.dt}, A1)
    assert same(clip, trot)
    assert load_clip(path, A1).dt == pytest.approx(1 / 30)


# ----- Names -------------------------------------------------------------------------------------


def test_a_gait_by_name_by_text_and_by_mapping():
    assert load_clip("trot", A1).duration == pytest.approx(0.5)
    clip = load_clip("trot:speed=.8,period=.4", A1)
    assert clip.root_pos[-1, 0] == pytest.approx(0.32)
    same(load_clip({"gait": "trot", "speed": 0.8, "period": 0.4}, "a1"), clip)
    same(load_clip(clip, A1), clip)
    assert {"trot", "sit", "laikago_walk", "humanoid3d_walk"} <= set(clip_names())


def test_a_folder_of_a_gaits_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trot").mkdir()
    assert load_clip("trot", A1).name == "trot"


WRONG_NAMES = [
    ("trott", "no clip 'trott': did you mean 'trot'"),
    ("trott:speed=.8", "no clip 'trott:speed=.8': did you mean 'trot'"),
    ("trot:fast", "'fast' in 'trot:fast' is no parameter"),
    ("laikago_wlak", "no clip 'laikago_wlak': did you mean 'laikago_walk'"),
    ("absent/dog.txt", "absent/dog.txt: No such file"),
    ("absent.npz", "absent.npz: No such file"),
    ("clips/dog.bvh", "clips/dog.bvh is no clip file: their names end in .txt, .json, .csv, .npz"),
    ({"gaits": "trot"}, "needs the key 'gait' or 'file'"),
    ({"gait": "trott"}, "no gait 'trott'"),
    ("humanoid3d_walk", "humanoid has no four legs"),
]


@pytest.mark.parametrize(
    ("source", "message"), WRONG_NAMES, ids=[str(row[0]) for row in WRONG_NAMES]
)
def test_what_cannot_be_found_is_said_in_one_line(source, message):
    with pytest.raises(ClipError) as caught:
        load_clip(source, A1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ----- Wrong files -------------------------------------------------------------------------------


def frames(**cell):
    """Frames of a sound file with one value changed."""
    rows = json.loads(motion_imitation(TROT, LAIKAGO))["Frames"][:5]
    for place, value in cell.items():
        row, column = map(int, place[1:].split("_"))
        rows[row][column] = value
    return rows


WRONG_JSON = [
    (lambda: "", "is not JSON"),
    (lambda: "[1, 2", "is not JSON"),
    (lambda: "[" * 100_000, "is not JSON"),
    (lambda: "[1]", "a JSON object with Frames"),
    (lambda: '{"Frames": [[1]]}', "neither FrameDuration"),
    (lambda: '{"Frames": [], "FrameDuration": 1}', "has no frames"),
    (lambda: '{"Frames": 3, "FrameDuration": 1}', "has no frames"),
    (lambda: '{"Frames": [[1], [1, 2]], "FrameDuration": 1}', "frame 1 has 2 values, the first"),
    (lambda: '{"Frames": [[1], 7], "FrameDuration": 1}', "frame 1 has no list of values"),
    (
        lambda: '{"Frames": [["1"]], "FrameDuration": 1}',
        "frame 0 holds something that is not a num",
    ),
    (lambda: '{"Frames": [[true]], "FrameDuration": 1}', "frame 0 holds something"),
    (lambda: '{"Frames": [[1' + "0" * 400 + ']], "FrameDuration": 1}', "too large"),
    (lambda: '{"Frames": [[1' + "0" * 9000 + ']], "FrameDuration": 1}', "is not JSON"),
    (lambda: motion_imitation(TROT, LAIKAGO, Frames=[row[:18] for row in frames()]), "of 18 val"),
    (
        lambda: motion_imitation(TROT, LAIKAGO, Frames=frames(r2_4=3.0)),
        "frame 2 of root_quat is no",
    ),
    (
        lambda: motion_imitation(TROT, LAIKAGO, Frames=frames(r3_9=math.nan)),
        "frame 3 of q is not f",
    ),
    (lambda: motion_imitation(TROT, LAIKAGO, Frames=frames(r1_0=math.inf)), "frame 1 of root_pos"),
    (lambda: motion_imitation(TROT, LAIKAGO, FrameDuration=0), "has no duration"),
    (lambda: motion_imitation(TROT, LAIKAGO, FrameDuration=math.nan), "has no duration"),
    (lambda: motion_imitation(TROT, LAIKAGO, FrameDuration="fast"), "FrameDuration is 'fast'"),
    (lambda: motion_imitation(TROT, LAIKAGO, Frames=frames()[:1]), "has no duration: 1 frames"),
    (lambda: motion_imitation(TROT, LAIKAGO, LoopMode="Bounce"), "LoopMode is 'Bounce'"),
    (lambda: motion_imitation(TROT, LAIKAGO, LoopMode=["Wrap"]), "LoopMode is ['Wrap']"),
    (lambda: json.dumps({"Loop": "wrap", "Frames": [[0.1] * 21] * 3}), "frames of 21 values"),
    (lambda: json.dumps({"Loop": "maybe", "Frames": [[0.1] * 20] * 3}), "Loop is 'maybe'"),
    (lambda: json.dumps({"Loop": "wrap", "Frames": [[0.1] * 20] * 3}), "root_quat is no rotation"),
    (lambda: json.dumps({"Loop": "wrap", "Frames": [[0.1] * 44] * 3}), "is no rotation"),
    (lambda: json.dumps({"Loop": "wrap", "Frames": uneven(0.0)}), "needs a duration of 0.0001 s"),
    (lambda: motion_imitation(TROT, LAIKAGO, FrameDuration=1e-9), "has a frame every 1e-09 s"),
    (lambda: motion_imitation(TROT, LAIKAGO, FrameDuration=10**400), "FrameDuration is 1000"),
    (lambda: motion_imitation(TROT, LAIKAGO, Frames=frames(r1_0=1e300)), "holds 1e+300: no pos"),
    (lambda: json.dumps({"Loop": "wrap", "Frames": uneven(1e-9)}), "last needs a duration"),
]


def uneven(seconds):
    """The frames of laikago_walk with one of another duration."""
    walk = json.loads(bundled_clips()["laikago_walk"].read_text())["Frames"]
    walk[3][0] = seconds
    return walk


@pytest.mark.parametrize(("text", "message"), WRONG_JSON, ids=[row[1] for row in WRONG_JSON])
def test_a_wrong_json_clip_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_text(text())
    with pytest.raises(ClipError) as caught:
        load_clip(path, LAIKAGO)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def arrays(**changes):
    found = {"root_pos": TROT.root_pos, "root_quat": TROT.root_quat, "joint_pos": TROT.q}
    found |= {"fps": np.array(30.0), "joint_names": np.array(TROT.joint_names)}
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


WRONG_NPZ = [
    ({"root_pos": None}, "a clip has root_pos, root_quat"),
    ({"joint_names": None}, "has no array 'joint_names'"),
    ({"joint_names": np.zeros(12)}, "expected 1 of texts"),
    ({"joint_names": np.array(A1.joints)}, "moves a joint 'FR_hip_joint' that laikago has not"),
    ({"joint_pos": TROT.q[:, 0]}, "has 1 axes of float64, expected 2"),
    ({"joint_pos": TROT.q[:, :11]}, "q of shape (201, 11)"),
    ({"root_quat": TROT.root_quat[:3]}, "root_quat of shape (3, 4)"),
    ({"fps": None}, "has no 'fps'"),
    ({"fps": np.array(0)}, "0.0 frames per second is no frame rate"),
    ({"fps": np.array(np.nan)}, "nan frames per second"),
    ({"fps": np.array("30")}, "'fps' is not one number"),
    ({"loop": np.array([1, 0])}, "'loop' is not one number"),
    ({"robot": np.array("cat")}, "there is no robot 'cat'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_NPZ, ids=[row[1] for row in WRONG_NPZ])
def test_a_wrong_npz_is_refused_in_one_line(tmp_path, changes, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError) as caught:
        load_clip(path, LAIKAGO)
    assert message in str(caught.value) and "\n" not in str(caught.value)


WRONG_CSV = [
    ("", "has rows of [] values; a1 needs 19"),
    ("1,2,3\n", "has rows of [3] values"),
    (",".join(["0"] * 19) + "\n1,2\n", "has rows of [2, 19] values"),
    ("\n".join([",".join(["0"] * 18 + ["x"])] * 3), "is not a table of numbers"),
    ("\n".join([",".join(["0"] * 19)] * 3), "frame 0 of root_quat is no rotation"),
    (",".join(["a"] * 19), "has rows of [] values"),
    ("\xff\xfe", "has rows"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_CSV, ids=[row[1] for row in WRONG_CSV])
def test_a_wrong_csv_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ClipError) as caught:
        load_clip(path, A1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_clip_is_written_as_npz_or_not_at_all(tmp_path):
    with pytest.raises(ClipError, match=r"must end in .npz"):
        save_clip(TROT, tmp_path / "clip.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipError, match="cannot be written"):
        save_clip(TROT, tmp_path / "file" / "clip.npz")
    with pytest.raises(ClipError, match="is not finite"):
        save_clip(replace(TROT, q=TROT.q * np.nan), tmp_path / "clip.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert isinstance(TROT, Clip)
