"""Rewards against loops over worlds and joints, written from the originals' formulas."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from rlgym.envs.imitation.clips import Ref
from rlgym.envs.imitation.joints import columns
from rlgym.envs.imitation.kinematics import centre_of_mass_velocity, foot_positions
from rlgym.envs.imitation.reward import TERMS, reward
from rlgym.envs.imitation.spec import SPECS, RewardSpec, Term
from rlgym.envs.physics.engine import State
from rlgym.envs.physics.robots import Foot, get_robot
from rlgym.envs.physics.urdf import read_model
from tests.envs.imitation.batches import as_torch, assert_same, reference, state

A1, HUMANOID = get_robot("a1"), get_robot("humanoid")


def exact(state: State) -> Ref:
    """A reference that the robots follow exactly."""
    return Ref(**{f.name: getattr(state, f.name) for f in dataclasses.fields(Ref)})


def between(a: np.ndarray, b: np.ndarray) -> float:
    return (Rotation.from_quat(a) * Rotation.from_quat(b).inv()).magnitude()


def turned_back(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    x, y, _ = Rotation.from_quat(quat).apply([1, 0, 0])
    return Rotation.from_euler("z", -math.atan2(y, x)).apply(vector)


def peng_2020(s: State, ref: Ref, i: int) -> dict[str, float]:
    """The terms of google-research/motion_imitation for world i; arXiv:2004.00784, (5) to (9)."""
    pose = sum((ref.q[i, j] - s.q[i, j]) ** 2 for j in range(12))
    velocity = sum((ref.qd[i, j] - s.qd[i, j]) ** 2 for j in range(12))
    ends = 0.0
    for foot in range(s.foot_pos.shape[1]):
        mine = turned_back(s.root_quat[i], s.foot_pos[i, foot] - s.root_pos[i])
        its = turned_back(ref.root_quat[i], ref.foot_pos[i, foot] - ref.root_pos[i])
        up = ref.foot_pos[i, foot, 2] - s.foot_pos[i, foot, 2]
        ends += (mine[0] - its[0]) ** 2 + (mine[1] - its[1]) ** 2 + 3 * up**2
    place = sum((ref.root_pos[i] - s.root_pos[i]) ** 2)
    place += 0.5 * between(ref.root_quat[i], s.root_quat[i]) ** 2
    motion = sum((ref.root_linvel[i] - s.root_linvel[i]) ** 2)
    motion += 0.1 * sum((ref.root_angvel[i] - s.root_angvel[i]) ** 2)
    return {
        "pose": math.exp(-5 * pose),
        "velocity": math.exp(-0.1 * velocity),
        "end_effector": math.exp(-40 * ends),
        "root_pose": math.exp(-20 * place),
        "root_velocity": math.exp(-2 * motion),
    }


# Of chest, neck and right then left hip, knee, ankle, shoulder, elbow, as in DeepMimic's model file
LIMB = (0.10416, 0.0625, 0.0416, 0.0625, 0.0416)
JOINT_WEIGHTS = (0.10416, 0.0625, *LIMB, *LIMB)


def peng_2018(s: State, ref: Ref, i: int) -> dict[str, float]:
    """The terms of pybullet_envs' DeepMimic for world i; arXiv:1804.02717, section 5.2."""
    at = columns(HUMANOID, s.q)
    hinges, balls = zip(at.hinge_q, at.hinge_v, strict=True), zip(at.ball_q, at.ball_v, strict=True)
    rotation = between(ref.root_quat[i], s.root_quat[i]) ** 2
    spin = sum((ref.root_angvel[i] - s.root_angvel[i]) ** 2)
    pose, velocity = 0.20833 * rotation, 0.20833 * spin
    for spherical, weight in zip(HUMANOID.spherical, JOINT_WEIGHTS, strict=True):
        q, v = next(balls) if spherical else next(hinges)
        angle = between(s.q[i][q], ref.q[i][q]) if spherical else s.q[i][q] - ref.q[i][q]
        pose += weight * angle**2
        velocity += weight * np.sum((s.qd[i][v] - ref.qd[i][v]) ** 2)
    ends = sum(sum((s.foot_pos[i, f] - ref.foot_pos[i, f]) ** 2) for f in range(4)) / 4
    linear = sum((s.root_linvel[i] - ref.root_linvel[i]) ** 2)
    place = sum((s.root_pos[i] - ref.root_pos[i]) ** 2)
    place += 0.1 * rotation + 0.01 * linear + 0.001 * spin
    centres = [
        centre_of_mass_velocity(
            *(HUMANOID, body.root_quat, body.root_linvel, body.root_angvel, body.q, body.qd)
        )[i]
        for body in (s, ref)
    ]
    return {
        "pose": math.exp(-2 * pose),
        "velocity": math.exp(-0.1 * velocity),
        "end_effector": math.exp(-40 * ends),
        "root_pose": math.exp(-5 * place),
        "root_velocity": math.exp(-10 * 0.1 * sum((centres[0] - centres[1]) ** 2)),
    }


