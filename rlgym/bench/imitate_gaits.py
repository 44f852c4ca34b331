"""Wall time until A1 imitates a pace, a bound and a recorded walk, and their worth in PyBullet.

Pace (0.8 m/s, period 0.4 s) and bound (0.55 m/s, period 0.5 s) are generated; laikago_walk is read
from the installed pybullet_data and carried over to A1.
"""

from rlgym.bench.harness import Result
from rlgym.bench.imitation import Promise, promised_cases
from rlgym.errors import UserError
from rlgym.settings import suggest

PROMISES = {
    "pace": Promise("pace", {0.80: 120.0}),
    "bound": Promise("bound", {0.80: 120.0}),
    "laikago_walk": Promise("laikago_walk", {0.85: 180.0}),
}


def bench_imitate_gaits(
    *,
    clips: tuple[str, ...] = tuple(PROMISES),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    limit: float = 360.0,
    episodes: int = 32,
    quick: bool = False,
) -> Result:
    """Wall seconds until A1 paces, bounds (0.80 per step) and walks as Laikago did (0.85).

    Args:
        clips: of pace, bound, laikago_walk.
        seeds: seeds of the runs; none of them was used to tune the presets.
        limit: seconds after which a run ends; a level that it did not reach counts as that many.
        episodes: episodes of 10 s that each policy plays in PyBullet, undisturbed and pushed.
        quick: one seed for 8,192 steps of each, to see that everything works.
    """
    for clip in clips:
        if clip not in PROMISES:
            raise UserError(f"no promise about the clip '{clip}': {suggest(clip, PROMISES)}")
    if quick:
        seeds, episodes = seeds[:1], 2
    promises = tuple(PROMISES[clip] for clip in clips)
    cases = promised_cases(promises, seeds, limit, episodes, quick)
    measured = (
        f"wall seconds of training in MuJoCo, evaluations included, until A1 imitates a clip at "
        f"its goal, median of {len(seeds)} seeds; then, off the clock, {episodes} episodes of 10 s "
        f"in PyBullet, undisturbed and pushed"
    )
    return Result("imitate-gaits", measured, cases, quick)
