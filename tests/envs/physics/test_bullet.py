"""The Bullet engine: robots that stand, states that come back, worlds that differ or blow up."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pybullet as p
import pytest

from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.rotations import normalize, rotate_inverse
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Actuation, Randomization
from rlgym.envs.physics.robots import get_robot
from rlgym.envs.physics.terrain import make_terrain
from rlgym.errors import StateError, WorldError

SERVO = Actuation(time_step=0.001, substeps=33, servo="explicit")
QUADRUPEDS = (
    "a1",
    "laikago",
    "aliengo",
    pytest.param("mini_cheetah", marks=pytest.mark.slow),  # its meshes take seconds to load
)


def engine_of(robot="a1", num_worlds=1, actuation=SERVO, **settings):
    return make_engine("bullet", robot, actuation, num_worlds, num_workers=0, **settings)


def stand(engine, height=0.0, rows=None, **changes):
    """Reset worlds into the default pose, `height` above its own."""
    B, robot = engine.num_worlds, engine.robot
    state = {
        "root_pos": np.tile([0.0, 0.0, robot.init_height + height], (B, 1)),
        "root_quat": np.tile([0.0, 0.0, 0.0, 1.0], (B, 1)),
        "root_linvel": np.zeros((B, 3)),
        "root_angvel": np.zeros((B, 3)),
        "q": np.tile(robot.default_pose, (B, 1)),
        "qd": np.zeros((B, robot.nv)),
    } | changes
    return engine.reset(np.ones(B, bool) if rows is None else rows, **state)


def hold(engine, steps, push=None):
    pose = np.tile(engine.robot.default_pose, (engine.num_worlds, 1))
    for step in range(steps):
        state = engine.step(pose, pose, push if step == 0 else None)
    return state


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("robot", QUADRUPEDS)
def test_every_robot_stands_for_two_seconds(robot, merge):
    engine = engine_of(robot, merge=merge)
    stand(engine)
    state = hold(engine, 61)
    assert state.foot_contact.all()
    assert not state.illegal_contact.any()
    assert not state.broken.any()
    assert abs(state.root_pos[0, 2] - engine.robot.init_height) < 0.02
    assert np.abs(state.root_pos[0, :2]).max() < 0.03
    assert np.abs(state.q - engine.robot.default_pose).max() < 0.1
    assert np.abs(state.qd).max() < 0.05
    engine.close()


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("robot", ["a1", "laikago", "aliengo"])
def test_a_state_comes_back_as_it_was_put_in(robot, merge):
    engine = engine_of(robot, 2, merge=merge)
    rng = np.random.default_rng(3)
    asked = {
        "root_pos": rng.normal(size=(2, 3)) + np.array([0.0, 0.0, 5.0]),
        "root_quat": normalize(rng.normal(size=(2, 4))),
        "root_linvel": rng.normal(size=(2, 3)),
        "root_angvel": rng.normal(size=(2, 3)),
        "q": engine.robot.default_pose + 0.1 * rng.normal(size=(2, 12)),
        "qd": rng.normal(size=(2, 12)),
    }
    state = stand(engine, **asked)
    state.root_quat *= np.sign((state.root_quat * asked["root_quat"]).sum(1))[:, None]
    for name, value in asked.items():
        np.testing.assert_allclose(getattr(state, name), value, atol=1e-9, err_msg=name)
    feet = foot_positions(engine.robot, asked["root_pos"], asked["root_quat"], asked["q"])
    np.testing.assert_allclose(state.foot_pos, feet, atol=2e-3)
    spin = rotate_inverse(asked["root_quat"], asked["root_angvel"])
    np.testing.assert_allclose(state.sensed.root_angvel, spin, atol=1e-9)
    assert not state.foot_contact.any()
    engine.close()


def test_only_the_rows_of_the_mask_are_reset():
    engine = engine_of(num_worlds=2)
    stand(engine)
    before = hold(engine, 3)
    after = stand(engine, 0.5, rows=np.array([False, True]))
    np.testing.assert_array_equal(after.root_pos[0], before.root_pos[0])
    assert after.root_pos[1, 2] == pytest.approx(engine.robot.init_height + 0.5)
    engine.close()


def test_a_falling_robot_obeys_gravity_and_a_push_changes_its_velocity():
    engine = engine_of(gravity=10.0)
    stand(engine, 3.0)
    state = hold(engine, 1, push=np.array([[0.5, -0.25, 0.1]]))
    np.testing.assert_allclose(state.root_linvel[0, :2], [0.5, -0.25], atol=5e-3)
    assert state.root_linvel[0, 2] == pytest.approx(0.1 - 10.0 * 0.033, abs=5e-3)
    engine.close()


def test_torques_are_those_of_the_servo_and_power_their_work():
    actuation = Actuation(0.001, 1, "explicit")
    engine = engine_of(actuation=actuation)
    robot = engine.robot
    q, qd = np.array([robot.default_pose]), np.full((1, 12), 0.5)
    state = stand(engine, 1.0, qd=qd)
    assert not state.torque.any()
    target = q + 0.01 * np.arange(12)
    state = engine.step(q, target)
    expected = np.array(robot.kp) * (target - q) - np.array(robot.kd) * qd
    np.testing.assert_allclose(state.torque, expected, atol=1e-9)
    work = np.abs(state.torque * state.qd).sum()
    assert state.power[0] == pytest.approx(work)
    state = engine.step(q, q + 3.0)
    np.testing.assert_allclose(state.torque[0], robot.torque_limit)
    engine.close()


def test_targets_stay_near_the_measured_angles():
    actuation = Actuation(0.001, 4, "explicit", target_clip=0.1, limit_torque=False)
    engine = engine_of(actuation=actuation, gravity=0.0)
    robot = engine.robot
    q, kp, kd = np.array([robot.default_pose]), np.array(robot.kp), np.array(robot.kd)
    stand(engine, 1.0)
    state = engine.step(q - 2.0, q - 2.0)
    assert (np.abs(state.torque) <= 0.1 * kp + 1.1 * kd * np.abs(state.qd)).all()
    assert (np.abs(state.torque) > 0.02 * kp).all()
    engine.close()


def test_targets_are_interpolated_over_the_physics_steps():
    """One long step with them is four short ones with the targets in between."""
    states = []
    q = np.array([get_robot("a1").default_pose])
    for substeps, ends in ((4, [1.0]), (1, [0.25, 0.5, 0.75, 1.0])):
        engine = engine_of(actuation=Actuation(0.001, substeps, "explicit", interpolate=True))
        stand(engine, 1.0)
        for begin, end in zip([0.0, *ends], ends, strict=False):
            state = engine.step(q - 0.1 * begin, q - 0.1 * end)
        states.append(np.concatenate((state.q, state.qd, state.torque)))
        engine.close()
    np.testing.assert_allclose(*states, atol=1e-9)


@pytest.mark.parametrize("latency", [0.0, 0.002, 0.0055, 0.033, 0.0405, 0.065])
def test_sensors_show_what_was_true_a_while_ago(latency):
    """Steps of one physics step each tell the truth; one long step's sensors must match them."""
    actuation = Actuation(0.001, 33, "explicit", latency=latency)
    engine = engine_of(actuation=actuation)
    stand(engine, 0.05)
    state = hold(engine, 2)
    fine = engine_of(actuation=Actuation(0.001, 1, "explicit"))
    truth = [stand(fine, 0.05)] + [hold(fine, 1) for _ in range(66)]
    back = latency / 0.001
    newer, share = truth[66 - int(back)], back % 1
    older = truth[66 - int(back) - 1] if share else newer
    for name in ("q", "qd"):
        expected = (1 - share) * getattr(newer, name) + share * getattr(older, name)
        np.testing.assert_allclose(getattr(state.sensed, name), expected, atol=1e-6, err_msg=name)
    quat = (1 - share) * newer.root_quat + share * older.root_quat
    np.testing.assert_allclose(state.sensed.root_quat, quat, atol=1e-6)
    assert stand(engine, 0.05).sensed.q == pytest.approx(np.array([engine.robot.default_pose]))
    engine.close()
    fine.close()


