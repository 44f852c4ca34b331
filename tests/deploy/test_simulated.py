"""Robots in PyBullet and MuJoCo, driven through the same loop as real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgym.deploy.bundle import Bundle
from rlgym.deploy.controller import Controller
from rlgym.deploy.errors import DeployError
from rlgym.deploy.guards import Guards
from rlgym.deploy.loop import Loop, VirtualClock
from rlgym.deploy.policy import Policy
from rlgym.deploy.robots import make_robot
from rlgym.deploy.robots.robot import Command, Settings
from rlgym.deploy.robots.simulated import model_path
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.robots import get_robot
from tests.deploy.bundles import DT, follower

ENGINES = ("bullet", "mujoco")


ROBOTS = [("bullet", "a1"), ("mujoco", "a1"), ("bullet", "laikago")]
"""Laikago's file says nothing of inertia, which MuJoCo cannot do without."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        robot: Bundle(follower(folder / f"{robot}.rlpolicy", robot)) for robot in ("a1", "laikago")
    }


@pytest.fixture
def bundle(bundles: dict[str, Bundle], request: pytest.FixtureRequest) -> Bundle:
    return bundles[request.node.callspec.params.get("robot", "a1")]


def driver(name: str, bundle: Bundle, **settings: Any) -> Any:
    pytest.importorskip({"bullet": "pybullet", "mujoco": "mujoco"}[name])
    return make_robot(name, bundle.manifest, VirtualClock(), Settings(**settings))


def command(bundle: Bundle, target: np.ndarray, previous: np.ndarray, mode: Any = "run") -> Command:
    robot = bundle.manifest["robot"]
    stiffness = np.array(robot["stiffness"]) * (mode != "damp")
    return Command(mode, None, target, previous, stiffness, np.array(robot["damping"]))


@pytest.mark.parametrize("servo", ("explicit", "implicit", "damped"))
@pytest.mark.parametrize(("name", "robot"), ROBOTS)
def test_it_moves_as_the_worlds_of_training_do(
    name: str, robot: str, servo: Any, bundle: Bundle
) -> None:
    """Away from the ground, where no contact makes small differences large."""
    pytest.importorskip({"bullet": "pybullet", "mujoco": "mujoco"}[name])
    timing = {"explicit": {"physics_dt": 0.001, "decimation": 30}}.get(servo, {})
    manifest = {
        **bundle.manifest,
        "simulation": {**bundle.manifest["simulation"], "servo": servo},
        "timing": {**bundle.manifest["timing"], **timing},
    }
    driven: Any = make_robot(name, manifest, VirtualClock(), Settings())
    table = get_robot(robot)
    step, substeps = manifest["timing"]["physics_dt"], manifest["timing"]["decimation"]
    actuation = Actuation(time_step=step, substeps=substeps, servo=servo)
    engine = make_engine(name, table, actuation, 1, collide="feet", gravity=9.81)
    rng = np.random.default_rng(1)
    pose = np.array(table.default_pose)
    quat = np.array([0.1, -0.2, 0.3, 0.9])
    quat /= np.linalg.norm(quat)
    pos, linear, angular = np.array([0.3, -0.2, 5.0]), rng.normal(size=3), rng.normal(size=3)
    rates = rng.normal(size=12)
    driven.place(pos, quat, pose, (linear, angular, rates))
    everyone = np.ones(1, bool)
    rows = (row[None] for row in (pos, quat, linear, angular, pose, rates))
    state = engine.reset(everyone, *rows)
    previous = pose
    for step in range(6):
        shown = driven.read().values
        sensed = state.sensed
        tolerance = 1e-6 if step == 0 else 3e-2
        np.testing.assert_allclose(shown["position"], state.root_pos[0], atol=tolerance)
        facing = abs(np.dot(shown["orientation"], sensed.root_quat[0]))
        assert facing > 1 - tolerance**2 - 1e-12
        turning = 10 * tolerance
        np.testing.assert_allclose(shown["angular_velocity"], sensed.root_angvel[0], atol=turning)
        np.testing.assert_allclose(shown["joint_angle"], sensed.q[0], atol=tolerance)
        np.testing.assert_allclose(shown["joint_velocity"], sensed.qd[0], atol=20 * tolerance)
        target = pose + rng.normal(0.0, 0.2, 12)
        driven.write(command(bundle, target, previous))
        state = engine.step(previous[None], target[None])
        previous = target
    driven.close()
    engine.close()


@pytest.mark.parametrize(("name", "robot"), ROBOTS)
def test_a_trot_goes_forward_and_no_guard_trips(name: str, robot: str, bundle: Bundle) -> None:
    driven = driver(name, bundle)
    controller = Controller(bundle, Policy(bundle, "numpy"))
    guards = Guards(bundle.manifest, DT, controller.observer.needs)
    loop = Loop(driven, controller, guards, driven._clock, DT, ramp=0.5)
    places = []
    report = loop.run(2.0, lambda k, reading: places.append(reading.values["position"]))
    driven.close()
    assert report.fault is None and report.ended == "its time is over"
    # the file makes Laikago's feet soft, which costs it half its speed
    assert places[-1][0] - places[16][0] > (0.15 if robot == "laikago" else 0.4)
    height = bundle.manifest["robot"]["init_height"]
    assert all(0.7 * height < place[2] < 1.3 * height for place in places)


