"""The robot table against the model files, and a robot that is added to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pybullet
import pytest

from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.bullet_model import Build, connect, inspect, load
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.robots import ROBOTS, Robot, get_robot, register_robot
from rlgym.envs.physics.urdf import multiply, read_model, read_tree, read_xml, rotate
from rlgym.errors import WorldError
from tests.envs.physics.robot_files import entry, mjcf, urdf

QUADRUPEDS = ("a1", "laikago", "mini_cheetah", "aliengo")


@pytest.fixture
def table():
    """Restore the robot table afterwards."""
    before = dict(ROBOTS)
    yield ROBOTS
    ROBOTS.clear()
    ROBOTS.update(before)


@pytest.mark.parametrize("name", ["a1", "laikago", "aliengo", "humanoid"])
def test_feet_are_where_pybullet_has_them(name):
    """Names, order, signs, zeros, leg lengths and base frames, all at once."""
    robot = ROBOTS[name]
    rng = np.random.default_rng(0)
    q = np.array(robot.default_pose)
    if not robot.spherical:
        q = q + rng.uniform(-0.3, 0.3, q.size)
    client = connect()
    body = load(robot, 0, client)
    infos = [
        pybullet.getJointInfo(body, i, client) for i in range(pybullet.getNumJoints(body, client))
    ]
    joints = {info[1].decode(): info[0] for info in infos}
    links = {info[12].decode(): info[0] for info in infos}
    at = 0
    for joint, sign, offset, ball in zip(
        robot.joints, robot.sign, robot.offset, robot.is_spherical, strict=True
    ):
        value = q[at : at + 4].tolist() if ball else [sign * (q[at] + offset)]
        pybullet.resetJointStateMultiDof(body, joints[joint], value, physicsClientId=client)
        at += 4 if ball else 1
    # the base link is where PyBullet loads it: find our base frame from there
    com_pos, com_quat = pybullet.getDynamicsInfo(body, -1, client)[3:5]
    inertial = pybullet.invertTransform(com_pos, com_quat)
    pos, quat = pybullet.getBasePositionAndOrientation(body, client)
    link_pos, link_quat = (np.array(x) for x in pybullet.multiplyTransforms(pos, quat, *inertial))
    turn = np.array(robot.base_rotation) * [-1, -1, -1, 1]
    root_quat = multiply(link_quat, turn)
    root_pos = link_pos + rotate(link_quat, np.array(robot.base_origin))
    found = foot_positions(robot, root_pos[None], root_quat[None], q[None])[0]
    for foot, place in zip(robot.feet, found, strict=True):
        state = pybullet.getLinkState(body, links[foot.link], 0, 1, client)
        point = np.array(state[4]) + rotate(np.array(state[5]), np.array(foot.point))
        np.testing.assert_allclose(place, point, atol=1e-6)
    pybullet.disconnect(client)


@pytest.mark.parametrize("name", QUADRUPEDS)
def test_limits_are_those_of_the_urdf_where_it_has_any(name):
    robot, model = ROBOTS[name], read_model(ROBOTS[name])
    for i, joint in enumerate(robot.joints):
        found = model.joints[joint]
        if found.lower is not None and found.upper is not None:
            ends = sorted(
                robot.sign[i] * end - robot.offset[i] for end in (found.lower, found.upper)
            )
            np.testing.assert_allclose((robot.lower[i], robot.upper[i]), ends, atol=1e-9)
        if found.effort and name != "laikago":  # whose file says 100 N m, far beyond its motors
            assert robot.torque_limit[i] == found.effort


@pytest.mark.parametrize("name", list(ROBOTS))
def test_the_default_pose_is_within_limits_and_its_feet_on_the_ground(name):
    robot = ROBOTS[name]
    hinges = [not ball for ball in robot.is_spherical]
    width = np.repeat(hinges, [1 if hinge else 4 for hinge in hinges])
    q = np.array(robot.default_pose)
    lower, upper = np.array(robot.lower)[hinges], np.array(robot.upper)[hinges]
    assert ((q[width] > lower) & (q[width] < upper)).all()
    root = np.array([[0.0, 0.0, robot.init_height]])
    feet = foot_positions(robot, root, np.array([[0.0, 0.0, 0.0, 1.0]]), q[None])[0]
    lowest = min(feet[:, 2] - [foot.radius for foot in robot.feet])
    assert abs(lowest) < 0.007  # Laikago begins 6 mm too low, as in the original


@pytest.mark.parametrize("name", QUADRUPEDS)
def test_right_legs_mirror_left_ones(name):
    robot = ROBOTS[name]
    for right, left in ((0, 1), (2, 3)):
        mirrored = np.array(robot.legs[left].hip) * [1, -1, 1]
        np.testing.assert_allclose(robot.legs[right].hip, mirrored)
        # Laikago's file is crooked by 2 mm
        assert abs(robot.legs[right].abduction + robot.legs[left].abduction) < 0.003
        assert robot.legs[right].abduction < 0 < robot.legs[left].abduction


# ----- A robot of one's own ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["urdf", "mjcf"])
@pytest.mark.parametrize("engine", ["mujoco", "bullet"])
def test_an_added_robot_stands(engine, form, tmp_path: Path, table):
    if engine == "mujoco" or form == "mjcf":
        pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    path = tmp_path / ("tiny.urdf" if form == "urdf" else "tiny.xml")
    path.write_text(urdf() if form == "urdf" else mjcf())
    register_robot(entry(path))
    servo = "implicit" if engine == "mujoco" else "explicit"
    actuation = Actuation(0.002 if engine == "mujoco" else 0.001, 15, servo)
    one = {"num_workers": 0} if engine == "bullet" else {"num_threads": 1}
    worlds = make_engine(engine, "tiny", actuation, 1, collide="all", **one)
    pose = np.array([worlds.robot.default_pose])
    zero = np.zeros((1, 3))
    start = np.array([[0.0, 0.0, worlds.robot.init_height]])
    upright = np.array([[0.0, 0.0, 0.0, 1.0]])
    worlds.reset(np.ones(1, bool), start, upright, zero, zero, pose, np.zeros((1, 12)))
    for _ in range(round(1.0 / actuation.control_dt)):
        state = worlds.step(pose, pose)
    assert state.foot_contact.all()
    assert not state.illegal_contact.any()
    assert abs(state.root_pos[0, 2] - worlds.robot.init_height) < 0.02
    assert np.abs(state.q - pose).max() < 0.1
    worlds.close()


def test_a_link_of_which_the_file_says_no_mass_has_none(tmp_path: Path):
    pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    shape = '<collision><geometry><box size=".1 .1 .1"/></geometry></collision>'
    camera = (
        f'<link name="camera">{shape}</link><joint name="mount" type="fixed">'
        '<parent link="body"/><child link="camera"/><origin xyz=".2 0 .1"/></joint>'
    )
    path = tmp_path / "tiny.urdf"
    path.write_text(urdf().replace("</robot>", camera + "</robot>"))
    robot = entry(path)
    whole = 4.0 + 4 * 0.83
    assert read_tree(robot).mass.sum() == pytest.approx(whole)
    assert sum(inspect(robot, Build()).masses) == pytest.approx(whole)
    with pytest.raises(WorldError, match="link 'camera', which has no mass, for 1 kg"):
        inspect(robot, Build(merge=False))
    worlds = make_engine("mujoco", robot, Actuation(0.002, 15, "implicit"), 1, collide="all")
    assert worlds._model.body_mass.sum() == pytest.approx(whole)


def test_an_mjcf_is_the_same_robot_as_the_urdf(tmp_path: Path):
    pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    states = []
    rng = np.random.default_rng(0)
    q = np.array([entry(tmp_path).default_pose]) + 0.2 * rng.normal(size=(1, 12))
    for name, text in (("tiny.urdf", urdf()), ("tiny.xml", mjcf())):
        (tmp_path / name).write_text(text)
        tree = read_tree(entry(tmp_path / name))
        np.testing.assert_allclose(tree.mass[[0, 1, 2, -1]], [0.3, 0.4, 0.13, 4.0])
        np.testing.assert_allclose(np.linalg.norm(tree.com[2]), 0.14 * 0.03 / 0.13)
        no_legs = entry(tmp_path / name, legs=())  # so that kinematics follow the tree
        zero, upright = np.zeros((1, 3)), np.array([[0.0, 0.0, 0.0, 1.0]])
        worlds = make_engine("mujoco", no_legs, Actuation(0.002, 15, "implicit"), 1)
        start = np.array([[0.0, 0.0, 0.4]])
        worlds.reset(np.ones(1, bool), start, upright, zero, zero, q, 10 * q)
        for _ in range(5):
            state = worlds.step(q, q)
        states.append(np.concatenate((state.q, state.qd, state.foot_pos.reshape(1, -1)), axis=1))
    np.testing.assert_allclose(states[0], states[1], atol=1e-6)


def test_meshes_of_an_mjcf_stay_where_they_are(tmp_path: Path):
    mujoco = pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "wedge.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 2 0\nv 0 0 3\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    )
    text = mjcf().replace(
        '<geom type="box" size=".2 .1 .04"/>',
        '<geom type="mesh" mesh="wedge" pos=".1 .2 .3" euler="20 30 40"/>',
    )
    asset = '<asset><mesh name="wedge" file="wedge.obj" scale=".1 .1 .2"/></asset>'
    compiler = '<compiler meshdir="parts"/>'
    path = tmp_path / "tiny.xml"
    path.write_text(text.replace("<worldbody>", f"{compiler}{asset}<worldbody>"))
    places = []
    for model in (
        mujoco.MjModel.from_xml_path(str(path)),
        mujoco.MjModel.from_xml_string(read_xml(entry(path))[0]),
    ):
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        geom = next(g for g in range(model.ngeom) if model.geom_type[g] == 7)
        turn = data.geom_xmat[geom].reshape(3, 3)
        points = model.mesh_vert @ turn.T + data.geom_xpos[geom]
        # the URDF has no free joint: its body is at the origin, the MJCF's a metre higher
        points = points - data.xpos[model.body("body").id] if model.nq > 12 else points
        places.append(points[np.lexsort(points.round(4).T)])
    np.testing.assert_allclose(places[0], places[1], atol=1e-5)


def test_what_an_mjcf_may_not_have_is_said(tmp_path: Path):
    pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    path = tmp_path / "tiny.xml"
    slide = '<joint name="FR_hip" axis="0 -1 0" type="slide"/>'
    path.write_text(mjcf().replace('<joint name="FR_hip" axis="0 -1 0"/>', slide))
    with pytest.raises(WorldError, match="'FR_thigh' moves by other than one hinge"):
        read_model(entry(path))
    path.write_text(mjcf().replace('name="body"', 'name="trunk"'))
    with pytest.raises(WorldError, match="no body 'body' at its top"):
        read_model(entry(path, name="other"))
    path.write_text(mjcf().replace("<joint", "<jiont"))
    with pytest.raises(WorldError, match="MuJoCo cannot read it"):
        read_model(entry(path, name="third"))


@pytest.mark.parametrize("form", ["urdf", "mjcf"])
def test_limits_left_out_come_from_the_file(form, tmp_path: Path, table):
    if form == "mjcf":
        pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    path = tmp_path / ("tiny.urdf" if form == "urdf" else "tiny.xml")
    path.write_text(urdf() if form == "urdf" else mjcf())
    robot = register_robot(entry(path, lower=(), upper=(), torque_limit=()))
    assert robot.torque_limit == (12.0,) * 12
    # the file's -2 and 2.5, by the sign of each joint
    np.testing.assert_allclose(robot.lower, (-2.0, -2.5, -2.0) * 4)
    np.testing.assert_allclose(robot.upper, (2.5, 2.0, 2.5) * 4)


@pytest.mark.parametrize(
    ("limits", "missing"),
    [("", "lower and upper"), ('<limit lower="-1" upper="1" velocity="9"/>', "torque_limit")],
)
def test_a_urdf_without_limits_is_refused(limits, missing, tmp_path: Path, table):
    path = tmp_path / "tiny.urdf"
    path.write_text(urdf(limits))
    left_out = {"lower": (), "upper": ()} if "lower" in missing else {"torque_limit": ()}
    with pytest.raises(WorldError, match=f"joint 'FR_abduction': give {missing}"):
        register_robot(entry(path, **left_out))


def test_an_unknown_robot_names_the_nearest():
    with pytest.raises(WorldError, match="did you mean 'laikago'"):
        get_robot("laikgo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kp": (40.0,) * 11}, "kp has 11 values"),
        ({"default_pose": (0.0,) * 13}, "default_pose has 13 values"),
        ({"feet": ()}, "has no feet"),
        ({"lower": (3.0,) * 12}, "joint 'FR_abduction' has the limits 3.0 and 1.0"),
    ],
)
def test_an_incomplete_entry_is_refused(change, message):
    with pytest.raises(WorldError, match=message):
        entry(Path("tiny.urdf"), **change)


def test_lists_do_as_well_as_tuples(tmp_path: Path):
    robot = entry(tmp_path, kp=[40.0] * 12, joints=list(get_robot("a1").joints))
    assert robot.kp == (40.0,) * 12
    assert hash(robot)


def test_an_entry_may_be_given_instead_of_a_name():
    robot = dataclasses.replace(get_robot("a1"), name="other")
    assert get_robot(robot) is robot
    assert isinstance(robot, Robot)
