"""Rotations as unit quaternions, xyzw, in arrays of any leading shape; numpy and torch alike.

`q` turns a vector of the body into the world: `rotate(q, v)`. Leading axes broadcast. The axis of
a heading is the world's z. Formulas: Diebel 2006, "Representing Attitude", sections 5 and 6.
"""

from __future__ import annotations

from rlgym.envs.imitation.arrays import Array, constant, namespace

TINY = 1e-12
"""Squared length below which a direction is taken for undefined."""


Parts = tuple[Array, ...]
"""The components of quaternions (four) or vectors (three), an array each."""


def product(a: Parts, b: Parts) -> Parts:
    """Return the rotation `b` followed by `a`; all in components, which broadcast."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def turned(q: Parts, v: Parts) -> Parts:
    """Return vectors turned by unit quaternions; all in components, which broadcast."""
    # v + 2 w (u x v) + 2 u x (u x v), with u the vector part: 15 products, no matrix
    x, y, z, w = q
    vx, vy, vz = v
    tx = 2 * (y * vz - z * vy)
    ty = 2 * (z * vx - x * vz)
    tz = 2 * (x * vy - y * vx)
    return (
        vx + w * tx + y * tz - z * ty,
        vy + w * ty + z * tx - x * tz,
        vz + w * tz + x * ty - y * tx,
    )


def _parts(x: Array) -> Parts:
    """Split (..., n) into n arrays (...)."""
    return tuple(x[..., i] for i in range(x.shape[-1]))


def multiply(a: Array, b: Array) -> Array:
    """Return the rotation `b` followed by `a`, (..., 4)."""
    return namespace(a).stack(product(_parts(a), _parts(b)), axis=-1)


def conjugate(q: Array) -> Array:
    """Return the inverse of unit quaternions, (..., 4)."""
    return namespace(q).concatenate((-q[..., :3], q[..., 3:]), axis=-1)


def rotate(q: Array, v: Array) -> Array:
    """Turn vectors `v` (..., 3) by unit quaternions `q` (..., 4)."""
    return namespace(v).stack(turned(_parts(q), _parts(v)), axis=-1)


def rotate_inverse(q: Array, v: Array) -> Array:
    """Turn vectors `v` (..., 3) by the inverses of unit quaternions `q` (..., 4)."""
    x, y, z, w = _parts(q)
    return namespace(v).stack(turned((x, y, z, -w), _parts(v)), axis=-1)


def cross(a: Array, b: Array) -> Array:
    """Return the vector products of vectors (..., 3)."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return namespace(a).stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), axis=-1)


def normalize(q: Array) -> Array:
    """Scale quaternions (..., 4) to unit length; zeros become the identity."""
    xp = namespace(q)
    squared = xp.dot(q, q)[..., None]
    identity = xp.broadcast_to(constant((0.0, 0.0, 0.0, 1.0), q), q.shape)
    return xp.where(squared > TINY, q / xp.sqrt(xp.maximum(squared, TINY)), identity)


def standardize(q: Array) -> Array:
    """Of q and -q, which are one rotation, return the one with w >= 0."""
    return namespace(q).where(q[..., 3:] < 0, -q, q)


def angle_between(a: Array, b: Array) -> Array:
    """Return the angle of the rotation from `a` to `b`, (...) in [0, pi], rad.

    Twice the angle between two quaternions as vectors, taken from their sum and difference:
    exact for small angles, where an arccosine of the product would lose half the digits
    (Kahan 2006, "How Futile are Mindless Assessments of Roundoff", section 12).
    """
    xp = namespace(a)
    difference, total = a - b, a + b
    d, t = xp.sqrt(xp.dot(difference, difference)), xp.sqrt(xp.dot(total, total))
    return 4 * xp.arctan2(xp.minimum(d, t), xp.maximum(d, t))


def slerp(a: Array, b: Array, t: Array) -> Array:
    """Move along the shortest way from `a` (t = 0) to `b` (t = 1) at constant angular velocity.

    Args:
        a, b: (..., 4) unit quaternions.
        t: (...) fraction of the way.

    Shoemake 1985, "Animating Rotation with Quaternion Curves", section 3.3.
    """
    xp = namespace(a)
    b = xp.where(xp.dot(a, b)[..., None] < 0, -b, b)
    difference, total = a - b, a + b
    angle = 2 * xp.arctan2(xp.sqrt(xp.dot(difference, difference)), xp.sqrt(xp.dot(total, total)))
    sine = xp.sin(angle)
    close = sine < 1e-6  # a straight line is exact enough there, and the quotient is not
    safe = xp.where(close, xp.ones_like(sine), sine)
    from_a = xp.where(close, 1 - t, xp.sin((1 - t) * angle) / safe)
    from_b = xp.where(close, t + xp.zeros_like(sine), xp.sin(t * angle) / safe)
    return normalize(from_a[..., None] * a + from_b[..., None] * b)


