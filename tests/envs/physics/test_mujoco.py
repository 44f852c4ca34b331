"""The MuJoCo engine: robots that stand, states that come back, worlds that differ or blow up."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from rlgym.envs.imitation.rotations import normalize, rotate_inverse
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Actuation, Randomization
from rlgym.envs.physics.robots import ROBOTS, get_robot
from rlgym.envs.physics.terrain import make_terrain
from rlgym.envs.physics.urdf import read_tree
from rlgym.errors import MissingExtraError, StateError, WorldError
from tests.envs.physics.robot_files import entry, urdf

pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")

FAST = Actuation(time_step=0.005, substeps=6, servo="implicit")
DAMPED = dataclasses.replace(FAST, servo="damped")
EXACT = Actuation(
    time_step=0.001,
    substeps=33,
    servo="explicit",
    interpolate=True,
    target_clip=0.2,
    limit_torque=False,
)


def engine_of(robot="a1", num_worlds=2, actuation=FAST, **settings):
    settings = {"num_threads": 1} | settings
    return make_engine("mujoco", robot, actuation, num_worlds, **settings)


def stand(engine, rows=None, randomization=None, **changes):
    """Reset worlds into the default pose."""
    B, robot = engine.num_worlds, engine.robot
    state = {
        "root_pos": np.tile([0.0, 0.0, robot.init_height], (B, 1)),
        "root_quat": np.tile([0.0, 0.0, 0.0, 1.0], (B, 1)),
        "root_linvel": np.zeros((B, 3)),
        "root_angvel": np.zeros((B, 3)),
        "q": np.tile(robot.default_pose, (B, 1)),
        "qd": np.zeros((B, robot.nv)),
    } | changes
    mask = np.ones(B, bool) if rows is None else rows
    return engine.reset(mask, **state, randomization=randomization)


def hold(engine, steps, push=None):
    pose = np.tile(engine.robot.default_pose, (engine.num_worlds, 1))
    for step in range(steps):
        state = engine.step(pose, pose, push if step == 0 else None)
    return state


def wobble(engine, steps, seed=0):
    """Step to random targets, the same in every world; return the states after each step."""
    rng = np.random.default_rng(seed)
    pose = np.tile(engine.robot.default_pose, (engine.num_worlds, 1))
    found, previous = [], pose
    for _ in range(steps):
        target = pose + 0.1 * rng.normal(size=pose.shape[1])
        state = engine.step(previous, target)
        found.append(np.concatenate((state.root_pos, state.root_quat, state.q, state.qd), 1))
        previous = target
    return np.array(found)


@pytest.mark.parametrize(
    ("actuation", "collide"),
    [(FAST, "feet"), (DAMPED, "feet"), (EXACT, "all")],
    ids=["fast", "damped", "exact"],
)
@pytest.mark.parametrize("robot", ["a1", "laikago", "mini_cheetah", "aliengo"])
def test_every_quadruped_stands_for_two_seconds(robot, actuation, collide):
    engine = engine_of(robot, 1, actuation, collide=collide)
    stand(engine)
    state = hold(engine, round(2.0 / actuation.control_dt))
    assert state.foot_contact.all()
    assert not state.illegal_contact.any()
    assert not state.broken.any()
    assert abs(state.root_pos[0, 2] - engine.robot.init_height) < 0.02
    assert np.abs(state.root_pos[0, :2]).max() < 0.03
    assert np.abs(state.q - engine.robot.default_pose).max() < 0.1
    assert np.abs(state.qd).max() < 0.05


def test_the_humanoid_stands_for_two_seconds():
    actuation = Actuation(time_step=1 / 240, substeps=8, servo="implicit")
    engine = engine_of("humanoid", 1, actuation, collide="all")
    stand(engine)
    state = hold(engine, 60)
    assert state.foot_contact[0].tolist() == [True, True, False, False]
    assert not state.illegal_contact.any()
    assert abs(state.root_pos[0, 2] - engine.robot.init_height) < 0.02


@pytest.mark.parametrize("robot", list(ROBOTS))
def test_the_model_weighs_what_the_file_says(robot):
    engine = engine_of(robot, 1)
    assert engine._model.body_mass.sum() == pytest.approx(read_tree(engine.robot).mass.sum())


@pytest.mark.parametrize("robot", ["a1", "laikago", "humanoid"])
def test_a_state_comes_back_as_it_was_put_in(robot):
    engine = engine_of(robot)
    rng = np.random.default_rng(3)
    q = engine.robot.default_pose + 0.1 * rng.normal(size=(2, engine.robot.nq))
    at = 0
    for spherical in engine.robot.is_spherical:
        if spherical:
            q[:, at : at + 4] = normalize(q[:, at : at + 4])
        at += 4 if spherical else 1
    asked = {
        "root_pos": rng.normal(size=(2, 3)) + np.array([0.0, 0.0, 5.0]),
        "root_quat": normalize(rng.normal(size=(2, 4))),
        "root_linvel": rng.normal(size=(2, 3)),
        "root_angvel": rng.normal(size=(2, 3)),
        "q": q,
        "qd": rng.normal(size=(2, engine.robot.nv)),
    }
    state = stand(engine, **asked)
    for name, value in asked.items():
        np.testing.assert_allclose(getattr(state, name), value, atol=1e-12, err_msg=name)
    gyro = rotate_inverse(asked["root_quat"], asked["root_angvel"])
    np.testing.assert_allclose(state.sensed.root_angvel, gyro, atol=1e-12)


@pytest.mark.parametrize("robot", ["a1", "laikago", "humanoid"])
def test_feet_are_where_mujoco_has_them(robot):
    """Kinematics, signs, zeros and frames agree with MuJoCo's own."""
    import mujoco

    engine = engine_of(robot, 1, collide="all")
    rng = np.random.default_rng(5)
    quat = normalize(rng.normal(size=(1, 4)))
    hinges = 0.3 * rng.normal(size=(1, engine.robot.nq)) * (engine.robot.nq == engine.robot.nv)
    q = np.array([engine.robot.default_pose]) + hinges
    state = stand(engine, root_quat=quat, root_pos=np.array([[1.0, 2.0, 3.0]]), q=q)
    model, data = engine._model, engine._data[0]
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    mujoco.mj_setState(model, data, engine._now[0], kind)
    mujoco.mj_forward(model, data)
    for i, foot in enumerate(engine.robot.feet):
        place = data.geom_xpos[model.geom(f"{foot.link}/0").id]
        # the wrists' and toes' shapes sit at their feet's points
        np.testing.assert_allclose(state.foot_pos[0, i], place, atol=1e-6)


