"""Scalars of a run: their names, and the files and the console that they go to.

A metric's name is an API: dashboards, plots and tests depend on it. The x axis is environment
steps, everywhere.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlgym.device import has_float64
from rlgym.errors import UserError
from rlgym.rollout.collector import CollectStats
from rlgym.settings import suggest
from rlgym.training.console import Console, Mode

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

NAMES: dict[str, str] = {
    "rollout/ep_rew_mean": "mean return of the last 100 training episodes, unscaled",
    "rollout/ep_len_mean": "mean length of the last 100 training episodes, in steps",
    "rollout/success_rate": "share of successes in the last 100 episodes of a world that tells",
    "time/fps": "environment steps per second since the start",
    "time/iterations": "rollouts so far",
    "time/time_elapsed": "seconds of training so far, without pauses between runs",
    "time/total_timesteps": "environment steps so far",
    "time/episodes": "training episodes finished so far",
    "train/approx_kl": "KL divergence of the updated policy from the one that acted (k3 estimate)",
    "train/clip_fraction": "share of probability ratios outside the clip range",
    "train/clip_range": "current clip range",
    "train/entropy_loss": "negative mean entropy of the policy",
    "train/explained_variance": "1 - Var(returns - values) / Var(returns); 1 is perfect",
    "train/learning_rate": "current step size",
    "train/loss": "total loss",
    "train/policy_gradient_loss": "clipped surrogate loss",
    "train/value_loss": "mean squared error of the values",
    "train/symmetry_loss": "mirror loss",
    "train/clone_loss": "distance from what was demonstrated",
    "train/std": "mean standard deviation of Gaussian actions",
    "train/actor_loss": "loss of SAC's actor: temperature times log-probability, less the value",
    "train/critic_loss": "half the mean squared error of each of SAC's critics, summed over them",
    "train/ent_coef": "SAC's temperature: the weight of the entropy",
    "train/ent_coef_loss": "loss that the temperature is learned by",
    "train/q_mean": "mean value that SAC's critics give the stored actions",
    "train/grad_norm": "global L2 norm of the gradient before clipping",
    "train/n_updates": "passes over a rollout so far; for SAC, gradient steps",
    "eval/mean_reward": "mean return of the evaluation episodes",
    "eval/std_reward": "standard deviation of the evaluation episodes' returns",
    "eval/mean_ep_length": "mean length of the evaluation episodes, in steps",
    "eval/success_rate": "share of evaluation episodes that succeeded",
    "perf/*": "seconds per line in collect, learn, ...; shares of time: *_idle; memory in bytes",
    "env/*": "mean per step of a term of the reward, or of a number that the world reports",
    "unity/*": "what the scripts of a Unity scene record; lesson/NAME: where a curriculum stands",
    "health/*": "counts of what went wrong and was survived: restarts, timeouts, lost slots, ...",
    "user/*": "free for your own hooks",
}
"""Every scalar that a run writes, with its meaning; "prefix/*" is a family with open names."""

METRICS_FILE = "metrics.jsonl"
INTERVAL_STEPS = 1000
"""Environment steps between two lines, where an iteration is too short for a line of its own."""


class Interval:
    """What happened since the last line of scalars, where an iteration has no line of its own.

    Attributes:
        stats: of its rollouts.
        metrics: of its last update; "health/*" of all.
        seconds: in updates.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin the next one."""
        self.stats = CollectStats()
        self.metrics: dict[str, Any] = {}
        self.seconds = 0.0

    def due(self, env_steps: int) -> bool:
        """Whether a multiple of `INTERVAL_STEPS` lies in it."""
        before = env_steps - self.stats.env_steps
        return env_steps // INTERVAL_STEPS > before // INTERVAL_STEPS

    def learned(self, metrics: dict[str, Any], seconds: float) -> None:
        """Add an update."""
        for name, count in self.metrics.items():
            if name.startswith("health/"):
                metrics[name] = metrics[name] + count
        self.metrics = metrics
        self.seconds += seconds


class Logger:
    """Writes scalars to TensorBoard, to `metrics.jsonl` and to the console.

    Args:
        run_dir: Existing folder of the run.
        total_steps: Environment steps at which the run is done, for the progress display.
        console: "auto", "live", "plain" or "off" (see `Console`).
        title: First words of the live panel; the folder's name by default.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        total_steps: int,
        console: Mode = "auto",
        title: str | None = None,
    ):
        self.run_dir = Path(run_dir)
        self.console = Console(title or self.run_dir.name, total_steps, console)
        self._lines = open(self.run_dir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._events: EventFileWriter | None = None
        self._lost = 0

    def write(self, metrics: Mapping[str, float | torch.Tensor], step: int) -> dict[str, float]:
        """Write scalars at environment step `step` and return them as floats.

        Tensors are read from their device at once.

        Raises:
            UserError: a name that is not in `NAMES`.
        """
        unknown = unknown_names(metrics)
        if unknown:
            close = suggest(unknown[0], NAMES)
            raise UserError(
                f"'{unknown[0]}' is not the name of a scalar: {close} "
                f"Your own hooks may write user/{unknown[0].rpartition('/')[2]}"
            )
        values = _read(metrics)
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **finite})
        try:
            self._lines.write(line + "\n")
            self._lines.flush()
            self._write_event(values, step)
        except OSError as error:  # a full disk costs points of a curve, not the run
            self._events = None
            if not self._lost:
                self.note(f"warning: scalars are being lost: {error.strerror or error}")
            self._lost += 1
        self.console.update(values, step)
        return values

    def note(self, text: str) -> None:
        """Show one line of text to the person."""
        self.console.note(text)

    def resume(self, step: int) -> None:
        """Continue after `step`: later lines go, TensorBoard drops its later points.

        Call it before the first `write`. A line that a crash has torn goes too.
        """
        self._lines.close()
        path = self.run_dir / METRICS_FILE
        staged = path.with_name(f"{METRICS_FILE}.tmp-{os.getpid()}")
        with open(path, encoding="utf-8", errors="replace") as old:
            kept = [line for line in old if _step_of(line) <= step]
        staged.write_text("".join(kept), encoding="utf-8")
        os.replace(staged, path)
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._open_events(purge_from=step + 1)
        self.console.start(step)

    def close(self) -> None:
        """Flush and close everything; may be called twice."""
        self.console.close()
        for file in (self._lines, self._events):
            with contextlib.suppress(OSError):  # a full disk: `write` has said so
                if file is not None:
                    file.close()
        self._events = None

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_events(self, purge_from: int | None = None) -> "EventFileWriter":
        # Here, not at the top: it takes 0.2 s, and torch.utils.tensorboard twice that.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(self.run_dir), flush_secs=10)
        if purge_from is not None:
            self._events.add_event(_event(purge_from, session_log={"status": "START"}))
        return self._events

    def _write_event(self, values: Mapping[str, float], step: int) -> None:
        events = self._events or self._open_events()
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        events.add_event(_event(step, summary={"value": scalars}))