@pytest.mark.parametrize("name", ENGINES)
def test_a_damped_robot_sinks_and_a_held_one_stands(name: str, bundle: Bundle) -> None:
    heights = {}
    for mode in ("hold", "damp"):
        robot = driver(name, bundle)
        pose = np.array(bundle.manifest["robot"]["default_joint_pos"])
        for _ in range(20):
            robot.write(command(bundle, pose, pose, mode))
        heights[mode] = robot.read().values["position"][2]
        robot.close()
    assert heights["hold"] > 0.9 * bundle.manifest["robot"]["init_height"]
    assert heights["damp"] < 0.9 * heights["hold"]


def test_sensors_lag_targets_move_on_and_stay_near(tmp_path: Path) -> None:
    actuation = {
        "time_step": 0.001,
        "substeps": 30,
        "servo": "explicit",
        "interpolate": True,
        "target_clip": 0.1,
        "latency": 0.0025,
    }
    bundle = Bundle(follower(tmp_path / "lag.rlpolicy", actuation=actuation))
    pytest.importorskip("pybullet")

    class Watched(type(driver("bullet", bundle))):
        def advance(self, target: Any, stiffness: Any, damping: Any) -> None:
            goals.append(target.copy())
            angles.append(self.state()[3].copy())
            super().advance(target, stiffness, damping)

    goals: list[np.ndarray] = []
    angles: list[np.ndarray] = []
    robot = Watched(bundle.manifest, VirtualClock(), Settings())
    pose = np.array(bundle.manifest["robot"]["default_joint_pos"])
    robot.write(command(bundle, pose + 0.06, pose))
    np.testing.assert_allclose(goals[14] - pose, 0.03, atol=1e-9)
    np.testing.assert_allclose(goals[29] - pose, 0.06, atol=1e-9)
    robot.write(command(bundle, pose + 2.0, pose + 2.0))
    now = robot.state()[3]
    late = robot.read().values["joint_angle"]
    history = [*angles, now]
    np.testing.assert_allclose(late, 0.5 * (history[-3] + history[-4]), atol=1e-12)
    shown = 0.5 * (history[-4] + history[-5])  # when the last goal was set
    np.testing.assert_allclose(goals[-1], shown + 0.1, atol=1e-9)
    robot.close()


def test_models_are_looked_for_in_pybullet_data_only(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    about = {"model": "a1/a1.urdf", "model_source": "pybullet_data"}
    assert model_path(about, Settings()).is_file()
    for name, words in (
        ("../../secret.urdf", "outside of pybullet_data"),
        ("/etc/passwd", "outside of pybullet_data"),
        ("..\\a.urdf", "outside of pybullet_data"),
        ("a1/gone.urdf", "no model a1/gone.urdf"),
    ):
        with pytest.raises(DeployError, match=words):
            model_path({**about, "model": name}, Settings())
    with pytest.raises(DeployError, match="give --model FILE"):
        model_path({**about, "model_source": "file"}, Settings())
    with pytest.raises(DeployError, match="there is no model file"):
        model_path(about, Settings(model=str(tmp_path / "none.urdf")))
    own = tmp_path / "own.urdf"
    own.write_text("<robot name='x'><link name='trunk'/></robot>")
    assert model_path(about, Settings(model=str(own))) == own


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_that_is_not_the_robots_is_refused(name: str, tmp_path: Path) -> None:
    bundle = Bundle(follower(tmp_path / "trot.rlpolicy"))
    own = tmp_path / "own.urdf"
    own.write_text(
        "<robot name='x'><link name='trunk'><inertial><mass value='1'/>"
        "<inertia ixx='1' iyy='1' izz='1' ixy='0' ixz='0' iyz='0'/></inertial></link></robot>"
    )
    with pytest.raises(DeployError, match="FR_hip_joint"):
        driver(name, bundle, model=str(own))
    own.write_text("no robot at all")
    with pytest.raises(DeployError, match="cannot read"):
        driver(name, bundle, model=str(own))


def test_what_cannot_be_simulated_says_what_can(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["a1"]
    with pytest.raises(DeployError, match=r"MuJoCo cannot read .*: use --robot bullet"):
        driver("mujoco", bundles["laikago"])
    plain = {**bundle.manifest, "robot": None}
    balls = {**bundle.manifest["robot"], "spherical": [True] * 12}
    for manifest, words in (
        (plain, "dry-run or udp"),
        ({**bundle.manifest, "robot": balls}, "ball joints.*dry-run"),
    ):
        with pytest.raises(DeployError, match=words):
            make_robot("bullet", manifest, VirtualClock(), Settings())
    with pytest.raises(DeployError, match="there is no robot 'spot': use dry-run, bullet"):
        make_robot("spot", plain, VirtualClock(), Settings())
