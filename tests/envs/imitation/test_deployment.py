"""What a robot is told of a task is what the task does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pybullet_data
import pytest

from rlgym.deploy.schema import fault_of, manifest_schema
from rlgym.envs.imitation.action import act, start_filter
from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.clip_files import load_clip, save_clip
from rlgym.envs.imitation.deployment import deployment, fingerprint
from rlgym.envs.physics.robots import get_robot

TASKS = {
    "modern": {"robot": "a1", "clip": "trot"},
    "reference": {"robot": "laikago", "clip": "laikago_walk", "spec": "reference"},
    "two clips": {"robot": "mini_cheetah", "clip": ["trot", "pace"]},
    "humanoid": {"robot": "humanoid", "clip": "humanoid3d_walk", "spec": "humanoid"},
}


@pytest.fixture(scope="module")
def tasks():
    """One world of each."""
    made = {name: build_task(1, num_workers=1, **settings) for name, settings in TASKS.items()}
    yield made
    for task in made.values():
        task.close()


@pytest.mark.parametrize("name", TASKS)
def test_it_is_json_in_the_form_of_the_schema(name, tasks):
    found = deployment(tasks[name])
    found.pop("motion")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    schema = manifest_schema()
    for section in ("robot", "timing", "safety", "targets", "simulation"):
        assert fault_of(found[section], schema["properties"][section], schema) == ""
    for terms in found["terms"].values():
        for term in terms:
            assert fault_of(term, schema["$defs"]["term"], schema) == ""


@pytest.mark.parametrize("name", TASKS)
def test_terms_are_the_observation_from_end_to_end(name, tasks):
    task = tasks[name]
    (key, terms), *others = deployment(task)["terms"].items()
    space = task.observation_space
    assert not others and key == ("policy" if task.spec.observation.privileged else "obs")
    size = space["policy"].shape[0] if key == "policy" else space.shape[0]
    assert sum(term["size"] for term in terms) == size
    assert all(term["size"] == term["width"] * term["history"] for term in terms)


def test_terms_stand_where_their_readings_do(tasks):
    """The joint angles and last actions of a step are found where the terms say."""
    task = tasks["reference"]
    (_, terms), *_ = deployment(task)["terms"].items()
    starts, at = {}, 0
    for term in terms:
        starts[term["name"]], at = (at, term["width"]), at + term["size"]
    task.reset()
    robot = deployment(task)["robot"]
    asked = []
    for i in range(3):
        action = np.full((1, 12), 0.02 * (i + 1))
        result = task.step(action)
        asked.append(np.array(robot["action_offset"]) + np.array(robot["action_scale"]) * action[0])
    assert not (result.terminated | result.truncated).any()
    first, width = starts["last_action"]
    newest_first = result.obs[0][first : first + 3 * width].reshape(3, width)
    np.testing.assert_allclose(newest_first, asked[::-1], atol=1e-12)
    first, width = starts["joint_angle"]
    sensed = task.state.sensed.q[0]
    np.testing.assert_allclose(result.obs[0][first : first + width], sensed, atol=1e-6)


@pytest.mark.parametrize("name", ["modern", "reference", "two clips"])
def test_targets_of_joints_follow_from_what_is_told(name, tasks):
    """Offset, scale, filter aside: what `act` computes is what the robot section says."""
    task = tasks[name]
    told = deployment(task)["robot"]
    action = np.linspace(-3, 3, 12)
    wanted = np.array(told["action_offset"]) + np.array(told["action_scale"]) * action
    if told["target_lower"] is not None:
        wanted = np.clip(wanted, told["target_lower"], told["target_upper"])
    spec = replace(task.spec.action, cutoff=None)
    found, _ = act(start_filter(action[None]), action[None], spec, task.robot, task.offsets[:1], 1)
    np.testing.assert_allclose(found[0], wanted, atol=1e-12)


def test_clips_that_may_not_be_shipped_are_left_out(tasks):
    found = deployment(tasks["reference"])
    assert found["motion"] == {}
    (clip,) = found["targets"]["clips"]
    assert clip["name"] == "laikago_walk" and not clip["shipped"]
    assert clip["sha256"] == fingerprint(load_clip("laikago_walk", "laikago"))


def test_clips_that_may_be_are_there_whole(tasks):
    found = deployment(tasks["two clips"])
    assert [clip["name"] for clip in found["targets"]["clips"]] == ["trot", "pace"]
    pace = load_clip("pace", "mini_cheetah")
    assert np.array_equal(found["motion"]["1/q"], pace.q)
    assert np.array_equal(found["motion"]["1/root_quat"], pace.root_quat)
    offsets = [clip["action_offset"] for clip in found["targets"]["clips"]]
    assert offsets[0] == found["robot"]["action_offset"] != offsets[1]


def test_the_fingerprint_is_of_the_motion_alone(tmp_path):
    clip = load_clip("trot", "a1")
    saved = load_clip(save_clip(clip, tmp_path / "copy.npz"), "a1")
    assert fingerprint(saved) == fingerprint(clip) == fingerprint(replace(clip, name="other"))
    assert fingerprint(replace(clip, dt=0.03)) != fingerprint(clip)
    assert fingerprint(replace(clip, q=clip.q + 1e-5)) != fingerprint(clip)
    assert fingerprint(load_clip("pace", "a1")) != fingerprint(clip)


def test_names_mean_the_same_on_every_quadruped(tasks):
    a1 = deployment(tasks["modern"])["robot"]
    cheetah = deployment(tasks["two clips"])["robot"]
    assert a1["names"] == cheetah["names"] and a1["names"][:3] == [
        "FR_abduction",
        "FR_hip",
        "FR_knee",
    ]
    assert a1["joint_names"] != cheetah["joint_names"]
    humanoid = deployment(tasks["humanoid"])["robot"]
    assert humanoid["names"] == humanoid["joint_names"]


def test_a_model_of_the_users_own_does_not_tell_his_folders(tmp_path):
    own = Path(pybullet_data.getDataPath()) / "mini_cheetah" / "mini_cheetah.urdf"
    robot = replace(get_robot("mini_cheetah"), name="own", model=str(own))
    task = build_task(1, robot=robot, clip="trot", num_workers=1)
    told = deployment(task)["robot"]
    task.close()
    assert (told["model"], told["model_source"]) == ("mini_cheetah.urdf", "file")
