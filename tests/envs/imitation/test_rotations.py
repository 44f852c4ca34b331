"""Rotations against scipy's, at angles where formulas lose digits, and in torch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from rlgym.envs.imitation import rotations as r
from tests.envs.imitation.batches import as_torch, assert_same

COUNT = 200
IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])


def drawn(seed: int, *shape: int) -> np.ndarray:
    return Rotation.random(int(np.prod(shape)), random_state=seed).as_quat().reshape(*shape, 4)


def same_rotation(a: np.ndarray, b: np.ndarray, atol: float = 1e-12) -> None:
    """q and -q are one rotation."""
    np.testing.assert_allclose(np.abs(np.sum(a * b, -1)), 1.0, atol=atol)
    np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1.0, atol=atol)


A, B, V = drawn(0, COUNT), drawn(1, COUNT), np.random.default_rng(2).normal(size=(COUNT, 3))


# ----- Against scipy -----------------------------------------------------------------------------


def test_products_and_turned_vectors() -> None:
    a, b = Rotation.from_quat(A), Rotation.from_quat(B)
    same_rotation(r.multiply(A, B), (a * b).as_quat())
    same_rotation(r.conjugate(A), a.inv().as_quat())
    np.testing.assert_allclose(r.rotate(A, V), a.apply(V), atol=1e-12)
    np.testing.assert_allclose(r.rotate_inverse(A, V), a.inv().apply(V), atol=1e-12)
    np.testing.assert_allclose(r.cross(V, V[::-1]), np.cross(V, V[::-1]), atol=1e-12)


def test_leading_axes_broadcast() -> None:
    many = V.reshape(COUNT, 1, 3) * np.arange(1, 5)[:, None]
    turned = r.rotate(A[:, None], many)
    assert turned.shape == (COUNT, 4, 3)
    np.testing.assert_allclose(turned[:, 2], Rotation.from_quat(A).apply(many[:, 2]), atol=1e-12)
    assert r.multiply(A[:, None], drawn(3, 1, 4)).shape == (COUNT, 4, 4)
    assert r.rotate_z(np.ones(5), np.zeros(5), np.ones((5, 3))).shape == (5, 3)
    assert r.rotate_z(np.ones((5, 1)), np.zeros((5, 1)), np.ones((5, 4, 3))).shape == (5, 4, 3)


def test_angles_between() -> None:
    expected = (Rotation.from_quat(A).inv() * Rotation.from_quat(B)).magnitude()
    np.testing.assert_allclose(r.angle_between(A, B), expected, atol=1e-12)
    np.testing.assert_allclose(r.angle_between(A, -B), expected, atol=1e-12)


def test_rotation_vectors_there_and_back() -> None:
    expected = Rotation.from_quat(A).as_rotvec()
    np.testing.assert_allclose(r.rotation_vector(A), expected, atol=1e-12)
    same_rotation(r.from_rotation_vector(V), Rotation.from_rotvec(V).as_quat())


def test_roll_pitch_yaw() -> None:
    found = np.stack(r.to_rpy(A), -1)
    np.testing.assert_allclose(found, Rotation.from_quat(A).as_euler("xyz"), atol=1e-9)


def test_slerp() -> None:
    fraction = np.linspace(0, 1, COUNT)
    found = r.slerp(A, B, fraction)
    for i in range(0, COUNT, 10):
        between = Slerp([0, 1], Rotation.from_quat([A[i], B[i]]))(fraction[i])
        same_rotation(found[i], between.as_quat())


def test_angular_velocity_turns_one_orientation_into_the_other() -> None:
    dt = 0.02
    velocity = r.angular_velocity(A, B, dt)
    step = Rotation.from_rotvec(velocity * dt)  # in the world's frame: it multiplies from the left
    same_rotation((step * Rotation.from_quat(A)).as_quat(), B)
    assert np.linalg.norm(velocity * dt, axis=-1).max() <= np.pi + 1e-9


def test_heading_is_where_the_x_axis_points_seen_from_above() -> None:
    x_axis = Rotation.from_quat(A).apply([1.0, 0.0, 0.0])
    heading = np.arctan2(x_axis[:, 1], x_axis[:, 0])
    np.testing.assert_allclose(r.heading(A), heading, atol=1e-12)
    cos, sin = r.heading_cos_sin(A)
    np.testing.assert_allclose(np.stack([cos, sin]), [np.cos(heading), np.sin(heading)], atol=1e-9)
    same_rotation(r.heading_quat(A), Rotation.from_euler("z", heading[:, None]).as_quat())
    np.testing.assert_allclose(r.rotate_z(cos, sin, V), r.rotate(r.heading_quat(A), V), atol=1e-9)


# ----- Where formulas lose digits or divide by nothing -------------------------------------------


@given(st.floats(-12, 0), st.integers(0, COUNT - 1))
def test_small_angles_keep_their_digits(exponent: float, i: int) -> None:
    angle = 10.0**exponent
    axis = V[i] / np.linalg.norm(V[i])
    q = r.from_rotation_vector(angle * axis)
    assert np.linalg.norm(q) == pytest.approx(1, abs=1e-12)
    assert r.rotation_vector(q) == pytest.approx(angle * axis, rel=1e-6, abs=1e-15)
    assert r.angle_between(q, IDENTITY) == pytest.approx(angle, rel=1e-6, abs=1e-15)


def test_half_turns() -> None:
    for axis in np.eye(3):
        q = r.from_rotation_vector(np.pi * axis)
        assert np.linalg.norm(r.rotation_vector(q)) == pytest.approx(np.pi)
        assert r.angle_between(q, IDENTITY) == pytest.approx(np.pi)
        assert np.linalg.norm(r.slerp(IDENTITY[None], q[None], np.array([0.5]))) == pytest.approx(1)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_slerp_between_equal_and_opposite_signs(fraction: float) -> None:
    t = np.full(COUNT, fraction)
    same_rotation(r.slerp(A, A, t), A)
    same_rotation(r.slerp(A, -A, t), A)


def test_a_vertical_x_axis_has_heading_zero_and_no_nan() -> None:
    up = np.array([[0.0, -np.sqrt(0.5), 0.0, np.sqrt(0.5)]])
    cos, sin = r.heading_cos_sin(up)
    assert (cos.item(), sin.item()) == (1.0, 0.0)
    assert all(np.isfinite(angle).all() for angle in r.to_rpy(up * (1 + 1e-12)))


def test_a_zero_quaternion_becomes_the_identity_and_signs_are_settled() -> None:
    assert np.array_equal(r.normalize(np.zeros((1, 4))), [IDENTITY])
    np.testing.assert_allclose(r.normalize(3 * A), A, atol=1e-12)
    signs = r.standardize(np.concatenate([A, -A]))
    assert (signs[:, 3] >= 0).all()
    same_rotation(signs[:COUNT], A)


def test_angles_wrap_into_one_turn() -> None:
    angles = np.array([0.0, 3.0, 4.0, -4.0, np.pi, -np.pi, 20.0])
    wrapped = r.wrap_angle(angles)
    assert ((wrapped >= -np.pi) & (wrapped < np.pi)).all()
    np.testing.assert_allclose(np.cos(wrapped), np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(np.sin(wrapped), np.sin(angles), atol=1e-12)
    assert wrapped[4] == -np.pi


# ----- Torch -------------------------------------------------------------------------------------

T = np.linspace(0, 1, COUNT)
CALLS: dict[str, tuple[Callable, tuple[np.ndarray, ...]]] = {
    "multiply": (r.multiply, (A, B)),
    "product": (lambda a, b: r.product(tuple(a.T), tuple(b.T)), (A, B)),
    "turned": (lambda a, v: r.turned(tuple(a.T), tuple(v.T)), (A, V)),
    "conjugate": (r.conjugate, (A,)),
    "rotate": (r.rotate, (A, V)),
    "rotate_inverse": (r.rotate_inverse, (A, V)),
    "cross": (r.cross, (V, V[::-1])),
    "normalize": (r.normalize, (np.concatenate([3 * A, np.zeros((1, 4))]),)),
    "standardize": (r.standardize, (A,)),
    "angle_between": (r.angle_between, (A, B)),
    "slerp": (r.slerp, (A, np.concatenate([B[:-1], A[-1:]]), T)),
    "from_rotation_vector": (r.from_rotation_vector, (np.concatenate([V, np.zeros((1, 3))]),)),
    "rotation_vector": (r.rotation_vector, (np.concatenate([A, IDENTITY[None]]),)),
    "angular_velocity": (lambda a, b: r.angular_velocity(a, b, 0.02), (A, B)),
    "heading": (r.heading, (A,)),
    "heading_cos_sin": (r.heading_cos_sin, (A,)),
    "about_z": (r.about_z, (T,)),
    "heading_quat": (r.heading_quat, (A,)),
    "rotate_z": (r.rotate_z, (T, 1 - T, V)),
    "to_rpy": (r.to_rpy, (A,)),
    "wrap_angle": (r.wrap_angle, (10 * T,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_agrees(name: str) -> None:
    function, arguments = CALLS[name]
    assert_same(function(*arguments), function(*map(as_torch, arguments)))


def test_every_function_is_compared() -> None:
    public = {n for n, f in vars(r).items() if callable(f) and f.__module__ == r.__name__}
    assert {name for name in public if not name.startswith("_")} == set(CALLS)


@pytest.mark.parametrize("dtype", [np.float32, torch.float32])
def test_the_dtype_stays(dtype: object) -> None:
    def cast(x: np.ndarray) -> object:
        return (
            torch.tensor(x.copy(), dtype=dtype)
            if isinstance(dtype, torch.dtype)
            else x.astype(dtype)
        )

    for name, (function, arguments) in CALLS.items():
        found = function(*map(cast, arguments))
        for part in found if isinstance(found, tuple) else (found,):
            assert part.dtype == dtype, name
    small = r.angle_between(cast(r.from_rotation_vector(np.array([[1e-4, 0, 0]]))), cast(IDENTITY))
    assert small.item() == pytest.approx(1e-4, rel=1e-3)  # an arccosine would say 0 or 3e-4
