"""Legs against PyBullet, which reads the model files by its own means, and against the tree."""

import dataclasses

import numpy as np
import pybullet as p
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlgym.envs.gymnasium.bullet import without_noise
from rlgym.envs.imitation.joints import columns
from rlgym.envs.imitation.kinematics import (
    centre_of_mass_velocity,
    feet_in_base,
    foot_positions,
    joint_frames,
    knee_heights,
    leg_angles,
)
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply, rotate
from rlgym.envs.physics.robots import Foot, Robot, get_robot
from rlgym.envs.physics.urdf import model_path, read_tree
from rlgym.errors import WorldError
from tests.envs.imitation.batches import as_torch, assert_same, poses, rotations, state

QUADRUPEDS = ("a1", "laikago", "mini_cheetah", "aliengo")


def bullet_links(robot: Robot, pos: np.ndarray, quat: np.ndarray, q: np.ndarray) -> dict:
    """Where PyBullet has each link's frame: name -> (position, orientation)."""
    client = p.connect(p.DIRECT)
    try:
        with without_noise(b"b3Warning["):
            body = p.loadURDF(str(model_path(robot)), physicsClientId=client)
        # The table's base frame lies at `base_origin`, turned, in the model's base link; PyBullet
        # wants the pose of the link's centre of mass instead
        turned = multiply(quat, np.array(robot.base_rotation))
        com = np.array(p.getDynamicsInfo(body, -1, client)[3])
        at = pos + rotate(turned, com - np.array(robot.base_origin))
        p.resetBasePositionAndOrientation(body, at, turned, client)
        for j in range(p.getNumJoints(body, client)):
            name = p.getJointInfo(body, j, client)[1].decode()
            if name in robot.joints:
                k = robot.joints.index(name)
                angle = robot.sign[k] * (q[k] + robot.offset[k])
                p.resetJointState(body, j, angle, physicsClientId=client)
        links = {}
        for j in range(p.getNumJoints(body, client)):
            link = p.getLinkState(body, j, 0, 1, client)
            name = p.getJointInfo(body, j, client)[12].decode()
            links[name] = np.array(link[4]), np.array(link[5])
        return links
    finally:
        p.disconnect(client)


@pytest.mark.parametrize("name", ["a1", "laikago"])
def test_feet_and_knees_are_where_pybullet_has_them(name: str) -> None:
    robot = get_robot(name)
    draw = np.random.default_rng(0)
    pos, quat, q = np.array([0.3, -0.2, 0.5]), rotations(draw, 1)[0], poses(draw, robot, 1, 0.4)[0]
    links = bullet_links(robot, pos, quat, q)
    feet = [links[f.link][0] + rotate(links[f.link][1], np.array(f.point)) for f in robot.feet]
    found = foot_positions(robot, pos[None], quat[None], q[None])[0]
    np.testing.assert_allclose(found, feet, atol=1e-6)  # PyBullet's frames have float32 parts
    shanks = [name for name in links if "lower" in name and "toe" not in name]
    heights = [links[name][0][2] for name in shanks]
    assert len(heights) == 4
    found = knee_heights(robot, pos[None], quat[None], q[None])[0]
    np.testing.assert_allclose(np.sort(found), np.sort(heights), atol=1e-6)


@pytest.mark.parametrize("name", QUADRUPEDS)
def test_closed_form_is_the_tree_of_the_model_file(name: str) -> None:
    robot = get_robot(name)
    q = poses(np.random.default_rng(1), robot, 50, 1.0)
    tree = dataclasses.replace(robot, legs=())
    np.testing.assert_allclose(feet_in_base(robot, q), feet_in_base(tree, q), atol=1e-12)
    knees = joint_frames(robot, q).pos[:, 2::3][:, :4]
    level = np.zeros((50, 3)), np.tile([0.0, 0.0, 0.0, 1.0], (50, 1))
    np.testing.assert_allclose(knee_heights(robot, *level, q), knees[..., 2], atol=1e-12)


