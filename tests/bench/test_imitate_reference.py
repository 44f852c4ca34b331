"""`rlgym bench imitate-reference` with clips and policies that are made here."""

import json
from pathlib import Path

import numpy as np
import pytest

import rlgym
from rlgym import bench
from rlgym.bench.imitate_reference import ORIGINAL, Episodes
from rlgym.errors import UserError
from tests.interop.sb2_files import parameters, save
from tests.parity.clips import clip


@pytest.fixture
def copies(tmp_path: Path) -> tuple[str, str]:
    """Folders with a clip and a policy of each name, neither of them the original's."""
    clips, policies = tmp_path / "motions", tmp_path / "policies"
    clips.mkdir()
    policies.mkdir()
    for seed, skill in enumerate(ORIGINAL):
        (clips / f"{skill}.txt").write_text(json.dumps(clip("walk")))
        save(policies / f"{skill}.zip", parameters(seed))
    return str(clips), str(policies)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert bench.run(["imitate-reference", "--json", *words]) == 1
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def train(folder: Path, clips: str) -> None:
    """A run of a few steps on Laikago."""
    env = {"robot": "laikago", "clip": f"{clips}/dog_pace.txt", "engine": "bullet"}
    env |= {"spec": "reference", "observation": {"privileged": True}}
    rlgym.train(
        "rlgym/Imitate-v0",
        preset=None,
        run_dir=folder,
        console="off",
        env=env | {"action": {"offset": "clip_mean", "scale": 0.5}},
        num_envs=1,  # which needs no worker process
        total_steps=8,
        algo={"name": "ppo", "num_steps": 8, "minibatch_size": 8, "epochs": 1},
        eval={"every": 0},
    )


def test_every_policy_plays_its_clip_and_so_does_a_run(capsys, copies, tmp_path: Path) -> None:
    clips, policies = copies
    train(tmp_path / "own", clips)
    words = ("--quick", "--workers", "0", "--clips", clips, "--policies", policies)
    outcome = run(capsys, *words, "--run", str(tmp_path / "own"))

    *published, own = outcome["cases"]
    assert [case["name"].split(",")[0] for case in published] == list(ORIGINAL)
    for case in published:
        assert case["goal"] == {"on": "value", "is": "at most", "bound": 5.0}
        assert case["details"]["steps"] == [5, 5]
        mean = np.mean(case["details"]["returns"])
        assert 0.0 < mean < 5.0
        expected = 100.0 * (1.0 - mean / case["details"]["original"])
        assert case["value"] == pytest.approx(expected, abs=0.01)
    assert own["name"] == "own on dog_pace, against the published policy"
    assert own["ratio"] == pytest.approx(own["value"] / own["baseline"])
    assert 0.0 < own["value"] < 1.0

    config = tmp_path / "own" / "config.yaml"
    config.write_text(config.read_text().replace("spec: reference", "spec: modern"))
    with pytest.raises(UserError, match="reference spec"):
        bench.run(["imitate-reference", *words, "--run", str(tmp_path / "own")])


def test_without_copies_it_says_what_to_give(capsys) -> None:
    outcome = run(capsys)
    assert outcome["cases"] == []
    assert "--clips DIR and --policies DIR" in outcome["measured"]


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dog_pace\.txt"):
        bench.run(["imitate-reference", "--clips", str(tmp_path), "--policies", str(tmp_path)])


def test_what_is_lost_by_falling_counts() -> None:
    found = Episodes(np.array([300.0, 60.0]), np.array([600, 120]), np.array([False, True]))
    assert found.per_step == pytest.approx(0.3)
