"""The benchmarks of processes and of workers run from end to end."""

import pytest

from tests.bench.test_quick import run_quick


@pytest.mark.slow
@pytest.mark.timeout(600)  # four trainings, each in interpreters of its own
def test_scaling(capsys):
    case = run_quick(capsys, "scaling")["cases"][0]
    assert case["goal"] == {"on": "ratio", "is": "at least", "bound": 1.0}
    assert case["value"] > 0 and case["baseline"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_host_overlap(capsys):
    pytest.importorskip("pybullet_envs_gymnasium", reason="needs the extra worlds")
    case = run_quick(capsys, "host-overlap")["cases"][0]
    assert 0.0 <= case["value"] < 1.0
    assert len(case["details"]["with one group"]) == 1
