"""The three specs: the numbers that issues and papers name, and how they are changed."""

import dataclasses
import math

import pytest

from rlgym.envs.imitation.observation import observation_size
from rlgym.envs.imitation.spec import RANDOMIZE, SPECS, get_spec
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ConfigError


@pytest.mark.parametrize("name", SPECS)
def test_weights_sum_to_one(name):
    reward = SPECS[name].reward
    terms = (getattr(reward, field.name) for field in dataclasses.fields(reward))
    weights = [term.weight for term in terms if hasattr(term, "weight")]
    assert sum(weights) == pytest.approx(1.0)


def test_reference_is_the_original():
    spec = SPECS["reference"]
    assert spec.actuation.time_step * spec.actuation.substeps == pytest.approx(0.033)
    assert spec.actuation.target_clip == 0.2 and spec.actuation.interpolate
    assert not spec.actuation.limit_torque and spec.actuation.latency == 0.002
    assert spec.action.cutoff == 4.0 and spec.action.scale == 1.0
    assert round(spec.episode.seconds / spec.actuation.control_dt) == 600
    assert spec.episode.curriculum_seconds == pytest.approx(20 * spec.actuation.control_dt)
    assert spec.observation.target_steps == (1, 2, 10, 30)
    assert observation_size(spec.observation, get_robot("laikago")) == 160
    assert spec.termination.rotation == pytest.approx(math.pi / 2)
    assert RANDOMIZE["reference"].inertia == (0.5, 1.5)


def test_modern_keeps_the_references_measure():
    """A score means the reference's weights and scales, on absolute actions."""
    modern, reference = SPECS["modern"], SPECS["reference"]
    for name in ("pose", "velocity", "end_effector", "root_pose", "root_velocity"):
        assert getattr(modern.reward, name) == getattr(reference.reward, name)
    assert modern.actuation.time_step <= 0.005
    assert modern.action.offset in ("default", "clip_mean")


def test_changes_reach_nested_settings():
    spec = get_spec("modern", {"action": {"scale": 0.5}, "reward": {"pose": {"scale": 2}}})
    assert spec.action.scale == 0.5 and spec.reward.pose.scale == 2.0
    assert spec.reward.pose.weight == 0.5
    assert SPECS["modern"].action.scale == 0.25
    assert get_spec(spec) is not None and get_spec(spec).action.scale == 0.5


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        ("modem", {}, "modern"),
        ("modern", {"acton": {}}, "action"),
        ("modern", {"action": {"scal": 1}}, "action.scale"),
        ("modern", {"action": {"scale": "big"}}, "expected a number"),
        ("modern", {"action": {"offset": "mean"}}, "clip_mean"),
    ],
)
def test_mistakes_name_what_was_meant(name, changes, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        get_spec(name, changes)
    assert "\n" not in str(caught.value)