def from_rotation_vector(v: Array) -> Array:
    """Return the rotation about the direction of `v` (..., 3) by its length in rad, (..., 4)."""
    xp = namespace(v)
    squared = xp.dot(v, v)[..., None]
    half = 0.5 * xp.sqrt(squared)
    # sin(x) / x = 1 - x^2 / 6 where the length is too small to divide by
    close = squared < TINY
    safe = xp.where(close, xp.ones_like(half), half)
    scale = xp.where(close, 0.5 - squared / 48, 0.5 * xp.sin(half) / safe)
    return xp.concatenate((scale * v, xp.cos(half)), axis=-1)


def rotation_vector(q: Array) -> Array:
    """Return axis times angle (..., 3), rad, of unit quaternions; the angle is in [0, pi]."""
    xp = namespace(q)
    q = standardize(q)
    vector, w = q[..., :3], q[..., 3:]
    squared = xp.dot(vector, vector)[..., None]
    length = xp.sqrt(xp.maximum(squared, TINY))
    scale = xp.where(squared > TINY, 2 * xp.arctan2(length, w) / length, 2 + squared / 3)
    return scale * vector


def angular_velocity(a: Array, b: Array, dt: Array | float) -> Array:
    """Return the constant angular velocity (..., 3), rad/s in the world's frame, from `a` to `b`.

    Args:
        a, b: (..., 4) orientations, `dt` seconds apart; the shorter way is taken.
        dt: a number, or (..., 1).
    """
    return rotation_vector(multiply(b, conjugate(a))) / dt


def heading(q: Array) -> Array:
    """Return the direction of the body's x axis seen from above, (...) in [-pi, pi], rad."""
    cos, sin = _x_axis(q)
    return namespace(q).arctan2(sin, cos)


def heading_cos_sin(q: Array) -> tuple[Array, Array]:
    """Return cosine and sine, (...) each, of `heading`, without its trigonometry."""
    xp = namespace(q)
    cos, sin = _x_axis(q)
    squared = cos * cos + sin * sin
    upright = squared > TINY  # else the x axis is vertical, and heading calls that 0
    length = xp.sqrt(xp.maximum(squared, TINY))
    return (
        xp.where(upright, cos / length, xp.ones_like(cos)),
        xp.where(upright, sin / length, xp.zeros_like(sin)),
    )


def _x_axis(q: Array) -> tuple[Array, Array]:
    """Return x and y of the body's x axis in the world's frame."""
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return 1 - 2 * (y * y + z * z), 2 * (x * y + w * z)


def about_z(angle: Array) -> Array:
    """Return the rotation by `angle` (...) rad about the z axis, (..., 4)."""
    xp = namespace(angle)
    zero = xp.zeros_like(angle)
    return xp.stack((zero, zero, xp.sin(0.5 * angle), xp.cos(0.5 * angle)), axis=-1)


def heading_quat(q: Array) -> Array:
    """Return the rotation about the z axis by the heading of `q`, (..., 4)."""
    return about_z(heading(q))


def rotate_z(cos: Array, sin: Array, v: Array) -> Array:
    """Turn vectors `v` (..., 3) about the z axis by an angle of that cosine and sine, (...)."""
    x, y = v[..., 0], v[..., 1]
    z = v[..., 2] + 0 * cos  # as many axes as the others when they broadcast
    return namespace(v).stack((cos * x - sin * y, sin * x + cos * y, z), axis=-1)


def to_rpy(q: Array) -> tuple[Array, Array, Array]:
    """Return roll, pitch and yaw, (...) each, rad: turns about x, then y, then z, fixed axes."""
    xp = namespace(q)
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    roll = xp.arctan2(2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    pitch = xp.arcsin(xp.clip(2 * (w * y - x * z), -1.0, 1.0))
    yaw = xp.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
    return roll, pitch, yaw


def wrap_angle(angle: Array) -> Array:
    """Return angles, rad, in [-pi, pi)."""
    turn = 6.283185307179586
    return angle - turn * namespace(angle).floor(angle / turn + 0.5)
