"""Pictures of saved results: seconds to a return (ppo-cartpole), learning curves (learning)."""

from pathlib import Path
from typing import Any

from rlgym.bench.ppo_cartpole import THRESHOLD, WORLD
from rlgym.bench.table import read
from rlgym.errors import MissingExtraError, UserError

SIDES = (("sb3", "Stable-Baselines3, rl-zoo's settings", "#9aa0a6"), ("ours", "rlgym", "#d1495b"))
"""Key in the result's details, label, colour."""


def draw(source: Path, target: Path) -> None:
    """Draw every seed as a PNG (or whatever the target's ending says).

    Raises:
        UserError: when the source is not a result with curves, or matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs matplotlib: pip install 'rlgym-lab[dev]', or matplotlib alone"
        ) from error
    result = read(source)
    try:
        learned = [case for case in result["cases"] if any(case["details"].get("curves", ()))]
        size = (7.0, 3.2) if not learned else (7.0, 2.4 * -(-len(learned) // 2))
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        if learned:
            _draw_learning(figure, learned)
        else:
            _draw_seconds(figure, result)
    except (IndexError, KeyError, TypeError):
        raise UserError(
            f"{source} has no curves: give a result of ppo-cartpole or of learning"
        ) from None
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _draw_seconds(figure: Any, result: dict[str, Any]) -> None:
    """Draw both sides of a ppo-cartpole result over wall seconds."""
    details = result["cases"][0]["details"]
    curves = {key: [run["curve"] for run in details[key]] for key, _, _ in SIDES}
    axes = figure.add_subplot()
    for key, label, colour in SIDES:
        for number, curve in enumerate(curves[key]):
            seconds, means = zip(*curve, strict=True)
            axes.plot(seconds, means, color=colour, lw=1.6, label=None if number else label)
    axes.axhline(THRESHOLD, color="black", lw=0.8, ls=":")
    axes.set_xlabel(
        f"wall seconds ({result['machine']['cpu']}, {result['machine']['cores']} cores)"
    )
    axes.set_ylabel("mean return of\nthe last 100 episodes")
    axes.set_title(f"PPO on {WORLD}, {len(curves['ours'])} seeds each", fontsize=10)
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 510.0)
    axes.legend(frameon=False, loc="lower right")


def _draw_learning(figure: Any, cases: list[dict[str, Any]]) -> None:
    """Draw the evaluations of every run of a learning result over environment steps."""
    for number, case in enumerate(cases):
        axes = figure.add_subplot(-(-len(cases) // 2), min(2, len(cases)), number + 1)
        for curve in case["details"]["curves"]:
            if curve:
                axes.plot(*zip(*curve, strict=True), color=SIDES[1][2], lw=1.4)
        axes.axhline(case["goal"]["bound"], color="black", lw=0.8, ls=":")
        axes.set_title(case["name"].rpartition(":")[2], fontsize=9)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axes.tick_params(labelsize=8)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return in evaluation", fontsize=9)