def test_end_effectors_that_are_not_the_ends_of_legs_come_from_the_tree() -> None:
    a1 = get_robot("a1")
    shanks = tuple(Foot(f"{leg}_lower", (0.0, 0.0, -0.1)) for leg in ("FR", "FL", "RR", "RL"))
    both = dataclasses.replace(a1, feet=a1.feet + shanks)
    q = poses(np.random.default_rng(1), a1, 3, 0.5)
    found = feet_in_base(both, q)
    assert found.shape == (3, 8, 3)
    np.testing.assert_allclose(found[:, :4], feet_in_base(a1, q), atol=1e-12)
    frames = joint_frames(a1, q)
    middle = (frames.pos[:, 2:12:3] + found[:, :4]) / 2  # of shanks 0.2 m long
    np.testing.assert_allclose(found[:, 4:], middle, atol=1e-12)


def test_a_stance_worked_by_hand() -> None:
    # A1: thigh and shank 0.2 m, hips 0.183 before and 0.047 beside the base, abduction 0.08505
    a1 = get_robot("a1")
    straight = feet_in_base(a1, np.zeros((1, 12)))[0]
    side = 0.047 + 0.08505
    np.testing.assert_allclose(straight[0], [0.183, -side, -0.4], atol=1e-12)
    np.testing.assert_allclose(straight[3], [-0.183, side, -0.4], atol=1e-12)
    bent = feet_in_base(a1, np.array([[0.0, np.pi / 3, -2 * np.pi / 3] * 4]))[0]
    np.testing.assert_allclose(bent[1], [0.183, side, -0.2], atol=1e-12)  # thigh back, shank forth
    knee_back = feet_in_base(a1, np.array([[0.0, np.pi / 2, 0.0] * 4]))[0]
    np.testing.assert_allclose(knee_back[0], [0.183 - 0.4, -side, 0.0], atol=1e-12)
    out = feet_in_base(a1, np.array([[np.pi / 2, 0.0, 0.0] * 4]))[0]
    # about +x the left leg swings out and up: its plane's offset turns upwards, its length outwards
    np.testing.assert_allclose(out[1], [0.183, 0.047 + 0.4, 0.08505], atol=1e-12)


@given(
    name=st.sampled_from(QUADRUPEDS),
    fractions=st.lists(st.floats(0.02, 0.98), min_size=12, max_size=12),
)
def test_angles_of_feet_there_and_back(name: str, fractions: list[float]) -> None:
    """Over the joints' whole ranges, but for feet above the hips, where legs turn over."""
    robot = get_robot(name)
    lower, upper = np.array(robot.lower), np.array(robot.upper)
    lower[1::3], upper[1::3] = np.maximum(lower[1::3], -0.9), np.minimum(upper[1::3], 1.4)
    q = (lower + np.array(fractions) * (upper - lower))[None]
    feet = feet_in_base(robot, q)
    angles, reachable = leg_angles(robot, feet)
    np.testing.assert_allclose(feet_in_base(robot, angles), feet, atol=1e-9)
    below = feet[0, :, 2] < [leg.hip[2] - abs(leg.abduction) - 0.01 for leg in robot.legs]
    for leg in np.flatnonzero(below):
        np.testing.assert_allclose(angles[0, 3 * leg :][:3], q[0, 3 * leg :][:3], atol=1e-6)
    assert reachable.all() or not below.all()


def test_points_out_of_reach_are_pointed_at() -> None:
    a1 = get_robot("a1")
    stance = feet_in_base(a1, np.array([a1.default_pose]))
    far, near, beyond_limit = stance.copy(), stance.copy(), stance.copy()
    far[0, 2, 2] = -1.0  # below the rear right hip, and 0.6 m too far
    near[0, 0] = [0.183, -0.047 - 0.01, 0.0]  # nearer to the abduction axis than the leg's plane
    beyond_limit[0, 1] = [0.183, 0.047 + 0.35, -0.05]  # in reach; abduction would be over 0.8 rad
    angles, reachable = leg_angles(a1, np.concatenate([stance, far, near, beyond_limit]))
    assert reachable.tolist() == [True, False, False, False]
    assert np.isfinite(angles).all()
    np.testing.assert_allclose(angles[0], a1.default_pose, atol=1e-9)
    np.testing.assert_allclose(angles[1, 6:9], [0.0, 0.0, 0.0], atol=1e-9)  # stretched straight
    np.testing.assert_allclose(np.delete(angles[1], [6, 7, 8]), a1.default_pose[:9], atol=1e-9)
    assert angles[3, 3] > a1.upper[3]


