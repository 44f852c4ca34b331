"""Tiny worlds: some that a learner must solve in seconds, some that crash, hang and lie.

They are registered with Gymnasium under `rlgym/`; importing this package is enough:
`gymnasium.make("rlgym.envs.toy:rlgym/Memory-v0")`.
"""

from __future__ import annotations

from typing import Any

import gymnasium

_HERE = "rlgym.envs.toy"

# name: (entry point, steps until truncation or None when episodes end by themselves, arguments)
WORLDS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "IdentityBox": ("identity:Identity", 20, {"kind": "box"}),
    "IdentityDiscrete": ("identity:Identity", 20, {"kind": "discrete"}),
    "IdentityMultiDiscrete": ("identity:Identity", 20, {"kind": "multidiscrete"}),
    "IdentityMultiBinary": ("identity:Identity", 20, {"kind": "multibinary"}),
    "Memory": ("memory:Memory", None, {}),
    "Masked": ("masked:Masked", 20, {}),
    "MaskedMulti": ("masked:Masked", 20, {"choices": (3, 4)}),
    "Mixed": ("structured:Mixed", 20, {}),
    "DictObs": ("structured:DictObs", 20, {}),
    "TupleObs": ("structured:TupleObs", 20, {}),
    "Privileged": ("structured:Privileged", 20, {}),
    "Dot": ("image:Dot", 20, {}),
    "TruncationTrap": ("truncation:TruncationTrap", None, {}),
    "Counter": ("counter:Counter", None, {}),
    "Slow": ("counter:Counter", None, {"step_seconds": 0.01}),
    "RewardTerms": ("counter:RewardTerms", 20, {}),
    "Crash": ("faults:Faulty", None, {"fault": "crash"}),
    "Exit": ("faults:Faulty", None, {"fault": "exit"}),
    "Freeze": ("faults:Faulty", None, {"fault": "freeze"}),
    "NaN": ("faults:Faulty", None, {"fault": "nan"}),
    "Liar": ("faults:Liar", None, {}),
    "Unreplayable": ("faults:Unreplayable", None, {}),
}


def register() -> None:
    """Register each world as `rlgym/<name>-v0` with Gymnasium; calling it again changes nothing."""
    for name, (entry_point, max_episode_steps, kwargs) in WORLDS.items():
        if f"rlgym/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"rlgym/{name}-v0",
                entry_point=f"{_HERE}.{entry_point}",
                max_episode_steps=max_episode_steps,
                kwargs=kwargs,
                # Gymnasium's passive checker would stop some faults before they reach the tests
                disable_env_checker=True,
            )


register()
