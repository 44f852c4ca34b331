"""Unity's .demo files: read as Unity's own client reads them, with each action where it belongs."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.envs.unity import compat, messages
from rlgym.envs.unity.demonstrations import (
    BRAIN_AT,
    Recording,
    _delimited,
    _parse,
    arrays_of,
    read,
    write,
)
from rlgym.envs.unity.frames import BehaviorSpec, ObservationSpec
from rlgym.envs.unity.vector_env import action_space, observation_space
from rlgym.errors import UserError
from rlgym.rollout.demonstrations import from_arrays
from rlgym.rollout.ring import FINAL, TERMINATED, TRUNCATED
from rlgym.spaces import Layout
from rlgym.training.cloning import read_demonstrations

EVERYTHING = BehaviorSpec(
    "Goalie?team=1",
    (
        ObservationSpec("vector", (4,), (1,)),
        ObservationSpec("camera", (9, 12, 3), (2, 2, 1), compressed=True, order="HWC"),
        ObservationSpec("new camera", (3, 9, 12), (1, 2, 2), compressed=True, order="CHW"),
        ObservationSpec("buffer", (5, 2), (4, 1)),
        ObservationSpec("heat", (6, 7, 2), (2, 2, 1), order="HWC"),
        ObservationSpec("grey", (8, 8, 1), (2, 2, 1), compressed=True, order="HWC", goal=True),
    ),
    2,
    (3, 2),
)
PLAIN = BehaviorSpec("Ball", (ObservationSpec("vector", (3,), (1,)),), 2, ())


def make_recording(spec: BehaviorSpec, rows: int = 12, seed: int = 0) -> Recording:
    """Two whole episodes of 5 rows (the second is interrupted), and one that is cut."""
    rng = np.random.default_rng(seed)
    obs = [
        rng.integers(0, 256, (rows, *one.decoded_shape)).astype(np.uint8)
        if one.compressed
        else rng.normal(size=(rows, *one.decoded_shape)).astype(np.float32)
        for one in spec.observations
    ]
    done = np.zeros(rows, bool)
    done[[4, 9]] = True
    interrupted = np.zeros(rows, bool)
    interrupted[9] = True
    discrete = rng.integers(0, np.reshape(spec.branches, (1, -1)), (rows, len(spec.branches)))
    masks = rng.random((rows, spec.mask_size)) < 0.7 if spec.branches else None
    if masks is not None:
        masks[0] = True
    return Recording(
        spec,
        obs,
        rng.normal(size=rows).astype(np.float32),
        done,
        interrupted,
        rng.uniform(-1, 1, (rows, spec.continuous)).astype(np.float32),
        discrete.astype(np.int32),
        masks,
    )


@pytest.mark.parametrize("spec", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_what_is_written_is_read(tmp_path, spec):
    made = make_recording(spec)
    write(tmp_path / "a.demo", made, "a name, too long for the head")
    found = read(tmp_path / "a.demo")
    assert found.spec == spec
    for name in ("rewards", "done", "interrupted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name), name)
    for one, ours, theirs in zip(spec.observations, found.obs, made.obs, strict=True):
        np.testing.assert_array_equal(ours, theirs, one.name, strict=True)
    known = [*range(4), *range(5, 9), 10]
    assert np.flatnonzero(found.known).tolist() == known
    np.testing.assert_array_equal(found.continuous[known], made.continuous[known])
    np.testing.assert_array_equal(found.discrete[known], made.discrete[known])
    if spec.branches:
        np.testing.assert_array_equal(found.masks, made.masks)


def test_a_record_holds_the_action_before_it_as_unity_writes_it(tmp_path):
    made = make_recording(PLAIN)
    write(tmp_path / "a.demo", made)
    _, pairs = _parse((tmp_path / "a.demo").read_bytes())
    stated = np.array([list(pair.action_info.continuous_actions) for pair in pairs], np.float32)
    np.testing.assert_array_equal(stated[1:5], made.continuous[:4])  # the end's record, too
    np.testing.assert_array_equal(stated[[0, 5, 10]], 0)  # nothing was done before an episode
    np.testing.assert_array_equal(stated[6:10], made.continuous[5:9])


def test_unitys_own_client_sees_the_same(tmp_path):
    """mlagents_envs as the oracle; it knows images in the older order alone."""
    spec = replace(EVERYTHING, observations=tuple(EVERYTHING.observations[k] for k in (0, 1, 3, 4)))
    made = make_recording(spec)
    write(tmp_path / "a.demo", made)
    found = read(tmp_path / "a.demo")
    brain, pairs = _parse((tmp_path / "a.demo").read_bytes())
    rpc_utils = compat.load().rpc_utils
    theirs = rpc_utils.behavior_spec_from_proto(brain, pairs[0].agent_info)
    assert theirs.action_spec.continuous_size == 2
    assert theirs.action_spec.discrete_branches == (3, 2)
    for row, pair in enumerate(pairs):
        decision, terminal = rpc_utils.steps_from_proto([pair.agent_info], theirs)
        steps = terminal if found.done[row] else decision
        assert len(steps) == 1 and steps.reward[0] == found.rewards[row]
        for one, obs, ours in zip(spec.observations, steps.obs, found.obs, strict=True):
            value = ours[row].transpose(1, 2, 0) if len(one.shape) == 3 else ours[row]
            value = value / np.float32(255) if one.compressed else value
            np.testing.assert_allclose(obs[0], value, atol=1e-6, err_msg=one.name)
        if not found.done[row]:
            allowed = ~np.concatenate([flags[0] for flags in decision.action_mask])
            np.testing.assert_array_equal(allowed, found.masks[row])
        else:
            assert terminal.interrupted[0] == found.interrupted[row]


def test_steps_for_a_learner(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"{seed}.demo", make_recording(EVERYTHING, seed=seed))
    made = make_recording(EVERYTHING)
    layouts = Layout(observation_space(EVERYTHING)), Layout(action_space(EVERYTHING))
    arrays = arrays_of([tmp_path / "0.demo"], *layouts)
    steps = [0, 1, 2, 3, 5, 6, 7, 8, 10]
    np.testing.assert_array_equal(arrays["observations/obs_3"], made.obs[3][steps])
    np.testing.assert_array_equal(
        arrays["next_observations/obs_1"], made.obs[1][[s + 1 for s in steps]]
    )
    np.testing.assert_array_equal(arrays["actions/continuous"], made.continuous[steps])
    np.testing.assert_array_equal(arrays["actions/discrete"], made.discrete[steps])
    np.testing.assert_array_equal(arrays["rewards"], made.rewards[[s + 1 for s in steps]])
    np.testing.assert_array_equal(arrays["action_masks"], made.masks[steps])
    assert np.flatnonzero(arrays["terminated"]).tolist() == [3]
    assert np.flatnonzero(arrays["truncated"]).tolist() == [7, 8]
    shown = read_demonstrations(tmp_path, *layouts)  # the folder, hence both files
    assert shown.size == 18 and len(list(shown.episodes())) == 6
    one = from_arrays("a", arrays, *layouts)
    assert one.flags.tolist() == [
        *(0, 0, 0, TERMINATED, FINAL, 0, 0, 0, TRUNCATED, FINAL, TRUNCATED, FINAL)
    ]
    np.testing.assert_array_equal(one.mask[[0, 3, 5]], made.masks[[0, 3, 5]])


def test_ten_observations_stay_in_unitys_order(tmp_path):
    sensors = tuple(ObservationSpec(f"s{k}", (k + 1,), (1,)) for k in range(11))
    spec = replace(PLAIN, observations=sensors)
    made = make_recording(spec)
    write(tmp_path / "a.demo", made)
    layouts = Layout(observation_space(spec)), Layout(action_space(spec))
    arrays = arrays_of([tmp_path / "a.demo"], *layouts)
    np.testing.assert_array_equal(arrays["observations/obs_10"][0], made.obs[10][0])
    np.testing.assert_array_equal(arrays["observations/obs_2"][0], made.obs[2][0])


def test_old_packages_stated_actions_elsewhere(tmp_path):
    made = make_recording(PLAIN)
    write(tmp_path / "a.demo", made)
    brain, pairs = _parse((tmp_path / "a.demo").read_bytes())
    brain.ClearField("action_spec")
    brain.vector_action_space_type_deprecated = 1
    brain.vector_action_size_deprecated.append(2)
    for pair in pairs:
        action = list(pair.action_info.continuous_actions)
        pair.action_info.Clear()
        pair.action_info.vector_actions_deprecated.extend(action)
    found = _rewritten(tmp_path / "b.demo", brain, pairs)
    np.testing.assert_array_equal(found.continuous[:4], made.continuous[:4])


def test_a_recording_that_broke_off_is_read_as_far_as_it_goes(tmp_path):
    """Unity counts the steps as it closes a file: a crash leaves 0."""
    made = make_recording(PLAIN)
    write(tmp_path / "a.demo", made)
    brain, pairs = _parse((tmp_path / "a.demo").read_bytes())
    found = _rewritten(tmp_path / "b.demo", brain, pairs, steps=0)
    assert len(found.done) == len(made.done)
    data = (tmp_path / "b.demo").read_bytes()
    (tmp_path / "c.demo").write_bytes(data[:-7])
    assert len(read(tmp_path / "c.demo").done) == len(made.done) - 1


def _rewritten(path, brain, pairs, steps=None) -> Recording:
    meta = messages.message("DemonstrationMetaProto")(
        api_version=1, demonstration_name="x", number_steps=len(pairs) if steps is None else steps
    )
    head = _delimited(meta)
    parts = [head, bytes(BRAIN_AT - len(head)), _delimited(brain), *map(_delimited, pairs)]
    path.write_bytes(b"".join(parts))
    return read(path)


# ------------------------------------------------------------------------------------ bad input


def test_files_that_are_no_recordings(tmp_path):
    path = tmp_path / "a.demo"
    with pytest.raises(UserError, match="No such file"):
        read(path)
    for data, reason in (
        (b"", "too short"),
        (b"\xff" * 100, "cut short"),
        (b"\x00" * 100, "0 of 0 steps|never said|no observations|is damaged"),
        (b"PK\x03\x04" + bytes(range(256)), ""),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"is no .demo that can be read .*({reason})"):
            read(path)


def test_any_cut_and_any_damage_is_an_error_or_a_recording(tmp_path):
    write(tmp_path / "a.demo", make_recording(EVERYTHING, rows=10))
    data = (tmp_path / "a.demo").read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "b.demo"
    for _ in range(60):
        hurt = bytearray(data[: rng.integers(BRAIN_AT, len(data))] if rng.random() < 0.3 else data)
        for at in rng.integers(0, len(hurt), 3):
            hurt[at] = rng.integers(256)
        path.write_bytes(hurt)
        try:
            read(path)
        except UserError as error:
            assert "record it again" in str(error) and "\n" not in str(error)


def test_shapes_that_the_file_does_not_fill_cost_no_memory(tmp_path):
    write(tmp_path / "a.demo", make_recording(EVERYTHING, rows=10))
    brain, pairs = _parse((tmp_path / "a.demo").read_bytes())
    pairs[0].agent_info.observations[0].shape[:] = [2_000_000_000]
    with pytest.raises(UserError, match=r"'vector' has 4 values in the shape \[2000000000\]"):
        _rewritten(tmp_path / "b.demo", brain, pairs)
    pairs[0].agent_info.observations[0].shape[:] = [4]
    pairs[0].agent_info.observations[1].shape[:] = [30_000, 30_000, 3]
    with pytest.raises(UserError, match="'camera' is said to be a picture of 2700000000 values"):
        _rewritten(tmp_path / "b.demo", brain, pairs)


def test_another_version_says_so(tmp_path):
    meta = messages.message("DemonstrationMetaProto")(api_version=7, number_steps=1)
    (tmp_path / "a.demo").write_bytes(_delimited(meta) + struct.pack("40x"))
    with pytest.raises(UserError, match="version 7, known are 0 and 1"):
        read(tmp_path / "a.demo")


def test_a_recording_of_another_scene_is_refused(tmp_path):
    write(tmp_path / "a.demo", make_recording(PLAIN))
    obs, actions = Layout(observation_space(PLAIN)), Layout(action_space(PLAIN))
    assert arrays_of([tmp_path / "a.demo"], obs, actions)["actions"].shape == (9, 2)
    with pytest.raises(UserError, match=r"shapes \[\(3,\)\], this world has \[\(4,\)\]"):
        arrays_of([tmp_path / "a.demo"], Layout(spaces.Box(-1, 1, (4,), np.float32)), actions)
    with pytest.raises(
        UserError, match=r"2 continuous actions and the branches \[\], .* 0 and \[4\]"
    ):
        arrays_of([tmp_path / "a.demo"], obs, Layout(spaces.MultiDiscrete([4])))
    short = make_recording(PLAIN, rows=12)
    short.done[:] = True
    write(tmp_path / "b.demo", short)
    with pytest.raises(UserError, match="shows no step"):
        arrays_of([tmp_path / "b.demo"], obs, actions)


# ------------------------------------------------------------------------------ learning from them


def balance(obs: np.ndarray) -> np.ndarray:
    """Keeps the stand-in's balls on their plates: tilt against offset and speed."""
    rz, rx, x, _, z, vx, _, vz = obs.T
    wanted = np.stack([0.1 * (x + vx) - 2 * rz, -0.1 * (z + vz) - 2 * rx], 1)
    return np.clip(wanted / np.deg2rad(10), -1, 1).astype(np.float32)


