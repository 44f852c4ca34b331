import numpy as np
import pytest
import torch

from rlgym.envs.imitation.joints import columns, per_velocity, to_angles, to_positions
from rlgym.envs.physics.robots import get_robot

HUMANOID = get_robot("humanoid")


def random_angles(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.5, 1.5, (count, HUMANOID.nv))


def test_a_quadruped_passes_through_untouched() -> None:
    q = np.ones((2, 12))
    assert to_angles(get_robot("a1"), q) is q
    assert to_positions(get_robot("a1"), q) is q


def test_angles_and_positions_are_each_others_reverse() -> None:
    angles = random_angles(50)
    q = to_positions(HUMANOID, angles)
    assert q.shape == (50, 36)
    np.testing.assert_allclose(to_angles(HUMANOID, q), angles, atol=1e-12)
    # -q is the same rotation, so balls may be negated and hinges not
    flipped = q.copy()
    flipped[:, columns(HUMANOID, q).ball_q.ravel()] *= -1
    np.testing.assert_allclose(to_angles(HUMANOID, flipped), angles, atol=1e-12)


def test_columns_follow_the_robots_joints() -> None:
    angles = np.zeros((1, HUMANOID.nv))
    angles[0, 3:6] = 0, 0, np.pi / 2  # neck, about its z axis
    angles[0, 9] = -0.7  # right knee, after chest, neck and right hip
    q = to_positions(HUMANOID, angles)[0]
    np.testing.assert_allclose(q[0:4], (0, 0, 0, 1))
    np.testing.assert_allclose(q[4:8], (0, 0, np.sqrt(0.5), np.sqrt(0.5)))
    assert q[12] == -0.7
    at = columns(HUMANOID, q)
    assert [HUMANOID.joints[j] for j in at.joint_of_v[[0, 9, 10, 27]]] == [
        "chest",
        "right_knee",
        "right_ankle",
        "left_elbow",
    ]


def test_a_value_per_joint_is_repeated_for_each_velocity() -> None:
    kp = per_velocity(HUMANOID, HUMANOID.kp)
    assert len(kp) == HUMANOID.nv
    assert kp[:10] == (1000.0,) * 3 + (100.0,) * 3 + (500.0,) * 4


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_torch_agrees_with_numpy(shape: tuple[int, ...]) -> None:
    angles = random_angles(12, seed=1)[: int(np.prod(shape))].reshape((*shape, HUMANOID.nv))
    expected = to_positions(HUMANOID, angles)
    got = to_positions(HUMANOID, torch.from_numpy(angles))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(to_angles(HUMANOID, got).numpy(), angles, atol=1e-12)