def vary(**fields):
    return Randomization(**{name: np.asarray(values, float) for name, values in fields.items()})


def settled(randomization, steps=30, **settings):
    """Two worlds that differ by `randomization`, after standing for `steps`."""
    engine = engine_of(num_worlds=2, **settings)
    stand(engine, randomization=randomization)
    state = hold(engine, steps)
    engine.close()
    return state


def test_a_heavier_or_weaker_robot_stands_lower():
    for randomization in (
        vary(mass=[1.0, 1.5]),
        vary(kp=np.repeat([[1.0], [0.6]], 12, 1)),
        vary(motor_strength=np.repeat([[1.0], [0.6]], 12, 1)),
    ):
        height = settled(randomization).root_pos[:, 2]
        assert height[1] < height[0] - 0.003


def test_a_slippery_robot_slides_further():
    engine = engine_of(num_worlds=2)
    stand(engine, randomization=vary(friction=[1.0, 0.05]))
    hold(engine, 10)
    state = hold(engine, 10, push=np.tile([1.0, 0.0, 0.0], (2, 1)))
    assert state.root_pos[1, 0] > state.root_pos[0, 0] + 0.05
    engine.close()


def test_joint_friction_slows_joints_down_and_inertia_keeps_them_going():
    slack = np.zeros((4, 12))
    engine = engine_of(num_worlds=4, gravity=0.0)
    randomization = vary(kp=slack, kd=slack, inertia=[1, 1, 1, 3])
    randomization.viscous = slack + np.array([[0.0], [0.01], [0.0], [0.0]])
    randomization.coulomb = slack + np.array([[0.0], [0.0], [0.02], [0.0]])
    qd = np.zeros((4, 12))
    qd[:, 2::3] = 0.5
    stand(engine, 1.0, qd=qd, randomization=randomization)
    before = np.abs(qd[:, 2::3]).sum(1)
    after = np.abs(hold(engine, 3).qd[:, 2::3]).sum(1)
    assert after[0] == pytest.approx(before[0], rel=0.05)
    assert after[1] < 0.97 * after[0]
    assert after[2] < 0.9 * after[0]
    # the next episode without any has none
    stand(engine, 1.0, qd=qd, randomization=vary(kp=slack, kd=slack))
    again = np.abs(hold(engine, 3).qd[:, 2::3]).sum(1)
    np.testing.assert_allclose(again, after[0], rtol=1e-6)
    engine.close()


