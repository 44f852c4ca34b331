"""The humanoid in both engines: it stands, follows a clip for a moment, and is DeepMimic's."""

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pybullet as p
import pybullet_data
import pytest
from pybullet_utils.bullet_client import BulletClient

from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet, Ref
from rlgym.envs.imitation.joints import to_angles, to_positions
from rlgym.envs.imitation.reward import reward
from rlgym.envs.imitation.spec import SPECS
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Engine, Randomization, State
from rlgym.envs.physics.robots import get_robot
from rlgym.errors import ConfigError

HUMANOID = get_robot("humanoid")
SPEC = SPECS["humanoid"]
DT = SPEC.actuation.control_dt


def make(name: str, num_worlds: int) -> Engine:
    workers = {"bullet": {"num_workers": 0}, "mujoco": {"num_threads": 1}}[name]
    if name == "mujoco":
        pytest.importorskip("mujoco")
    return make_engine(name, HUMANOID, SPEC.actuation, num_worlds, collide="all", **workers)


@pytest.fixture(scope="module", params=["mujoco", "bullet"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = make(request.param, 4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def walk() -> ClipSet:
    return ClipSet([load_clip("humanoid3d_walk", HUMANOID)], HUMANOID)


def begin(engine: Engine, ref: Ref) -> State:
    everywhere = np.ones(engine.num_worlds, bool)
    poses = ref.root_pos, ref.root_quat, ref.root_linvel, ref.root_angvel, ref.q, ref.qd
    return engine.reset(everywhere, *poses)


def test_a_reset_puts_every_joint_and_foot_where_it_belongs(engine: Engine, walk: ClipSet) -> None:
    ref = walk.sample(np.zeros(4, int), np.arange(4) * 0.3)
    state = begin(engine, ref)
    np.testing.assert_allclose(to_angles(HUMANOID, state.q), to_angles(HUMANOID, ref.q), atol=1e-6)
    np.testing.assert_allclose(state.qd, ref.qd, atol=1e-6)
    np.testing.assert_allclose(state.foot_pos, ref.foot_pos, atol=1e-5)
    np.testing.assert_allclose(state.root_linvel, ref.root_linvel, atol=1e-6)
    total, _ = reward(state, ref, SPEC.reward, HUMANOID)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_it_stands_on_its_feet_alone(engine: Engine) -> None:
    q = np.tile(HUMANOID.default_pose, (4, 1))
    zero = np.zeros((4, 3))
    upright = np.tile([0.0, 0.0, 0.0, 1.0], (4, 1))
    height = np.tile([0.0, 0.0, HUMANOID.init_height], (4, 1))
    feet = np.zeros((4, 4, 3))
    begin(engine, Ref(height, upright, zero, zero, q, np.zeros((4, HUMANOID.nv)), feet))
    for _ in range(30):
        state = engine.step(q, q)
    np.testing.assert_allclose(state.root_pos[:, 2], HUMANOID.init_height, atol=0.02)
    assert state.foot_contact.tolist() == [[True, True, False, False]] * 4
    assert not state.illegal_contact.any()
    # The legs bear its 45 kg: bent knees hold against them, with what their servos ask for
    knees = slice(9, 10)
    error = to_angles(HUMANOID, q)[:, knees] - to_angles(HUMANOID, state.q)[:, knees]
    assert (np.abs(state.torque[:, knees]) > 5).all()
    asked = 500 * error - 50 * state.qd[:, knees]
    np.testing.assert_allclose(state.torque[:, knees], asked, rtol=0.1)


def test_it_follows_the_clip_for_a_moment_without_feedback(engine: Engine, walk: ClipSet) -> None:
    """With targets from the clip, balance is lost after half a second: nobody looks after it."""
    time, clip = np.arange(4) * 0.3, np.zeros(4, int)
    ref = walk.sample(clip, time)
    begin(engine, ref)
    rewards = []
    for step in range(1, 16):
        previous, ref = ref, walk.sample(clip, time + step * DT)
        state = engine.step(previous.q, ref.q)
        rewards.append(reward(state, ref, SPEC.reward, HUMANOID)[0].mean())
    assert rewards[0] > 0.93
    assert rewards[4] > 0.85
    assert 0.5 < rewards[14] < 0.8


def test_links_that_hit_the_ground_are_told_from_feet(engine: Engine) -> None:
    q = np.tile(HUMANOID.default_pose, (4, 1))
    zero = np.zeros((4, 3))
    lying = np.tile([0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5)], (4, 1))  # on its face
    low = np.tile([0.0, 0.0, 0.1], (4, 1))
    feet = np.zeros((4, 4, 3))
    begin(engine, Ref(low, lying, zero, zero, q, np.zeros((4, HUMANOID.nv)), feet))
    for _ in range(5):
        state = engine.step(q, q)
    assert state.illegal_contact.all()


def test_bullet_says_that_it_has_no_friction_in_spherical_joints() -> None:
    with pytest.raises(ConfigError, match="cannot randomize viscous"):
        build_task(
            1,
            robot="humanoid",
            clip="humanoid3d_walk",
            spec="humanoid",
            engine="bullet",
            randomize={"viscous": [0.0, 0.1]},
        )


def test_a_weaker_servo_gives_way_in_both_engines(engine: Engine) -> None:
    """A ball's three factors are one in Bullet, and the limits stay where they are."""
    q = np.tile(HUMANOID.default_pose, (4, 1))
    zero = np.zeros((4, 3))
    upright = np.tile([0.0, 0.0, 0.0, 1.0], (4, 1))
    height = np.tile([0.0, 0.0, HUMANOID.init_height], (4, 1))
    kp = np.ones((4, 28))
    kp[2:] = 0.4
    poses = height, upright, zero, zero, q, np.zeros((4, 28))
    engine.reset(np.ones(4, bool), *poses, Randomization(kp=kp))
    for _ in range(10):
        state = engine.step(q, q)
    bent = to_angles(HUMANOID, q)[:, 9] - to_angles(HUMANOID, state.q)[:, 9]
    assert (bent[2:] > 1.5 * bent[:2]).all()
    engine.reset(np.ones(4, bool), *poses, Randomization(kp=np.ones((4, 28))))


# ----- pybullet_envs' own humanoid as an oracle ---------------------------------------------------


def original(folder: Path) -> Any:
    """The class of pybullet_envs, whose package imports a gym that is no more."""
    package = types.ModuleType("pybullet_envs")
    package.__path__ = [str(folder)]
    sys.modules["pybullet_envs"] = package
    try:
        module = importlib.import_module("pybullet_envs.deep_mimic.env.humanoid_stable_pd")
        mocap = importlib.import_module("pybullet_envs.deep_mimic.env.motion_capture_data")
        return module.HumanoidStablePD, mocap.MotionCaptureData
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "pybullet_envs"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def deep_mimic() -> Iterator[Any]:
    """A humanoid of pybullet_envs on the ground, y up, as its own env builds it."""
    kind, mocap = original(Path(pybullet_data.__file__).parent.parent / "pybullet_envs")
    client = BulletClient(p.DIRECT)
    client.setAdditionalSearchPath(pybullet_data.getDataPath())
    turn = client.getQuaternionFromEuler([-np.pi / 2, 0, 0])
    plane = client.loadURDF("plane_implicit.urdf", [0, 0, 0], turn, useMaximalCoordinates=True)
    client.setGravity(0, -9.8, 0)
    client.setPhysicsEngineParameter(numSolverIterations=10, numSubSteps=1)
    client.changeDynamics(plane, linkIndex=-1, lateralFriction=0.9)
    data = mocap()
    data.Load(f"{pybullet_data.getDataPath()}/data/motions/humanoid3d_walk.txt")
    humanoid = kind(client, data, 1 / 240, useFixedBase=False, useComReward=True)
    client.setTimeStep(1 / 240)
    yield humanoid
    client.disconnect()


JOINTS = ((200, 4), (50, 4), *((200, 4), (150, 1), (90, 4), (100, 4), (60, 1)) * 2)
"""Torque limits of its env, and values of each joint, in the order of its poses."""


def reset_original(humanoid: Any, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Put both of its humanoids at a time of the clip; return joint positions and velocities."""
    humanoid.setSimTime(time)
    humanoid.resetPose()
    return joints_of(humanoid)


def joints_of(humanoid: Any) -> tuple[np.ndarray, np.ndarray]:
    states = [
        humanoid._pybullet_client.getJointStateMultiDof(humanoid._sim_model, joint)
        for joint in humanoid._jointIndicesAll
    ]
    return np.concatenate([s[0] for s in states]), np.concatenate([s[1] for s in states])


def z_up(vector: Any) -> np.ndarray:
    x, y, z = vector
    return np.array([x, -z, y])


def test_a_clip_is_what_pybullet_envs_makes_of_it(deep_mimic: Any, walk: ClipSet) -> None:
    client, body = deep_mimic._pybullet_client, deep_mimic._sim_model
    for time in (0.0, 0.1, 0.9, 1.5):
        q, _ = reset_original(deep_mimic, time)
        ref = walk.sample(np.zeros(1, int), np.array([time]))
        np.testing.assert_allclose(
            to_angles(HUMANOID, q[None]), to_angles(HUMANOID, ref.q), atol=1e-5
        )
        position, _ = client.getBasePositionAndOrientation(body)
        np.testing.assert_allclose(ref.root_pos[0], z_up(position), atol=1e-5)
    # Its velocities are those of a frame, ours go on linearly to the next frame's
    _, qd = reset_original(deep_mimic, 0.0)
    ref = walk.sample(np.zeros(1, int), np.zeros(1))
    np.testing.assert_allclose(ref.qd[0], qd, atol=1e-3)
    linear, angular = client.getBaseVelocity(body)
    np.testing.assert_allclose(ref.root_linvel[0], z_up(linear), atol=1e-4)
    np.testing.assert_allclose(ref.root_angvel[0], z_up(angular), atol=1e-3)


@pytest.mark.parametrize(
    ("robot_time", "clip_time"), [(0.0, 0.0), (0.0, 1 / 30), (0.1, 0.2), (0.3, 0.7)]
)
def test_a_reward_is_what_pybullet_envs_gives(
    deep_mimic: Any, walk: ClipSet, robot_time: float, clip_time: float
) -> None:
    # Without the centre of mass: its own is that of a reference which stands still
    frames = np.array([robot_time, clip_time]) + 1e-4  # just after the same frame in both
    reset_original(deep_mimic, frames[0])
    deep_mimic.setSimTime(frames[1])
    pose = deep_mimic.computePose(deep_mimic._frameFraction)
    deep_mimic.initializePose(deep_mimic._poseInterpolator, deep_mimic._kin_model, initBase=True)
    deep_mimic._useComReward = False
    expected = deep_mimic.getReward(pose)

    both = walk.sample(np.zeros(2, int), frames)
    robot, ref = (Ref(**{k: v[i : i + 1] for k, v in vars(both).items()}) for i in (0, 1))
    _, terms = reward(robot, ref, SPEC.reward, HUMANOID)
    weights = {"pose": 0.5, "velocity": 0.05, "end_effector": 0.15, "root_pose": 0.2}
    total = sum(weight / 0.9 * terms[name][0] for name, weight in weights.items())
    assert total == pytest.approx(expected, abs=2e-4)


def test_an_explicit_servo_moves_it_as_pybullet_envs_does(deep_mimic: Any, walk: ClipSet) -> None:
    limits = [0] * 7 + [limit for limit, width in JOINTS for _ in range(width)]
    robot = replace(HUMANOID, added_inertia=0.0)
    actuation = replace(SPEC.actuation, servo="explicit")
    engine = make_engine(
        "bullet", robot, actuation, 1, num_workers=0, collide="all", iterations=10, gravity=9.8
    )
    q, qd = reset_original(deep_mimic, 0.0)
    ref = replace(walk.sample(np.zeros(1, int), np.zeros(1)), qd=qd[None])
    begin(engine, ref)
    for step in range(1, 11):
        ref = walk.sample(np.zeros(1, int), np.array([step * DT]))
        for _ in range(8):
            deep_mimic.computeAndApplyPDForces([0] * 7 + ref.q[0].tolist(), limits)
            deep_mimic._pybullet_client.stepSimulation()
        state = engine.step(ref.q, ref.q)
        q = joints_of(deep_mimic)[0]
        apart = to_angles(HUMANOID, q[None]) - to_angles(HUMANOID, state.q)
        assert np.sqrt(np.mean(apart**2)) < 0.01
    position, _ = deep_mimic._pybullet_client.getBasePositionAndOrientation(deep_mimic._sim_model)
    np.testing.assert_allclose(state.root_pos[0], z_up(position), atol=0.002)
    # neither is where the clip is
    assert np.sqrt(np.mean((to_angles(HUMANOID, state.q) - to_angles(HUMANOID, ref.q)) ** 2)) > 0.05
    engine.close()


def test_servos_of_balls_end_at_their_targets_in_both_engines() -> None:
    goal = np.full(28, 0.2)
    goal[[9, 20]] = -0.2  # knees bend the other way
    poses = to_positions(HUMANOID, np.stack([np.zeros(28), goal]))
    for name in ("bullet", "mujoco"):
        workers = {"num_workers": 0} if name == "bullet" else {"num_threads": 1}
        actuation = replace(SPEC.actuation, interpolate=True, substeps=4)
        engine = make_engine(name, HUMANOID, actuation, 1, gravity=0.0, **workers)
        zero, upright = np.zeros((1, 3)), np.array([[0.0, 0.0, 0.0, 1.0]])
        high = np.array([[0.0, 0.0, 5.0]])
        begin(engine, Ref(high, upright, zero, zero, poses[:1], np.zeros((1, 28)), zero[None]))
        state = engine.step(poses[:1], poses[1:])
        for _ in range(60):
            state = engine.step(poses[1:], poses[1:])
        engine.close()
        # in free fall nothing pulls at them
        np.testing.assert_allclose(to_angles(HUMANOID, state.q)[0], goal, atol=0.01)
