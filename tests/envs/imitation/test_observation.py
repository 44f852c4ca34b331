"""The original's 160 values against deques and loops, and each term against its definition."""

import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from rlgym.envs.imitation.clips import Pose, Ref
from rlgym.envs.imitation.observation import (
    observation_size,
    observe,
    privileged,
    privileged_size,
    push_history,
    read,
    reset_history,
    start_history,
    targets,
    term_sizes,
)
from rlgym.envs.imitation.rotations import from_rotation_vector
from rlgym.envs.imitation.spec import SPECS, ObservationSpec
from rlgym.envs.physics.engine import Sensed, State
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ConfigError
from tests.envs.imitation.batches import as_torch, assert_same, futures, reference, state

A1, LAIKAGO, HUMANOID = get_robot("a1"), get_robot("laikago"), get_robot("humanoid")
REFERENCE, MODERN = SPECS["reference"].observation, SPECS["modern"].observation


def heading(quat: np.ndarray) -> Rotation:
    x, y, _ = Rotation.from_quat(quat).apply([1, 0, 0])
    return Rotation.from_euler("z", np.arctan2(y, x))


# ----- The original's layout ---------------------------------------------------------------------


def original(sensors: deque, ahead: Pose, ref: Ref, quat: np.ndarray, i: int) -> np.ndarray:
    """The observation of google-research/motion_imitation in world i, Laikago.

    Sensors by name (IMU, LastAction, MotorAngle), each three readings, newest first; then frames of
    the reference at +1, +2, +10, +30: place relative to the reference's base and orientation of the
    URDF's base, both in the robot's heading, and the URDF's joint angles.
    """
    values: list[float] = []
    for sensor in range(3):
        for reading in sensors:
            values.extend(reading[sensor])
    unturn = heading(quat).inv()
    for k in range(4):
        values.extend(unturn.apply(ahead.root_pos[i, k] - ref.root_pos[i]))
        urdf = Rotation.from_quat(ahead.root_quat[i, k]) * Rotation.from_quat(LAIKAGO.base_rotation)
        values.extend((unturn * urdf).as_quat(canonical=True))
        values.extend(np.array(LAIKAGO.sign) * (ahead.q[i, k] + np.array(LAIKAGO.offset)))
    return np.array(values)


def sensor_values(sensed: Sensed, action: np.ndarray, i: int) -> tuple:
    roll, pitch, _ = Rotation.from_quat(sensed.root_quat[i]).as_euler("xyz")
    return (roll, pitch, *sensed.root_angvel[i, :2]), action[i], sensed.q[i]


def test_the_reference_observation_is_the_originals_over_an_episode() -> None:
    count, i = 4, 2
    draw = np.random.default_rng(0)
    s = state(0, LAIKAGO, count)
    first = read(s.sensed, np.zeros((count, 12)), REFERENCE, LAIKAGO)
    history = start_history(first, REFERENCE)
    sensors = deque([sensor_values(s.sensed, np.zeros((count, 12)), i)] * 3, maxlen=3)
    for step in range(5):
        s, ahead = state(step + 1, LAIKAGO, count), futures(step, LAIKAGO, count, 4)
        ref = reference(step, s, LAIKAGO)
        target = draw.normal(size=(count, 12))
        history = push_history(history, read(s.sensed, target, REFERENCE, LAIKAGO))
        sensors.appendleft(sensor_values(s.sensed, target, i))
        found = observe(history, ahead, ref, s, REFERENCE, LAIKAGO)
        assert found.shape == (count, 160)
        expected = original(sensors, ahead, ref, s.sensed.root_quat[i], i)
        np.testing.assert_allclose(found[i], expected, atol=1e-9)


def test_joint_angles_are_mapped_to_one_turn() -> None:
    s = state(0, A1, 1)
    s.sensed.q = np.array([[3.5, -3.5, 0.5] * 4])
    spec = ObservationSpec(terms=("joint_angle",))
    found = read(s.sensed, np.zeros((1, 12)), spec, A1)
    np.testing.assert_allclose(found[0, :3], [3.5 - 2 * np.pi, 2 * np.pi - 3.5, 0.5])


# ----- Histories ---------------------------------------------------------------------------------


def test_histories_are_newest_first_and_are_reset_by_rows() -> None:
    spec = ObservationSpec(terms=("last_action",), history=3)
    zero = np.zeros((2, 12))
    history = start_history(zero, spec)
    for value in (1.0, 2.0, 3.0, 4.0):
        history = push_history(history, zero + value)
    assert history[:, :, 0].tolist() == [[4.0, 3.0, 2.0]] * 2
    history = reset_history(history, np.array([False, True]), zero + 9.0)
    assert history[:, :, 0].tolist() == [[4.0, 3.0, 2.0], [9.0, 9.0, 9.0]]
    history = push_history(history, zero + 10.0)
    assert history[:, :, 0].tolist() == [[10.0, 4.0, 3.0], [10.0, 9.0, 9.0]]


