"""The humanoid's task whole: what it is made of, and that it behaves like any other batch."""

from typing import Any

import numpy as np
import pytest

import rlgym
from rlgym.config import load_preset
from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.joints import to_angles
from rlgym.envs.imitation.kinematics import sole_heights
from rlgym.envs.imitation.task import ImitationTask
from rlgym.errors import WorldError
from rlgym.vector.contract import check

pytest.importorskip("mujoco")


def make_task(count: int, clip: str, **changes: Any) -> ImitationTask:
    settings: dict[str, Any] = {"robot": "humanoid", "spec": "humanoid", "num_workers": 1}
    return build_task(count, clip=clip, **(settings | changes))


def test_one_action_per_degree_of_freedom() -> None:
    task = make_task(2, "humanoid3d_walk")
    assert task.action_space.shape == (28,)
    # gravity, turning and velocity 3 each, angles, velocities and last action 28 each, four frames
    # of 7 + 36
    assert task.observation_space["policy"].shape == (3 * 3 + 3 * 28 + 4 * 43,)  # pyright: ignore[reportIndexIssue]
    task.close()


def test_a_zero_action_asks_for_the_clips_mean_pose() -> None:
    task = make_task(2, "humanoid3d_walk")
    task.reset()
    task.step(np.zeros((2, 28)))
    np.testing.assert_allclose(task._previous[0], task.clips.mean_pose[0], atol=1e-9)
    one = np.zeros((2, 28))
    one[:, 9] = 1.0  # the right knee is a hinge
    task.step(one)
    moved = to_angles(task.robot, task._previous) - to_angles(task.robot, task.clips.mean_pose)
    np.testing.assert_allclose(moved, 0.25 * one, atol=1e-9)
    task.close()


def test_actions_that_ask_for_the_reference_keep_it_up_for_a_moment() -> None:
    """Better than the mean pose, and not for long: to balance is the policy's part."""
    task = make_task(32, "humanoid3d_walk", evaluation=True)
    task.reset()
    rewards = {"reference": 0.0, "mean": 0.0}
    for name in rewards:
        task.reset()
        for _ in range(10):
            assert task.ref is not None
            clip = task.episodes.clip
            ahead = task.episodes.time() + task.control_dt
            wanted = task.clips.pose(clip, ahead).q
            action = task.asking_for(wanted) if name == "reference" else np.zeros((32, 28))
            rewards[name] += task.step(action).reward.mean() / 10
    assert rewards["reference"] > 0.8
    assert rewards["reference"] > rewards["mean"] + 0.03
    task.close()


def test_episodes_begin_with_feet_on_the_ground_and_not_in_it() -> None:
    """The clip of the run has a foot 67 mm in the ground: from there, MuJoCo would shoot it up."""
    task = make_task(64, "humanoid3d_run")
    task.reset()
    state, ref = task.state, task.ref
    assert state is not None and ref is not None
    robot = task.robot
    below = sole_heights(robot, ref.root_pos, ref.root_quat, ref.q).min(axis=1)
    start = sole_heights(robot, state.root_pos, state.root_quat, state.q).min(axis=1)
    assert below.min() < -0.03
    assert start.min() >= 0.002 - 1e-6  # `lift`
    flying = below > 0
    np.testing.assert_allclose(start[flying], below[flying] + 0.002, atol=1e-6)
    task.close()


def test_a_spec_of_quadrupeds_is_refused_before_anything_is_built() -> None:
    with pytest.raises(WorldError, match='spec="humanoid"'):
        build_task(2, robot="humanoid", clip="humanoid3d_walk")


def test_the_preset_trains_at_half_the_rate_that_it_is_scored_at() -> None:
    preset = load_preset("imitate-humanoid-walk-ppo")
    trained = make_task(1, **{k: v for k, v in preset.env.items() if k not in ("robot", "spec")})
    scored = make_task(
        1,
        **{k: v for k, v in (preset.env | preset.eval.env).items() if k not in ("robot", "spec")},
    )
    assert scored.engine.actuation.time_step <= 0.005
    assert trained.control_dt == pytest.approx(1 / 30) == pytest.approx(scored.control_dt)
    assert scored.spec.episode.seconds == 10.0
    trained.close()
    scored.close()


@pytest.mark.slow
def test_it_obeys_the_contract_of_vector_envs() -> None:
    kwargs = {"robot": "humanoid", "clip": "humanoid3d_walk", "spec": "humanoid"}
    findings = check(
        lambda: rlgym.make_vec("rlgym/Imitate-v0", 3, num_workers=1, env_kwargs=kwargs),
        steps=40,
        seconds=0.7,
    )
    assert [str(finding) for finding in findings if finding.severity != "note"] == []
