"""The README's picture: training return over wall seconds, from a saved ppo-cartpole result."""

from pathlib import Path

from rlgym.bench.ppo_cartpole import THRESHOLD, WORLD
from rlgym.bench.table import read
from rlgym.errors import MissingExtraError, UserError

SIDES = (("sb3", "Stable-Baselines3, rl-zoo's settings", "#9aa0a6"), ("ours", "rlgym", "#d1495b"))
"""Key in the result's details, label, colour."""


def draw(source: Path, target: Path) -> None:
    """Draw every seed of both sides as a PNG (or whatever the target's ending says).

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
        details = result["cases"][0]["details"]
        curves = {key: [run["curve"] for run in details[key]] for key, _, _ in SIDES}
    except (IndexError, KeyError, TypeError):
        raise UserError(f"{source} has no curves: give a result of ppo-cartpole") from None
    figure = Figure(figsize=(7.0, 3.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