# ----- Whole rewards -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "robot", "oracle", "weights"),
    [
        ("modern", A1, peng_2020, (0.5, 0.05, 0.2, 0.15, 0.1)),
        ("humanoid", HUMANOID, peng_2018, (0.5, 0.05, 0.15, 0.2, 0.1)),
    ],
)
@pytest.mark.parametrize("distance", [0.03, 0.1])
def test_a_batch_is_the_loop(name, robot, oracle, weights, distance) -> None:
    s = state(0, robot, 20)
    ref = reference(1, s, robot, distance)
    total, terms = reward(s, ref, SPECS[name].reward, robot)
    assert tuple(terms) == TERMS
    for i in range(20):
        expected = oracle(s, ref, i)
        assert {k: v[i] for k, v in terms.items()} == pytest.approx(expected, rel=1e-9)
        assert total[i] == pytest.approx(np.dot(weights, list(expected.values())))
    assert 0.02 < total.mean() < 0.995  # neither end, where every formula is right


@pytest.mark.parametrize("name", ["modern", "humanoid"])
def test_following_exactly_gives_one(name: str) -> None:
    robot = HUMANOID if name == "humanoid" else A1
    s = state(3, robot, 8)
    ref = exact(s)
    ref.root_quat = -ref.root_quat  # the same rotation
    total, terms = reward(s, ref, SPECS[name].reward, robot)
    np.testing.assert_allclose(total, np.ones(8), atol=1e-9)
    assert all(np.allclose(term, 1.0, atol=1e-9) for term in terms.values())


@pytest.mark.parametrize(("name", "robot"), [("modern", A1), ("humanoid", HUMANOID)])
def test_torch_agrees(name, robot) -> None:
    s = state(0, robot, 20)
    ref = reference(1, s, robot)
    spec = SPECS[name].reward
    assert_same(reward(s, ref, spec, robot), reward(as_torch(s), as_torch(ref), spec, robot))


