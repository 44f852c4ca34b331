"""The reference spec against numbers recorded from the original motion_imitation.

The recording (motion_imitation.json) was made with motion_imitation 0.0.6 and PyBullet 3.2.7: the
original's environment imitating the synthetic clips of `clips.py`, its draws replaced by those that
are noted, its actions those of `clips.action`. docs/reference_spec.md says what is compared.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgym.bench.imitate_reference import ORIGINAL, play
from rlgym.envs.imitation import episode
from rlgym.envs.imitation.build import build_task
from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.reward import TERMS
from rlgym.envs.imitation.rotations import multiply
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.physics.robots import get_robot
from rlgym.interop.motion_imitation import load_policy
from tests.parity.clips import action, clip

RECORDED = json.loads(Path(__file__).with_name("motion_imitation.json").read_text("utf-8"))
LAIKAGO = get_robot("laikago")
SIGN, OFFSET = np.array(LAIKAGO.sign), np.array(LAIKAGO.offset)
OWN_COPY = os.environ.get("RLGYM_MOTION_IMITATION", "")
"""Folder of the user's own copy: motion_imitation/data, with motions/ and policies/ in it."""


def write(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.txt"
    path.write_text(json.dumps(clip(kind)), "utf-8")
    return path


def flip_to_w_positive(quat: np.ndarray) -> np.ndarray:
    return np.where(quat[..., 3:] < 0, -quat, quat)


@pytest.mark.parametrize("kind", ["walk", "turn", "rise"])
def test_clips_are_sampled_as_the_original_samples_them(tmp_path: Path, kind: str) -> None:
    recorded = RECORDED["sampled"][kind]
    clips = ClipSet([load_clip(write(tmp_path, kind), LAIKAGO)], LAIKAGO)
    times = np.array(recorded["times"])

    ref = clips.sample(np.zeros(len(times), np.int64), times)

    quat = multiply(ref.root_quat, np.array(LAIKAGO.base_rotation)[None])
    ours = np.concatenate([ref.root_pos, flip_to_w_positive(quat), SIGN * (ref.q + OFFSET)], 1)
    np.testing.assert_allclose(ours, recorded["frames"], atol=2e-9)
    velocities = np.concatenate([ref.root_linvel, ref.root_angvel, SIGN * ref.qd], 1)
    np.testing.assert_allclose(velocities, recorded["velocities"], atol=2e-9)


def begun(
    folder: Path, recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[ImitationTask, np.ndarray]:
    """A task in the recorded episode's first state, and its first observation."""
    draw = episode.uniform

    def drawn(seed: Any, counter: Any, which: Any) -> np.ndarray:
        values = np.array(draw(seed, counter, which))
        values[:, episode._WARM] = 0.95 if recorded["warm"] else 0.0
        values[:, episode._PHASE] = recorded["phase"]
        return values

    monkeypatch.setattr(episode, "uniform", drawn)
    task = build_task(
        1,
        engine="bullet",
        robot="laikago",
        clip=str(write(folder, recorded["clip"])),
        spec="reference",
        num_workers=0,
        episode={"curriculum_seconds": None},
    )
    obs, _ = task.reset()
    return task, obs[0].copy()


@pytest.mark.parametrize("number", range(len(RECORDED["episodes"])))
def test_an_episode_goes_as_in_the_original(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = RECORDED["episodes"][number]
    task, obs = begun(tmp_path, recorded, monkeypatch)
    np.testing.assert_allclose(obs, recorded["obs"][0], atol=1e-6)
    seen, rewards, terms, over = {0: obs}, [], [], False

    for step in range(recorded["steps"]):
        assert not over, f"ended after {step} steps, in the original after {recorded['steps']}"
        result = task.step(np.array([action(step)]))
        if step < len(recorded["targets"]):  # filtered, before interpolation
            np.testing.assert_allclose(task._previous[0], recorded["targets"][step], atol=1e-6)
        over = bool(result.terminated[0] | result.truncated[0])
        seen[step + 1] = (result.final_obs if over else result.obs)[0].copy()
        rewards.append(result.reward[0])
        terms.append([result.terms[name][0] for name in TERMS])
    task.close()

    assert over == recorded["terminated"]
    # Bullet adds up contacts in another order there; what follows a touch differs by that noise
    for step, expected in zip(recorded["observed"], recorded["obs"], strict=True):
        np.testing.assert_allclose(seen[step], expected, atol=1e-3, err_msg=f"step {step}")
    np.testing.assert_allclose(terms[:12], recorded["terms"][:12], atol=1e-4)
    np.testing.assert_allclose(rewards, recorded["rewards"], atol=2e-2)


def test_a_wrong_number_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = RECORDED["episodes"][0]
    task, obs = begun(tmp_path, recorded, monkeypatch)
    assert abs(obs - np.array(recorded["obs"][1])).max() > 0.1  # the next step's, not this one's
    result = task.step(np.array([action(1)]))  # the next step's action
    terms = [result.terms[name][0] for name in TERMS]
    task.close()
    assert abs(np.array(terms) - recorded["terms"][0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not OWN_COPY, reason="set RLGYM_MOTION_IMITATION to your copy of motion_imitation/data"
)
@pytest.mark.parametrize("skill", sorted(ORIGINAL))
def test_published_policies_score_what_they_score_in_the_original(skill: str) -> None:
    policy = load_policy(Path(OWN_COPY) / "policies" / f"{skill}.zip")
    found = play(policy, Path(OWN_COPY) / "motions" / f"{skill}.txt", 8)
    assert not found.fell.any()
    assert found.returns.mean() == pytest.approx(np.mean(ORIGINAL[skill]), rel=0.05)
