"""Policies of the original motion_imitation in our worlds: do they score what they score there?

Clips and policies are the user's own copies; the clips' licence (CC BY-NC 4.0) keeps them out of
this repository. The package's sdist has the policies, and its source tree both:

    pip download motion_imitation==0.0.6 --no-binary :all: --no-deps
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlgym.bench.harness import Case, Result, say
from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.spec import SPECS
from rlgym.errors import UserError

STEPS = 600
"""Of an episode of the original in its test mode; 33 ms each."""
TOLERANCE = 5.0
"""Percent by which our mean return may differ from the original's."""
ORIGINAL: dict[str, tuple[float, ...]] = {
    "dog_pace": (
        *(387.604, 390.054, 390.978, 389.986, 391.460, 390.870),
        *(390.875, 388.377, 390.692, 388.649, 388.575, 384.942),
    ),
    "dog_spin": (
        *(380.011, 344.559, 395.087, 395.916, 383.849, 385.455),
        *(393.476, 356.349, 383.383, 384.198, 378.868, 390.227),
    ),
    "dog_trot": (
        *(380.967, 356.092, 374.157, 358.906, 379.362, 359.462),
        *(363.806, 379.213, 380.958, 381.431, 377.926, 360.551),
    ),
}
"""Returns of the original in itself (motion_imitation 0.0.6, pybullet 3.2.7, deterministic actions,
randomizer off), 12 episodes each; its resets began all of them in the reference's state."""


@dataclass
class Episodes:
    """What a policy did in one episode of each slot."""

    returns: np.ndarray
    """(n,) sum of rewards."""
    lengths: np.ndarray
    """(n,) steps until it fell, or all of them."""
    fell: np.ndarray
    """(n,) bool."""
    steps: int = STEPS
    """Of a whole episode."""
    terms: dict[str, float] = field(default_factory=dict)
    """Mean of each term of the reward over all steps."""

    @property
    def per_step(self) -> float:
        """Mean return over the steps of a whole episode, so that a fall costs the rest."""
        return float(self.returns.mean()) / self.steps

    def details(self) -> dict[str, Any]:
        """For the benchmark's JSON."""
        return {
            "returns": [round(float(value), 2) for value in self.returns],
            "steps": self.lengths.tolist(),
            "fell": int(self.fell.sum()),
            "terms": {name: round(value, 4) for name, value in self.terms.items()},
            "per_step": round(self.per_step, 4),
        }


def play(
    policy: Any,
    clip: Path,
    episodes: int,
    *,
    seed: int = 0,
    engine: str = "bullet",
    reference_start: float = 1.0,
    steps: int = STEPS,
    num_workers: int | None = None,
    action: dict[str, Any] | None = None,
) -> Episodes:
    """Let a policy imitate a clip with Laikago in `episodes` worlds of the reference spec.

    Args:
        policy: has `act` and `reset`, for observations (n, 160) or, if its critic saw more, a Dict
            of these and "privileged" ones.
        clip: a file of the original's dialect.
        episodes: worlds; each plays one.
        seed: of the first world.
        engine: "bullet", which the original has, or "mujoco".
        reference_start: share of episodes that begin in a random state of the clip; the others
            warm up from the default pose.
        steps: after which an episode is over.
        num_workers: processes; None: one per core, 0: none but this.
        action: changes to what an action means, for a policy that learned with them.
    """
    spec = SPECS["reference"]
    privileged = isinstance(policy.observation_space, spaces.Dict)
    task = build_task(
        episodes,
        seed=seed,
        engine=engine,
        robot="laikago",
        clip=str(clip),
        spec=spec,
        num_workers=num_workers,
        observation={"privileged": privileged},
        action=action or {},
        episode={
            "reference_start": reference_start,
            "curriculum_seconds": None,
            "seconds": steps * spec.actuation.control_dt,
        },
    )
    try:
        return _play(policy, task, steps)
    finally:
        task.close()


def _play(policy: Any, task: Any, steps: int) -> Episodes:
    count = task.num_envs
    playing = np.ones(count, np.bool_)
    result = Episodes(np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.bool_), steps)
    policy.reset()
    obs, critic = task.reset()
    for _ in range(steps):
        action = policy.act(obs if critic is None else {"policy": obs, "privileged": critic})
        step = task.step(np.asarray(action, np.float64))
        result.returns += playing * step.reward
        result.lengths += playing
        for name, values in step.terms.items():
            result.terms[name] = result.terms.get(name, 0.0) + float((playing * values).sum())
        result.fell |= playing & step.terminated
        playing &= ~(step.terminated | step.truncated)
        obs, critic = step.obs, step.privileged
        if not playing.any():
            break
    total = result.lengths.sum()
    result.terms = {name: value / float(total) for name, value in result.terms.items()}
    return result


