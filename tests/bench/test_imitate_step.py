"""The stepping benchmark: what it measures, in short; and from end to end."""

import json
import time

import pytest

from rlgym import bench
from rlgym.bench import imitate_step


def test_a_clock_counts_what_is_inside_and_not_itself():
    def work(_):
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass

    clock = imitate_step._Clock(work)
    for _ in range(5):
        clock(0)
    assert clock.seconds == pytest.approx(0.010, rel=0.1)
    idle = imitate_step._Clock(lambda _: None)
    for _ in range(1000):
        idle(0)
    assert abs(idle.seconds) < 0.0005


def test_whole_steps_cost_more_than_stepping_alone(monkeypatch):
    monkeypatch.setattr(imitate_step, "WORLDS", 1)
    found = imitate_step.measure_bullet("a1", imitate_step.MERGED, repeats=2, steps=2)
    assert len(found["rates"]) == 2
    for whole, alone in zip(found["rates"], found["alone"], strict=True):
        assert 0.0 < whole < alone


def test_merging_links_is_no_other_robot():
    deviation = imitate_step.merged_deviation()
    assert deviation["joint RMS against links apart, rad"] < 0.005
    assert deviation["distance after 3 s against links apart, m"] < 0.1


@pytest.mark.slow
def test_imitate_step(capsys):
    assert bench.run(["imitate-step", "--quick", "--json"]) == 1, "a quick run meets no goal"
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [case["goal"]["bound"] for case in outcome["cases"]] == [350.0, 0.7, 600.0, 12_000.0]
    assert all(case["value"] > 0.0 for case in outcome["cases"])
