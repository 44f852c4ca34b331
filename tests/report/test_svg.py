"""Charts: the picture shows the numbers, and a label stays a label."""

import math
from xml.etree import ElementTree

import pytest

from rlgym.report import svg

NAMESPACE = {"s": "http://www.w3.org/2000/svg"}


def drawn_bars(picture: str) -> list[tuple]:
    """Return what each bar says it shows, and its height in pixels."""
    found = []
    for bar in ElementTree.fromstring(picture).findall("s:rect", NAMESPACE):
        title = bar.find("s:title", NAMESPACE)
        if title is not None:
            found.append((title.text, float(bar.get("height"))))
    return found


def test_a_bar_is_as_high_as_its_value():
    picture = svg.bars("t", ["a", "b"], {"x": [0.5, 1.0], "y": [0.25, 0.0]}, top=1.0)
    heights = dict(drawn_bars(picture))
    assert heights["b, x: 1.000"] == pytest.approx(260 - 30 - 40, abs=0.1)
    assert heights["a, x: 0.500"] == pytest.approx(heights["b, x: 1.000"] / 2, abs=0.1)
    assert heights["a, y: 0.250"] == pytest.approx(heights["b, x: 1.000"] / 4, abs=0.1)
    assert heights["b, y: 0.000"] == 0.0


def test_stacked_bars_stand_on_each_other():
    picture = svg.bars("t", ["a"], {"x": [0.5], "y": [0.25]}, stacked=True)
    root = ElementTree.fromstring(picture)
    tops = [float(r.get("y")) for r in root.findall("s:rect", NAMESPACE) if len(r)]
    heights = [height for _, height in drawn_bars(picture)]
    assert tops[1] + heights[1] == pytest.approx(tops[0], abs=0.11)


def test_what_is_no_number_is_not_drawn():
    assert len(drawn_bars(svg.bars("t", ["a", "b"], {"x": [math.nan, 0.5]}))) == 1
    picture = svg.lines("t", [0.0, 1.0, 2.0], {"x": [1.0, math.nan, 3.0]}, x_label="s")
    (curve,) = ElementTree.fromstring(picture).findall("s:polyline", NAMESPACE)
    assert len(curve.get("points").split()) == 2


def test_curves_go_through_their_points():
    picture = svg.lines("t", [0.0, 1.0, 2.0], {"up": [0.0, 1.0, 2.0]}, x_label="s")
    (curve,) = ElementTree.fromstring(picture).findall("s:polyline", NAMESPACE)
    points = [tuple(map(float, one.split(","))) for one in curve.get("points").split()]
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    assert points[0][1] > points[1][1] > points[2][1], "y grows upwards"


def test_a_constant_curve_and_one_point_can_be_drawn():
    ElementTree.fromstring(svg.lines("t", [0.0, 1.0], {"x": [2.0, 2.0]}, x_label="s"))
    ElementTree.fromstring(svg.lines("t", [0.0], {"x": [2.0]}, x_label="s"))


def test_labels_cannot_add_elements():
    name = "<script>alert(1)</script>'\"&"
    for picture in (
        svg.bars(name, [name], {name: [0.5]}),
        svg.lines(name, [0.0, 1.0], {name: [0.5, 0.6]}, x_label=name),
    ):
        root = ElementTree.fromstring(picture)
        assert not [one for one in root.iter() if one.tag.endswith("script")]
        assert name in [one.text for one in root.iter()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-1.5, 1.4, [-1.0, 0.0, 1.0]),
        (0.0, 3.0, [0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert svg._ticks(low, high, 5) == pytest.approx(ticks)