def test_angular_velocity_is_in_the_world_and_gyroscope_in_the_base():
    engine = engine_of(num_worlds=1)
    quarter = np.array([[0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]])  # the base looks along +y
    spin = np.array([[0.0, 2.0, 0.0]])  # about its own x axis
    state = stand(engine, root_pos=np.array([[0, 0, 9.0]]), root_quat=quarter, root_angvel=spin)
    np.testing.assert_allclose(state.sensed.root_angvel, [[2.0, 0.0, 0.0]], atol=1e-12)
    state = hold(engine, 1)
    assert state.root_quat[0, 1] > 0.01  # and turned about the world's y axis


def test_a_push_changes_the_velocity_at_the_start_of_the_step():
    engine = engine_of()
    stand(engine, root_pos=np.tile([0.0, 0.0, 5.0], (2, 1)))  # in free fall
    state = hold(engine, 1, push=np.array([[0.5, -0.25, 0.0], [0.0, 0.0, 0.0]]))
    # the whole robot is pushed at its base: legs keep the joints' rates, so nothing holds it back
    np.testing.assert_allclose(state.root_linvel[0, :2], [0.5, -0.25], atol=0.02)
    np.testing.assert_allclose(state.root_linvel[1, :2], [0.0, 0.0], atol=0.02)


def test_worlds_do_not_touch_each_other_and_threads_change_nothing():
    alone = wobble(engine_of(num_worlds=1), 5)
    many = engine_of(num_worlds=5, num_threads=2)
    stand(many)
    np.testing.assert_array_equal(wobble(many, 5), np.repeat(alone, 5, axis=1))


def test_a_reset_leaves_other_worlds_alone():
    engine, other = engine_of(), engine_of()
    stand(engine)
    stand(other)
    wobble(engine, 3)
    wobble(other, 3)
    stand(engine, rows=np.array([True, False]))
    after, expected = wobble(engine, 3, seed=1), wobble(other, 3, seed=1)
    np.testing.assert_array_equal(after[:, 1], expected[:, 1])
    assert np.abs(after[:, 0] - expected[:, 0]).max() > 1e-3


def test_a_snapshot_continues_bit_for_bit():
    asked = Randomization(
        mass=np.array([1.2, 0.9]), kp=np.full((2, 12), 0.8), latency=np.array([0.01, 0.0])
    )
    engine = engine_of()
    stand(engine, randomization=asked)
    wobble(engine, 3)
    snapshot = engine.snapshot()
    expected = wobble(engine, 4, seed=1)
    sensed = engine.state.sensed.q.copy()
    other = engine_of()
    other.restore(snapshot)
    np.testing.assert_array_equal(wobble(other, 4, seed=1), expected)
    np.testing.assert_array_equal(other.state.sensed.q, sensed)


