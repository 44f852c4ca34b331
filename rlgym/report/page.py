"""The sim-to-sim report as files: index.html, report.md, report.json, plots and films."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlgym.report import svg

SHOWN_TERMS = ("nominal", "push-0.5")
"""Disturbances whose reward terms are drawn, as far as they were measured."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;"
    "color:#202124}table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25em .7em;border-bottom:1px solid #dadce0;text-align:right}"
    "td:first-child,th:first-child{text-align:left}td.low{color:#b3261e}svg,video{max-width:100%}"
    "svg{height:auto}video{width:49%}code{background:#f1f3f4;padding:.1em .3em}"
)

Document = Mapping[str, Any]
"""What `rlgym.report.sim2sim.compare` returns."""


def write_page(document: Document, folder: Path, films: Mapping[str, str] | None = None) -> Path:
    """Write the report into a folder and return its page.

    Args:
        document: what was measured.
        folder: made if it is not there; files of an older report are replaced.
        films: caption -> file name of a film that stands in the folder already.
    """
    films = films or {}
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(document)
    for name, (_, picture) in plots.items():
        _replace(folder / f"{name}.svg", picture)
    sections = tables(document)
    _replace(folder / "report.json", json.dumps(document, indent=1) + "\n")
    _replace(folder / "report.md", _markdown(document, sections, plots, films))
    page = folder / "index.html"
    _replace(page, _html(document, sections, plots, films))
    return page


# ----- What is said ------------------------------------------------------------------------------


def headline(document: Document) -> str:
    """One sentence: what the policy scores where it was not trained."""
    about = document["about"]
    parts = []
    for engine, name in about["engines"].items():
        cells = [
            c for c in document["cells"] if c["engine"] == engine and "policy" in c["measured"]
        ]
        if not cells:
            continue
        by_score = sorted(cells, key=lambda cell: cell["measured"]["policy"]["score"])
        first, worst = cells[0], by_score[0]
        text = f"{name}: {_score(first)} {_title(about, first)}"
        if len(cells) > 1:
            text += f", at worst {_score(worst)} with {_title(about, worst)}"
        parts.append(text)
    return "; ".join(parts) or "nothing was measured"


def facts(document: Document) -> str:
    """What was trained, and how it was measured."""
    about = document["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['robot']} imitating {about['clip']} (spec {about['spec']}), trained in "
        f"{about['trained_in']} for {about['env_steps']:,} steps, {about['which']} "
        f"checkpoint; {about['episodes']} deterministic episodes of each actor in each row, the "
        f"same start phases and pushes for all; {about['date']}, {versions}."
    )


MEANING = (
    "A score is the mean reward per step of a whole episode from a random phase: 1 is the clip "
    "itself, 0 counts for every step after a fall. Standing still keeps the default pose; open "
    "loop sends the clip's own joint angles one control step ahead and looks at nothing. What a "
    "policy has learned is what it scores above both, in the same engine and the same world."
)
TRACKING = (
    "Before a fall: joint error is the root mean square angle from the clip over joints and "
    "steps; drift is the horizontal distance by which the base leaves the clip in one of its "
    "cycles; heading error is the root mean square angle of the base's heading; power is the sum "
    "over joints of |torque × velocity|; energy is that per metre gained."
)

NOTES = {
    "Scores": MEANING,
    "Reward terms": "What each term of the reward adds to the score.",
    "Tracking and energy": TRACKING,
}
"""The page's sections, and what stands under their titles."""

Rows = tuple[list[str], list[list[str]]]
"""A table: its head and its rows."""


def tables(document: Document) -> dict[str, list[tuple[str, Rows]]]:
    """Return the tables of each section, one per engine, with their captions."""
    about, cells = document["about"], document["cells"]
    found: dict[str, list[tuple[str, Rows]]] = {section: [] for section in NOTES}
    for engine, name in about["engines"].items():
        found["Scores"].append((_caption(name, engine, cells), _scores(about, engine, cells)))
        clips = _clips(about, engine, cells)
        if len(clips[0]) > 2:
            found["Scores"].append((f"{name}, trained policy, by clip", clips))
        found["Reward terms"].append((name, _terms(about, engine, cells)))
        found["Tracking and energy"].append((name, _tracking(about, engine, cells)))
    return found


