"""Each cause alone, at its threshold from both sides, and which is named when several hold."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rlgym.envs.imitation.clips import Ref
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply
from rlgym.envs.imitation.spec import SPECS, TerminationSpec
from rlgym.envs.imitation.termination import CAUSES, terminate
from rlgym.envs.physics.engine import Sensed, State
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import WorldError
from tests.envs.imitation.batches import as_torch, assert_same, reference, state

A1 = get_robot("a1")
OFF = TerminationSpec(
    contact=False, distance=None, rotation=None, tilt=None, trunk_height=None, clip_over=False
)


def standing(count: int, height: float = 0.27) -> tuple[State, Ref]:
    """A1 in its default pose, as its reference."""
    q = np.tile(A1.default_pose, (count, 1))
    pos, quat = np.tile([0.0, 0.0, height], (count, 1)), np.tile([0.0, 0.0, 0.0, 1.0], (count, 1))
    zero, no = np.zeros((count, 3)), np.zeros(count, bool)
    feet = foot_positions(A1, pos, quat, q)
    still = np.zeros((count, 12))
    sensed = Sensed(quat, zero, q, still)
    contact = np.zeros((count, 4), bool)
    s = State(
        *(pos, quat, zero, zero, q, still, feet, contact),
        *(no, still, np.zeros(count), no.copy(), sensed),
    )
    return s, Ref(pos.copy(), quat.copy(), zero, zero, q, still, feet)


def causes(s: State, ref: Ref, spec: TerminationSpec, **changes) -> list[str]:
    count = len(s.q)
    given = {"step": np.full(count, 5), "clip_over": np.zeros(count, bool)} | changes
    done, cause = terminate(s, ref, spec, A1, **given)
    assert done.dtype == bool and cause.dtype == np.int8
    assert (done == (cause > 0)).all()
    return [CAUSES[i] for i in cause]


def about(axis: int, *angles: float) -> np.ndarray:
    return from_rotation_vector(np.array(angles)[:, None] * np.eye(3)[axis])


@pytest.mark.parametrize("name", ["reference", "modern"])
def test_standing_as_the_reference_does_ends_nothing(name: str) -> None:
    assert causes(*standing(2), SPECS[name].termination) == ["none", "none"]


def test_distance() -> None:
    s, ref = standing(3)
    s.root_pos += np.array([[0.99, 0, 0], [0.8, -0.61, 0], [0, 0, 1.01]])
    assert causes(s, ref, replace(OFF, distance=1.0)) == ["none", "distance", "distance"]


def test_rotation_whichever_sign_the_quaternion_has() -> None:
    s, ref = standing(4)
    s.root_quat = multiply(about(2, 1.56, 1.58, -1.58, 1.56), s.root_quat)
    s.root_quat[1:] *= -1
    spec = replace(OFF, rotation=math.pi / 2)
    assert causes(s, ref, spec) == ["none", "rotation", "rotation", "none"]


def test_tilt_is_of_the_robot_alone_and_not_its_heading() -> None:
    s, ref = standing(4)
    s.root_quat = np.concatenate([about(2, 3.0), about(0, 1.0), about(1, 1.1), about(0, -1.1)])
    spec = replace(OFF, tilt=math.radians(60))  # 1.047 rad
    assert causes(s, ref, spec) == ["none", "none", "tilt", "tilt"]


def test_trunk_height_is_a_share_of_the_leg_above_the_ground() -> None:
    s, ref = standing(3)
    s.root_pos[:, 2] = [0.141, 0.139, 0.139]  # 0.35 of 0.4 m is 0.14
    spec = replace(OFF, trunk_height=0.35)
    assert causes(s, ref, spec) == ["none", "trunk_height", "trunk_height"]
    on_terrain = causes(s, ref, spec, ground=np.array([0.01, -0.01, 0.0]))
    assert on_terrain == ["trunk_height", "none", "trunk_height"]


def test_knee_height_is_of_the_lowest_knee() -> None:
    # Default pose: a knee is 0.2 cos(0.9) = 0.1243 m below its hip, which is level with the base
    s, ref = standing(4, height=0.1243 + 0.04)
    s.root_quat = np.concatenate([about(0, 0.0, 0.05, -0.05), about(2, 0.5)])
    spec = replace(OFF, knee_height=0.0875)  # of 0.4 m: 0.035 m
    assert causes(s, ref, spec) == ["none", "knee_height", "knee_height", "none"]
    lower = causes(s, ref, spec, ground=np.array([0.01, -0.02, -0.02, 0.0]))
    assert lower == ["knee_height", "none", "none", "none"]


def test_contact_counts_from_the_second_step() -> None:
    s, ref = standing(3)
    s.illegal_contact = np.array([True, True, False])
    found = causes(s, ref, replace(OFF, contact=True), step=np.array([1, 2, 9]))
    assert found == ["none", "contact", "none"]
    assert causes(s, ref, OFF, step=np.array([1, 2, 9])) == ["none"] * 3


def test_the_end_of_a_clip() -> None:
    over = np.array([True, False])
    assert causes(*standing(2), replace(OFF, clip_over=True), clip_over=over) == [
        "clip_over",
        "none",
    ]
    assert causes(*standing(2), OFF, clip_over=over) == ["none", "none"]


def test_broken_worlds_end_whatever_the_spec_and_whatever_their_numbers() -> None:
    s, ref = standing(2)
    s.broken = np.array([False, True])
    s.root_pos[1], s.root_quat[1], s.q[1] = np.nan, np.nan, np.inf
    with np.errstate(invalid="ignore"):
        assert causes(s, ref, OFF) == ["none", "broken"]
        assert causes(s, ref, SPECS["modern"].termination) == ["none", "broken"]


def test_the_gravest_cause_is_named() -> None:
    s, ref = standing(2)
    s.root_pos[:] = [3.0, 0.0, 0.0]
    s.root_quat[:] = about(0, 3.0)
    s.illegal_contact[:] = True
    over = np.ones(2, bool)
    spec = SPECS["modern"].termination
    assert causes(s, ref, spec, clip_over=over) == ["contact"] * 2
    s.illegal_contact[:] = False
    assert causes(s, ref, spec, clip_over=over) == ["distance"] * 2


def test_a_robot_without_legs_needs_no_heights() -> None:
    humanoid = get_robot("humanoid")
    s = state(0, humanoid, 2)
    ref = reference(1, s, humanoid)
    given = np.full(2, 5), np.zeros(2, bool)
    terminate(s, ref, SPECS["humanoid"].termination, humanoid, *given)
    with pytest.raises(WorldError, match="'humanoid' has no legs"):
        terminate(s, ref, replace(OFF, trunk_height=0.3), humanoid, *given)


@pytest.mark.parametrize("name", ["reference", "modern"])
def test_torch_agrees(name: str) -> None:
    s = state(0, A1, 200)
    s.root_pos[:, 2] += 0.3
    ref = reference(1, s, A1, 0.9)
    spec = SPECS[name].termination
    step, over = np.arange(200) % 3, np.arange(200) % 7 == 0
    ground = np.linspace(-0.1, 0.1, 200)
    found = terminate(s, ref, spec, A1, step, over, ground)
    tensors = map(as_torch, (step, over, ground))
    assert_same(found, terminate(as_torch(s), as_torch(ref), spec, A1, *tensors))
    assert len(set(found[1].tolist())) > 3
