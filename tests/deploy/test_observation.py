"""The runtime's observations and joint targets are those of training, over whole episodes."""

from typing import Any

import numpy as np
import pytest

from rlgym.deploy.controller import Controller
from rlgym.deploy.errors import BundleError, DeployError
from rlgym.deploy.motion import FIELDS
from rlgym.deploy.observation import Observer, check_sensors
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.deployment import deployment
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply, rotate_inverse
from rlgym.envs.imitation.spec import get_spec
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.physics.engine import State
from rlgym.envs.physics.robots import get_robot
from tests.envs.imitation.puppet import Puppet

FOREVER = {
    "termination": {
        "contact": False,
        "distance": None,
        "rotation": None,
        "tilt": None,
        "trunk_height": None,
        "knee_height": None,
        "clip_over": False,
    },
}
MODERN = {"robot": "a1", "clip": "trot", **FOREVER}
REFERENCE = {"robot": "laikago", "clip": "laikago_walk", "spec": "reference", **FOREVER}
LONG = {"seconds": 60.0, "curriculum_seconds": None}
HISTORY = {"history": 4, "target_origin": "robot", "target_steps": (1, 5)}


class Tumbling(Puppet):
    """Joints obey; the base turns and drifts as it likes, and its sensors lag by a step."""

    rng = np.random.default_rng(7)

    def step(self, previous: Any, target: Any, push: Any = None) -> State:
        before = self._state().sensed
        self._now[4] = target
        pos, quat, linvel, _, q, _ = self._now
        qd = self.rng.normal(size=(1, self.robot.nv))
        turn = from_rotation_vector(self.rng.normal(0.0, 0.05, (1, 3)))
        pos = pos + self.rng.normal(0.0, 0.01, pos.shape)
        self._now = [pos, multiply(turn, quat), linvel, self.rng.normal(size=(1, 3)), q, qd]
        state = self._state()
        state.sensed = before
        return state


def make_task(robot: str, clip: str, spec: str = "modern", **changes: Any) -> ImitationTask:
    table, chosen = get_robot(robot), get_spec(spec, changes)
    like = np.zeros(1)
    engine: Any = Tumbling(table, chosen.actuation, 1, like)
    return ImitationTask(engine, ClipSet([load_clip(clip, table)], table), chosen, np.array([3]))


class Recorded:
    """A policy that does what it is told and remembers what it saw."""

    def __init__(self) -> None:
        self.next = np.zeros(0)
        self.seen: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        self.seen = {}

    def act(self, obs: dict[str, np.ndarray], mask: Any = None) -> np.ndarray:
        self.seen = obs
        return self.next


class Told:
    """A bundle of nothing but a manifest and a motion."""

    def __init__(self, task: ImitationTask) -> None:
        described = deployment(task)
        motion = described.pop("motion")
        ((name, terms),) = described.pop("terms").items()
        size = sum(term["size"] for term in terms)
        entry = {"name": name, "shape": [size], "dtype": "float64", "terms": terms}
        self.manifest = {**described, "observation": [entry]}
        self.motion = motion or {
            f"{i}/{field}": getattr(clip, field)
            for i, clip in enumerate(task.clips.clips)
            for field in FIELDS
        }
        for clip in self.manifest["targets"]["clips"]:
            clip["shipped"] = True

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return self.motion


def sensors(task: ImitationTask) -> dict[str, np.ndarray]:
    sensed, state = task.state.sensed, task.state
    return {
        "orientation": sensed.root_quat[0].copy(),
        "angular_velocity": sensed.root_angvel[0].copy(),
        "joint_angle": sensed.q[0].copy(),
        "joint_velocity": sensed.qd[0].copy(),
        "linear_velocity": rotate_inverse(state.root_quat, state.root_linvel)[0],
        "position": state.root_pos[0].copy(),
    }


def controller_of(task: ImitationTask, clip: str = "") -> tuple[Controller, Recorded]:
    policy = Recorded()
    bundle: Any = Told(task)
    recorded: Any = policy
    return Controller(bundle, recorded, clip, start=float(task.episodes.time()[0])), policy


CASES = {
    "modern": MODERN,
    "reference": {**REFERENCE, "episode": {**LONG, "reference_start": 1.0}},
    "warm-up": {**REFERENCE, "episode": {**LONG, "reference_start": 0.0}},
    "turning": {**MODERN, "clip": "turn", "observation": HISTORY},
    "from the robot": {**MODERN, "observation": HISTORY},
    "filtered": {**MODERN, "action": {"cutoff": 5.0}, "observation": {"last_action": "target"}},
    "humanoid": {**FOREVER, "robot": "humanoid", "spec": "humanoid", "clip": "humanoid3d_walk"},
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, 60) for name in CASES]
    + [pytest.param(name, 600, marks=pytest.mark.slow) for name in CASES],
)
def test_observations_and_targets_are_those_of_training(name: str, steps: int) -> None:
    task = make_task(**{"episode": LONG, **CASES[name]})
    rng = np.random.default_rng(0)
    obs, _ = task.reset()
    controller, policy = controller_of(task)
    warm = controller.reference.time < 0
    assert warm == (name == "warm-up")
    worst = 0.0
    wraps, cycle = 0, controller.reference._cycle
    task_step = task.episodes.step
    for step in range(steps):
        policy.next = rng.normal(0.0, 0.3, task.robot.nv)
        act = controller.begin if step == 0 else controller.step
        target = act(sensors(task))
        worst = max(worst, np.abs(next(iter(policy.seen.values())) - obs[0]).max())
        obs = task.step(policy.next[None]).obs
        assert task_step[0] == step + 1, "the episode must not end"
        wanted = controller.joints.angles(task._previous[0])
        np.testing.assert_allclose(target, wanted, atol=1e-9)
        wraps += controller.reference._cycle != cycle
        cycle = controller.reference._cycle
    task.close()
    assert worst < 1e-6
    assert wraps > 0