def _caption(name: str, engine: str, cells: Sequence[Document]) -> str:
    steps = {c["time_step"] for c in cells if c["engine"] == engine and not c["refused"]}
    shown = ", ".join(f"{1000 * step:g} ms" for step in sorted(steps))
    return f"{name}, physics step {shown}" if steps else name


def _scores(about: Document, engine: str, cells: Sequence[Document]) -> Rows:
    actors = about["actors"]
    head = ["", *actors.values(), *(f"{title} survives" for title in actors.values())]
    rows = []
    for cell in _of(engine, cells):
        if cell["refused"]:
            rows.append([_title(about, cell), cell["refused"], *[""] * (2 * len(actors) - 1)])
            continue
        found = [cell["measured"][name] for name in actors]
        row = [_number(one["score"]) for one in found] + [f"{one['survival']:.0%}" for one in found]
        rows.append([_title(about, cell), *row])
    return head, rows


def _clips(about: Document, engine: str, cells: Sequence[Document]) -> Rows:
    """The policy's score on each clip; a policy may have learned several."""
    found = [cell for cell in _of(engine, cells) if "policy" in cell["measured"]]
    names = sorted({name for cell in found for name in cell["measured"]["policy"]["clips"]})
    rows = []
    for cell in found:
        scores = cell["measured"]["policy"]["clips"]
        rows.append([_title(about, cell), *(_number(scores.get(name)) for name in names)])
    return ["", *names], rows


def _terms(about: Document, engine: str, cells: Sequence[Document]) -> Rows:
    names: list[str] = []
    rows = []
    for cell in _of(engine, cells):
        for actor, one in cell["measured"].items():
            if actor != "policy" and cell["disturbance"] != "nominal":
                continue
            names = list(one["terms"])
            who = "" if actor == "policy" else f" ({about['actors'][actor]})"
            shares = [_number(one["terms"][name]) for name in names]
            rows.append([_title(about, cell) + who, *shares, _number(one["score"])])
    return ["", *(name.replace("_", " ") for name in names), "sum"], rows


def _tracking(about: Document, engine: str, cells: Sequence[Document]) -> Rows:
    head = ["", "joint error, rad", "drift, m per cycle", "heading error, rad", "power, W"]
    head += ["energy, J/m", "ended by"]
    rows = []
    for cell in _of(engine, cells):
        for actor, one in cell["measured"].items():
            if actor != "policy" and cell["disturbance"] != "nominal":
                continue
            who = "" if actor == "policy" else f" ({about['actors'][actor]})"
            causes = ", ".join(f"{cause} {count}" for cause, count in one["causes"].items())
            numbers = [_number(one[key]) for key in ("joint_error", "drift", "heading_error")]
            numbers += [_number(one["power"], 0), _number(one["energy"], 0), causes or "–"]
            rows.append([_title(about, cell) + who, *numbers])
    return head, rows


def _of(engine: str, cells: Sequence[Document]) -> list[Document]:
    return [cell for cell in cells if cell["engine"] == engine]


def _title(about: Document, cell: Document) -> str:
    return about["disturbances"][cell["disturbance"]]


def _score(cell: Document) -> str:
    one = cell["measured"]["policy"]
    return f"{one['score']:.3f} ({one['survival']:.0%} survive)"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


# ----- What is drawn -----------------------------------------------------------------------------


def draw(document: Document) -> dict[str, tuple[str, str]]:
    """Return the plots: file name without its end -> (section, SVG)."""
    about = document["about"]
    plots = {}
    for engine, name in about["engines"].items():
        cells = [cell for cell in _of(engine, document["cells"]) if not cell["refused"]]
        if not cells:
            continue
        short = [cell["disturbance"] for cell in cells]
        series = {
            title: [cell["measured"][actor]["score"] for cell in cells]
            for actor, title in about["actors"].items()
        }
        picture = svg.bars(f"Mean reward per step in {name}", short, series)
        plots[f"scores-{engine}"] = ("Scores", picture)
        shown = [cell for cell in cells if cell["disturbance"] in SHOWN_TERMS]
        plots |= _draw_terms(about, engine, shown)
        plots |= _draw_joints(engine, name, cells[0])
    return plots


