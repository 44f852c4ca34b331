"""What is drawn for worlds and episodes, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlgym.envs.imitation.joints import columns, to_angles
from rlgym.envs.imitation.randomize import PER_JOINT, QUANTITIES, check_ranges, draw, noisy, push
from rlgym.envs.imitation.spec import RANDOMIZE, SPECS, RandomizeSpec
from rlgym.envs.physics.engine import Sensed
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ConfigError

A1 = get_robot("a1")
COUNT = 4000
SEEDS = np.arange(COUNT, dtype=np.int64)
FIRST = SEEDS * 0


def engine(*capabilities: str) -> SimpleNamespace:
    return SimpleNamespace(
        name="stand-in",
        capabilities=frozenset(capabilities),
        actuation=SPECS["modern"].actuation,
    )


def test_each_quantity_fills_its_range_and_its_shape():
    spec = RandomizeSpec(**{name: (0.5, 2.0) for name in QUANTITIES})
    drawn = draw(spec, SEEDS, FIRST, 12)
    columns = []
    for name in QUANTITIES:
        values = getattr(drawn, name)
        assert values.shape == ((COUNT, 12) if name in PER_JOINT else (COUNT,)), name
        assert 0.5 <= values.min() < 0.51 and 1.99 < values.max() < 2.0
        assert values.mean() == pytest.approx(1.25, abs=0.03)
        columns.append(values.reshape(COUNT, -1))
    correlation = np.corrcoef(np.concatenate(columns, 1).T)
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(COUNT)


def test_an_episode_draws_the_same_again_and_another_does_not():
    spec = RANDOMIZE["reference"]
    one, again, other = (draw(spec, SEEDS, FIRST + c, 12) for c in (1, 1, 2))
    assert np.array_equal(one.mass, again.mass) and np.array_equal(one.viscous, again.viscous)
    assert not np.array_equal(one.mass, other.mass)


def test_nothing_is_drawn_where_nothing_varies():
    assert draw(RANDOMIZE["none"], SEEDS, FIRST, 12) is None
    assert push(RANDOMIZE["none"], SEEDS, FIRST, 0.03) is None


def test_pushes_come_as_often_and_as_hard_as_told():
    spec = RandomizeSpec(push=0.7, push_seconds=0.5)
    pushes = push(spec, SEEDS, FIRST, 0.05)
    hit = pushes.any(1)
    assert hit.mean() == pytest.approx(0.1, abs=0.02)
    assert np.abs(pushes[hit][:, :2]).max() == pytest.approx(0.7, abs=0.02)
    assert pushes[hit][:, :2].min() < -0.65 and not pushes[:, 2].any()
    on_torch = push(spec, torch.from_numpy(SEEDS), torch.from_numpy(FIRST), 0.05)
    assert np.allclose(on_torch.numpy(), pushes, atol=1e-6)


def test_noise_has_the_spread_that_was_asked_for():
    upright = np.tile([0.0, 0.0, 0.0, 1.0], (COUNT, 1))
    sensed = Sensed(upright, np.zeros((COUNT, 3)), np.ones((COUNT, 12)), np.zeros((COUNT, 12)))
    spec = RandomizeSpec(noise_angle=0.01, noise_velocity=0.5, noise_rotation=0.02, noise_rate=0.1)
    read = noisy(spec, SEEDS, FIRST, sensed, A1)
    assert (read.q - 1.0).std() == pytest.approx(0.01, rel=0.03)
    assert read.qd.std() == pytest.approx(0.5, rel=0.03)
    assert read.root_angvel.std() == pytest.approx(0.1, rel=0.03)
    assert (2.0 * read.root_quat[:, :3]).std() == pytest.approx(0.02, rel=0.03)
    assert np.allclose(np.linalg.norm(read.root_quat, axis=1), 1.0)
    assert noisy(RANDOMIZE["none"], SEEDS, FIRST, sensed, A1) is sensed


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (RandomizeSpec(mass=(0.8, 1.2)), "cannot randomize mass"),
        (RandomizeSpec(push=0.5), "cannot randomize push"),
        (RandomizeSpec(friction=(1.0,)), "give .low, high."),
        (RandomizeSpec(friction=(1.0, 0.5)), "give .low, high."),
        (RandomizeSpec(friction=(-1.0, 0.5)), "at least 0"),
        (RandomizeSpec(latency=(0.0, 0.07)), "use at most 0.06"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(spec, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        check_ranges(spec, engine("friction", "latency"))
    assert "\n" not in str(caught.value)


def test_noise_of_a_spherical_joint_leaves_it_a_rotation():
    robot = get_robot("humanoid")
    q = np.tile(robot.default_pose, (COUNT, 1))
    zero = np.zeros((COUNT, 3))
    sensed = Sensed(np.tile([0.0, 0.0, 0.0, 1.0], (COUNT, 1)), zero, q, np.zeros((COUNT, 28)))
    read = noisy(RandomizeSpec(noise_angle=0.01), SEEDS, FIRST, sensed, robot)
    balls = read.q[:, columns(robot, q).ball_q]
    assert np.allclose(np.linalg.norm(balls, axis=-1), 1.0)
    difference = to_angles(robot, read.q) - to_angles(robot, q)
    assert difference.std(0) == pytest.approx(np.full(28, 0.01), rel=0.06)


def test_presets_fit_the_engines():
    for name, spec in RANDOMIZE.items():
        everything = engine(*QUANTITIES, "push")
        everything.actuation = SPECS.get(name, SPECS["modern"]).actuation
        check_ranges(spec, everything)
