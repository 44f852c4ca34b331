"""Robots from YAML files: the one in the documentation, and files that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import rlgym
from rlgym.envs.physics.robots import Foot, get_robot
from rlgym.errors import WorldError
from tests.envs.physics.robot_files import LEGS, PARTS, RADIUS, SHANK, SIDE, THIGH, entry, urdf

PAGE = Path(rlgym.__file__).resolve().parent.parent / "docs" / "robots.md"

TINY = {
    "model": "tiny.urdf",
    "base": "body",
    "joints": [f"{leg}_{part}" for leg in LEGS for part in PARTS],
    "sign": [1, -1, 1],
    "default_pose": [0, 0.7, -1.4],
    "kp": 40,
    "kd": 1,
    "torque_limit": 12,
    "lower": [-1, -1, -2.5],
    "upper": [1, 2.5, -0.3],
    "init_height": 0.243,
    "feet": [{"link": f"{leg}_foot", "radius": RADIUS} for leg in LEGS],
    "legs": [
        {"hip": [x, y, 0], "abduction": SIDE if y > 0 else -SIDE, "thigh": THIGH, "shank": SHANK}
        for x, y in LEGS.values()
    ],
}


def written(tmp_path: Path, fields) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    (tmp_path / "tiny.urdf").write_text(urdf())
    return str(path)


def test_a_file_says_the_same_as_an_entry(tmp_path: Path):
    robot = get_robot(written(tmp_path, TINY))
    assert robot == entry(tmp_path / "tiny.urdf")
    assert hash(robot) == hash(entry(tmp_path / "tiny.urdf"))


def test_what_is_left_out_has_its_default(tmp_path: Path):
    fields = {k: v for k, v in TINY.items() if k not in ("lower", "upper", "torque_limit", "sign")}
    robot = get_robot(written(tmp_path, fields | {"feet": ["FR_foot"], "name": "other"}))
    assert robot.name == "other"
    assert robot.sign == (1.0,) * 12
    assert robot.upper == (2.5,) * 12  # the URDF's
    assert robot.feet == (Foot("FR_foot"),)


@pytest.mark.skipif(not PAGE.is_file(), reason="docs are in the checkout")
def test_the_file_in_the_documentation_works(tmp_path: Path):
    found = re.search(r"^```yaml\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert found
    path = tmp_path / "spirit40.yaml"
    path.write_text(found.group(1))
    robot = get_robot(str(path))
    assert robot.name == "spirit40"
    assert robot.torque_limit == (20.0, 55.0, 55.0) * 4
    assert robot.lower[:3] == pytest.approx((-0.707, -4.712389, -3.1415927))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kpp": 3}, "no field 'kpp': did you mean 'kp'"),
        ({"kp": "strong"}, "kp: 'strong' is not a number"),
        ({"kp": [1, 2, 3, 4, 5]}, "kp has 5 values, its 12 joints need 12"),
        ({"kp": float("nan")}, "kp: nan is not a number"),
        ({"kp": 10**400}, "kp: 1000"),
        ({"init_height": 10**400}, "init_height: 1000"),
        ({"joints": "all"}, "joints must be a list of names"),
        ({"feet": "FR_foot"}, "feet must be a list"),
        ({"feet": [{"point": [0, 0, 0]}]}, "feet: one needs link"),
        ({"feet": [{"link": "FR_foot", "size": 1}]}, "feet: there is no field 'size'"),
        ({"legs": [7]}, "legs: 7 is not a mapping"),
        ({"base": {"a": 1}}, "base: {'a': 1} is not a number, a text"),
        ({"model": "nowhere.urdf", "lower": []}, "no model file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(change, message, tmp_path: Path):
    with pytest.raises(WorldError, match=re.escape(message)) as error:
        get_robot(written(tmp_path, TINY | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be a mapping"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("name: 2026-99-99", "cannot be read: day is out of range|month must be in"),
        ("a: &a [1]\nbase: [*a, *a]", "aliases are refused"),
        ("base: " + "[" * 5000, "nested more than 30 deep"),
        ("base: trunk", "joints must be a list"),
        ("joints: []", "a robot needs model, base, default_pose, kp"),
    ],
)
def test_what_is_no_robot_is_refused(text, message, tmp_path: Path):
    with pytest.raises(WorldError, match=message):
        get_robot(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(WorldError, match="there is no robot file"):
        get_robot(str(tmp_path / "nothing.yaml"))
