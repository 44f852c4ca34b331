"""Random batches of what engines and clips give, in numpy, and the same in torch."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from rlgym.envs.imitation.clips import Pose, Ref
from rlgym.envs.imitation.joints import to_angles, to_positions
from rlgym.envs.imitation.rotations import from_rotation_vector
from rlgym.envs.physics.engine import Sensed, State
from rlgym.envs.physics.robots import Robot


def rotations(draw: np.random.Generator, *shape: int, angle: float = 3.0) -> np.ndarray:
    """Unit quaternions (*shape, 4), turned by up to about `angle` rad."""
    return from_rotation_vector(draw.uniform(-angle, angle, (*shape, 3)) / np.sqrt(3))


def poses(draw: np.random.Generator, robot: Robot, count: int, spread: float) -> np.ndarray:
    """Positions (count, nq) around the robot's default pose."""
    middle = to_angles(robot, np.array(robot.default_pose)[None])
    return to_positions(robot, middle + draw.uniform(-spread, spread, (count, robot.nv)))


def state(seed: int, robot: Robot, count: int) -> State:
    """A robot near the origin in each world, its sensors reading something else."""
    draw = np.random.default_rng(seed)
    feet = len(robot.feet)
    return State(
        root_pos=draw.uniform(-0.5, 0.5, (count, 3)),
        root_quat=rotations(draw, count, angle=1.5),
        root_linvel=draw.uniform(-1, 1, (count, 3)),
        root_angvel=draw.uniform(-1, 1, (count, 3)),
        q=poses(draw, robot, count, 0.5),
        qd=draw.uniform(-3, 3, (count, robot.nv)),
        foot_pos=draw.uniform(-0.5, 0.5, (count, feet, 3)),
        foot_contact=draw.random((count, feet)) < 0.5,
        illegal_contact=draw.random(count) < 0.2,
        torque=draw.uniform(-9, 9, (count, robot.nv)),
        power=draw.uniform(0, 99, count),
        broken=draw.random(count) < 0.1,
        sensed=Sensed(
            root_quat=rotations(draw, count, angle=1.5),
            root_angvel=draw.uniform(-1, 1, (count, 3)),
            q=poses(draw, robot, count, 0.5),
            qd=draw.uniform(-3, 3, (count, robot.nv)),
        ),
    )


def reference(seed: int, near: State, robot: Robot, distance: float = 0.1) -> Ref:
    """References whose numbers differ from those of a state by up to about `distance`."""
    draw = np.random.default_rng(seed)

    def moved(array: np.ndarray) -> np.ndarray:
        return array + draw.uniform(-distance, distance, array.shape)

    return Ref(
        root_pos=moved(near.root_pos),
        root_quat=_unit(moved(near.root_quat)),
        root_linvel=moved(near.root_linvel),
        root_angvel=moved(near.root_angvel),
        q=to_positions(robot, moved(to_angles(robot, near.q))),
        qd=moved(near.qd),
        foot_pos=moved(near.foot_pos),
    )


def futures(seed: int, robot: Robot, count: int, steps: int) -> Pose:
    """Poses (count, steps, ...) of a reference."""
    draw = np.random.default_rng(seed)
    q = poses(draw, robot, count * steps, 0.5).reshape(count, steps, robot.nq)
    return Pose(draw.uniform(-1, 1, (count, steps, 3)), rotations(draw, count, steps), q)


def _unit(quat: np.ndarray) -> np.ndarray:
    return quat / np.linalg.norm(quat, axis=-1, keepdims=True)


def as_torch(value: Any) -> Any:
    """The same in torch, float64; dataclasses and tuples of arrays too."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: as_torch(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_torch, value))
    return value


def assert_same(numpy_result: Any, torch_result: Any) -> None:
    """Compare results of a function for numpy and for torch arguments, to float64 precision."""
    if isinstance(numpy_result, dict):
        assert numpy_result.keys() == torch_result.keys()
        numpy_result, torch_result = numpy_result.values(), torch_result.values()
    elif isinstance(numpy_result, np.ndarray | np.generic):
        assert isinstance(torch_result, torch.Tensor)
        assert str(torch_result.dtype) == f"torch.{numpy_result.dtype}"
        np.testing.assert_allclose(torch_result.numpy(), numpy_result, rtol=1e-9, atol=1e-9)
        return
    for a, b in zip(numpy_result, torch_result, strict=True):
        assert_same(a, b)
