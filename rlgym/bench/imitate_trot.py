"""Wall time until A1 imitates a generated trot, and what the policy is worth in PyBullet.

The clip is the fixed one: 0.55 m/s, period 0.5 s, duty 0.55, swing 0.06 m. Actions are absolute: a
residual on the reference scores 0.85 before it has learned anything.
"""

from rlgym.bench.harness import Result
from rlgym.bench.imitation import Promise, promised_cases

TROT = Promise("trot", {0.80: 60.0, 0.85: 90.0})


def bench_imitate_trot(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    limit: float = 240.0,
    episodes: int = 32,
    quick: bool = False,
) -> Result:
    """Wall seconds until A1 trots at a score of 0.80 and 0.85 per step, evaluations included.

    Args:
        seeds: seeds of the runs; none of them was used to tune the preset.
        limit: seconds after which a run ends; a level that it did not reach counts as that many.
        episodes: episodes of 10 s that each policy plays in PyBullet, undisturbed and pushed.
        quick: one seed for 8,192 steps, to see that everything works.
    """
    if quick:
        seeds, episodes = seeds[:1], 2
    cases = promised_cases((TROT,), seeds, limit, episodes, quick)
    measured = (
        f"wall seconds of training in MuJoCo, evaluations included, until A1 imitates a generated "
        f"trot at a mean reward per step of 0.80 and 0.85, median of {len(seeds)} seeds; then, off "
        f"the clock, {episodes} episodes of 10 s in PyBullet, undisturbed and pushed"
    )
    return Result("imitate-trot", measured, cases, quick)