def test_a_world_that_blows_up_is_told_of_and_begins_anew(capfd):
    engine = engine_of(num_worlds=3, actuation=dataclasses.replace(SERVO, limit_torque=False))
    stiff = np.ones((3, 12))
    stiff[1] = 1e6
    stand(engine, randomization=vary(kp=stiff))
    pose = np.tile(engine.robot.default_pose, (3, 1))
    state = engine.step(pose, pose + 0.2)
    assert state.broken.tolist() == [False, True, False]
    assert np.isfinite(state.root_pos).all()
    assert state.root_pos[1, 2] == pytest.approx(engine.robot.init_height, abs=0.05)
    stand(engine)
    state = hold(engine, 10)
    assert not state.broken.any()
    np.testing.assert_allclose(state.q[1], state.q[0], atol=1e-6)
    pose[2, 3] = np.nan
    assert engine.step(pose, pose).broken.tolist() == [False, False, True]
    engine.close()


@pytest.mark.parametrize(
    "name",
    ["slope:0.2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rough", "steps"))],
)
def test_feet_rest_on_the_terrain_that_kinematics_knows(name):
    terrain = make_terrain(name)
    engine = engine_of(num_worlds=2, terrain=terrain)
    places = np.array([[3.0, 1.2], [-2.5, -4.0]])
    start = terrain.height(places) + engine.robot.init_height + 0.08
    state = stand(engine, root_pos=np.column_stack((places, start)))
    state = hold(engine, 40)
    ground = terrain.height(state.foot_pos[..., :2])
    gap = state.foot_pos[..., 2] - ground - 0.02
    touching = state.foot_contact
    assert touching.sum() >= 5  # a foot may hang over a bump's edge
    # a sphere on a slope or at an edge touches beside its lowest point
    assert np.abs(gap[touching]).max() < (0.004 if name != "steps" else 0.03)
    engine.close()


