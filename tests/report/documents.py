"""Sim-to-sim documents made by hand, shaped as `compare` returns them."""

from typing import Any

TERMS = ("pose", "velocity", "end_effector", "root_pose", "root_velocity")


def measured(score: float, survival: float = 1.0, **changes: Any) -> dict[str, Any]:
    one = {
        "episodes": 4,
        "score": score,
        "scores": [score] * 4,
        "terms": {name: score / len(TERMS) for name in TERMS},
        "clips": {"trot": score},
        "survival": survival,
        "causes": {} if survival == 1.0 else {"tilt": round(4 * (1 - survival))},
        "joint_error": 0.08,
        "drift": 0.02,
        "heading_error": 0.1,
        "power": 40.0,
        "energy": 80.0,
        "trace": {"t": [0.0, 0.03], "hip": [0.1, 0.2], "hip (clip)": [0.1, 0.1]},
    }
    return {**one, **changes}


def cell(engine: str, disturbance: str, **scores: Any) -> dict[str, Any]:
    found = {name: one if isinstance(one, dict) else measured(one) for name, one in scores.items()}
    return {
        "engine": engine, "disturbance": disturbance, "time_step": 0.001, "measured": found,
        "refused": "",
    }  # fmt: skip


def document(run: str = "trot", **changes: Any) -> dict[str, Any]:
    about = {
        "run": run,
        "robot": "a1",
        "clip": "trot",
        "spec": "modern",
        "trained_in": "MuJoCo",
        "env_steps": 400_000,
        "which": "best",
        "episodes": 4,
        "seed": 0,
        "actors": {
            "policy": "trained policy",
            "open_loop": "open loop",
            "standing": "standing still",
        },
        "engines": {"bullet": "PyBullet", "mujoco": "MuJoCo"},
        "disturbances": {"nominal": "undisturbed", "push-1.0": "pushes of 1 m/s"},
        "seconds": 1.0,
        "date": "2026-11-21",
        "versions": {"rlgym": "0.1.0"},
    }
    still = measured(0.38, energy=None)
    cells = [
        cell("bullet", "nominal", policy=0.88, open_loop=0.85, standing=still),
        cell("bullet", "push-1.0", policy=measured(0.75, 0.75), open_loop=0.5, standing=0.3),
        cell("mujoco", "nominal", policy=0.9, open_loop=0.86, standing=0.39),
        {
            "engine": "mujoco", "disturbance": "push-1.0", "time_step": None, "measured": {},
            "refused": "the engine 'mujoco' cannot push",
        },
    ]  # fmt: skip
    return {"about": {**about, **changes}, "cells": cells}