def test_knees_bend_to_the_side_of_the_default_pose() -> None:
    a1 = get_robot("a1")
    pose = np.array([0.0, -0.9, 1.8] * 4)
    forward = dataclasses.replace(
        a1, default_pose=tuple(pose), lower=(-3.0,) * 12, upper=(3.0,) * 12
    )
    angles, reachable = leg_angles(forward, feet_in_base(forward, pose[None]))
    assert reachable.all()
    np.testing.assert_allclose(angles[0], pose, atol=1e-9)


@pytest.mark.parametrize("name", ["laikago", "humanoid"])
def test_centre_of_mass_moves_as_its_difference_quotient(name: str) -> None:
    robot = get_robot(name)
    at, tree = state(0, robot, 6), read_tree(robot)
    turn = from_rotation_vector

    def centre(t: float) -> np.ndarray:
        """By masses and centres of the URDF's links, after `t` seconds of the same velocities."""
        q, where = at.q.copy(), columns(robot, at.q)
        q[:, where.hinge_q] += t * at.qd[:, where.hinge_v]
        if robot.spherical:
            q[:, where.ball_q] = multiply(q[:, where.ball_q], turn(t * at.qd[:, where.ball_v]))
        frames = joint_frames(robot, q)
        points = frames.pos + rotate(frames.quat, tree.com)
        middle = np.einsum("l,bli->bi", tree.mass / tree.mass.sum(), points)
        quat = multiply(turn(t * at.root_angvel), at.root_quat)
        return at.root_pos + t * at.root_linvel + rotate(quat, middle)

    found = centre_of_mass_velocity(
        robot, at.root_quat, at.root_linvel, at.root_angvel, at.q, at.qd
    )
    np.testing.assert_allclose(found, (centre(1e-5) - centre(-1e-5)) / 2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["laikago", "humanoid"])
def test_torch_agrees(name: str) -> None:
    robot = get_robot(name)
    at = state(0, robot, 9)
    pose = at.root_pos, at.root_quat, at.q
    assert_same(foot_positions(robot, *pose), foot_positions(robot, *map(as_torch, pose)))
    moving = at.root_quat, at.root_linvel, at.root_angvel, at.q, at.qd
    assert_same(
        centre_of_mass_velocity(robot, *moving),
        centre_of_mass_velocity(robot, *map(as_torch, moving)),
    )
    assert_same(tuple(joint_frames(robot, at.q)), tuple(joint_frames(robot, as_torch(at.q))))
    if robot.legs:
        assert_same(knee_heights(robot, *pose), knee_heights(robot, *map(as_torch, pose)))
        feet = feet_in_base(robot, at.q)
        assert_same(leg_angles(robot, feet), leg_angles(robot, as_torch(feet)))


def test_float32_is_good_to_a_hundredth_of_a_millimetre() -> None:
    robot = get_robot("a1")
    q = poses(np.random.default_rng(0), robot, 100, 0.4)
    exact, single = feet_in_base(robot, q), feet_in_base(robot, torch.tensor(q).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), exact, atol=1e-6)
    angles, reachable = leg_angles(robot, single)
    assert reachable.all()
    np.testing.assert_allclose(feet_in_base(robot, angles).numpy(), exact, atol=1e-5)


def test_a_robot_without_legs_has_no_knees() -> None:
    humanoid = get_robot("humanoid")
    at = state(0, humanoid, 1)
    with pytest.raises(WorldError, match="'humanoid' has no legs: give `legs`"):
        knee_heights(humanoid, at.root_pos, at.root_quat, at.q)
