"""`rlgym doctor` on machines that are not at hand: what is used, and why not more."""

from __future__ import annotations

import pytest

from rlgym.cli.hardware import PACKAGES, Hardware, look, used, why_not_more
from rlgym.device import available

CPU = {"cpu": "cpu"}
H200 = {"cuda:0": "NVIDIA H200, 139 GiB", **CPU}
TWO = {"cuda:0": "NVIDIA H200, 139 GiB", "cuda:1": "NVIDIA H200, 139 GiB", **CPU}
EVERYTHING = frozenset(PACKAGES)


def lines(**facts) -> list[str]:
    return [f"{found.severity}: {found.message}" for found in why_not_more(Hardware(**facts))]


def test_this_machine():
    found = look()
    assert list(found.devices) == available()
    assert 1 <= found.cores[0] <= found.cores[1]
    assert set(used(found)) >= {"learner", "host worlds", "tensor worlds", "imitation"}


def test_a_machine_that_is_used_whole_is_told_nothing():
    facts = {"devices": H200, "built_for": "CUDA 12.8", "driver": True, "packages": EVERYTHING}
    assert lines(**facts, cores=(16, 16)) == []
    told = used(Hardware(**facts, cores=(16, 16)))
    assert told["learner"].startswith("cuda:0") and told["host worlds"] == "16 cores"
    assert told["imitation"].endswith("engine warp on cuda:0")
    assert told["updates and rollouts"] == "recorded as graphs"


@pytest.mark.parametrize(
    ("facts", "severity", "part"),
    [
        ({"devices": CPU, "built_for": "CPUs"}, "note", "no accelerator was found"),
        ({"devices": CPU, "built_for": "CPUs", "driver": True}, "warning", "the CUDA build"),
        (
            {"devices": CPU, "built_for": "CUDA 12.8", "driver": True, "hidden": ""},
            "warning",
            "CUDA_VISIBLE_DEVICES='' hides",
        ),
        (
            {"devices": CPU, "built_for": "CUDA 12.8", "driver": True},
            "warning",
            "update the driver",
        ),
        ({"devices": CPU, "built_for": "CPUs", "tpu": True}, "note", "torch-tpu and libtpu"),
        ({"devices": H200, "built_for": "CUDA 12.8"}, "note", r"pip install 'rlgym-lab[gpu]'"),
        (
            {"devices": TWO, "built_for": "CUDA 12.8", "packages": EVERYTHING},
            "note",
            "torchrun --nproc-per-node 2",
        ),
        ({"devices": {"mps:0": "mps:0", **CPU}, "built_for": "CPUs"}, "note", "mps has no graphs"),
        ({"devices": CPU, "built_for": "CPUs", "cores": (4, 64)}, "note", "4 of 64 cores"),
    ],
)
def test_what_is_idle_is_told_with_the_way_to_use_it(facts, severity, part):
    told = lines(**facts)
    assert any(line.startswith(severity) and part in line for line in told), told