@pytest.mark.slow
def test_a_policy_learns_from_recordings_what_it_would_not_find_as_soon(tmp_path):
    env = rlgym.make_vec("unity:standin", scene="3dball", agents=6, seed=0)
    seen, done, rewards = [], [], [np.zeros(6, np.float32)]
    obs, _ = env.reset(seed=0)
    for _ in range(150):
        seen.append(obs.numpy().copy())
        done.append(balance(seen[-1]))
        obs, reward, terminated, _, _ = env.step(torch.from_numpy(done[-1]))
        rewards.append(reward.numpy().copy())
        assert not terminated.any()
    spec = env.unwrapped.behavior_spec
    env.close()
    seen, done, rewards = (np.stack(rows) for rows in (seen, done, rewards[:-1]))
    flags, choices = np.zeros(len(seen), bool), np.zeros((len(seen), 0), np.int32)
    (tmp_path / "demos").mkdir()
    for i in range(6):
        parts = [seen[:, i]], rewards[:, i], flags, flags, done[:, i], choices
        write(tmp_path / "demos" / f"{i}.demo", Recording(spec, *parts))
    settings = {
        "env": {"scene": "3dball", "agents": 6},
        "total_steps": 384,
        "algo": {"num_steps": 64},
        "network": {"normalize_obs": True},
        "eval": {"episodes": 6},
        "console": "off",
        "preset": None,
    }
    alone = rlgym.train("unity:standin", run_dir=tmp_path / "alone", **settings)
    clone = {"demonstrations": str(tmp_path / "demos"), "steps": 500}
    taught = rlgym.train("unity:standin", run_dir=tmp_path / "taught", clone=clone, **settings)
    assert alone.result.mean < 20 < 80 < taught.result.mean
