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


def test_every_policy_plays_its_clip(capsys, copies) -> None:
    clips, policies = copies
    words = ("--quick", "--workers", "0", "--clips", clips, "--policies", policies)
    outcome = run(capsys, *words)
    assert [case["name"].split(",")[0] for case in outcome["cases"]] == list(ORIGINAL)
    for case in outcome["cases"]:
        assert case["goal"] == {"on": "value", "is": "at most", "bound": 5.0}
        assert case["details"]["steps"] == [5, 5, 5]
        mean = np.mean(case["details"]["returns"])
        assert 0.0 < mean < 5.0
        expected = 100.0 * (1.0 - mean / case["details"]["original"])
        assert case["value"] == pytest.approx(expected, abs=0.01)


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


def train(folder: Path, clips: str, **env: object) -> str:
    """A run of a few steps on Laikago."""
    rlgym.train(
        "rlgym/Imitate-v0",
        preset=None,
        run_dir=folder,
        console="off",
        env={"robot": "laikago", "clip": f"{clips}/dog_pace.txt", **env},
        num_envs=4,
        total_steps=16,
        algo={"name": "ppo", "num_steps": 4, "minibatch_size": 16, "epochs": 1},
        eval={"every": 0},
    )
    return str(folder)


def test_a_run_is_held_against_the_published_policy(capsys, copies, tmp_path: Path) -> None:
    clips, policies = copies
    words = ("--quick", "--workers", "0", "--clips", clips, "--policies", policies)
    action = {"offset": "clip_mean", "scale": 0.5}
    observation = {"privileged": True}
    good = train(tmp_path / "good", clips, spec="reference", action=action, observation=observation)
    case = run(capsys, *words, "--run", good)["cases"][-1]
    assert case["name"] == "good on dog_pace, against the published policy"
    assert case["ratio"] == pytest.approx(case["value"] / case["baseline"])
    assert 0.0 < case["value"] < 1.0
    other = train(tmp_path / "other", clips)
    with pytest.raises(UserError, match="reference spec"):
        bench.run(["imitate-reference", *words, "--run", other])