def test_a_history_of_one_is_the_last_reading() -> None:
    spec = ObservationSpec(terms=("last_action",))
    history = push_history(start_history(np.zeros((2, 12)), spec), np.ones((2, 12)))
    assert history.shape == (2, 1, 12)
    assert (history == 1).all()


def test_a_history_does_not_share_memory_with_a_reading() -> None:
    reading = np.zeros((2, 12))
    history = start_history(reading, ObservationSpec(terms=("last_action",), history=2))
    reading += 1
    assert (history == 0).all()
    history[:] = 5  # and can be written to


# ----- Terms -------------------------------------------------------------------------------------


def test_terms_stand_in_the_specs_order_each_with_its_history() -> None:
    spec = ObservationSpec(terms=("gravity", "joint_velocity", "angular_velocity"), history=2)
    a, b = state(0, A1, 3), state(1, A1, 3)
    none = np.zeros((3, 12))
    history = start_history(read(a.sensed, none, spec, A1), spec)
    history = push_history(history, read(b.sensed, none, spec, A1))
    found = observe(history, futures(0, A1, 3, 4), reference(0, b, A1), b, spec, A1)
    down = [Rotation.from_quat(s.sensed.root_quat).inv().apply([0, 0, -1.0]) for s in (b, a)]
    expected = [*down, b.sensed.qd, a.sensed.qd, b.sensed.root_angvel, a.sensed.root_angvel]
    np.testing.assert_allclose(found, np.concatenate(expected, 1), atol=1e-12)
    assert term_sizes(spec, A1) == {"gravity": 6, "joint_velocity": 24, "angular_velocity": 6}


def test_targets_do_not_depend_on_where_and_in_which_heading_all_happens() -> None:
    s, ahead = state(0, A1, 3), futures(0, A1, 3, 4)
    origin = np.random.default_rng(0).normal(size=(3, 3))
    before = targets(ahead, origin, s.sensed.root_quat, MODERN, A1)
    turn, shift = Rotation.from_euler("z", 2.5), np.array([7.0, -3.0, 0.0])

    def moved(points: np.ndarray) -> np.ndarray:
        return turn.apply(points.reshape(-1, 3)).reshape(points.shape) + shift

    def turned(quats: np.ndarray) -> np.ndarray:
        return (turn * Rotation.from_quat(quats.reshape(-1, 4))).as_quat().reshape(quats.shape)

    elsewhere = Pose(moved(ahead.root_pos), turned(ahead.root_quat), ahead.q)
    after = targets(elsewhere, moved(origin), turned(s.sensed.root_quat), MODERN, A1)
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_targets_in_the_models_convention_turn_signs_after_offsets() -> None:
    """Laikago has no joint with both; a robot may."""
    robot = replace(LAIKAGO, sign=(-1.0,) * 12, offset=tuple(0.1 * i for i in range(12)))
    ahead, level = futures(0, robot, 1, 4), np.array([[0.0, 0.0, 0.0, 1.0]])
    found = targets(ahead, np.zeros((1, 3)), level, REFERENCE, robot).reshape(4, 19)
    np.testing.assert_allclose(found[:, 7:], -ahead.q[0] - robot.offset, atol=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 90.0, 179.999, 180.0, -90.0, -179.999])
def test_targets_at_every_heading(degrees: float) -> None:
    """The half-angle formulas have a sign to get right."""
    quat = from_rotation_vector(np.array([[0.0, 0.0, np.deg2rad(degrees)]]))
    ahead = Pose(np.array([[[1.0, 0.0, 0.3]]]), quat[None], np.array([[A1.default_pose]]))
    found = targets(ahead, np.zeros((1, 3)), quat, MODERN, A1)[0]
    expected = Rotation.from_euler("z", -degrees, degrees=True).apply([1.0, 0.0, 0.3])
    np.testing.assert_allclose(found[:3], expected, atol=1e-7)
    np.testing.assert_allclose(found[3:7], [0.0, 0.0, 0.0, 1.0], atol=1e-7)


def test_targets_are_measured_from_the_reference_or_from_the_robot() -> None:
    s = state(0, A1, 2)
    ref, ahead = reference(0, s, A1), futures(0, A1, 2, 4)
    spec = ObservationSpec(terms=("targets",))
    history = np.zeros((2, 1, 0))
    for origin, place in (("reference", ref.root_pos), ("robot", s.root_pos)):
        chosen = replace(spec, target_origin=origin)
        found = observe(history, ahead, ref, s, chosen, A1).reshape(2, 4, -1)
        for i in range(2):
            unturn = heading(s.sensed.root_quat[i]).inv()
            expected = unturn.apply(ahead.root_pos[i] - place[i])
            np.testing.assert_allclose(found[i, :, :3], expected, atol=1e-9)


