"""The task as a whole: in MuJoCo, and on a puppet where states must be known exactly."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from rlgym.device import GraphedFn
from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.rotations import heading
from rlgym.envs.imitation.spec import get_spec
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.imitation.termination import CAUSES
from rlgym.envs.physics.robots import get_robot
from rlgym.envs.physics.terrain import make_terrain
from rlgym.errors import ConfigError, UserError
from tests import tape
from tests.agents.test_device_clean import DeviceClean
from tests.envs.imitation.puppet import Puppet

A1 = get_robot("a1")


def puppet_task(
    count: int, clip: Any = "trot", on_torch: bool = False, spec: str = "modern", **changes: Any
) -> ImitationTask:
    chosen = get_spec(spec, changes)
    names = [clip] if isinstance(clip, str) else clip
    clips = ClipSet([load_clip(name, A1) for name in names], A1)
    seeds: Any = np.arange(count, dtype=np.int64)
    if on_torch:
        clips, seeds = clips.to("cpu"), torch.from_numpy(seeds)
    engine = Puppet(A1, chosen.actuation, count, clips.duration)
    return ImitationTask(engine, clips, chosen, seeds)


def follow(task: ImitationTask) -> np.ndarray:
    """Actions that ask for where the reference's joints are next."""
    episodes = task.episodes
    return task.asking_for(task.clips.pose(episodes.clip, episodes.time() + task.control_dt).q)