def unknown_names(names: Iterable[str]) -> list[str]:
    """Return the names that are neither in `NAMES` nor in one of its open families."""
    return [n for n in names if n not in NAMES and f"{n.partition('/')[0]}/*" not in NAMES]


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Return the lines of a run's `metrics.jsonl`, without one that a crash has torn."""
    with open(Path(run_dir) / METRICS_FILE, encoding="utf-8", errors="replace") as lines:
        return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _event(step: int, **content: Any) -> Any:
    """Make an event; protobuf builds its classes at run time, where type checkers see nothing."""
    from tensorboard.compat.proto import event_pb2

    messages: Any = event_pb2
    return messages.Event(wall_time=time.time(), step=step, **content)


def _read(metrics: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
    """Return floats; tensors cross from each device in one transfer, for counts may be a host's."""
    on_device: dict[torch.device, list[str]] = {}
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor):
            on_device.setdefault(value.device, []).append(name)
        else:
            numbers[name] = float(value)
    for device, names in on_device.items():
        exact = torch.float64 if has_float64(device) else torch.float32
        parts = [torch.as_tensor(metrics[name]).detach().reshape(()).to(exact) for name in names]
        numbers.update(zip(names, torch.stack(parts).tolist(), strict=True))
    return {name: numbers[name] for name in metrics}


def _step_of(line: str) -> float:
    """Return the line's step; infinity for a line that is not whole."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
