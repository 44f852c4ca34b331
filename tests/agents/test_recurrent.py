"""Memory: sequences equal single steps, resets are clean, and a cue is remembered."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.spaces import Layout

OBS = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_sequence_equals_single_steps_and_resets_where_episodes_start(kind):
    net = NetworkConfig(recurrent=kind, recurrent_size=6, hidden=(8,))
    policy = ActorCritic.build(Layout(OBS), Layout(spaces.Discrete(3)), net)
    T, N = 9, 4
    obs, start = torch.randn(T, N, 3), torch.rand(T, N) < 0.3
    actions = torch.randint(0, 3, (T, N))
    assert policy.state_shape is not None
    initial = torch.randn(N, *policy.state_shape)
    log_probs, _, values = policy.evaluate(obs, actions, None, initial, start)
    assert log_probs.shape == (T, N)
    state, stepped = initial, []
    for t in range(T):
        stepped.append(policy.values(obs[t], state, start[t]))
        fresh = torch.where(start[t, :, None], 0.0, state)
        _, _, state = policy.act(obs[t], state=state, start=start[t])
        _, _, again = policy.act(obs[t], state=fresh)
        assert torch.equal(state, again)
    torch.testing.assert_close(torch.stack(stepped), values.detach())


def test_no_gradient_flows_across_an_episode_start():
    net = NetworkConfig(recurrent="gru", recurrent_size=6)
    policy = ActorCritic.build(Layout(OBS), Layout(spaces.Discrete(3)), net)
    obs = torch.randn(6, 1, 3, requires_grad=True)
    start = torch.zeros(6, 1, dtype=torch.bool)
    start[3] = True
    _, _, values = policy.evaluate(obs, torch.zeros(6, 1).long(), None, None, start)
    values[5].backward()
    assert (obs.grad[:3] == 0).all() and (obs.grad[3:] != 0).any()


def test_minibatches_are_whole_sequences(rollout):
    net = NetworkConfig(recurrent="gru", recurrent_size=6)
    cfg = PPOConfig(minibatch_size=40, epochs=1)  # two and a half sequences of 16: two
    learner, buffer, generator = rollout(OBS, spaces.Discrete(3), net, cfg, num_envs=5)
    rows, _ = learner._rows(buffer)
    _, batches = next(learner._epochs(rows, learner._orders(buffer, generator)))
    batches = [learner._time_major(batch) for batch in batches]
    assert [tuple(batch["start"].shape) for batch in batches] == [(16, 2)] * 3
    first = batches[0]
    for column in range(2):
        sequence = first["inputs"]["vector"].view(16, 2, 3)[:, column]
        matches = [n for n in range(5) if torch.equal(buffer.obs[:, n], sequence)]
        assert len(matches) == 1
        torch.testing.assert_close(
            first["log_probs"].view(16, 2)[:, column],
            learner.policy.evaluate(
                buffer.obs, buffer.actions, None, buffer.initial_state, buffer.episode_start
            )[0][:, matches[0]].detach(),
        )


class Recall:
    """A cue of -1 or 1 at an episode's first step; at its fifth, the answer is asked for."""

    LENGTH = 5

    def __init__(self, num_envs, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.cue = torch.zeros(num_envs)
        self.t = 0

    def observe(self):
        if self.t == 0:
            draws = torch.randint(0, 2, self.cue.shape, generator=self.generator)
            self.cue = 2.0 * draws - 1.0
        first, last = float(self.t == 0), float(self.t == self.LENGTH - 1)
        ones = torch.ones_like(self.cue)
        return torch.stack((self.cue * first, first * ones, last * ones), 1)

    def step(self, actions):
        asked = self.t == self.LENGTH - 1
        right = (2.0 * actions - 1.0) == self.cue
        self.t = 0 if asked else self.t + 1
        return (right.float() if asked else torch.zeros_like(self.cue)), asked


def train(kind, updates, seed=0):
    """Mean reward per episode of the last five updates."""
    T, N = 10, 32
    layouts = Layout(OBS), Layout(spaces.Discrete(2))
    net = NetworkConfig(recurrent=kind, recurrent_size=16, hidden=(16,))
    cfg = PPOConfig(minibatch_size=160, epochs=4, learning_rate=5e-3, entropy_coef=0.01)
    policy = ActorCritic.build(*layouts, net, seed)
    buffer = RolloutBuffer(T, N, *layouts, "cpu", 0, policy.state_shape)
    learner, generator = PPO(policy, cfg), torch.Generator().manual_seed(seed)
    world, state, scores = Recall(N, seed), policy.initial_state(N), []
    for _ in range(updates):
        noise = policy.noise(T, N, generator)
        if state is not None:
            buffer.initial_state.copy_(state)
        for t in range(T):
            start = torch.full((N,), world.t == 0)
            buffer.obs[t], buffer.episode_start[t] = world.observe(), start
            buffer.actions[t], _, state = policy.act(buffer.obs[t], noise[t], state, start)
            buffer.rewards[t], ended = world.step(buffer.actions[t])
            buffer.terminated[t] = ended
        buffer.last_obs.zero_()  # every rollout ends with an episode
        buffer.last_start.fill_(True)
        scores.append(float(buffer.rewards.sum()) / (T // Recall.LENGTH * N))
        learner.update(buffer, 0.0, generator)
    return sum(scores[-5:]) / 5


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_memory_solves_a_world_that_hides_its_cue(kind):
    assert train(kind, 60) > 0.95


def test_a_feed_forward_policy_guesses():
    assert train("none", 40) < 0.65
