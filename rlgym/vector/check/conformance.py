"""The contract of a vector env as tests that run on anyone's env; `rlgym doctor ENV` shows them.

Each rule is a function that drives the env through its public interface and yields what it finds. A
rule that fails says what was seen and what to change, in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from rlgym.errors import ContractError, WorldError
from rlgym.vector.check.rules import RULES, RULES_OF_A_FRESH_ENV, RULES_THAT_CLOSE
from rlgym.vector.check.trial import Finding, Severity, Trial
from rlgym.vector.check.world_check import check_world
from rlgym.vector.contract import VectorEnv
from rlgym.vector.sync import SyncVectorEnv

__all__ = ["Finding", "check"]

_ORDER: list[Severity] = ["error", "warning", "note"]


def check(
    env: VectorEnv | gymnasium.Env | str | Callable[[], Any],
    *,
    steps: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> list[Finding]:
    """Test the contract.

    Args:
        env: a vector env (left open), or a callable that makes one (also tests what concerns a
            fresh and a closed one). Or a world, its id, or a callable that makes it: the world is
            tested, then a sync vector env of four of them, with torch and with numpy output.
        steps: steps of the longest test.
        seconds: time after which the longest test stops.
        seed: seed of worlds and actions.
        raise_on_failure: raise when there is an error among the findings.

    Returns:
        The findings, errors first; empty when all is well.

    Raises:
        ContractError: lists the errors, one per line.
    """
    findings = _check(env, steps, seconds, seed)
    findings = sorted(dict.fromkeys(findings), key=lambda f: _ORDER.index(f.severity))
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors and raise_on_failure:
        raise ContractError("\n".join(errors))
    return findings


def _check(env: Any, steps: int, seconds: float, seed: int) -> list[Finding]:
    if isinstance(env, gymnasium.vector.VectorEnv):
        return check_vector(env, None, steps, seconds, seed)
    if isinstance(env, gymnasium.Env):
        return check_world(lambda: env, steps=steps, seconds=seconds, seed=seed, close=False)
    factory: Callable[[], Any] = (lambda: _make(env)) if isinstance(env, str) else env
    if not isinstance(env, str):
        first = env()
        if isinstance(first, gymnasium.vector.VectorEnv):
            return check_vector(first, env, steps, seconds, seed)
        first.close()
    findings = check_world(factory, steps=steps, seconds=seconds, seed=seed)
    if any(finding.severity == "error" for finding in findings):
        return findings  # a vector env of such worlds can only show the same again

    for output in ("torch", "numpy"):

        def fresh(output: Any = output) -> VectorEnv:
            return SyncVectorEnv(factory, 4, num_groups=2, seed=seed, output=output)

        findings += check_vector(fresh(), fresh, steps, seconds / 2, seed)
    if any(finding.rule in ("seed", "replay") for finding in findings):
        # what the world cannot do, its vector env cannot either: told once is enough
        findings = [f for f in findings if f.rule not in ("seeds", "snapshot")]
    return findings


def _make(world_id: str) -> gymnasium.Env:
    try:
        return gymnasium.make(world_id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as problem:
        fix = f"see what rlgym.make({world_id!r}) says"
        raise WorldError(f"unknown world {world_id!r}: {fix}") from problem


def check_vector(
    env: Any, fresh: Callable[[], VectorEnv] | None, steps: int, seconds: float, seed: int
) -> list[Finding]:
    """Run every rule on `env`; with `fresh`, it is closed at the end and others are made."""
    if not isinstance(env, VectorEnv):
        fix = "make it with rlgym.make_vec, or subclass rlgym.vector.contract.VectorEnv"
        return [Finding("error", "type", f"{type(env).__name__} is not an rlgym VectorEnv: {fix}")]
    trial = Trial(env, fresh, steps, seconds, seed)
    findings: list[Finding] = []
    rules = RULES if fresh is None else RULES_OF_A_FRESH_ENV + RULES + RULES_THAT_CLOSE
    for rule in rules:
        name = rule.__name__.removeprefix("rule_")
        try:
            findings += [Finding(severity, name, message) for severity, message in rule(trial)]
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            findings.append(Finding("error", name, f"raised {type(error).__name__}: {text}"))
        trial.settle()
        if name == "outputs" and any(finding.severity == "error" for finding in findings):
            break  # the other rules could only stumble over the same
    if fresh is not None:
        env.close()
    return findings