def test_privileged_values_are_the_definitions() -> None:
    s = state(0, A1, 4)
    ref, phase = reference(0, s, A1, 0.3), np.array([0.0, 0.25, 0.5, 0.9])
    found = privileged(s, ref, phase)
    assert found.shape == (4, privileged_size(A1)) == (4, 17)
    for i in range(4):
        mine, its = heading(s.root_quat[i]), heading(ref.root_quat[i])
        apart = mine.inv().apply(ref.root_pos[i] - s.root_pos[i])
        angle = 2 * np.pi * phase[i]
        expected = [
            *Rotation.from_quat(s.root_quat[i]).inv().apply(s.root_linvel[i]),
            s.root_pos[i, 2],
            *apart[:2],
            (mine.inv() * its).as_rotvec()[2],
            *(np.cos(angle), np.sin(angle)),
            *s.foot_pos[i, :, 2],
            *s.foot_contact[i],
        ]
        np.testing.assert_allclose(found[i], expected, atol=1e-9)


def test_the_policy_sees_delayed_readings_only() -> None:
    s, ahead = state(0, A1, 2), futures(0, A1, 2, 4)
    ref = reference(0, s, A1)
    moved = replace(
        state(1, A1, 2), sensed=s.sensed, root_pos=s.root_pos + 1.0, root_quat=s.root_quat[::-1]
    )
    for spec in (REFERENCE, MODERN):
        history = start_history(read(s.sensed, np.zeros((2, 12)), spec, A1), spec)
        now = observe(history, ahead, ref, s, spec, A1)
        np.testing.assert_array_equal(now, observe(history, ahead, ref, moved, spec, A1))


def test_linear_velocity_is_the_bases_own_in_its_own_frame() -> None:
    s, ahead = state(0, A1, 1), futures(0, A1, 1, 4)
    half = math.sqrt(0.5)
    s = replace(s, root_quat=np.array([[0.0, 0.0, half, half]]))  # turned left by 90 degrees
    s = replace(s, root_linvel=np.array([[0.0, 2.0, 0.5]]))
    spec = ObservationSpec(terms=("angular_velocity", "linear_velocity"))
    history = start_history(read(s.sensed, np.zeros((1, 12)), spec, A1), spec)
    found = observe(history, ahead, reference(0, s, A1), s, spec, A1)
    assert found.shape == (1, observation_size(spec, A1))
    np.testing.assert_allclose(found[0, 3:], [2.0, 0.0, 0.5], atol=1e-12)


# ----- Sizes, errors, torch ----------------------------------------------------------------------

CASES = [("reference", LAIKAGO, 160), ("modern", A1, 118), ("humanoid", HUMANOID, None)]


@pytest.mark.parametrize(("name", "robot", "size"), CASES)
def test_torch_agrees_and_sizes_are_as_announced(name, robot, size) -> None:
    spec, s, ahead = SPECS[name].observation, state(0, robot, 5), futures(0, robot, 5, 4)
    ref, action = reference(0, s, robot), np.random.default_rng(0).normal(size=(5, robot.nv))
    mask, phase = np.array([True, False] * 2 + [True]), np.linspace(0, 1, 5)

    def everything(s, ahead, ref, action, mask, phase):
        reading = read(s.sensed, action, spec, robot)
        history = push_history(start_history(reading, spec), 2 * reading)
        history = reset_history(history, mask, 3 * reading)
        obs = observe(history, ahead, ref, s, spec, robot)
        return obs, privileged(s, ref, phase)

    given = s, ahead, ref, action, mask, phase
    found = everything(*given)
    assert_same(found, everything(*map(as_torch, given)))
    assert found[0].shape == (5, observation_size(spec, robot))
    assert size in (None, found[0].shape[1])
    assert found[1].shape == (5, privileged_size(robot))


def test_float32_stays_float32() -> None:
    quat = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    q = torch.zeros(1, 12)
    sensed = Sensed(quat, quat[:, :3], q, q)
    reading = read(sensed, q, REFERENCE, A1)
    ahead = Pose(torch.ones(1, 4, 3), quat[None].expand(1, 4, 4), q[None].expand(1, 4, 12))
    assert reading.dtype == torch.float32
    assert targets(ahead, quat[:, :3], quat, REFERENCE, A1).dtype == torch.float32


def test_unknown_and_misplaced_terms_are_refused() -> None:
    with pytest.raises(ConfigError, match="no term 'speed': use imu, gravity, "):
        observation_size(ObservationSpec(terms=("speed",)), A1)
    with pytest.raises(ConfigError, match="linear_velocity and targets come last, once"):
        observation_size(ObservationSpec(terms=("targets", "imu")), A1)
    s: State = state(0, A1, 1)
    with pytest.raises(ConfigError, match="no term 'speed'"):
        read(s.sensed, np.zeros((1, 12)), ObservationSpec(terms=("imu", "speed")), A1)
