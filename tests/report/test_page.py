"""The sim-to-sim page from documents made by hand."""

import itertools
import json
from html.parser import HTMLParser

import pytest

from rlgym.report import page
from tests.report.documents import document


class Reader(HTMLParser):
    """Collects the elements of a page and the texts of its table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    return reader


def test_the_page_says_every_number_in_its_row(tmp_path):
    found = read(page.write_page(document(), tmp_path))
    row = ["undisturbed", "0.880", "0.850", "0.380", "100%", "100%", "100%"]
    assert row in found.rows, "PyBullet's scores: policy, open loop, standing, then survival"
    assert ["pushes of 1 m/s", "0.750", "0.500", "0.300", "75%", "100%", "100%"] in found.rows
    assert [
        r for r in found.rows if r[:2] == ["pushes of 1 m/s", "the engine 'mujoco' cannot push"]
    ]
    assert ["undisturbed", *["0.176"] * 5, "0.880"] in found.rows, "the terms and their sum"
    standing = ["undisturbed (standing still)", "0.080", "0.020", "0.100", "40", "–", "–"]
    assert standing in found.rows, "no energy per metre without metres"
    assert ["pushes of 1 m/s", "0.080", "0.020", "0.100", "40", "80", "tilt 1"] in found.rows


def test_the_headline_has_the_first_and_the_worst_row():
    assert page.headline(document()) == (
        "PyBullet: 0.880 (100% survive) undisturbed, at worst 0.750 (75% survive) with pushes of "
        "1 m/s; MuJoCo: 0.900 (100% survive) undisturbed"
    )


def test_files_stand_beside_the_page_and_none_is_left_half(tmp_path):
    page.write_page(document(), tmp_path, {"the policy in bullet": "bullet.mp4"})
    names = {path.name for path in tmp_path.iterdir()}
    plots = {f"{kind}-{engine}.svg" for kind in ("scores", "terms", "joints")
             for engine in ("bullet", "mujoco")}  # fmt: skip
    assert names == {"index.html", "report.md", "report.json", *plots}
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved == document()
    text = (tmp_path / "report.md").read_text("utf-8")
    for plot in plots:
        assert f"]({plot})" in text
    assert "(bullet.mp4)" in text
    films = [
        attrs["src"] for tag, attrs in read(tmp_path / "index.html").elements if tag == "video"
    ]
    assert films == ["bullet.mp4"]


def test_markdown_tables_are_whole(tmp_path):
    page.write_page(document(), tmp_path)
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert line.count("|") == before.count("|")


def test_names_cannot_add_elements_to_the_page(tmp_path):
    name = "<script>alert('x')</script>|[a](b)"
    hostile = document(run=name, clip=name, robot=name, spec=name)
    found = read(page.write_page(hostile, tmp_path, {name: 'x" onerror="y.mp4'}))
    assert "script" not in [tag for tag, _ in found.elements]
    assert not [attrs for _, attrs in found.elements if "onerror" in attrs]
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "<script>" not in text and "[a](b)" not in text


def test_an_engine_that_measured_nothing_still_gives_a_page(tmp_path):
    found = document()
    found["cells"] = [one for one in found["cells"] if one["refused"]]
    found["about"]["engines"] = {"mujoco": "MuJoCo"}
    rows = read(page.write_page(found, tmp_path)).rows
    assert ["pushes of 1 m/s", "the engine 'mujoco' cannot push"] in [row[:2] for row in rows]


def test_a_policy_of_several_clips_has_a_row_for_each(tmp_path):
    found = document()
    found["cells"][0]["measured"]["policy"]["clips"] = {"pace": 0.9, "trot": 0.86}
    rows = read(page.write_page(found, tmp_path)).rows
    assert ["", "pace", "trot"] in rows and ["undisturbed", "0.900", "0.860"] in rows
    assert ["pushes of 1 m/s", "–", "0.750"] in rows, "an episode of a clip may not have come up"
    one_clip = read(page.write_page(document(), tmp_path)).rows
    assert ["", "trot"] not in one_clip
