"""What is measured of an actor: by hand on a scripted batch, and on real physics in MuJoCo."""

from types import SimpleNamespace as Namespace

import numpy as np
import pytest

import rlgym
from rlgym.envs.imitation.reward import TERMS
from rlgym.envs.imitation.rotations import about_z
from rlgym.envs.imitation.spec import RewardSpec
from rlgym.envs.imitation.termination import CAUSES
from rlgym.errors import UserError
from rlgym.report import measure

DT = 0.1


class Scripted:
    """Three slots that walk at 0.5 m/s after a reference of 0.6 m/s, one joint 0.1 rad behind.

    Every term is 1 and every reward 0.5; 20 steps of 0.1 s make an episode. `falls` names the step
    at which a slot's first episode ends, and why.
    """

    num_envs = 3
    reward_term_names = TERMS

    def __init__(self, falls: dict[int, tuple[int, str]] | None = None, lost: int | None = None):
        self.falls, self.lost = falls or {}, lost
        self.cause = np.zeros(3, np.int8)
        spec = Namespace(reward=RewardSpec(), episode=Namespace(seconds=2.0))
        clips = Namespace(duration=np.array([0.5, 0.5]), names=("trot", "pace"))
        robot = Namespace(is_spherical=(False, False), nq=2, joints=("hip", "knee"))
        self.task = Namespace(
            spec=spec, clips=clips, robot=robot, control_dt=DT, ref=None,
            episodes=Namespace(clip=np.array([0, 1, 0])),
        )  # fmt: skip
        self.steps, self.number = np.zeros(3, int), np.zeros(3, int)
        self.place, self.ended = np.zeros((3, 3)), 0

    unwrapped = property(lambda self: self)

    def reset(self, seed):
        self._read()
        return None, {}

    def step(self, actions):
        self.steps += 1
        self.place[:, 0] += 0.5 * DT
        terminated, truncated = np.zeros(3, bool), self.steps == 20
        active = np.ones(3, bool)
        for row, (step, cause) in self.falls.items():
            if self.number[row] == 0 and self.steps[row] == step:
                terminated[row], self.cause[row] = True, CAUSES.index(cause)
        if self.lost is not None and self.number[self.lost] == 0 and self.steps[self.lost] == 5:
            truncated[self.lost], active[self.lost] = True, False
        done = terminated | truncated
        self.ended += int(done.sum())
        self.steps[done], self.place[done] = 0, 100.0  # a new episode begins elsewhere
        self.number += done
        self._read()
        info = {"active": active, "reward_terms": {name: np.ones(3) for name in TERMS}}
        return None, np.full(3, 0.5), terminated, truncated, info

    def _read(self):
        one = np.ones((3, 1))
        self.task.state = Namespace(
            q=one * [0.2, 0.0], root_pos=self.place.copy(), root_quat=about_z(np.full(3, 3.1)),
            power=np.full(3, 25.0),
        )  # fmt: skip
        self.task.ref = Namespace(
            q=one * [0.1, 0.0], root_linvel=one * [0.6, 0.0, 0.0],
            root_quat=about_z(np.full(3, -3.1)),
        )  # fmt: skip


def standing_still(obs, info):
    return None


def test_means_over_whole_episodes():
    found = measure.play(Scripted(), standing_still, 3, trace=True)
    assert found.episodes == 3 and found.scores == pytest.approx((0.5, 0.5, 0.5))
    assert found.score == 0.5 and found.survival == 1.0 and found.causes == {}
    weights = {"pose": 0.5, "velocity": 0.05, "end_effector": 0.2, "root_pose": 0.15}
    assert found.terms == pytest.approx({**weights, "root_velocity": 0.1})
    assert found.joint_error == pytest.approx(0.1 / np.sqrt(2)), "two joints, one 0.1 rad off"
    assert found.drift == pytest.approx(0.1 * 0.5), "0.1 m/s slower over a cycle of 0.5 s"
    assert found.heading_error == pytest.approx(2 * np.pi - 6.2), "the short way round"
    assert found.power == pytest.approx(25.0)
    # the first and the last step of an episode have no way, the last also no power
    assert found.energy == pytest.approx(25.0 * 19 / (0.5 * 18))
    assert found.trace["t"] == pytest.approx(np.arange(1, 20) * DT)
    assert found.trace["hip (clip)"] == [0.1] * 19