def test_torque_follows_the_servo_and_its_limits():
    robot = dataclasses.replace(get_robot("a1"), torque_limit=(3.0, 4.0, 5.0) * 4)
    short = Actuation(time_step=1e-4, substeps=1, servo="implicit")
    engine = engine_of(robot, 1, short)
    high = np.array([[0.0, 0.0, 5.0]])
    stand(engine, root_pos=high, qd=np.full((1, 12), 0.5))
    target = np.array([robot.default_pose]) + 0.02
    state = engine.step(target, target)
    # kp * .02 - kd * .5, by hand: 100 * .02 - (1, 2, 2) * .5
    np.testing.assert_allclose(state.torque[0, :3], [1.5, 1.0, 1.0], atol=1e-9)
    assert state.power[0] == pytest.approx(4 * 0.5 * 3.5, rel=0.05)
    state = engine.step(target + 1.0, target + 1.0)
    np.testing.assert_allclose(state.torque[0, :3], [3.0, 4.0, 5.0], atol=1e-9)


def test_the_target_is_clipped_at_the_measured_angle():
    engine = engine_of("a1", 1, dataclasses.replace(EXACT, substeps=1))
    stand(engine, root_pos=np.array([[0.0, 0.0, 5.0]]))
    target = np.array([engine.robot.default_pose]) + [1.0, 0.1, -1.0] * 4
    state = engine.step(target, target)
    np.testing.assert_allclose(state.torque[0, :3], [20.0, 10.0, -20.0], atol=1e-9)


def test_strong_damping_of_light_shanks_does_not_shake(tmp_path: Path):
    """MuJoCo's implicit integrators walk this robot 20 cm backwards, with feet that tremble."""
    path = tmp_path / "tiny.urdf"
    path.write_text(urdf())
    engine = engine_of(entry(path), 1, DAMPED)
    hold(engine, 33)
    before = engine.state.root_pos.copy()
    state = hold(engine, 67)
    assert np.abs(state.root_pos - before).max() < 0.005
    assert np.abs(state.qd).max() < 0.05


def test_a_damped_servo_moves_like_a_fine_explicit_one():
    """Steps in place for a second: 0.016 rad apart; an implicit one 0.051."""
    found = []
    for actuation in (DAMPED, Actuation(time_step=0.001, substeps=30, servo="explicit")):
        engine = engine_of("a1", 1, actuation)
        stand(engine)
        previous, angles = np.array([engine.robot.default_pose]), []
        for step in range(1, 31):
            phase = 4 * np.pi * step * actuation.control_dt
            swing = np.array([0.0, 0.25 * np.sin(phase), -0.2 * np.cos(phase)])
            target = engine.robot.default_pose + np.concatenate((swing, -swing, -swing, swing))
            angles.append(engine.step(previous, target[None]).q[0].copy())
            previous = target[None]
        found.append(np.array(angles))
    assert np.sqrt(np.mean((found[0] - found[1]) ** 2)) < 0.025


def test_targets_are_interpolated_over_the_substeps():
    engine = engine_of("a1", 1, dataclasses.replace(EXACT, target_clip=None, substeps=4))
    pose = np.array([engine.robot.default_pose])
    stand(engine, root_pos=np.array([[0.0, 0.0, 5.0]]))
    engine.step(pose, pose + 0.08)
    np.testing.assert_allclose(engine._control[0, :, 0], [0.02, 0.04, 0.06, 0.08], atol=1e-12)


def test_sensors_lag_by_their_latency():
    lag = engine_of(num_worlds=2)
    plain = engine_of(num_worlds=2)
    asked = Randomization(latency=np.array([0.0125, 0.03]))
    stand(lag, randomization=asked)
    stand(plain)
    wobble(lag, 3)
    wobble(plain, 3)
    q = plain._states[0, :, plain._q].T  # after each of the six substeps
    np.testing.assert_allclose(lag.state.sensed.q[0], (q[2] + q[3]) / 2, atol=1e-12)
    before = engine_of(num_worlds=2)
    stand(before)
    wobble(before, 2)
    np.testing.assert_allclose(lag.state.sensed.q[1], before.state.q[1], atol=1e-12)
    np.testing.assert_array_equal(lag.state.q, plain.state.q)


def test_latency_of_the_actuation_holds_without_randomization():
    engine = engine_of(actuation=dataclasses.replace(FAST, latency=0.005))
    stand(engine)
    wobble(engine, 2)
    np.testing.assert_allclose(
        engine.state.sensed.q, engine._states[:, -2][:, engine._q], atol=1e-12
    )


