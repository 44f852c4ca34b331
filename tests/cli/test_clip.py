"""`rlgym clip` as a person types it."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rlgym.cli.main import main
from rlgym.envs.imitation.clip_files import load_clip


def call(capsys, *words):
    """Run the command; return its exit status and its last line of output, or its error."""
    status = main(["clip", *map(str, words)])
    shown = capsys.readouterr()
    return status, (shown.err or shown.out).strip()


def test_show_without_a_clip_lists_the_names(capsys):
    status, text = call(capsys, "show")
    assert status == 0 and "trot, pace, bound" in text and "laikago_walk" in text


def test_show_says_what_a_clip_is_like(capsys):
    status, text = call(capsys, "show", "trot:speed=.8", "--json")
    facts = json.loads(text)
    assert status == 0
    assert facts["mean_velocity"] == "x +0.800 m/s, y +0.000 m/s"
    assert facts["length"] == "201 frames, 400 per second, 0.5 s, loops"
    assert facts["feet_above_ground"] == "-0.000 to +0.060 m"
    assert facts["may_ship"] == "yes" and facts["robot"] == "a1"


def test_a_file_stays_with_its_own_robot_unless_another_is_named(capsys):
    assert json.loads(call(capsys, "show", "laikago_walk", "--json")[1])["robot"] == "laikago"
    shown = json.loads(call(capsys, "show", "laikago_walk", "--json", "--robot", "aliengo")[1])
    assert shown["robot"] == "aliengo" and "retargeted from laikago" in shown["source"]


def test_generate_convert_and_retarget_write_clips(capsys, tmp_path):
    made, moved, copied = (tmp_path / f"{name}.npz" for name in ("made", "moved", "copied"))
    words = ("generate", "turn:yaw_rate=.5", made, "--robot", "aliengo", "--name", "left")
    assert call(capsys, *words)[0] == 0
    clip = load_clip(made, "aliengo")
    assert (clip.name, clip.robot, clip.may_ship) == ("left", "aliengo", True)
    assert call(capsys, "retarget", made, moved, "--robot", "a1", "--mirror", "--level")[0] == 0
    other = load_clip(moved, "a1")
    assert other.robot == "a1"
    assert other.root_quat[-1, 2] == pytest.approx(-clip.root_quat[-1, 2])
    words = ("convert", made, copied, "--licence", "MIT", "--may-ship", "--loop", "no")
    assert call(capsys, *words)[0] == 0
    same = load_clip(copied, "aliengo")
    assert same.licence == "MIT" and not same.loop
    assert same.q == pytest.approx(clip.q)


def test_retargeting_onto_its_own_robot_closes_the_loop(capsys, tmp_path):
    path = tmp_path / "closed.npz"
    call(capsys, "retarget", "laikago_walk", path, "--robot", "laikago")
    before, after = (load_clip(clip, "laikago") for clip in ("laikago_walk", path))
    assert abs(before.q[-1] - before.q[0]).max() > 0.1
    assert after.q[-1] == pytest.approx(after.q[0])
    assert abs(after.q - before.q).max() < 0.2


def test_plot_and_film_show_the_motion(capsys, tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    words = ("show", "walk", "--plot", tmp_path / "walk.svg", "--film", tmp_path / "walk.gif")
    status, text = call(capsys, *words, "--seconds", "0.4")
    assert status == 0 and f"written: {tmp_path / 'walk.gif'}" in text
    root = ET.parse(tmp_path / "walk.svg").getroot()
    assert root.tag.endswith("svg")
    assert len(root) == 5  # four legs and the heights
    pictures = imageio.mimread(tmp_path / "walk.gif")
    assert len(pictures) == 12
    first, middle = (np.asarray(pictures[k], float)[..., :3] for k in (0, 6))
    assert np.abs(first - middle).max() > 50  # the robot moved


WRONG = [
    (("shows", "trot"), "did you mean 'show'"),
    (("convert",), "which one? rlgym clip convert CLIP OUT.npz"),
    (("convert", "trot"), "name the .npz file to write"),
    (("show", "trot", "out.npz"), "show writes no clip"),
    (("generate", "laikago_walk", "out.npz"), "there is no gait 'laikago_walk'"),
    (("generate", "trot", "out.txt"), "out.txt: its name must end in .npz"),
    (("show", "trot", "--film", "out.avi"), "its name must end in .mp4 or .gif"),
    (("show", "trot", "--seconds", "0"), "--seconds must be above 0"),
    (("show", "trot", "--robot", "a2"), "there is no robot 'a2': choose from a1, laikago"),
    (("show", "trot", "--scale", "0"), "a scale of 0.0 makes no sense"),
    (("show", "nosuch.npz"), "nosuch.npz: No such file"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, text = call(capsys, *words)
    assert status == 2 and message in text and "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(capsys, tmp_path):
    path = tmp_path / "mine.npz"
    path.write_text("precious")
    status, text = call(capsys, "generate", "trot", path)
    assert status == 2 and "add --overwrite" in text and path.read_text() == "precious"
    assert call(capsys, "generate", "trot", path, "--overwrite")[0] == 0
    assert load_clip(path, "a1").name == "trot"
