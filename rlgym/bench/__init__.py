"""Measured promises: one module per claim, run with `rlgym bench NAME`.

    rlgym bench                     list the benchmarks
    rlgym bench NAME [--json]       run one; NAME --help lists its options
    rlgym bench --all [--json]      run them all, one after another
    rlgym bench table [FOLDER]      Markdown of saved results (default docs/results)
    rlgym bench picture FILE PNG    draw the learning curves of a saved ppo-cartpole result

The last line on standard output is one JSON object (`harness.Result.to_json`). The exit status is
0 exactly when the goal is met, 1 when it is not, 2 when the command is wrong.

To add a benchmark write one module with one function `bench_<name>(**options) -> Result`, whose
keyword arguments become the options, and add its line to `BENCHES`.
"""

import difflib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rlgym.errors import UserError

BENCHES: dict[str, tuple[str, str]] = {
    "ppo-cartpole": ("ppo_cartpole", "seconds until PPO solves CartPole, against SB3's"),
    "native-cartpole": ("native_cartpole", "the same in worlds that are tensors, against SB3's"),
    "native-envs": ("native_envs", "steps per second of the tensor worlds alone, on one core"),
    "gpu-ppo": ("gpu_ppo", "steps per second of PPO in tensor worlds on an accelerator"),
    "gpu-sac": ("gpu_sac", "time of a SAC gradient step on an accelerator, against SB3's"),
    "ppo-update": ("ppo_update", "time of a PPO minibatch, against SB3's"),
    "sac": ("sac", "steps per second of SAC at one update per step, against SB3's"),
    "sac-pendulum": ("sac_pendulum", "seconds until SAC swings up Pendulum, against SB3's"),
    "imitate-step": ("imitate_step", "env steps per second of the imitation worlds, per engine"),
    "imitate-trot": ("imitate_trot", "seconds until A1 trots like its clip, and in PyBullet"),
    "imitate-gaits": ("imitate_gaits", "the same for a pace, a bound and a recorded walk"),
    "imitate-reference": (
        "imitate_reference",
        "returns of the original's published policies in our worlds",
    ),
    "warp": ("warp", "env steps per second of A1 in MuJoCo Warp, and seconds to a trot on a GPU"),
    "export": ("export", "errors, times and sizes of exported policies, deadlines, guards"),
    "vector": ("vector", "what the worker processes cost per step, against raw and Gymnasium's"),
    "unity": ("unity", "steps per second of Unity scenes, against Unity's own Python client"),
    "host-overlap": (
        "host_overlap",
        "share of a rollout in which PyBullet's workers wait for the policy",
    ),
    "scaling": ("scaling", "steps per second of training by several processes, against one"),
    "memory": ("memory", "growth of resident memory over a million steps"),
    "learning": ("learning", "returns of the shipped presets on all worlds, five seeds each"),
}
"""Name of each benchmark: its module in this package, and what it measures in one line."""


def run(argv: Sequence[str]) -> int:
    """Run the command `rlgym bench` with the words after it and return the exit status.

    Raises:
        UserError: for an unknown name.
    """
    words = list(argv)
    if not words or words == ["--help"] or words == ["-h"]:
        print(listing())
        return 0
    only_json = "--json" in words
    words = [word for word in words if word != "--json"]
    if words[:1] == ["table"]:
        from rlgym.bench.table import markdown

        print(markdown(Path(words[1] if len(words) > 1 else "docs/results")))
        return 0
    if words[:1] == ["picture"]:
        if len(words) != 3:
            raise UserError("give a saved result and a file to draw: picture RESULT.json OUT.png")
        from rlgym.bench.picture import draw

        draw(Path(words[1]), Path(words[2]))
        return 0
    if words[:1] == ["--all"]:
        outcomes = [_run_one(name, words[1:], only_json) for name in BENCHES]
        met = all(outcome["met"] for outcome in outcomes)
        last: dict = {"name": "all", "met": met, "results": outcomes}
    elif words and words[0] in BENCHES:
        last = _run_one(words[0], words[1:], only_json)
    else:
        raise UserError(_unknown(words[0] if words else ""))
    print(json.dumps(last), flush=True)
    return 0 if last["met"] else 1


def listing() -> str:
    """Return the names with one line each."""
    width = max(len(name) for name in BENCHES) + 2
    lines = [f"  {name:<{width}}{line}" for name, (_, line) in BENCHES.items()]
    usage = "rlgym bench NAME [--json] [options, see NAME --help] | --all | table | picture"
    return "\n".join([usage, "", *lines])


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, BENCHES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the names are {', '.join(BENCHES)}"
    return f"there is no benchmark '{name}': {hint}"


def _run_one(name: str, words: list[str], only_json: bool) -> dict:
    """Run one benchmark and return its JSON object; tell a person what it found."""
    import tyro

    from rlgym.bench.harness import FreshProcessError, Result, say
    from rlgym.bench.load import LoadWatch

    module, _ = BENCHES[name]
    function = getattr(import_module(f"rlgym.bench.{module}"), f"bench_{module}")
    watch = LoadWatch()
    for reason in watch.reasons_now():
        say(f"warning: the machine is busy, the result will be marked: {reason}")
    try:
        result = tyro.cli(function, args=words, prog=f"rlgym bench {name}")
    except FreshProcessError as error:  # one benchmark that fails does not stop the others
        result = Result(name, f"nothing: {error}", ())
    outcome = result.to_json(watch.stop())
    if not only_json:
        print(f"{name}: {result.measured}")
        for case in result.cases:
            print(f"  {case.line()}")
        if outcome["busy"]:
            print(f"  marked busy: {'; '.join(outcome['load']['reasons'])}")
        if result.quick:
            print("  a quick run only shows that the benchmark works; its numbers mean nothing")
    return outcome
