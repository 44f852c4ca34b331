"""`rlgym resume`: continue a run where it stopped."""

from dataclasses import dataclass
from typing import Literal

from rlgym.cli.arguments import parse_run, show_help, spell, wants_help
from rlgym.cli.runs import is_run, read_run
from rlgym.cli.train import OPEN_SECTIONS, Progress, follows
from rlgym.config import TrainConfig, load_config, merge
from rlgym.errors import UserError

PROG = "rlgym resume"
DESCRIPTION = """\
Continue a run from its newest checkpoint: rlgym resume RUN [flags]

Parameters, optimizer, schedules, worlds and curves go on; with nothing but the folder, bit for
bit as if the run had not been cut (on a CPU). Flags change settings from here on:

  --total-steps INT    a new end, in environment steps from the run's beginning
  --time-limit FLOAT   a new limit, in seconds of training from the run's beginning
  --device NAME        another device for the learner
  --env.KEY VALUE      another keyword argument of the world, such as --env.push 0.5
  --console MODE       auto, live, plain or off
  --trust              import the module that the run names for its worlds, though rlgym does not
                       know it, and give them arguments with which they can write anywhere
"""


@dataclass(frozen=True)
class Shell:
    """Flags of `resume` that are not settings of the run."""

    console: Literal["auto", "live", "plain", "off"] = "auto"
    trust: bool = False


def run(argv: list[str]) -> int:
    """Continue the run."""
    shell, words, changes = parse_run(Shell(), TrainConfig, argv, OPEN_SECTIONS)
    if wants_help(argv):
        known = load_config(f"{words[0]}/config.yaml") if words and is_run(words[0]) else None
        show_help(TrainConfig, f"{PROG} RUN", known or TrainConfig(), DESCRIPTION)
    if len(words) != 1:
        found = f"unexpected '{words[1]}'" if words else "RUN is missing"
        raise UserError(f"{found}: {PROG} takes one folder of a run, see {PROG} --help")
    config = read_run(words[0], trust=True)  # `resume` asks, who knows what is changed
    merge(config, changes, spell=spell)  # a wrong value is told by its flag
    from rlgym.training.run import resume

    console = "off" if follows() else shell.console
    with Progress(console) as progress:
        resume(
            words[0],
            hooks=progress,
            console=console,
            trust=shell.trust,
            **changes,
        )
    return progress.status
