"""The `rlgym` command: finds the verb, and turns mistakes into one line.

Nothing heavy is imported here; each verb's module is loaded when it is called.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import rlgym
from rlgym.errors import UserError

VERBS: dict[str, tuple[str, str]] = {
    "train": ("rlgym.cli.train", "train a policy in a world, or start over with other settings"),
    "resume": ("rlgym.cli.resume", "continue a run exactly where it stopped"),
    "eval": ("rlgym.cli.evaluate", "score a trained policy over many episodes"),
    "play": ("rlgym.cli.play", "watch a policy (trained, zero or random) in a window"),
    "record": ("rlgym.cli.record", "film a policy to an mp4 or gif; needs no display"),
    "sim2sim": (
        "rlgym.cli.sim2sim",
        "measure an imitation policy in other engines, pushed, on other friction",
    ),
    "export": ("rlgym.cli.export", "write a trained policy as a bundle that proves itself"),
    "verify": ("rlgym.cli.verify", "check that a bundle does here what it did in the lab"),
    "web": ("rlgym.cli.web", "show a bundle's policy in a browser, which runs it"),
    "latency": ("rlgym.cli.latency", "time each artefact of a bundle on this machine"),
    "import": (
        "rlgym.cli.import_",
        "turn a Stable-Baselines3 model into a run, running none of it",
    ),
    "clip": ("rlgym.cli.clip", "show, convert, generate or retarget a reference motion"),
    "envs": ("rlgym.cli.envs", "list the worlds that can be trained, and what brings them"),
    "doctor": ("rlgym.cli.doctor", "check this machine, a world of your own, or a run"),
    "bench": ("rlgym.bench", "measure a promise of speed, learning or memory"),
}
"""Verb -> the module whose `run(argv) -> exit status` it is, and what it does."""

EXAMPLES = """\
examples:
  rlgym train CartPole-v1                            learn to balance, in seconds
  rlgym train Pendulum-v1 --algo.learning-rate 1e-3 --seed 3
  rlgym eval runs/CartPole-v1-ppo-0-...              the run's folder is printed by `train`
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0: done, 1: failed, 2: a mistake in the call."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("--version", "version"):
        print(f"rlgym {rlgym.__version__}")
        return 0
    try:
        return _call(words[0], words[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        from rich.console import Console

        Console(stderr=True).print_exception(max_frames=20)
        print("This is a fault of rlgym: please report it with the lines above.", file=sys.stderr)
        return 1


def usage() -> str:
    """Return what `rlgym --help` prints."""
    verbs = "\n".join(f"  {verb:<8} {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: rlgym VERB ...\n\n"
        "Train robot policies in any world, watch them learn, carry them to a robot.\n\n"
        f"verbs (each has its own --help):\n{verbs}\n\n{EXAMPLES}"
    )


def _call(verb: str, argv: list[str]) -> int:
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(VERBS)}"
        raise UserError(f"there is no verb '{verb}': {hint}")
    if "--trust" in argv or any(map(_names_own_module, argv)):
        sys.path.append(os.getcwd())  # last: what is installed cannot be replaced from here
    return importlib.import_module(VERBS[verb][0]).run(argv)


def _names_own_module(word: str) -> bool:
    """Whether `module:id` means a module that lies in the folder from which we were called."""
    module = word.rpartition(":")[0].partition(".")[0]
    return bool(module) and (os.path.isfile(f"{module}.py") or os.path.isdir(module))