def actions(count: int, steps: int, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng(4).standard_normal((steps, count, A1.nv))


# ----- In MuJoCo ----------------------------------------------------------------------------------


def test_open_loop_follows_a_trot_and_standing_does_not():
    scores = {}
    for name in ("open loop", "standing"):
        task = build_task(8, evaluation=True, num_workers=1)
        task.reset()
        total = np.zeros(8)
        for _ in range(100):
            result = task.step(follow(task) if name == "open loop" else np.zeros((8, 12)))
            total += result.reward
            assert not result.terminated.any(), CAUSES[result.cause.max()]
        scores[name] = total.mean() / 100
        task.close()
    assert scores["open loop"] == pytest.approx(0.77, abs=0.04)
    assert 0.3 < scores["standing"] < 0.45


def test_a_fall_ends_an_episode_with_its_cause():
    task = build_task(4, num_workers=1, evaluation=True)
    task.reset()
    lying = np.tile([0.0, 2.0, -2.6], (4, 4))  # legs drawn up: the trunk goes down
    fallen: set[str] = set()
    for _ in range(40):
        result = task.step(task.asking_for(lying))
        fallen |= {CAUSES[i] for i in result.cause[result.terminated]}
        assert not (result.terminated & result.truncated).any()
    assert fallen & {"trunk_height", "knee_height"}
    task.close()


# ----- On a puppet --------------------------------------------------------------------------------


def test_following_exactly_is_worth_almost_all():
    """A puppet's joints obey and its base glides: every term but the joints' velocity is near 1."""
    task = puppet_task(32, episode={"lift": 0.0})
    task.reset()
    for _ in range(40):
        result = task.step(follow(task))
        assert result.terms["pose"].min() > 0.999
        assert result.terms["root_pose"].min() > 0.99
        assert result.terms["end_effector"].min() > 0.99
        assert result.reward.min() > 0.9


def test_episodes_begin_in_the_references_state():
    task = puppet_task(16, episode={"lift": 0.01})
    obs, critic = task.reset()
    state, ref = task.state, task.ref
    assert obs.shape == (16, 118) and critic.shape == (16, 17)
    assert np.allclose(state.root_pos - ref.root_pos, [0.0, 0.0, 0.01])
    for name in ("root_quat", "root_linvel", "root_angvel", "q", "qd"):
        assert np.allclose(getattr(state, name), getattr(ref, name)), name
    assert np.allclose(state.root_pos[:, :2], 0.0)


def test_an_ending_shows_the_old_episode_and_begins_the_next():
    task = puppet_task(4, episode={"seconds": 1 / 3})
    task.reset()
    for step in range(1, 31):
        result = task.step(np.ones((4, 12)))
        ended = step % 10 == 0
        assert result.truncated.all() == ended and not result.terminated.any()
        assert np.array_equal(result.final_obs, result.obs) != ended
        last_action = slice(3 + 3 + 12 + 12, 3 + 3 + 12 + 12 + 12)
        assert (result.final_obs[:, last_action] == 1.0).all()
        assert (result.obs[:, last_action] == (0.0 if ended else 1.0)).all()
    assert task.episodes.number.tolist() == [3] * 4
    assert [mask.all() for mask, _ in task.engine.resets] == [True] * 4


def test_a_finished_clip_ends_the_episode_as_the_spec_says():
    for counts, flag in ((True, "terminated"), (False, "truncated")):
        task = puppet_task(
            4, "sit", termination={"clip_over": counts, "trunk_height": None, "knee_height": None}
        )
        task.reset()
        ended = np.zeros(4, bool)
        for _ in range(80):
            result = task.step(follow(task))
            ended |= getattr(result, flag)
            other = result.truncated if counts else result.terminated
            assert not other.any()
        assert ended.all()


def test_a_broken_world_is_lost_and_described():
    task = puppet_task(3)
    task.reset()
    task.step(np.zeros((3, 12)))
    task.engine.break_down(1)
    result = task.step(np.full((3, 12), 0.5))
    assert result.broken.tolist() == [False, True, False]
    assert result.truncated.tolist() == [False, True, False] and not result.terminated.any()
    assert result.reward[1] == 0.0 and result.reward[0] > 0.0
    assert list(result.lost) == [1]
    assert result.lost[1]["step"] == 2 and (result.lost[1]["action"] == 0.5).all()
    after = task.step(np.zeros((3, 12)))
    assert not after.broken.any() and task.episodes.step.tolist() == [3, 1, 3]


def test_pushes_and_ranges_reach_the_engine():
    task = puppet_task(200, randomize={"mass": [0.5, 2.0], "push": 1.0, "push_seconds": 0.3})
    task.reset()
    first = task.engine.resets[0][1].mass
    before = task.state.root_linvel.copy()
    task.step(np.zeros((200, 12)))
    pushed = np.abs(task.state.root_linvel - before).max(1) > 1e-9
    assert 0.03 < pushed.mean() < 0.2
    task.reset()
    assert not np.allclose(task.engine.resets[-1][1].mass, first)
    with pytest.raises(ConfigError, match="cannot randomize friction"):
        puppet_task(2, randomize={"friction": [0.5, 1.0]})


def test_a_disturbed_start_differs_by_as_much_as_told():
    task = puppet_task(3000, episode={"perturb": 0.5, "lift": 0.0})
    task.reset()
    moved = np.abs(task.state.q - task.ref.q).max(1) > 0
    assert moved.mean() == pytest.approx(0.5, abs=0.05)
    spec = task.spec.episode
    place = (task.state.root_pos - task.ref.root_pos)[moved]
    assert place[:, :2].std() == pytest.approx(spec.perturb_position, rel=0.06)
    assert not place[:, 2].any()
    for name, spread in (("q", spec.perturb_joints), ("qd", spec.perturb_rate)):
        change = getattr(task.state, name) - getattr(task.ref, name)
        assert change[moved].std() == pytest.approx(spread, rel=0.03)
        assert not change[~moved].any()
    turn = 2 * (task.state.root_quat - task.ref.root_quat)[moved][:, :3]
    assert np.sqrt((turn**2).sum(1).mean()) == pytest.approx(spec.perturb_rotation, rel=0.06)


def test_reference_targets_ramp_up_from_the_first_one_and_pass_the_filter():
    task = puppet_task(2, spec="reference")
    obs, critic = task.reset()
    assert obs.shape == (2, 160) and critic is None
    wanted = np.tile(A1.default_pose, (2, 1)) + 0.2
    for step in range(19):
        task.step(task.asking_for(wanted))
        previous, target = task.engine.targets[-1]
        if step == 0:  # nothing to come from; the filter remembers where the joints were
            assert np.array_equal(previous, target)
            assert (np.abs(target - wanted) > 1e-3).any()
        else:
            assert np.array_equal(previous, task.engine.targets[-2][1])
    assert np.allclose(target, wanted, atol=1e-4)


def test_a_turned_clip_begins_ahead_and_is_followed_round():
    task = puppet_task(64, "turn")
    task.reset()
    assert np.allclose(heading(task.ref.root_quat), 0.0, atol=1e-9)
    for _ in range(20):
        task.step(follow(task))
    assert np.allclose(heading(task.ref.root_quat), 0.8 * 20 * task.control_dt, atol=1e-6)


def test_ground_under_the_robot_lifts_the_reference_and_the_heights_that_count():
    spec = get_spec("modern", {"termination": {"knee_height": None}})
    clips = ClipSet([load_clip("trot:speed=1.5", A1)], A1)
    engine = Puppet(A1, spec.actuation, 4, clips.duration)
    seeds = np.arange(4, dtype=np.int64)
    task = ImitationTask(engine, clips, spec, seeds, make_terrain("slope:0.2"))
    task.reset()
    for step in range(100):
        result = task.step(follow(task))
        ground = 0.2 * max(1.5 * task.control_dt * (step + 1) - 1.0, 0.0)
        if 0.27 - ground < 0.139:
            assert result.terminated.all() and set(result.cause) == {CAUSES.index("trunk_height")}
            break
        assert not result.terminated.any()
        pose = clips.sample(task.episodes.clip, task.episodes.time())
        lift = task.ref.root_pos[:, 2] - pose.root_pos[:, 2]
        assert np.allclose(lift, ground, atol=0.005)
        assert np.allclose(task.ref.foot_pos[..., 2] - pose.foot_pos[..., 2], lift[:, None])
    assert ground > 0.1


def test_seeds_fix_slots_and_a_reset_goes_on():
    task, other = puppet_task(4), puppet_task(4)
    one, _ = task.reset()
    assert np.array_equal(one, other.reset()[0])
    two, _ = task.reset()
    assert not np.array_equal(one, two)
    task.seed(np.array([True, False, True, False]), np.array([0, 9, 1, 9]))
    three, _ = task.reset()
    assert np.array_equal(three[0], one[0]) and np.array_equal(three[2], one[1])


@pytest.mark.parametrize("spec", ["modern", "reference"])
def test_torch_does_what_numpy_does(spec):
    changes = {"randomize": {"noise_angle": 0.01, "noise_rotation": 0.02, "push": 0.3}}
    changes["episode"] = {"perturb": 0.3, "reference_start": 0.7, "seconds": 0.6}
    changes["episode"] |= {"curriculum_seconds": None, "switch_seconds": [0.2, 0.4]}
    clips = ["trot", "pace", "turn", "sit"]
    numpy = puppet_task(64, clips, False, spec, **changes)
    other = puppet_task(64, clips, True, spec, **changes)
    near(numpy.reset()[0], other.reset()[0], 1.0)
    for step, act in enumerate(actions(64, 45, 0.2)):
        ours, theirs = numpy.step(act), other.step(torch.from_numpy(act).float())
        # float32 may put a step on the other side of a clip's end; most slots never see one
        share = 1.0 if step < 5 else 0.8
        for name in ("obs", "final_obs", "reward", "terminated", "truncated", "cause"):
            near(getattr(ours, name), getattr(theirs, name), share)
        if ours.privileged is not None:
            near(ours.privileged, theirs.privileged, share)


@pytest.mark.parametrize("spec", ["modern", "reference"])
def test_a_step_on_torch_reads_nothing_back(spec):
    """So that the task of an engine on an accelerator can be captured with it."""
    changes = {"randomize": {"noise_angle": 0.01, "push": 0.3, "mass": [0.8, 1.2]}}
    changes["episode"] = {"perturb": 0.3, "reference_start": 0.7, "switch_seconds": [0.1, 0.2]}
    task = puppet_task(8, ["trot", "turn", "sit"], True, spec, **changes)
    task.reset()
    act = torch.zeros(8, 12)
    task.step(act)  # constants are made once
    with DeviceClean() as mode:
        for _ in range(3):
            task.step(act)
    assert mode.found == []


@pytest.mark.parametrize("spec", ["modern", "reference"])
def test_a_recorded_step_does_what_a_step_does(spec, monkeypatch):
    """All state stays in place, and nothing depends on what Python sees."""
    recorded = tape.with_graphs(monkeypatch)
    changes = {"randomize": {"noise_angle": 0.01, "push": 0.3, "mass": [0.8, 1.2]}}
    changes["episode"] = {"perturb": 0.3, "reference_start": 0.7, "switch_seconds": [0.1, 0.2]}
    changes["episode"] |= {"curriculum_seconds": 0.1, "curriculum_steps": 300, "seconds": 1.0}
    clips = ["trot", "turn", "sit"]
    task, other = (puppet_task(8, clips, True, spec, **changes) for _ in range(2))
    task.reset()
    other.reset()
    step = GraphedFn(other.step, torch.device("cpu"), "graph")
    for act in torch.from_numpy(actions(8, 30, 0.5)).float():
        ours, theirs = task.step(act), step(act)
        for name in ("obs", "final_obs", "reward", "terminated", "truncated", "cause"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert len(recorded) == 1
    for name, array in task.arrays().items():
        assert torch.equal(array, other.memory()[name]), name


def near(ours: np.ndarray, theirs: torch.Tensor, share: float) -> None:
    rows = np.isclose(ours.astype(float), theirs.double().numpy(), atol=5e-3, rtol=1e-3)
    assert rows.reshape(len(rows), -1).all(1).mean() >= share


# ----- Arguments ----------------------------------------------------------------------------------


def test_evaluation_means_the_same_whatever_training_does():
    training = {"seconds": 3.0, "reference_start": 0.2, "perturb": 0.9, "curriculum_seconds": 0.6}
    task = build_task(2, evaluation=True, num_workers=1, episode=training)
    spec = task.spec.episode
    assert (spec.seconds, spec.reference_start, spec.perturb) == (10.0, 1.0, 0.0)
    assert spec.curriculum_seconds is None and not task.spec.randomize.push
    task.reset()
    assert task.episodes.limit.tolist() == [300, 300]
    task.close()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"robot": "a2"}, "a1"),
        ({"engine": "mujocko"}, "mujoco"),
        ({"clip": "trott"}, "trot"),
        ({"spec": "modem"}, "modern"),
        ({"randomize": "modem"}, "modern"),
        ({"randomize": {"masses": [1, 2]}}, "randomize.mass"),
        ({"randomize": {"mass": [2, 1]}}, "randomize.mass"),
        ({"terrain": "slop"}, "slope"),
        ({"rewards": {}}, "did you mean 'reward'"),
        ({"clipp": "pace"}, "did you mean 'clip'"),
        ({"actuation": {"time_stp": 0.01}}, "actuation.time_step"),
        ({"observation": {"terms": ["imus"]}}, "imu"),
        ({"termination": {"tilt": "steep"}}, "termination.tilt"),
        ({"clip": []}, "clip"),
        ({"robot": "humanoid", "clip": "humanoid3d_walk"}, 'spec="humanoid"'),
    ],
)
def test_mistakes_name_the_fix(arguments, hint):
    with pytest.raises(UserError, match=hint) as caught:
        build_task(2, num_workers=1, **arguments)
    assert "\n" not in str(caught.value)


def test_specs_can_be_given_whole():
    spec = get_spec("modern", {"action": {"scale": 0.3}})
    task = build_task(1, spec=dataclasses.replace(spec), push=0.4, num_workers=1)
    assert task.spec.action.scale == 0.3 and task.spec.randomize.push == 0.4
    task.close()