def _draw_terms(about: Document, engine: str, cells: Sequence[Document]) -> dict[str, Any]:
    columns = {
        f"{title}\n{cell['disturbance']}": cell["measured"][actor]["terms"]
        for cell in cells
        for actor, title in about["actors"].items()
    }
    if not columns:
        return {}
    names = list(next(iter(columns.values())))
    series = {n.replace("_", " "): [terms[n] for terms in columns.values()] for n in names}
    picture = svg.bars(
        f"Shares of the reward in {about['engines'][engine]}", list(columns), series, stacked=True
    )
    return {f"terms-{engine}": ("Reward terms", picture)}


def _draw_joints(engine: str, name: str, cell: Document) -> dict[str, Any]:
    """Draw the policy's joints and the clip's in the first episode."""
    trace = dict(cell["measured"].get("policy", {}).get("trace", {}))
    times = trace.pop("t", [])
    if len(times) < 2:
        return {}
    joints = [name for name in trace if not name.endswith(" (clip)")]
    colours = {}
    for number, joint in enumerate(joints):
        colours[joint] = colours[f"{joint} (clip)"] = svg.COLOURS[number]
    picture = svg.lines(
        f"Joints in {name}, rad (dashed: the clip)",
        times,
        {key: trace[key] for joint in joints for key in (joint, f"{joint} (clip)")},
        x_label="s",
        dashed=frozenset(f"{joint} (clip)" for joint in joints),
        colours=colours,
        legend=joints,
    )
    return {f"joints-{engine}": ("Tracking and energy", picture)}


# ----- Files -------------------------------------------------------------------------------------


def _html(
    document: Document,
    sections: Mapping[str, Sequence[tuple[str, Rows]]],
    plots: Mapping[str, tuple[str, str]],
    films: Mapping[str, str],
) -> str:
    title = f"Sim to sim: {document['about']['run']}"
    parts = [
        "<!doctype html>",
        f"<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        f"<p><strong>{escape(headline(document))}</strong></p><p>{escape(facts(document))}</p>",
    ]
    for caption, film in films.items():
        parts.append(
            f"<video src='{escape(film, quote=True)}' title='{escape(caption, quote=True)}' "
            "controls loop muted autoplay playsinline></video>"
        )
    if films:
        parts.append(f"<p>{escape(_films_say(films))}</p>")
    for section, found in sections.items():
        parts.append(f"<h2>{escape(section)}</h2><p>{escape(NOTES[section])}</p>")
        parts += [picture for where, picture in plots.values() if where == section]
        for caption, (head, rows) in found:
            parts.append(f"<h3>{escape(caption)}</h3><table><tr>")
            parts += [f"<th>{escape(cell)}</th>" for cell in head]
            parts.append("</tr>")
            for row in rows:
                parts.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
            parts.append("</table>")
    return "\n".join([*parts, "</body></html>", ""])


def _markdown(
    document: Document,
    sections: Mapping[str, Sequence[tuple[str, Rows]]],
    plots: Mapping[str, tuple[str, str]],
    films: Mapping[str, str],
) -> str:
    parts = [
        f"# Sim to sim: {_plain(document['about']['run'])}",
        f"**{_plain(headline(document))}**",
        _plain(facts(document)),
    ]
    if films:
        parts.append(_plain(_films_say(films)))
        parts.append(" · ".join(f"[{_plain(c)}]({film})" for c, film in films.items()))
    for section, found in sections.items():
        parts += [f"## {section}", NOTES[section]]
        parts += [
            f"![{name}]({name}.svg)" for name, (where, _) in plots.items() if where == section
        ]
        for caption, (head, rows) in found:
            parts.append(f"### {_plain(caption)}")
            lines = [head, ["---"] * len(head), *rows]
            parts.append("\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _films_say(films: Mapping[str, str]) -> str:
    return f"Films: {', '.join(films)}. The translucent robot is the clip."


def _plain(text: str) -> str:
    """A text that Markdown shows as it is written: names may hold what it would take for markup."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in text)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    staged = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)
