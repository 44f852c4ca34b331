"""Charts as SVG text: a page of them needs no package to draw and none to look at.

Every function returns one `<svg>` element as a text. Labels are escaped, so that a clip's or a
run's name cannot add elements to the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLOURS = ("#d1495b", "#2e86ab", "#9aa0a6", "#e0a458", "#5b8e7d", "#7d5ba6")
"""Of the series, in order."""
_FONT = "font-family='system-ui, sans-serif'"
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 30.0, 40.0

Series = Mapping[str, Sequence[float]]
"""Label -> its values."""


def bars(
    title: str,
    groups: Sequence[str],
    series: Series,
    *,
    top: float = 1.0,
    line: float | None = None,
    stacked: bool = False,
    size: tuple[float, float] = (760.0, 260.0),
) -> str:
    """Draw groups of bars, one per series; a value that is not a number leaves its place empty.

    Args:
        title: over the chart.
        groups: labels on the x axis, of one line or two.
        series: as many values each as there are groups.
        top: the y axis goes from 0 to here.
        line: a dotted line at this height.
        stacked: put the series on top of each other instead of beside.
        size: width and height in pixels.
    """
    frame = _Frame(size, (0.0, float(len(groups))), (0.0, top))
    parts = frame.axes(title, list(series))
    width = 0.8 if stacked else 0.8 / max(len(series), 1)
    for group, label in enumerate(groups):
        for number, part in enumerate(label.split("\n")):
            at = size[1] - _BOTTOM + 16 + 14 * number
            parts.append(_text(frame.x(group + 0.5), at, part, "middle"))
        label = label.replace("\n", ", ")
        base = 0.0
        for number, values in enumerate(series.values()):
            value = values[group]
            if not math.isfinite(value):
                continue
            start = group + 0.1 + (0.0 if stacked else number * width)
            low, high = frame.y(base), frame.y(min(base + value, top))
            name = escape(f"{label}, {list(series)[number]}: {value:.3f}")
            parts.append(
                f"<rect x='{frame.x(start):.1f}' y='{high:.1f}' fill='{_colour(number)}' "
                f"width='{frame.x(width) - frame.x(0.0):.1f}' height='{max(low - high, 0.0):.1f}'>"
                f"<title>{name}</title></rect>"
            )
            base += value if stacked else 0.0
    if line is not None:
        parts.append(frame.path([(0.0, line), (float(len(groups)), line)], "#202124", "2 3", 1.0))
    return frame.whole(parts)


def lines(
    title: str,
    x: Sequence[float],
    series: Series,
    *,
    x_label: str,
    dashed: frozenset[str] = frozenset(),
    colours: Mapping[str, str] | None = None,
    legend: Sequence[str] | None = None,
    size: tuple[float, float] = (760.0, 220.0),
) -> str:
    """Draw curves over a common x.

    Args:
        title: over the chart.
        x: increasing.
        series: as many values each as `x`.
        x_label: name and unit of x.
        dashed: labels of the series that are drawn dashed.
        colours: of a series, instead of the next in order.
        legend: labels that are explained; all by default.
        size: width and height in pixels.
    """
    values = [value for one in series.values() for value in one if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    frame = _Frame(size, (x[0], x[-1]) if len(x) > 1 else (0.0, 1.0), (low - margin, high + margin))
    chosen = {
        label: (colours or {}).get(label, _colour(number)) for number, label in enumerate(series)
    }
    parts = frame.axes(title, list(series) if legend is None else legend, chosen)
    for label, curve in series.items():
        points = [(a, b) for a, b in zip(x, curve, strict=True) if math.isfinite(b)]
        parts.append(frame.path(points, chosen[label], "5 3" if label in dashed else "", 1.6))
    for tick in _ticks(*frame.x_range, 6):
        parts.append(_text(frame.x(tick), size[1] - _BOTTOM + 16, f"{tick:g}", "middle"))
    parts.append(_text(size[0] / 2, size[1] - 6, x_label, "middle"))
    return frame.whole(parts)


class _Frame:
    """Where numbers lie on the picture."""

    def __init__(
        self,
        size: tuple[float, float],
        x_range: tuple[float, float],
        y_range: tuple[float, float],
    ) -> None:
        self.size, self.x_range, self.y_range = size, x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.size[0] - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return (
            self.size[1] - _BOTTOM - (value - low) / (high - low) * (self.size[1] - _TOP - _BOTTOM)
        )

    def axes(
        self, title: str, labels: Sequence[str], colours: Mapping[str, str] | None = None
    ) -> list[str]:
        """Title, y axis with its grid, and the legend."""
        width = self.size[0]
        parts = [_text(_LEFT, 14, title, "start", 13)]
        for tick in _ticks(*self.y_range, 5):
            y = self.y(tick)
            parts.append(
                f"<line x1='{_LEFT}' x2='{width - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' "
                "stroke='#dadce0' stroke-width='0.7'/>"
            )
            parts.append(_text(_LEFT - 6, y + 4, f"{tick:g}", "end"))
        at = width - _RIGHT
        for number, label in reversed(list(enumerate(labels))):
            at -= 6.6 * len(label)
            parts.append(_text(at, 14, label, "start"))
            colour = (colours or {}).get(label, _colour(number))
            parts.append(f"<rect x='{at - 13:.1f}' y='6' width='9' height='9' fill='{colour}'/>")
            at -= 24
        return parts

    def path(
        self, points: Sequence[tuple[float, float]], colour: str, dash: str, width: float
    ) -> str:
        """A line through points."""
        places = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        style = f" stroke-dasharray='{dash}'" if dash else ""
        return (
            f"<polyline points='{places}' fill='none' stroke='{colour}' stroke-width='{width}'"
            f"{style}/>"
        )

    def whole(self, parts: Sequence[str]) -> str:
        """The finished picture."""
        width, height = self.size
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' "
            f"width='{width:g}' height='{height:g}' role='img'>"
            f"<rect width='{width:g}' height='{height:g}' fill='white'/>{''.join(parts)}</svg>"
        )


def _text(x: float, y: float, text: Any, anchor: str, size: int = 11) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' {_FONT} text-anchor='{anchor}' "
        f"fill='#202124'>{escape(str(text))}</text>"
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two ends, about `count` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]
