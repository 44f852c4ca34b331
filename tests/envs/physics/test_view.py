"""Pictures: the robot is in them, where it should be, with its reference and its shadow."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest

from rlgym.envs.physics.robots import get_robot
from rlgym.envs.physics.view import Pose, View, Window, x_server_answers
from rlgym.errors import WorldError

UPRIGHT = (0.0, 0.0, 0.0, 1.0)


def standing(robot, x=0.0, y=0.0, z=0.0):
    return Pose((x, y, robot.init_height + z), UPRIGHT, robot.default_pose)


def test_a_robot_stands_in_the_middle_of_its_picture():
    robot = get_robot("a1")
    view = View(robot, 160, 120)
    picture = view.frame(standing(robot))
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.uint8
    orange = (picture[..., 0].astype(int) - picture[..., 2]) > 60  # A1's legs
    rows, columns = np.nonzero(orange)
    assert orange.sum() > 150
    assert abs(columns.mean() - 80) < 15
    assert abs(rows.mean() - 60) < 20
    # the camera follows: metres away, with whole tiles between, the picture is the same
    there = view.frame(standing(robot, 4.0, -2.0))
    assert (there != picture).any(axis=-1).mean() < 0.01  # but for rounding at edges
    view.close()


def test_a_pose_shows_in_the_picture():
    robot = get_robot("a1")
    view = View(robot, 160, 120)
    first = view.frame(standing(robot)).astype(int)
    bent = np.array(robot.default_pose)
    bent[2] -= 0.5  # the front right knee, towards the camera
    second = view.frame(Pose((0, 0, robot.init_height), UPRIGHT, bent)).astype(int)
    assert (np.abs(first - second).sum(axis=-1) > 60).sum() > 20
    view.close()


def test_the_reference_is_blue_and_lets_the_robot_through():
    robot = get_robot("aliengo")
    view = View(robot, 160, 120, ghost=True)
    plain = view.frame(standing(robot))
    both = view.frame(standing(robot), standing(robot, 0.2, 0.1))
    changed = (plain != both).any(axis=-1)
    assert changed.sum() > 150
    more = both[changed].astype(int).mean(axis=0) - plain[changed].astype(int).mean(axis=0)
    assert more[2] > more[0] + 5  # bluer
    # where the two coincide the reference is not in front of the robot
    same = view.frame(standing(robot), standing(robot))
    assert (np.abs(same.astype(int) - plain).max(axis=-1) > 8).mean() < 0.02
    view.close()


def test_a_robot_casts_a_shadow_where_it_stands():
    robot = get_robot("a1")
    view = View(robot, 160, 120)
    low, high = view.frame(standing(robot)), view.frame(standing(robot, z=3.0))
    # far above its place the robot is out of the picture, and so is its shadow
    ground = np.abs(high.astype(int) - low).max(axis=-1) > 20
    dark = ground & (low.max(axis=-1) < 0.8 * high.max(axis=-1)) & (np.ptp(low, axis=-1) < 40)
    assert dark.sum() > 100
    view.close()


def test_terrain_is_drawn():
    robot = get_robot("a1")
    flat, hilly = View(robot, 160, 120), View(robot, 160, 120, terrain="rough:0.5")
    first, second = (v.frame(standing(robot, 3.0)) for v in (flat, hilly))
    assert (first != second).any(axis=-1).mean() > 0.1
    flat.close()
    hilly.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have a display")
@pytest.mark.parametrize("display", ["", ":7777", "127.0.0.1:59000.0", "nonsense"])
def test_a_window_without_a_display_is_refused(monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(WorldError, match="no display"):
        Window(get_robot("a1"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have a display")
def test_a_display_that_answers_is_found():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0/tmp/.X11-unix/X7777")
        server.listen(1)
        assert x_server_answers(":7777") and x_server_answers("unix:7777.0")
    assert not x_server_answers(":7777")
