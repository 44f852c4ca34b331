"""Reading model files: joint trees, masses, and files that are wrong or hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlgym.envs.physics.robots import get_robot
from rlgym.envs.physics.urdf import from_axis_angle, multiply, read_model, read_tree, rotate
from rlgym.errors import WorldError
from tests.envs.physics.robot_files import entry, urdf


def robot_of(tmp_path: Path, text: str, **changes):
    path = tmp_path / "tiny.urdf"
    path.write_text(text)
    return entry(path, **changes)


def test_a_tree_by_hand(tmp_path: Path):
    tree = read_tree(robot_of(tmp_path, urdf()))
    assert tree.parent[:4] == (-1, 0, 1, -1)
    assert sorted(tree.order) == list(range(12))
    assert all(tree.parent[joint] in (-1, *tree.order[:i]) for i, joint in enumerate(tree.order))
    np.testing.assert_allclose(tree.pos[0], [0.2, -0.1, 0.0])
    np.testing.assert_allclose(tree.axis[1], [0.0, 1.0, 0.0])  # the file's -y, by the sign -1
    assert tree.foot_parent == (2, 5, 8, 11)
    np.testing.assert_allclose(tree.foot_pos, [[0.0, 0.0, -0.14]] * 4)
    assert tree.mass[2] == pytest.approx(0.13)  # the shank and the toe that is fixed to it
    np.testing.assert_allclose(tree.com[2], [0.0, 0.0, -0.14 * 0.03 / 0.13])
    assert tree.mass[-1] == pytest.approx(4.0)


def test_offsets_and_the_turned_base_are_in_the_tree():
    """With all our angles zero, Laikago's thighs hang nearly straight down."""
    tree = read_tree(get_robot("laikago"))
    thigh = multiply(tree.quat[0], tree.quat[1])
    knee = rotate(thigh, tree.pos[2])
    np.testing.assert_allclose(knee[2], -np.hypot(0.1422, 0.20833), atol=1e-4)
    np.testing.assert_allclose(tree.com[-1], 0.0, atol=1e-12)  # the base's origin is there
    turned = multiply(tree.quat[0], from_axis_angle(tree.axis[0], 0.1))
    assert rotate(turned, np.array([0.0, -1.0, 0.0]))[1] > 0  # down (the file's -y) goes left


def test_the_base_is_checked(tmp_path: Path):
    with pytest.raises(WorldError, match="the base 'FR_side' hangs on 'FR_abduction'"):
        read_model(robot_of(tmp_path, urdf(), base="FR_side"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="RL_knee"', 'name="RL_kne"', "no joint 'RL_knee': did you mean 'RL_kne'"),
        ("RL_foot", "RL_foots", "no link 'RL_foot': did you mean 'RL_foots'"),
        ('xyz="0 0 -0.14"', 'xyz="0 0"', "is not three numbers"),
        ('xyz="0 0 -0.14"', 'xyz="0 0 nan"', "is not three numbers"),
        ('<child link="RL_side"/>', '<child link="elsewhere"/>', "links that are not there"),
        ("<robot", "<mujoco", "is not XML"),
        ('value="4.0"', 'value="four"', "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(old, new, message, tmp_path: Path):
    with pytest.raises(WorldError, match=message) as error:
        read_model(robot_of(tmp_path, urdf().replace(old, new)))
    assert "\n" not in str(error.value)


def test_a_link_without_mass_or_inertia_is_refused(tmp_path: Path):
    start = urdf().index('<link name="RL_thigh"')
    end = urdf().index("</link>", start) + len("</link>")
    bare = urdf()[:start] + '<link name="RL_thigh"/>' + urdf()[end:]
    with pytest.raises(WorldError, match="link 'RL_thigh' has no mass"):
        read_model(robot_of(tmp_path, bare))
    weightless = '<link name="RL_thigh"><inertial><mass value="1"/></inertial></link>'
    with pytest.raises(WorldError, match="'RL_thigh' has neither inertia nor a collision shape"):
        read_model(robot_of(tmp_path, urdf()[:start] + weightless + urdf()[end:]))


def test_a_joint_that_the_entry_forgets_is_named(tmp_path: Path):
    extra = (
        '<link name="tail"><inertial><mass value="1"/></inertial></link>'
        '<joint name="wag" type="continuous"><parent link="body"/><child link="tail"/></joint>'
    )
    text = urdf().replace("</robot>", extra + "</robot>")
    with pytest.raises(WorldError, match="joint 'wag' moves and is not in the entry's joints"):
        read_model(robot_of(tmp_path, text))


def test_entities_are_refused(tmp_path: Path):
    bomb = '<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>\n'
    with pytest.raises(WorldError, match="declares entities"):
        read_model(robot_of(tmp_path, bomb + urdf().split("\n", 1)[1]))


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path):
    with pytest.raises(WorldError, match="no model file"):
        read_model(entry(tmp_path / "nowhere.urdf"))
    large = tmp_path / "large.urdf"
    with large.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(WorldError, match="larger than 16 MB"):
        read_model(entry(large))


def test_lengths_scale_and_masses_do_not(tmp_path: Path):
    tree = read_tree(robot_of(tmp_path, urdf(), scale=2.0))
    np.testing.assert_allclose(tree.pos[0], [0.4, -0.2, 0.0])
    np.testing.assert_allclose(tree.foot_pos[0], [0.0, 0.0, -0.28])
    assert tree.mass.sum() == pytest.approx(4.0 + 4 * 0.83)