def test_the_original_counts_shanks_too_and_sees_end_effectors_a_millisecond_late() -> None:
    """Against the tree of the model file, in which a shank's centre of mass is a point as any."""
    robot, count = get_robot("laikago"), 10
    links = read_model(robot).links
    shanks = [f"{leg}_lower_leg" for leg in ("FR", "FL", "RR", "RL")]
    centres = tuple(Foot(link, tuple(links[link].com.tolist())) for link in shanks)
    tree = dataclasses.replace(robot, legs=(), feet=robot.feet + centres)
    s = state(0, robot, count)
    s.foot_pos = foot_positions(robot, s.root_pos, s.root_quat, s.q)
    ref = reference(1, s, robot, 0.03)
    ref.foot_pos = foot_positions(robot, ref.root_pos, ref.root_quat, ref.q)
    _, terms = reward(s, ref, SPECS["reference"].reward, robot)

    earlier = Rotation.from_rotvec(-0.001 * s.root_angvel) * Rotation.from_quat(s.root_quat)
    seen = s.root_pos - 0.001 * s.root_linvel, earlier.as_quat(), s.q - 0.001 * s.qd
    s.foot_pos = foot_positions(tree, *seen)
    ref.foot_pos = foot_positions(tree, ref.root_pos, ref.root_quat, ref.q)
    for i in range(count):
        expected = peng_2020(s, ref, i)
        assert {k: v[i] for k, v in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert 0.01 < terms["end_effector"].mean() < 0.9


def test_a_robot_without_known_shanks_counts_its_feet_alone() -> None:
    s = state(0, A1, 5)
    s.foot_pos = foot_positions(A1, s.root_pos, s.root_quat, s.q)
    ref = reference(1, s, A1, 0.03)
    fresh = dataclasses.replace(SPECS["reference"].reward, end_effector_age=0.0)
    _, terms = reward(s, ref, fresh, A1)
    assert terms["end_effector"][2] == pytest.approx(peng_2020(s, ref, 2)["end_effector"])


# ----- What moves which term ---------------------------------------------------------------------


def test_one_joint_off_by_a_tenth_costs_what_the_paper_says() -> None:
    s = state(0, A1, 1)
    ref = exact(s)
    ref.q = s.q.copy()
    ref.q[0, 4] += 0.1
    total, terms = reward(s, ref, RewardSpec(), A1)
    assert terms["pose"].item() == pytest.approx(math.exp(-5 * 0.01))
    assert total.item() == pytest.approx(0.5 + 0.5 * math.exp(-0.05))


def test_feet_are_compared_from_the_base_and_along_its_heading() -> None:
    """Turning and moving both robots with their feet, each its own way, leaves the term at 1."""
    s = state(0, A1, 4)
    ref = exact(s)
    turn = Rotation.from_euler("z", 0.7)
    ref.root_quat = (turn * Rotation.from_quat(s.root_quat)).as_quat()
    ref.root_pos = s.root_pos + np.array([3.0, -2.0, 0.0])
    relative = (s.foot_pos - s.root_pos[:, None]).reshape(-1, 3)
    ref.foot_pos = turn.apply(relative).reshape(4, 4, 3) + ref.root_pos[:, None]
    heading = reward(s, ref, RewardSpec(), A1)[1]
    np.testing.assert_allclose(heading["end_effector"], np.ones(4), atol=1e-9)
    world = reward(s, ref, RewardSpec(end_effector_frame="world"), A1)[1]
    assert (world["end_effector"] < 1e-9).all()


def test_heights_of_feet_count_thrice_and_in_the_world() -> None:
    s, up = state(0, A1, 1), np.array([0.0, 0.0, 0.05])
    ref = exact(s)
    ref.foot_pos = s.foot_pos + up
    ref.root_pos = s.root_pos + up  # relative to the base nothing has changed
    term = reward(s, ref, RewardSpec(), A1)[1]["end_effector"]
    assert term.item() == pytest.approx(math.exp(-40 * 4 * 3 * 0.05**2))


def test_weights_and_scales_are_data() -> None:
    s = state(0, A1, 3)
    ref = reference(1, s, A1)
    only_pose = RewardSpec(
        pose=Term(1.0, 1.0),
        velocity=Term(0.0, 1.0),
        end_effector=Term(0.0, 1.0),
        root_pose=Term(0.0, 1.0),
        root_velocity=Term(0.0, 1.0),
        joint_weights=(1.0,) + (0.0,) * 11,
    )
    total, terms = reward(s, ref, only_pose, A1)
    np.testing.assert_allclose(total, np.exp(-((s.q[:, 0] - ref.q[:, 0]) ** 2)))
    first = np.exp(-((s.qd[:, 0] - ref.qd[:, 0]) ** 2))
    np.testing.assert_allclose(terms["velocity"], first)


def test_float32_on_torch_is_close() -> None:
    s = state(0, A1, 50)
    ref = reference(1, s, A1, 0.02)

    def single(part):
        part = as_torch(part)
        return dataclasses.replace(
            part,
            **{
                f.name: getattr(part, f.name).float()
                for f in dataclasses.fields(Ref)
                if hasattr(part, f.name)
            },
        )

    total, _ = reward(single(s), single(ref), RewardSpec(), A1)
    assert total.dtype == torch.float32
    np.testing.assert_allclose(total, reward(s, ref, RewardSpec(), A1)[0], atol=1e-5)
