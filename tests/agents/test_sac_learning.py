"""Tiny problems with known answers, solved in a second or two; and no read from the device."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.config import SACConfig
from tests.agents.test_device_clean import DeviceClean
from tests.agents.test_sac import SPACES
from tests.agents.transitions import Fixed, batch, learner

LINE = spaces.Box(-1, 1, (1,), np.float32)
KNOB = spaces.Box(np.float32([10]), np.float32([20]))
FAST = {"learning_rate": 1e-2, "batch_size": 64, "tau": 0.05, "initial_temperature": 0.1}


@pytest.mark.parametrize("case", SPACES)
@pytest.mark.parametrize("prioritized", [False, True])
def test_an_update_and_a_step_read_nothing_back(case, prioritized):
    obs_space, action_space, network, build = SPACES[case]
    cfg = SACConfig(
        actor_every=2, max_grad_norm=1.0, learning_rate_schedule="linear", prioritized=prioritized
    )
    own = learner(obs_space, action_space, network, cfg, **build)
    policy = own.policy
    replay = Fixed(batch(policy, 16, masks=True))
    generator = torch.Generator().manual_seed(0)
    data = replay.batches[0]
    noise = policy.noise(1, 16, generator)[0]
    with DeviceClean() as mode:
        own.update(replay, 2, 0.5, generator)
        for policy.random in (True, False):
            policy.act(data.obs, noise, mask=data.mask)
        policy.act(data.obs, deterministic=True, mask=data.mask)
        policy.scale_action(policy.to_world(data.actions))
    assert mode.found == []


class Bandit:
    """One-step episodes: `reward(obs, action)`, observations and actions uniformly random."""

    def __init__(self, policy, reward, obs=None):
        self.policy, self.reward, self.obs = policy, reward, obs

    def sample(self, batch_size, generator):
        policy = self.policy
        if self.obs is None:
            obs = torch.rand(batch_size, 1, generator=generator) * 2 - 1
        else:
            obs = self.obs.expand(batch_size, -1)
        noise = policy.distribution.noise(batch_size, generator=generator)
        actions = policy.actions.random(noise, None)
        ones = torch.ones(batch_size)
        return SimpleNamespace(
            obs=obs, next_obs=obs, actions=actions, rewards=self.reward(obs, actions),
            discounts=0 * ones, weights=ones, index=None, mask=None, next_mask=None,
        )  # fmt: skip


def solve(own, reward, updates, obs=None):
    generator = torch.Generator().manual_seed(0)
    return own.update(Bandit(own.policy, reward, obs), updates, 0.0, generator)


def best(own, obs) -> tuple[Any, Any]:
    """What the policy thinks best: for the world, and as stored."""
    return own.policy.act(obs, deterministic=True)[:2]


@pytest.mark.parametrize("case", ["plain", "layer norm", "gsde"])
def test_a_knob_is_turned_to_where_it_pays(case):
    _, _, network, build = SPACES[case]
    own = learner(LINE, KNOB, network, SACConfig(**FAST), **build)
    solve(own, lambda obs, action: -8 * (action - 0.5 * obs).square().squeeze(1), 250)
    obs = torch.linspace(-0.9, 0.9, 50).unsqueeze(1)
    world, stored = best(own, obs)
    assert (stored - 0.5 * obs).abs().mean() < 0.1
    torch.testing.assert_close(world, 15 + 5 * stored)  # the knob goes from 10 to 20


def test_a_learned_temperature_holds_the_entropy_at_its_target():
    cfg = SACConfig(target_entropy=-1.5, **FAST)
    own = learner(LINE, KNOB, algo=cfg)
    solve(own, lambda obs, action: -8 * (action - 0.5 * obs).square().squeeze(1), 400)
    obs, noise = torch.rand(2000, 1) * 2 - 1, torch.randn(2000, 1)
    with torch.no_grad():
        params = own.policy(own.policy.preparation(obs))
        draw = own.policy.actions.draw(params, [noise], None)
    assert -float(draw.log_prob.mean()) == pytest.approx(-1.5, abs=0.25)


def test_choices_become_as_likely_as_theory_says():
    # with Q = r and temperature 1/2, the best policy is softmax(r / (1/2))
    payoff = torch.tensor([0.0, 0.5, 1.0])
    own = learner(LINE, spaces.Discrete(3, start=4), algo=SACConfig(temperature=0.5, **FAST))
    solve(own, lambda obs, action: payoff[action - 4], 250, torch.zeros(1, 1))
    inputs = own.policy.preparation(torch.zeros(1, 1))
    torch.testing.assert_close(
        own.policy(inputs).softmax(1)[0], torch.softmax(payoff * 2, 0), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        own.policy.critics(inputs)[0][:, 0], payoff.expand(2, 3), atol=0.02, rtol=0
    )


def test_both_kinds_of_actions_are_learned_together():
    space = spaces.Dict({"gear": spaces.Discrete(2), "knob": KNOB, "lamp": spaces.MultiBinary(1)})
    own = learner(LINE, space, algo=SACConfig(temperature=0.02, **FAST))

    def reward(obs, action):
        right = (action["gear"] == (obs[:, 0] > 0)).float()
        near = -2 * (action["knob"][:, 0] - 0.5 * obs[:, 0]).square()
        return right + near + 0.5 * action["lamp"][:, 0]

    solve(own, reward, 250)
    obs = torch.tensor([[-0.8], [-0.4], [0.4], [0.8]])
    _, stored = best(own, obs)
    assert stored["gear"].tolist() == [0, 0, 1, 1]
    assert stored["lamp"][:, 0].tolist() == [1, 1, 1, 1]
    assert (stored["knob"] - 0.5 * obs).abs().max() < 0.2


def test_values_go_back_along_a_chain():
    # 0 -> 1 -> end, with a reward of 1 at the end: Q(1) = 1, and Q(0) = 0.5
    own = learner(LINE, KNOB, algo=SACConfig(temperature=0.0, gamma=0.5, **FAST))
    rows = 64
    first = torch.arange(rows) % 2 == 0
    data = SimpleNamespace(
        obs=torch.where(first, 0.0, 1.0).unsqueeze(1),
        next_obs=torch.ones(rows, 1),
        actions=torch.linspace(-1, 1, rows).unsqueeze(1),
        rewards=torch.where(first, 0.0, 1.0),
        discounts=torch.where(first, 0.5, 0.0),
        weights=torch.ones(rows), index=None, mask=None, next_mask=None,
    )  # fmt: skip
    own.update(Fixed(data), 200, 0.0, torch.Generator().manual_seed(0))
    inputs = own.policy.preparation(torch.tensor([[0.0], [1.0]]))
    q = own.policy.critics(inputs, torch.zeros(2, 1))[0].squeeze(2)
    torch.testing.assert_close(q, torch.tensor([[0.5, 1.0]] * 2), atol=0.05, rtol=0)


def test_a_large_batch_of_many_worlds_learns_in_few_updates():
    # the recipe for thousands of worlds: layer norm, observations normalised, large batches
    cfg = SACConfig(batch_size=2048, learning_rate=1e-2, max_grad_norm=10.0, temperature=0.05)
    network = {"normalize_obs": True, "activation": "silu", "hidden": (32,)}
    own = learner(LINE, KNOB, network, cfg, layer_norm=True)
    solve(own, lambda obs, action: -8 * (action - 0.5 * obs).square().squeeze(1), 100)
    obs = torch.linspace(-0.9, 0.9, 50).unsqueeze(1)
    assert (best(own, obs)[1] - 0.5 * obs).abs().mean() < 0.1
