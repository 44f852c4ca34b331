"""`rlgym resume`: continue a run where it stopped."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.cli.runs import read_run
from rlgym.cli.train import Progress, follows
from rlgym.registry import require_trusted_cluster


@dataclass(frozen=True)
class Options:
    """Continue a run from its newest checkpoint: parameters, optimizer, schedules, worlds, curves.

    With nothing but the folder, the run goes on bit for bit as if it had not been cut (on a CPU).
    """

    run: Positional[str]
    """The run's folder."""
    total_steps: int | None = None
    """A new end, in environment steps from the run's beginning."""
    time_limit: float | None = None
    """A new limit, in seconds of training from the run's beginning."""
    device: str | None = None
    """Another device for the learner."""
    console: Literal["auto", "live", "plain", "off"] = "auto"
    """How progress is shown."""
    trust: bool = False
    """Import the module that the run names for its worlds, though rlgym does not know it."""


def run(argv: list[str]) -> int:
    """Continue the run."""
    wanted = parse(Options, argv, "rlgym resume", ("run",))
    config = read_run(wanted.run, wanted.trust)
    if not wanted.trust:
        require_trusted_cluster(config.collect.ray, wanted.run)
    changes = {"time_limit": wanted.time_limit, "device": wanted.device}
    changes = {name: value for name, value in changes.items() if value is not None}
    from rlgym.training.run import resume

    console = "off" if follows() else wanted.console
    with Progress(console) as progress:
        resume(
            wanted.run,
            wanted.total_steps,
            hooks=progress,
            console=console,
            trust=True,  # read_run has asked
            **changes,
        )
    return progress.status
