"""`rlgym train`: merge the settings, then train."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from rlgym.cli.arguments import parse_run, show_help, spell, wants_help
from rlgym.config import (
    ALGOS,
    TrainConfig,
    algo_named,
    asks_for_tensors,
    merge,
    preset_for,
    starting_config,
    to_dict,
)
from rlgym.errors import ConfigError, UserError
from rlgym.plain_yaml import read_yaml
from rlgym.settings import suggest

PROG = "rlgym train"
OPEN_SECTIONS = ("env", "eval.env")
"""Settings whose keys are the world's own."""
DESCRIPTION = """\
Train a policy: rlgym train ENV [flags]

ENV is a registered world, or module:id to import a package that registers it (rlgym envs).
Settings: --config, or else the preset tuned for the world when there is one, then flags.

  --algo NAME          algorithm: ppo or sac
  --preset NAME        another preset, or none for plain defaults
  --config FILE        a YAML file of settings, such as a run's config.yaml
  --trust              import the module that such a file names for its worlds, and let it give
                       them arguments with which they can write anywhere
  --print-config       print the merged settings as YAML and stop
  --run-dir DIR        where to put the run (default: runs/ENV-ALGO-SEED-TIME)
  --overwrite          replace what is in that folder
  --console MODE       auto, live, plain or off
  --env.KEY VALUE      keyword argument of the world, such as --env.render-mode rgb_array
  --eval.env.KEY VALUE the same for the evaluation worlds alone
"""


@dataclass(frozen=True)
class Shell:
    """Flags of `train` that are not settings of the run."""

    preset: str = "auto"
    config: str | None = None
    algo: str | None = None
    trust: bool = False
    run_dir: str | None = None
    overwrite: bool = False
    print_config: bool = False
    console: Literal["auto", "live", "plain", "off"] = "auto"


def run(argv: list[str]) -> int:
    """Train as the command line says."""
    shell, config, notice = read_arguments(argv)
    if follows():
        shell = replace(shell, console="off")
    if wants_help(argv):
        show_help(TrainConfig, f"{PROG} ENV", config, DESCRIPTION)
    if shell.print_config:
        print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if notice and shell.console != "off":
        print(notice, file=sys.stderr)
    from rlgym.training.run import train  # PyTorch: not for --help

    with Progress(shell.console) as progress:
        train(
            config,
            run_dir=shell.run_dir,
            overwrite=shell.overwrite,
            trust=True,  # read_arguments has asked
            console=shell.console,
            hooks=progress,
        )
    return progress.status


def follows() -> bool:
    """Whether torchrun started this process beside the first of its group, which does the talking.

    Settled without PyTorch, which takes its time.
    """
    return os.environ.get("RANK", "0") != "0"


class Progress:
    """Hooks that say where a run is when it starts, and what came of it when it ends."""

    def __init__(self, console: str) -> None:
        self.quiet = console == "off"
        self.folder: Path | None = None
        self.status = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: Any, error: object, trace: Any) -> None:
        """After a fault, say how to go on; after a signal the run has said it."""
        if kind is SystemExit and not self.quiet:
            return
        if kind is not None and self.folder is not None and (self.folder / "latest.json").exists():
            print(f"rlgym resume {self.folder} goes on from what was saved", file=sys.stderr)

    def on_start(self, run: Any) -> None:
        """Name the folder, so that a second terminal can look into it."""
        self.folder = run.run_dir
        if not self.quiet:
            print(f"{run.config.env_id} into {run.run_dir}", file=sys.stderr)

    def on_end(self, run: Any) -> None:
        """Sum up, and say what to do next."""
        run.logger.close()  # gives the terminal back before the last lines
        if _saved_step(run.run_dir) != run.state.env_steps:  # the warning has said why
            print(f"error: the end of this run is not saved in {run.run_dir}", file=sys.stderr)
            self.status = 1
            return
        if self.quiet:
            return
        from rlgym.registry import needs_trust

        score = "" if run.result is None else f"; return {run.result.mean:.2f} in evaluation"
        words = f"{run.run_dir} --trust" if needs_trust(run.config.env_id) else f"{run.run_dir}"
        print(
            f"{run.stopped}{score}\n"
            f"  rlgym eval {words}      rlgym play {words}\n"
            f"  tensorboard --logdir {run.run_dir.parent}"
        )


def read_arguments(argv: list[str]) -> tuple[Shell, TrainConfig, str]:
    """Return the shell's own flags, the merged config, and a line on the preset that was chosen.

    Raises:
        UserError: a wrong flag or value, or no world.
    """
    shell, words, flags = parse_run(Shell(), TrainConfig, argv, OPEN_SECTIONS)
    if len(words) > 1:
        raise UserError(f"unexpected '{words[1]}': {PROG} takes one ENV, then flags")
    env_id = words[0] if words else flags.pop("env_id", None)
    has_world = env_id is not None or shell.config or shell.preset not in ("auto", "none")
    if not has_world and not wants_help(argv):
        raise UserError("which world? For example: rlgym train CartPole-v1 (rlgym envs lists them)")
    config, notice = _base(shell, env_id, flags)
    merged = merge(config, flags, spell=spell)
    if shell.config is not None and not shell.trust:
        from rlgym import registry  # Gymnasium: not for --help

        typed = {"env_id": env_id} if config.env_id == env_id else {}
        registry.require_trusted_worlds(config, shell.config, flags | typed)
        registry.require_trusted_cluster(config, shell.config, flags)
    return shell, merged, notice


def _base(shell: Shell, env_id: str | None, flags: dict[str, Any]) -> tuple[TrainConfig, str]:
    """Return what the flags change: the preset, the file over it, the world."""
    if shell.algo is not None and shell.algo not in ALGOS:
        raise ConfigError(f"--algo: there is no '{shell.algo}': {suggest(shell.algo, ALGOS)}")
    values = {} if shell.config is None else read_yaml(shell.config)
    algo = shell.algo or algo_named(values)
    preset = None if shell.preset == "none" else shell.preset
    if preset == "auto" and shell.config is not None:
        preset = None  # a file alone is not mixed with a preset
    named = env_id if preset is not None else env_id or values.get("env_id")
    tensors = asks_for_tensors(flags)
    config = starting_config(named, preset, algo, flags.get("env") or {}, tensors)
    notice = ""
    if shell.preset == "auto" and shell.config is not None:
        left = preset_for(config.env_id, algo or "ppo", flags.get("env") or {}, tensors)
        if left and "preset" not in values:  # a run's own config has it
            notice = f"using {shell.config} without the preset {left} (--preset {left} adds it)"
    if preset == "auto" and config.preset is not None:
        notice = f"using the preset {config.preset} (--preset none for plain defaults)"
    if shell.algo is not None and algo_named(values) not in (None, shell.algo):
        raise ConfigError(f"{shell.config} is not for {shell.algo}: leave one of the two out")
    try:
        config = merge(config, values)
    except ConfigError as error:
        raise ConfigError(f"{shell.config}: {error}") from None
    if env_id is not None and not config.env_id.endswith(f":{env_id}"):
        config = replace(config, env_id=env_id)
    return config, notice


def _saved_step(folder: Path) -> int | None:
    """Return the step of the checkpoint that was saved last."""
    try:
        return json.loads((folder / "latest.json").read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None