def test_each_randomized_quantity_changes_its_world_only():
    ones = np.ones((2, 12))
    second = ones * [[1.0], [0.5]]
    changes = {
        "mass": np.array([1.0, 1.3]),
        "inertia": np.array([1.0, 1.5]),
        "friction": np.array([1.0, 0.2]),
        "motor_strength": second,
        "kp": second,
        "kd": second,
        "viscous": ones * [[0.0], [0.5]],
        "coulomb": ones * [[0.0], [0.5]],
    }
    plain = engine_of()
    stand(plain)
    expected = wobble(plain, 4)
    assert {*changes, "latency", "push", "terrain", "snapshot"} == engine_of().capabilities
    for name, values in changes.items():
        engine = engine_of()
        stand(engine, randomization=Randomization(**{name: values}))
        found = wobble(engine, 4)
        np.testing.assert_array_equal(found[:, 0], expected[:, 0], err_msg=name)
        assert np.abs(found[:, 1] - expected[:, 1]).max() > 1e-5, name


def test_a_heavier_robot_weighs_more():
    engine = engine_of()
    stand(engine, randomization=Randomization(mass=np.array([1.0, 1.5])))
    state = hold(engine, 60)
    load = np.abs(state.torque[:, 2::3]).sum(axis=1)  # of the knees, which carry the weight
    assert load[1] / load[0] == pytest.approx(1.5, rel=0.05)


def test_a_slippery_world_lets_feet_slide():
    engine = engine_of()
    stand(engine, randomization=Randomization(friction=np.array([1.0, 0.05])))
    hold(engine, 20)
    state = hold(engine, 20, push=np.tile([0.6, 0.0, 0.0], (2, 1)))
    assert state.root_pos[1, 0] > state.root_pos[0, 0] + 0.1


def test_a_fallen_robot_touches_with_what_it_must_not():
    engine = engine_of("a1", 2, collide="all")
    on_its_back = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    low = np.array([[0.0, 0.0, 0.12], [0.0, 0.0, engine.robot.init_height]])
    stand(engine, root_quat=on_its_back, root_pos=low)
    state = hold(engine, 5)
    assert state.illegal_contact.tolist() == [True, False]


def test_a_world_that_blows_up_is_reset_and_said_so():
    engine = engine_of(num_worlds=3)
    wild = np.zeros((3, 12))
    wild[1] = 1e9
    stand(engine, qd=wild)
    reference = engine_of(num_worlds=1)
    stand(reference)
    pose = np.tile(engine.robot.default_pose, (3, 1))
    state = engine.step(pose, pose)
    assert state.broken.tolist() == [False, True, False]
    np.testing.assert_allclose(state.q[1], pose[1])
    assert all(
        np.isfinite(getattr(state, name)).all() for name in ("root_pos", "q", "qd", "torque")
    )
    np.testing.assert_array_equal(state.q[0], hold(reference, 1).q[0])
    assert not engine.step(pose, pose).broken.any()


def test_no_log_file_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = engine_of(num_worlds=1)
    stand(engine, qd=np.full((1, 12), 1e9))
    hold(engine, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("terrain", ["slope:0.1", "rough:0.06", "steps:0.06"])
def test_a_robot_stands_on_the_ground_that_the_terrain_describes(terrain):
    engine = engine_of("a1", 3, terrain=terrain)
    ground = make_terrain(terrain)
    xy = np.array([[2.05, 0.31], [-3.15, 2.22], [5.03, -6.6]])
    pos = np.concatenate((xy, ground.height(xy)[:, None] + 0.35), axis=1)
    state = stand(engine, root_pos=pos)
    assert not state.foot_contact.any()
    state = hold(engine, 45)
    assert state.foot_contact.sum() >= 9  # of twelve; steps may leave one in the air
    under = state.foot_pos[..., 2] - 0.02 - ground.height(state.foot_pos[..., :2])
    assert under.min() > -0.02  # a sphere at the edge of a step is beside its highest point
    assert np.median(np.abs(under)) < 0.004


def test_a_closed_engine_says_so():
    engine = engine_of()
    engine.close()
    engine.close()
    with pytest.raises(StateError, match="make another"):
        hold(engine, 1)


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(WorldError, match="did you mean 'mujoco'"):
        make_engine("mujuco", "a1", FAST, 1)


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch):
    for name in ("rlgym.envs.physics.mujoco", "rlgym.envs.physics.mujoco_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rlgym-lab\[mujoco\]'"):
        make_engine("mujoco", "a1", FAST, 1)