def bench_imitate_reference(
    *,
    clips: str = "",
    policies: str = "",
    run: str = "",
    run_clip: str = "dog_pace",
    episodes: int = 32,
    seed: int = 0,
    workers: int | None = None,
    quick: bool = False,
) -> Result:
    """Returns of the original's published policies in our worlds, against those in the original.

    Args:
        clips: folder with dog_pace.txt, dog_spin.txt and dog_trot.txt (your own copies, such as
            motion_imitation/data/motions).
        policies: folder with dog_pace.zip, dog_spin.zip and dog_trot.zip (data/policies there).
        run: folder of a run of ours, trained on Laikago with spec="reference", to be held against
            the published policy in the same worlds.
        run_clip: clip that it imitates.
        episodes: of each policy, 600 steps long, from random phases.
        seed: of the first episode.
        workers: processes; by default one per core.
        quick: two short episodes of each, to see that everything works.
    """
    name = "imitate-reference"
    if not clips or not policies:
        return Result(
            name,
            "nothing: give --clips DIR and --policies DIR, your own copies of motion_imitation's "
            "data/motions and data/policies",
            (),
            quick,
        )
    steps = STEPS
    if quick:
        episodes, steps = 2, 5
    from rlgym.interop.motion_imitation import load_policy

    own = _own(run, run_clip) if run else None
    found = {}
    for skill in ORIGINAL:
        clip, file = _file(clips, f"{skill}.txt"), _file(policies, f"{skill}.zip")
        policy = load_policy(file)
        found[skill] = play(policy, clip, episodes, seed=seed, steps=steps, num_workers=workers)
        say(f"{skill}: {found[skill].details()}")
    cases = [_case(skill, theirs) for skill, theirs in found.items()]
    if own is not None:
        policy, action = own
        clip = _file(clips, f"{run_clip}.txt")
        ours = play(
            policy, clip, episodes, seed=seed, steps=steps, num_workers=workers, action=action
        )
        cases.append(_own_case(Path(run).name, run_clip, ours, found[run_clip]))
    measured = (
        f"mean return of {episodes} episodes of {steps} steps of 33 ms (Laikago in PyBullet, "
        "reference spec, deterministic actions, random phases), in percent of the return that "
        "the same policy has in the original's own environment"
    )
    return Result(name, measured, tuple(cases), quick)


def _file(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"there is no {path}: give the folder of your copy that has {name} in it")
    return path


def _case(skill: str, found: Episodes) -> Case:
    theirs = ORIGINAL[skill]
    baseline = float(np.mean(theirs))
    return Case(
        name=f"{skill}, distance from the original",
        unit="%",
        value=100.0 * abs(float(found.returns.mean()) / baseline - 1.0),
        goal=TOLERANCE,
        conditions={"no episode falls": not found.fell.any()},
        details=found.details() | {"mean": float(found.returns.mean()), "original": baseline},
    )


def _own(run: str, clip: str) -> tuple[Any, dict[str, Any]]:
    """Load a run's policy, and the zero and unit of its actions, which are its own.

    Raises:
        UserError: there is nothing to hold it against, or it was trained in another world.
    """
    from rlgym.training.run import load_policy

    if clip not in ORIGINAL:
        raise UserError(f"--run-clip {clip}: there is a published policy of {', '.join(ORIGINAL)}")
    policy = load_policy(run)
    env = policy.config.env if policy.config is not None else {}
    if env.get("spec") != "reference":
        raise UserError(f"{run} was not trained with the reference spec: --env.spec reference")
    action = env.get("action", {})
    return policy, {key: value for key, value in action.items() if key in ("offset", "scale")}


def _own_case(name: str, clip: str, ours: Episodes, published: Episodes) -> Case:
    return Case(
        name=f"{name} on {clip}, against the published policy",
        unit="per step",
        value=ours.per_step,
        baseline=published.per_step,
        goal=1.0,
        goal_is="at least",
        goal_on="ratio",
        conditions={"no episode falls": not ours.fell.any()},
        details=ours.details(),
    )