def test_every_step_after_a_fall_counts_nothing():
    found = measure.play(Scripted({1: (8, "tilt")}), standing_still, 3)
    assert sorted(found.scores) == pytest.approx([0.5 * 8 / 20, 0.5, 0.5])
    assert found.clips == pytest.approx({"pace": 0.5 * 8 / 20, "trot": 0.5})
    assert found.survival == pytest.approx(2 / 3) and found.causes == {"tilt": 1}
    assert found.terms["pose"] == pytest.approx(0.5 * (1 + 1 + 8 / 20) / 3)
    assert found.joint_error == pytest.approx(0.1 / np.sqrt(2)), "a fall leaves errors alone"


def test_the_end_of_a_clip_is_no_fall():
    found = measure.play(Scripted({1: (8, "clip_over")}), standing_still, 3)
    assert found.scores == pytest.approx((0.5, 0.5, 0.5)) and found.survival == 1.0
    assert found.causes == {}


def test_a_slot_that_falls_early_plays_no_more_than_its_share():
    env = Scripted({1: (2, "tilt")})
    found = measure.play(env, standing_still, 4)
    assert found.episodes == 4 and found.causes == {"tilt": 1}
    assert sorted(found.scores) == pytest.approx([0.05, 0.5, 0.5, 0.5])


def test_a_lost_slot_plays_its_episode_again():
    env = Scripted(lost=2)
    found = measure.play(env, standing_still, 3)
    assert found.episodes == 3 and found.survival == 1.0
    assert found.scores == pytest.approx((0.5, 0.5, 0.5))


def test_other_worlds_are_refused():
    env = rlgym.make_vec("CartPole-v1", 2, backend="sync")
    with pytest.raises(UserError, match="no imitation worlds"):
        measure.play(env, standing_still, 1)
    env.close()


# ----- Real physics ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trots():
    """Eight A1 that are to trot, in MuJoCo."""
    pytest.importorskip("mujoco")
    arguments = {"robot": "a1", "clip": "trot", "evaluation": True}
    env = rlgym.make_vec("rlgym/Imitate-v0", 8, env_kwargs=arguments)
    yield env
    env.close()


def test_standing_is_worth_little_and_open_loop_much(trots):
    still = measure.play(trots, measure.standing(trots), 8)
    assert 0.33 < still.score < 0.43 and still.survival == 1.0
    assert still.drift == pytest.approx(0.55 * 0.5, abs=0.03), "the clip walks away from it"
    assert np.isnan(still.energy) and still.document()["energy"] is None
    assert still.power < 10.0
    follows = measure.play(trots, measure.open_loop(trots), 8)
    assert follows.score > 0.6 and follows.survival == 1.0
    assert follows.joint_error < 0.7 * still.joint_error
    assert follows.drift < 0.5 * still.drift
    assert 100.0 < follows.energy < 600.0
    assert sum(follows.terms.values()) == pytest.approx(follows.score)


def test_open_loop_asks_for_the_clip_one_step_ahead(trots):
    trots.reset(seed=3)
    task = trots.task
    ahead = task.clips.pose(task.episodes.clip, task.episodes.time() + task.control_dt).q
    actions = measure.open_loop(trots)(None, {})
    asked = task.offsets[task.episodes.clip] + task.spec.action.scale * actions
    assert asked == pytest.approx(ahead)


def test_all_actors_play_the_same_episodes(trots):
    starts = []
    for _ in range(2):
        trots.reset(seed=7)
        starts.append(task_phase(trots))
    assert starts[0] == pytest.approx(starts[1])
    trots.reset(seed=8)
    assert task_phase(trots) != pytest.approx(starts[0])


def task_phase(env) -> np.ndarray:
    return np.array(env.task.episodes.time())