def test_merged_links_and_feet_alone_move_as_the_whole_robot_does():
    """The deviation after 1 s of steps in place; the table in docs/imitation.md has a trot's."""
    poses = []
    for settings in ({"merge": False}, {"merge": True}, {"merge": True, "collide": "feet"}):
        engine = engine_of(**settings)
        stand(engine)
        q, path = np.array([engine.robot.default_pose]), []
        for step in range(30):
            target = q + 0.1 * np.sin(0.4 * step) * np.tile([0.0, 1.0, -1.0], 4)
            path.append(engine.step(target, target).q.copy())
        poses.append(np.array(path))
        engine.close()
    whole, merged, feet = poses
    assert np.sqrt(np.mean((merged - whole) ** 2)) < 0.01
    np.testing.assert_allclose(feet, merged, atol=1e-9)


def test_an_implicit_servo_is_cut_into_steps_that_hold_the_robot():
    engine = engine_of(actuation=Actuation(0.005, 6, "implicit"))
    stand(engine)
    state = hold(engine, 60)
    assert state.foot_contact.all()
    assert abs(state.root_pos[0, 2] - engine.robot.init_height) < 0.02
    engine.close()


def test_what_cannot_be_simulated_is_refused_in_one_line():
    a1 = get_robot("a1")
    with pytest.raises(WorldError, match=r"no joint 'FR_hip'.*did you mean"):
        engine_of(dataclasses.replace(a1, joints=("FR_hip", *a1.joints[1:])))
    with pytest.raises(WorldError, match="no model file"):
        engine_of(dataclasses.replace(a1, model="a1/none.urdf"))
    engine = engine_of()
    engine.close()
    with pytest.raises(StateError, match="closed"):
        hold(engine, 1)


def test_a_snapshot_goes_on_bit_for_bit():
    actuation = dataclasses.replace(SERVO, latency=0.005, interpolate=True, target_clip=0.2)
    ours, other = (engine_of(num_worlds=2, actuation=actuation) for _ in range(2))
    rng = np.random.default_rng(5)
    pose = np.tile(ours.robot.default_pose, (2, 1))

    def walk(engine, moves):
        for before, move in itertools.pairwise(moves):
            state = engine.step(pose + before, pose + move, 0.1 * move[:, :3])
        return state

    stand(ours, randomization=vary(mass=[1.1, 0.9]))
    walk(ours, 0.2 * rng.normal(size=(6, 2, 12)))
    stand(ours, rows=np.array([True, False]), randomization=vary(mass=[1.2, 1.0]))
    before = walk(ours, 0.2 * rng.normal(size=(4, 2, 12)))
    state = other.restore(ours.snapshot())
    moves = 0.2 * rng.normal(size=(5, 2, 12))
    for ours_state, theirs in ((before, state), (walk(ours, moves), walk(other, moves))):
        for name in ("root_pos", "root_quat", "root_linvel", "q", "qd", "torque", "power"):
            np.testing.assert_array_equal(getattr(ours_state, name), getattr(theirs, name), name)
        np.testing.assert_array_equal(ours_state.sensed.q, theirs.sensed.q)
        np.testing.assert_array_equal(ours_state.sensed.root_angvel, theirs.sensed.root_angvel)
    assert len(ours.snapshot()["log"]) == 5 + 3 + 4
    stand(ours)
    assert len(ours.snapshot()["log"]) == 0  # what no world needs is forgotten
    ours.close()
    other.close()


@pytest.mark.parametrize("robot", ["a1", "laikago"])
def test_merged_links_have_the_mass_matrix_of_the_whole(robot):
    """Bullet's own flag for merging is wrong by a quarter in A1's shanks."""
    matrices = []
    for merge in (False, True):
        engine = engine_of(robot, merge=merge)
        stand(engine)
        world = engine._worlds._worlds[0]
        count = p.getNumJoints(world._body, world._client)
        moving = [j for j in range(count) if p.getJointInfo(world._body, j, world._client)[3] >= 0]
        states = p.getJointStates(world._body, moving, world._client)
        angles = [state[0] for state in states]
        matrix = p.calculateMassMatrix(world._body, angles, physicsClientId=world._client)
        order = [*range(6), *(6 + moving.index(joint) for joint in world.model.joints)]
        matrices.append(np.array(matrix)[np.ix_(order, order)])
        assert len(moving) == 12 and (count > 12) is not merge
        engine.close()
    whole, merged = matrices
    np.testing.assert_allclose(merged[6:, 6:], whole[6:, 6:], atol=1e-8)
    assert merged[3, 3] == pytest.approx(whole[3, 3])  # mass
