"""What a person sees while a run trains: a live panel in a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Literal, TextIO

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Mode = Literal["auto", "live", "plain", "off"]

SHOWN: dict[str, str] = {
    "rollout/ep_rew_mean": "return",
    "rollout/ep_len_mean": "length",
    "rollout/success_rate": "success",
    "eval/mean_reward": "evaluation",
    "eval/success_rate": "evaluated success",
    "train/approx_kl": "approx. KL",
    "train/clip_fraction": "clip fraction",
    "train/explained_variance": "explained variance",
    "train/entropy_loss": "entropy loss",
    "train/value_loss": "value loss",
    "train/std": "std",
    "train/actor_loss": "actor loss",
    "train/critic_loss": "critic loss",
    "train/q_mean": "Q mean",
    "train/ent_coef": "temperature",
    "train/learning_rate": "learning rate",
}
"""Scalars of the live panel, in its order, with the words that they get there."""

IN_A_LINE = (
    *("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate"),
    *("eval/mean_reward", "eval/success_rate"),
)
"""Scalars of a plain line."""

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 2.0


class Console:
    """Shows progress towards `total_steps`.

    Args:
        title: First words of the live panel.
        total_steps: Environment steps at which the run is done.
        mode: "live" panel, "plain" lines, "off", or "auto": live in a terminal, plain elsewhere.
        stream: Where to write; stdout by default.
    """

    def __init__(
        self, title: str, total_steps: int, mode: Mode = "auto", stream: TextIO | None = None
    ):
        self.title = title
        self.total_steps = total_steps
        self.stream = stream or sys.stdout
        self.mode = ("live" if is_terminal(self.stream) else "plain") if mode == "auto" else mode
        self.latest: dict[str, float] = {}
        self._step = 0
        self._first = (0, time.monotonic())  # step and time from which the rate counts
        self._shown_at = float("-inf")
        self._pending = False
        self._live: Live | None = None

    def start(self, step: int) -> None:
        """Let the rate count from here, when a run goes on from this step."""
        self._first = (step, time.monotonic())
        self._step = step

    def update(self, metrics: Mapping[str, float], step: int) -> None:
        """Take new scalars; show them now, or with the next ones when it has just been shown."""
        if self.mode == "off":
            return
        self.latest.update(metrics)
        self._step = step
        self._pending = True
        pause = LIVE_SECONDS if self.mode == "live" else PLAIN_SECONDS
        evaluated = any(name.startswith("eval/") for name in metrics)
        if evaluated or time.monotonic() - self._shown_at >= pause:
            self._show()

    def note(self, text: str) -> None:
        """Print one line above the panel, or among the plain lines."""
        if self.mode == "off":
            return
        if self._live is not None:
            self._live.console.print(escape(text), highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Show what has not been shown and give the terminal back."""
        if self._pending:
            self._show()
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.mode = "off"

    def seconds_left(self) -> float | None:
        """Return the time to `total_steps` at the rate so far, None before there is a rate."""
        rate = self._rate()
        return None if rate is None else max(self.total_steps - self._step, 0) / rate

    def _rate(self) -> float | None:
        step, began = self._first
        seconds = time.monotonic() - began
        return (self._step - step) / seconds if self._step > step and seconds > 0 else None

    def _show(self) -> None:
        self._pending = False
        self._shown_at = time.monotonic()
        if self.mode == "plain":
            print(self._line(), file=self.stream, flush=True)
            return
        if self._live is None:
            terminal = RichConsole(file=self.stream)
            self._live = Live(console=terminal, auto_refresh=False, vertical_overflow="visible")
            self._live.start()
        self._live.update(self._panel(), refresh=True)

    def _progress(self) -> list[str]:
        words = [f"{self._step:,}/{self.total_steps:,} steps"]
        rate, left = self._rate(), self.seconds_left()
        if rate is not None and left is not None:
            words += [f"{rate:,.0f} steps/s", f"{clock(left)} left"]
        return words

    def _line(self) -> str:
        done = min(self._step / self.total_steps, 1.0)
        words = self._progress()
        shown = [f"{SHOWN[n]} {number(self.latest[n])}" for n in IN_A_LINE if n in self.latest]
        return " | ".join([f"{done:4.0%} {words[0]}", *shown, *words[1:]])

    def _panel(self) -> Group:
        header = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.total_steps, completed=self._step, width=24)
        header.add_row(bar, Text("  ".join(self._progress())))
        table = Table.grid(padding=(0, 2))
        cells = [
            (Text(word, style="dim"), Text(number(self.latest[name]), justify="right"))
            for name, word in SHOWN.items()
            if name in self.latest
        ]
        for row in zip(*[iter([*cells, *[(Text(), Text())] * (-len(cells) % 3)])] * 3, strict=True):
            table.add_row(*[cell for pair in row for cell in pair])
        return Group(Text(self.title, style="bold"), header, table)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a panel can be redrawn there."""
    interactive = getattr(stream, "isatty", lambda: False)()
    return interactive and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def number(value: float) -> str:
    """Write a scalar in few characters."""
    if abs(value) < 1e9 and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
