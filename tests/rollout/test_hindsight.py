"""Goals in hindsight: each is one that its own episode reached later, with the world's reward."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.errors import UserError
from rlgym.rollout.buffer import Finals, RolloutBuffer
from rlgym.rollout.hindsight import Hindsight, rows_left
from rlgym.rollout.priorities import Prioritized
from rlgym.rollout.replay import ReplayBuffer
from rlgym.spaces import Layout
from tests.rollout.test_replay import restore

GOALS = Layout(
    spaces.Dict(
        {
            "observation": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "achieved_goal": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "desired_goal": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )
)
ONE = Layout(spaces.Box(-1, 1, (1,), np.float32))
WANTED = 0.25
"""The goal that every episode was given; none reaches it."""


def closeness(achieved, desired, info):
    """0 at the goal, else minus the distance in tenths; `info` must not be needed."""
    assert info == {}
    return -np.abs(achieved - desired).sum(-1) / 10


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Walk:
    """Slots that count upward from 1000 n: observation = achieved goal = the count."""

    def __init__(self, num_envs, seed=0, end=0.2):
        self.N, self.end = num_envs, end
        self.rng = np.random.default_rng(seed)
        self.now = np.arange(num_envs) * 1000.0
        self.starts = np.ones(num_envs, bool)
        self.last = {}  # observation -> the last one of its episode
        self.members = [[] for _ in range(num_envs)]

    def put(self, tree, slot, value):
        for key, tensor in tree.items():
            tensor[slot] = WANTED if key == "desired_goal" else value

    def rollout(self, num_steps):
        buffer = RolloutBuffer(num_steps, self.N, GOALS, ONE, keep_finals=True)
        buffer.host["episode_start"][0] = self.starts
        for t in range(num_steps + 1):
            for n in range(self.N):
                self.put({k: v[t] for k, v in buffer.all_obs.items()}, n, self.now[n])
            if t == num_steps:
                break
            for n in range(self.N):
                self.members[n].append(self.now[n])
                self.now[n] += 1
                buffer.host["rewards"][t, n] = closeness(self.now[n : n + 1], WANTED, {})
                ended = self.rng.random() < self.end
                buffer.host["episode_start"][t + 1, n] = ended
                if ended:
                    buffer.host["truncated"][t, n] = True
                    final = {leaf.key: torch.zeros(1, 1) for leaf in GOALS.leaves}
                    self.put(final, 0, self.now[n])
                    buffer.finals.append(Finals(t, np.array([n]), final))
                    self.last.update(dict.fromkeys(self.members[n], self.now[n]))
                    self.members[n] = []
                    self.now[n] += 1
        self.starts = buffer.host["episode_start"][-1].copy()
        return buffer

    def end_of(self, obs):
        """Last observation of the episode that `obs` is of."""
        return self.last.get(obs, self.now[int(obs) // 1000])


def build(walk, share=1.0, n_step=1, capacity=40, fn=closeness):
    return ReplayBuffer(
        capacity * walk.N,
        walk.N,
        GOALS,
        ONE,
        gamma=0.5,
        n_step=n_step,
        hindsight=Hindsight(share, fn),
    )


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_goals_come_from_later_in_the_same_episode(num_envs, n_step):
    walk = Walk(num_envs)
    replay = build(walk, n_step=n_step)
    spans = set()
    for turn in range(40):
        replay.add(walk.rollout(3))
        batch = replay.sample(300, seeded(turn))
        obs, goals = batch.obs["observation"][:, 0], batch.obs["desired_goal"][:, 0]
        assert torch.equal(batch.obs["desired_goal"], batch.next_obs["desired_goal"])
        assert torch.equal(batch.obs["achieved_goal"][:, 0], obs)
        after = batch.next_obs["observation"][:, 0]
        for j in np.flatnonzero(batch.weights.numpy()):
            here, goal, then = float(obs[j]), float(goals[j]), float(after[j])
            end = walk.end_of(here)
            assert here < goal <= end
            spans.add((goal - here, end - here))
            assert then == min(here + n_step, end)
            steps = np.arange(here + 1, then + 1)
            wanted = sum(-abs(s - goal) / 10 * 0.5**k for k, s in enumerate(steps))
            assert float(batch.rewards[j]) == pytest.approx(wanted, abs=1e-5)
    # every later row of an episode of three is chosen now and then
    assert {(1, 3), (2, 3), (3, 3)} <= spans


def test_the_share_of_relabelled_transitions():
    walk = Walk(2)
    replay = build(walk, share=0.8)
    replay.add(walk.rollout(15))
    batch = replay.sample(4000, seeded())
    counts = batch.weights.bool()
    kept = (batch.obs["desired_goal"][:, 0] == WANTED)[counts]
    assert 0.17 < kept.float().mean() < 0.23
    rewards = batch.rewards[counts][kept]
    after = batch.next_obs["achieved_goal"][counts][kept][:, 0]
    torch.testing.assert_close(rewards, -(after - WANTED).abs() / 10)


def test_no_share_changes_nothing():
    walk = Walk(1)
    plain = ReplayBuffer(40, 1, GOALS, ONE, gamma=0.5)
    relabelled = build(walk, share=0.0)
    rollout = walk.rollout(12)
    plain.add(rollout)
    relabelled.add(rollout)
    one, two = plain.sample(64, seeded()), relabelled.sample(64, seeded())
    assert torch.equal(one.rewards, two.rewards) and torch.equal(one.index, two.index)
    assert torch.equal(one.obs["desired_goal"], two.obs["desired_goal"])


def test_the_end_of_an_episode_leaves_what_was_learned_of_its_rows():
    walk = Walk(2)
    settings = {"gamma": 0.5, "prioritized": Prioritized()}
    plain = ReplayBuffer(80, 2, GOALS, ONE, **settings)
    relabelled = ReplayBuffer(80, 2, GOALS, ONE, hindsight=Hindsight(0.8, closeness), **settings)
    for turn in range(30):
        rollout = walk.rollout(1)
        for buffer in (plain, relabelled):
            buffer.add(rollout)
            rows = buffer.sample(8, seeded(turn)).index
            buffer.set_priorities(rows, rows.float() % 7)
        weights = [buffer.state()["priorities"] for buffer in (plain, relabelled)]
        assert torch.equal(*weights)
    assert len(weights[0].unique()) > 3


def test_a_restored_buffer_relabels_alike():
    walk = Walk(2)
    replay, segments = build(walk), []
    for _ in range(12):
        replay.add(walk.rollout(5))
        segments.append({k: v.clone() for k, v in replay.unsaved().items()})
        replay.mark_saved()
    other = restore(build(walk), segments, replay.state())
    more = walk.rollout(5)
    for buffer in (replay, other):
        buffer.add(more)
    one, two = replay.sample(200, seeded()), other.sample(200, seeded())
    assert torch.equal(one.obs["desired_goal"], two.obs["desired_goal"])
    assert torch.equal(one.rewards, two.rewards)


def test_rows_left_by_hand():
    flags = np.array([0, 2, 4, 1, 4, 0, 0])
    assert rows_left(flags, 4).tolist() == [2, 1, 0, 1, 0, 0, 0]
    assert rows_left(flags[:0], 4).tolist() == []


def test_worlds_and_functions_that_do_not_fit():
    with pytest.raises(UserError, match=r"no achieved_goal and no desired_goal: pass --algo.hind"):
        ReplayBuffer(10, 1, ONE, ONE, hindsight=Hindsight(0.8, closeness))
    uneven = spaces.Dict({**GOALS.space.spaces, "desired_goal": spaces.Box(-1, 1, (2,))})
    with pytest.raises(UserError, match=r"shape \[1\] and desired_goal \[2\]"):
        ReplayBuffer(10, 1, Layout(uneven), ONE, hindsight=Hindsight(0.8, closeness))
    walk = Walk(1)
    replay = build(walk, fn=lambda achieved, desired, info: -1.0)
    replay.add(walk.rollout(4))
    with pytest.raises(UserError, match=r"shape \[\] for 8 goals: make it work on batches"):
        replay.sample(8, seeded())


def test_rewards_of_panda_reach_are_its_own():
    pytest.importorskip("panda_gym")
    world = gymnasium.make("PandaReach-v3")
    try:
        obs, _ = world.reset(seed=0)
        achieved, desired = obs["achieved_goal"], obs["desired_goal"]
        found = Hindsight(0.8, world.unwrapped.compute_reward).rewards(
            torch.tensor(np.stack((achieved, desired)))[None].float(),
            torch.tensor(np.stack((desired, desired))).float(),
        )
        assert found.tolist() == [[-1.0, 0.0]]
    finally:
        world.close()
