"""The verdicts of imitate-trot and imitate-gaits, from runs written by hand."""

from typing import Any

import pytest

from rlgym import bench
from rlgym.bench.imitation import Levels, Promise, cases_of
from rlgym.errors import UserError

TROT = Promise("trot", {0.8: 60.0, 0.85: 90.0})


def run(seed: int, low: float | None, high: float | None, **changes: Any) -> dict[str, Any]:
    bullet = {
        "nominal": {"score": changes.pop("score", 0.88), "survival": changes.pop("survival", 1.0)},
        "push-0.5": {"score": 0.85, "survival": changes.pop("pushed", 0.97)},
    }
    reached = {"0.8": low, "0.85": high}
    return {
        "seed": seed, "reached": reached, "curve": [], "env_steps": {}, "seconds": 99.0,
        "bullet": bullet, "baselines": None,
    }  # fmt: skip


def test_a_level_counts_the_median_seed():
    runs = [run(n, low, 80.0) for n, low in enumerate((50.0, 70.0, 58.0, 40.0, 90.0))]
    low, high, bullet = cases_of(TROT, runs, 240.0)
    assert (low.name, low.value, low.met) == ("trot to 0.8", 58.0, True)
    assert (high.value, high.met) == (80.0, True)
    assert bullet.met and bullet.value == 0.88


def test_a_seed_that_never_arrives_counts_the_limit_and_misses():
    runs = [run(0, 50.0, 80.0), run(1, 55.0, None), run(2, 40.0, 70.0)]
    low, high, _ = cases_of(TROT, runs, 240.0)
    assert low.met
    assert high.values == (80.0, 240.0, 70.0)
    assert high.value == 80.0 and not high.met


@pytest.mark.parametrize(
    "fault", [{"score": 0.79}, {"survival": 31 / 32}, {"pushed": 30 / 32}], ids=str
)
def test_one_policy_that_fails_in_bullet_misses_the_validation(fault):
    runs = [run(0, 50.0, 80.0), run(1, 50.0, 80.0, **fault), run(2, 50.0, 80.0)]
    assert not cases_of(TROT, runs, 240.0)[-1].met


class StandIn:
    """What the hook reads of a run: 333 steps make an episode of 10 s."""

    class env:  # noqa: N801
        class unwrapped:  # noqa: N801
            class traits:  # noqa: N801
                render_fps = 1 / 0.03

    class state:  # noqa: N801
        env_steps = 4096


def test_the_hook_divides_by_the_whole_episode_and_keeps_the_first_time():
    hook = Levels([0.8, 0.85])
    hook.on_evaluation(StandIn, 0.79 * 333)
    assert hook.reached == {"0.8": None, "0.85": None}
    hook.on_evaluation(StandIn, 0.82 * 333)
    assert hook.reached["0.8"] is not None and hook.reached["0.85"] is None
    hook.on_evaluation(StandIn, 0.86 * 333)
    first = hook.reached["0.8"]
    assert hook.steps == {"0.8": 4096, "0.85": 4096}
    hook.on_evaluation(StandIn, 0.90 * 333)
    assert hook.reached["0.8"] == first, "the first time counts"
    assert [score for _, score in hook.curve] == [0.79, 0.82, 0.86, 0.9]


def test_an_unknown_clip_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="did you mean 'bound'"):
        bench.run(["imitate-gaits", "--clips", "bounds"])
