"""The humanoid's kinematics against PyBullet's, which reads the same file by its own means."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pybullet as p
import pybullet_data
import pytest
import torch

from rlgym.envs.gymnasium.bullet import without_noise
from rlgym.envs.imitation.joints import columns, to_positions
from rlgym.envs.imitation.kinematics import centre_of_mass_velocity, foot_positions, sole_heights
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply
from rlgym.envs.physics.robots import get_robot

HUMANOID = get_robot("humanoid")


class Motion(NamedTuple):
    root_pos: np.ndarray
    root_quat: np.ndarray
    root_linvel: np.ndarray
    root_angvel: np.ndarray
    q: np.ndarray
    qd: np.ndarray


def random_motion(count: int) -> Motion:
    draw = np.random.default_rng(3).uniform
    return Motion(
        root_pos=draw(-2, 2, (count, 3)),
        root_quat=from_rotation_vector(draw(-1.5, 1.5, (count, 3))),
        root_linvel=draw(-2, 2, (count, 3)),
        root_angvel=draw(-2, 2, (count, 3)),
        q=to_positions(HUMANOID, draw(-1.5, 1.5, (count, HUMANOID.nv))),
        qd=draw(-3, 3, (count, HUMANOID.nv)),
    )


class Bullet:
    """The humanoid in PyBullet, with every link of the file a link of its own."""

    def __init__(self) -> None:
        self.client = p.connect(p.DIRECT)
        with without_noise(b"b3Warning["):
            self.body = p.loadURDF(
                f"{pybullet_data.getDataPath()}/{HUMANOID.model}",
                globalScaling=HUMANOID.scale,
                physicsClientId=self.client,
            )
        infos = [p.getJointInfo(self.body, j, self.client) for j in range(15)]
        self.joint = {info[1].decode(): info[0] for info in infos}
        self.link = {info[12].decode(): info[0] for info in infos}

    def put(self, motion: Motion, row: int) -> None:
        """The base has no mass and no offset: its frame is our base's, but for `base_rotation`."""
        quat = multiply(motion.root_quat[row], np.array(HUMANOID.base_rotation))
        p.resetBasePositionAndOrientation(self.body, motion.root_pos[row], quat, self.client)
        p.resetBaseVelocity(
            self.body, motion.root_linvel[row], motion.root_angvel[row], self.client
        )
        at = columns(HUMANOID, motion.q)
        where_q, where_v = iter(at.hinge_q), iter(at.hinge_v)
        balls = zip(at.ball_q, at.ball_v, strict=True)
        for name, ball in zip(HUMANOID.joints, HUMANOID.is_spherical, strict=True):
            i, j = next(balls) if ball else ([next(where_q)], [next(where_v)])
            p.resetJointStateMultiDof(
                self.body,
                self.joint[name],
                motion.q[row][i].tolist(),
                motion.qd[row][j].tolist(),
                physicsClientId=self.client,
            )

    def soles(self) -> np.ndarray:
        """Heights of the lowest corners of boxes, and of spheres."""
        lowest = []
        for foot, centre in zip(HUMANOID.feet, self.feet(), strict=True):
            quat = p.getLinkState(self.body, self.link[foot.link], 0, 1, self.client)[5]
            rotation = np.array(p.getMatrixFromQuaternion(quat)).reshape(3, 3)
            corners = itertools.product(*((-half, half) for half in foot.half))
            deep = [(rotation @ np.array(corner))[2] for corner in corners if foot.half]
            lowest.append(centre[2] + min(deep, default=-foot.radius))
        return np.array(lowest)

    def feet(self) -> np.ndarray:
        found = []
        for foot in HUMANOID.feet:
            state = p.getLinkState(self.body, self.link[foot.link], 0, 1, self.client)
            rotation = np.array(p.getMatrixFromQuaternion(state[5])).reshape(3, 3)
            found.append(np.array(state[4]) + rotation @ np.array(foot.point))
        return np.array(found)

    def com_velocity(self) -> np.ndarray:
        links = range(15)
        mass = np.array([p.getDynamicsInfo(self.body, i, self.client)[0] for i in links])
        states = p.getLinkStates(self.body, links, 1, 1, self.client)
        return mass @ np.array([state[6] for state in states]) / mass.sum()


@pytest.fixture(scope="module")
def bullet() -> Iterator[Bullet]:
    world = Bullet()
    yield world
    p.disconnect(world.client)


def test_end_effectors_are_where_bullet_has_them(bullet: Bullet) -> None:
    motion = random_motion(20)
    feet = foot_positions(HUMANOID, motion.root_pos, motion.root_quat, motion.q)
    for row in range(20):
        bullet.put(motion, row)
        np.testing.assert_allclose(feet[row], bullet.feet(), atol=2e-6)


def test_soles_are_as_low_as_their_corners(bullet: Bullet) -> None:
    motion = random_motion(20)
    heights = sole_heights(HUMANOID, motion.root_pos, motion.root_quat, motion.q)
    for row in range(20):
        bullet.put(motion, row)
        np.testing.assert_allclose(heights[row], bullet.soles(), atol=2e-6)


def test_the_centre_of_mass_moves_as_in_bullet(bullet: Bullet) -> None:
    motion = random_motion(20)
    velocity = centre_of_mass_velocity(HUMANOID, *motion[1:])
    for row in range(20):
        bullet.put(motion, row)
        np.testing.assert_allclose(velocity[row], bullet.com_velocity(), atol=2e-5)


def test_torch_agrees_with_numpy() -> None:
    motion = random_motion(5)
    tensors = [torch.from_numpy(values) for values in motion]
    feet = foot_positions(HUMANOID, tensors[0], tensors[1], tensors[4])
    np.testing.assert_allclose(feet, foot_positions(HUMANOID, *motion[:2], motion.q), atol=1e-12)
    velocity = centre_of_mass_velocity(HUMANOID, *tensors[1:])
    np.testing.assert_allclose(velocity, centre_of_mass_velocity(HUMANOID, *motion[1:]), atol=1e-12)


def test_end_effectors_of_the_default_pose() -> None:
    root_pos, root_quat = np.array([[0.0, 0.0, HUMANOID.init_height]]), np.array([[0.0, 0, 0, 1]])
    q = np.array([HUMANOID.default_pose])
    right_ankle, left_ankle, right_wrist, left_wrist = foot_positions(
        HUMANOID, root_pos, root_quat, q
    )[0]
    np.testing.assert_allclose(sole_heights(HUMANOID, root_pos, root_quat, q)[0, :2], 0, atol=1e-3)
    # soles on the ground, each foot below its own hip, hands at the sides; y is left
    assert right_ankle[2] == pytest.approx(HUMANOID.feet[0].radius, abs=2e-3)
    assert left_ankle[1] == pytest.approx(0.25 * 0.339548)
    assert right_ankle[1] == pytest.approx(-0.25 * 0.339548)
    assert left_wrist[1] == pytest.approx(0.25 * 0.73244)
    assert right_wrist[1] == pytest.approx(-0.25 * 0.73244)
    assert 0.7 < right_wrist[2] < 0.9