def test_an_observation_that_was_off_would_be_seen() -> None:
    task = make_task(**MODERN)
    obs, _ = task.reset()
    controller, policy = controller_of(task)
    policy.next = np.zeros(task.robot.nv)
    values = sensors(task)
    values["joint_angle"][3] += 1e-3
    controller.begin(values)
    assert np.abs(policy.seen["policy"] - obs[0]).max() > 9e-4
    task.close()


def test_a_robot_that_looks_elsewhere_sees_the_same() -> None:
    """Nothing but the compass differs: gravity, joints and targets are relative to the robot."""
    task = make_task(**MODERN)
    obs, _ = task.reset()
    controller, policy = controller_of(task)
    policy.next = np.zeros(task.robot.nv)
    values = sensors(task)
    x, y, z, w = values["orientation"]
    c, s = np.cos(1.0), np.sin(1.0)  # turned by 2 rad
    values["orientation"] = np.array([c * x - s * y, c * y + s * x, c * z + s * w, c * w - s * z])
    controller.begin(values)
    np.testing.assert_allclose(policy.seen["policy"], obs[0], atol=1e-9)
    task.close()


def test_a_clip_that_is_not_the_trained_one_is_refused(tmp_path: Any) -> None:
    task = make_task(**MODERN)
    bundle: Any = Told(task)
    other = {field: bundle.motion[f"0/{field}"].copy() for field in FIELDS}
    path = tmp_path / "own.npz"
    np.savez(path, **other)
    policy: Any = Recorded()
    assert Controller(bundle, policy, motion=str(path)).reference is not None
    other["q"][5, 2] += 1e-4
    np.savez(path, **other)
    with pytest.raises(BundleError, match="not the clip 'trot'"):
        Controller(bundle, policy, motion=str(path))
    bundle.manifest["targets"]["clips"][0]["shipped"] = False
    with pytest.raises(DeployError, match="--motion"):
        Controller(bundle, policy)
    with pytest.raises(DeployError, match="no clip 'gallop'; it has trot"):
        Controller(bundle, policy, clip="gallop")
    task.close()


def plain(terms: list[dict[str, Any]], size: int) -> dict[str, Any]:
    return {"observation": [{"name": "obs", "shape": [size], "dtype": "float32", "terms": terms}]}


def test_terms_by_name_keep_a_history_scale_and_clip() -> None:
    terms = [
        {"name": "range", "size": 4, "width": 2, "history": 2, "scale": 0.5, "clip": 1.0},
        {"name": "speed", "size": 1, "history": 1},
    ]
    observer = Observer(plain(terms, 5))
    assert observer.needs == {"range": 2, "speed": 1}
    none = np.zeros(0)
    first = observer.begin({"range": np.array([1.0, 9.0]), "speed": np.array([3.0])}, none)
    np.testing.assert_array_equal(first["obs"], np.float32([0.5, 1, 0.5, 1, 3]))
    second = observer.step({"range": np.array([-1.0, 0.0]), "speed": np.array([4.0])}, none)
    np.testing.assert_array_equal(second["obs"], np.float32([-0.5, 0, 0.5, 1, 4]))


@pytest.mark.parametrize(
    ("terms", "size", "words"),
    [
        ([{"name": "a", "size": 3, "history": 2}], 3, "term 'a' has 3 values"),
        ([{"name": "a", "size": 3, "history": 1}], 4, "the terms of observation 'obs' have 3"),
        ([{"name": "a", "size": 2, "history": 1, "order": "oldest first"}], 2, "order unknown"),
        ([{"name": "a", "size": 2, "history": 0}], 2, "term 'a' has 2 values"),
    ],
)
def test_terms_that_contradict_themselves_are_refused(
    terms: list[dict[str, Any]], size: int, words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        Observer(plain(terms, size))


def test_a_robot_with_other_sensors_is_refused_by_name() -> None:
    check_sensors({"a": 2}, {"a": 2, "b": 1}, "mine")
    with pytest.raises(DeployError, match=r"a \(2\), c \(1\); robot 'mine' has a \(3\), b \(1\)"):
        check_sensors({"a": 2, "c": 1}, {"a": 3, "b": 1}, "mine")
