"""The functions for numpy and for torch are the same, and what is shared cannot be written to."""

import inspect

import numpy as np
import pytest
import torch

from rlgym.envs.imitation.action import act, reset_filter, start_filter
from rlgym.envs.imitation.arrays import (
    NUMPY,
    TORCH,
    choose_rows,
    constant,
    expand,
    indices,
    namespace,
)
from rlgym.envs.imitation.joints import to_angles
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.observation import (
    observe,
    privileged,
    push_history,
    read,
    reset_history,
    start_history,
)
from rlgym.envs.imitation.reward import reward
from rlgym.envs.imitation.spec import SPECS
from rlgym.envs.imitation.termination import terminate
from rlgym.envs.physics.robots import get_robot
from tests.agents.test_device_clean import DeviceClean
from tests.envs.imitation.batches import as_torch, assert_same, futures, reference, state

X = np.random.default_rng(0).normal(size=(5, 3))
Y = np.random.default_rng(1).normal(size=(5, 3))
CALLS = {
    "sin": (X,),
    "cos": (X,),
    "arctan2": (X, Y),
    "arccos": (np.clip(X, -1, 1),),
    "arcsin": (np.clip(X, -1, 1),),
    "exp": (X,),
    "log": (abs(X),),
    "sqrt": (abs(X),),
    "abs": (X,),
    "floor": (3 * X,),
    "minimum": (X, Y),
    "maximum": (X, 0.2),
    "where": (X > 0, X, Y),
    "concatenate": ((X, Y), 1),
    "stack": ((X, Y), -1),
    "broadcast_to": (X, (2, 5, 3)),
    "matmul": (X, Y.T),
    "zeros_like": (X,),
    "ones_like": (X,),
    "clip": (3 * X, -1.0, 1.0),
    "dot": (X, Y),
    "sum": (X, 0),
    "all": (X > -1, 1),
    "min": (X, 1),
    "array": ((1.0, 2.0), X),
    "zeros": ((2, 3), X),
    "full": ((2, 3), 0.5, X),
    "copy": (X,),
    "astype": (X > 0, X),
    "int8": (np.arange(3),),
}


def both(arguments: tuple) -> tuple:
    return tuple(
        tuple(map(as_torch, a)) if isinstance(a, tuple) else as_torch(a) for a in arguments
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_the_same_for_both_kinds(name: str) -> None:
    found = getattr(NUMPY, name)(*CALLS[name])
    assert_same(found, getattr(TORCH, name)(*both(CALLS[name])))


def test_both_kinds_have_the_same_functions_and_all_are_compared() -> None:
    names = [{n for n, _ in inspect.getmembers(xp) if n[0] != "_"} for xp in (NUMPY, TORCH)]
    assert names[0] == names[1] == set(CALLS)


def test_bounds_and_smaller_values_may_be_arrays_or_numbers() -> None:
    for xp, x, y in ((NUMPY, X, Y), (TORCH, as_torch(X), as_torch(Y))):
        np.testing.assert_array_equal(xp.minimum(x, 0.1), np.minimum(X, 0.1))
        np.testing.assert_array_equal(xp.maximum(x, y), np.maximum(X, Y))
        np.testing.assert_array_equal(xp.clip(x, -abs(y), abs(y)), np.clip(X, -abs(Y), abs(Y)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stacking_along_any_axis(axis: int) -> None:
    found = NUMPY.stack((X, Y, X), axis=axis)
    np.testing.assert_array_equal(found, np.stack((X, Y, X), axis=axis))
    np.testing.assert_array_equal(TORCH.stack((as_torch(X), as_torch(Y), as_torch(X)), axis), found)


def test_constants_are_made_once_and_cannot_be_written_to() -> None:
    values = ((1.0, 2.0), (3.0, 4.0))
    array = constant(values, X)
    assert array is constant(values, Y)
    assert array.dtype == np.float64 and array.shape == (2, 2)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 9
    tensor = constant(values, torch.zeros(1))
    assert tensor is constant(values, torch.ones(1))
    assert tensor.dtype == torch.float32
    assert constant(values, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert indices((2, 0), X).tolist() == indices((2, 0), tensor).tolist() == [2, 0]


def test_rows_are_chosen_by_a_mask_in_arrays_of_any_rank() -> None:
    mask = np.array([True, False])
    for old in (np.zeros(2), np.zeros((2, 3)), np.zeros((2, 3, 4))):
        new = choose_rows(mask, old + 1, old)
        assert new[0].min() == 1 and new[1].max() == 0 and old.max() == 0
        assert_same(new, choose_rows(as_torch(mask), as_torch(old + 1), as_torch(old)))
        assert expand(mask, old).shape == (2,) + (1,) * (old.ndim - 1)
    assert namespace(mask) is NUMPY and namespace(as_torch(mask)) is TORCH


# ----- What an accelerator needs of all of it ----------------------------------------------------


class Captured(DeviceClean):
    """Also count what is copied from the host: a captured graph would replay its old address."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "lift_fresh":
            self.found.append("lift_fresh")
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize(
    ("name", "robot"), [("reference", "laikago"), ("modern", "a1"), ("humanoid", "humanoid")]
)
def test_a_step_reads_nothing_back_and_copies_nothing_over(name: str, robot: str) -> None:
    spec, table, count = SPECS[name], get_robot(robot), 6
    s, ahead = state(0, table, count), futures(0, table, count, 4)
    ref = as_torch(reference(0, s, table))
    s, ahead = as_torch(s), as_torch(ahead)
    offset = as_torch(np.tile(table.default_pose, (count, 1)))
    action, mask = 0.1 * to_angles(table, offset), s.foot_contact[:, 0]
    step, phase = as_torch(np.arange(count)), s.root_pos[:, 0]

    def everything():
        memory = reset_filter(start_filter(action), mask, to_angles(table, offset))
        act(memory, action, spec.action, table, offset, 0.033)
        reading = read(s.sensed, action, spec.observation, table)
        history = push_history(start_history(reading, spec.observation), reading)
        history = reset_history(history, mask, reading)
        observe(history, ahead, ref, s, spec.observation, table)
        privileged(s, ref, phase)
        reward(s, ref, spec.reward, table)
        terminate(s, ref, spec.termination, table, step, mask)
        foot_positions(table, s.root_pos, s.root_quat, s.q)

    everything()  # constants are made by the first call
    with Captured() as mode:
        everything()
    assert mode.found == []


def test_what_a_graph_must_not_do_is_noticed() -> None:
    x = torch.arange(3.0)
    with Captured() as mode:
        x[x > 1]
        x[[0, 1]]
        torch.tensor([1.0, 2.0])
        if x[0] > 0:
            pass
    assert {"lift_fresh", "index", "_local_scalar_dense"} <= set(mode.found)
