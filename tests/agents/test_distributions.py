"""Closed forms against torch.distributions, in float64."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import distributions as td

from rlgym.agents.distributions import allow, make_distribution
from rlgym.agents.gaussian import log_tanh_slope, squashed_entropy
from rlgym.config import NetworkConfig
from rlgym.errors import SpaceError
from rlgym.spaces import Layout

B = 7


def make(space, latent=5, **network):
    return make_distribution(Layout(space), NetworkConfig(**network), latent).double()


def params_of(distribution, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    size = (B, distribution.num_params + distribution.latent_size)
    return scale * torch.randn(size, generator=generator, dtype=torch.float64)


def box(n, low=-1.0, high=1.0):
    return spaces.Box(low, high, (n,), np.float32)


def check_gradients(distribution, params, actions, mask=None):
    """The hand-written gradient equals autograd's for any weights of the two outputs."""
    d_log_probs, d_entropy = torch.randn(2, B, dtype=torch.float64)
    own = list(distribution.parameters())
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter)
    leaf = params.clone().requires_grad_()
    outputs = distribution.log_prob_entropy(leaf, actions, mask)
    expected = torch.autograd.grad(outputs, (leaf, *own), (d_log_probs, d_entropy))
    with torch.no_grad():
        log_probs, saved = distribution.evaluate(params, actions, mask)
        d_params = distribution.pull_back(saved, d_log_probs, d_entropy)
    torch.testing.assert_close(log_probs, outputs[0].detach())
    torch.testing.assert_close(d_params, expected[0])
    for parameter, gradient in zip(own, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_categorical_with_a_start_equals_torch():
    distribution = make(spaces.Discrete(4, start=3))
    params = params_of(distribution)
    actions = torch.tensor([3, 4, 5, 6, 3, 4, 5])
    log_probs, entropy = distribution.log_prob_entropy(params, actions)
    reference = td.Categorical(logits=params)
    torch.testing.assert_close(log_probs, reference.log_prob(actions - 3))
    torch.testing.assert_close(entropy, reference.entropy())
    torch.testing.assert_close(distribution.mode(params), params.argmax(1) + 3)
    check_gradients(distribution, params, actions)


def test_categorical_mask_renormalises_over_allowed_choices():
    distribution = make(spaces.Discrete(3))
    params = params_of(distribution)
    mask = torch.tensor([[True, False, True]] * B)
    log_probs, entropy = distribution.log_prob_entropy(params, torch.zeros(B).long(), mask)
    reference = td.Categorical(logits=params[:, [0, 2]])
    torch.testing.assert_close(log_probs, reference.log_prob(torch.zeros(B)))
    torch.testing.assert_close(entropy, reference.entropy())
    generator = torch.Generator().manual_seed(0)
    noise = distribution.noise(B * 200, generator=generator).double()
    draws = distribution.sample(params.repeat(200, 1), noise, mask.repeat(200, 1))
    assert set(draws.tolist()) == {0, 2}
    check_gradients(distribution, params, torch.full((B,), 2), mask)


def test_no_noise_outdoes_a_mask(monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **_: torch.zeros(*shape)
    )  # what comes once in 2^24 numbers
    noise = make(spaces.Discrete(3)).noise(1, generator=torch.Generator())
    assert torch.isfinite(noise).all() and (noise > -10).all()


def test_a_row_that_allows_nothing_allows_everything():
    params = torch.randn(2, 3)
    mask = torch.tensor([[False, False, False], [True, False, True]])
    logits = allow(params, mask)
    torch.testing.assert_close(logits[0], params[0])
    assert logits[1, 1] == -1e8
    assert torch.isfinite(torch.log_softmax(logits, -1)).all()


def test_multi_categorical_is_a_sum_of_categoricals():
    space = spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 0], [0, 5]]))
    distribution = make(space)
    params = params_of(distribution)
    actions = torch.stack([torch.as_tensor(space.sample()) for _ in range(B)])
    mask = torch.ones(B, 11, dtype=torch.bool)
    mask[:, 2 + 3 + 1] = False  # the third component's choice 1
    actions[:, 1, 0] = 2
    log_probs, entropy = distribution.log_prob_entropy(params, actions, mask)
    logits = list(params.split([2, 3, 4, 2], 1))
    logits[2] = logits[2][:, [0, 2, 3]]
    parts = [td.Categorical(logits=part) for part in logits]
    chosen = (actions - torch.as_tensor(space.start)).reshape(B, 4)
    chosen[:, 2] = 1  # choice 2 is the second of those allowed
    expected = sum(part.log_prob(chosen[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropy, sum(part.entropy() for part in parts))
    assert all(space.contains(row.numpy()) for row in distribution.mode(params, mask))


def test_bernoulli_equals_torch():
    distribution = make(spaces.MultiBinary(4))
    params = params_of(distribution, scale=3.0)
    actions = torch.randint(0, 2, (B, 4), dtype=torch.int8)
    log_probs, entropy = distribution.log_prob_entropy(params, actions)
    reference = td.Bernoulli(logits=params)
    torch.testing.assert_close(log_probs, reference.log_prob(actions.double()).sum(1))
    torch.testing.assert_close(entropy, reference.entropy().sum(1))


def test_gaussian_equals_torch():
    distribution = make(box(3), log_std_init=-0.5)
    params = params_of(distribution)
    actions = torch.randn(B, 3, dtype=torch.float64)
    log_probs, entropy = distribution.log_prob_entropy(params, actions)
    reference = td.Normal(params, np.exp(-0.5))
    torch.testing.assert_close(log_probs, reference.log_prob(actions).sum(1))
    torch.testing.assert_close(entropy, reference.entropy().sum(1))
    check_gradients(distribution, params, actions)


def test_state_dependent_std_equals_torch():
    distribution = make(box(2), std="state", log_std_init=0.3)
    params = params_of(distribution, scale=0.5)  # within LOG_STD_RANGE
    actions = torch.randn(B, 2, dtype=torch.float64)
    log_probs, entropy = distribution.log_prob_entropy(params, actions)
    reference = td.Normal(params[:, :2], (params[:, 2:] + 0.3).exp())
    torch.testing.assert_close(log_probs, reference.log_prob(actions).sum(1))
    torch.testing.assert_close(entropy, reference.entropy().sum(1))


def test_squashed_log_prob_equals_torch_also_far_out():
    distribution = make(box(2), squash=True, log_std_init=0.2)
    params = params_of(distribution)
    raw = torch.randn(B, 2, dtype=torch.float64)
    reference = td.TransformedDistribution(
        td.Normal(params, np.exp(0.2)), td.TanhTransform(cache_size=1)
    )
    log_probs, _ = distribution.log_prob_entropy(params, raw)
    torch.testing.assert_close(log_probs, reference.log_prob(raw.tanh()).sum(1))
    far = torch.tensor([50.0, -50.0])  # tanh is 1 in float32: log(1 - tanh^2) would be -inf
    torch.testing.assert_close(log_tanh_slope(far), 2 * np.log(2.0) - 2 * far.abs())


@pytest.mark.parametrize("mean", [0.0, 0.7, -2.5])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_squashed_entropy_equals_monte_carlo(mean, std):
    draws = mean + std * torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double()
    expected = log_tanh_slope(draws).mean()
    got = squashed_entropy(torch.tensor([mean]).double(), torch.tensor([std]).double())
    assert abs(got.item() - expected.item()) < 0.03


def test_gsde_equals_stable_baselines():
    latent, n = 5, 3
    distribution = make(box(n), latent=latent, std="gsde", log_std_init=-0.7)
    params = params_of(distribution)
    actions = torch.randn(B, n, dtype=torch.float64)
    log_probs, entropy = distribution.log_prob_entropy(params, actions)
    theirs = StateDependentNoiseDistribution(n)
    log_std = distribution.log_std.detach()
    theirs.latent_sde_dim = latent
    theirs.proba_distribution(params[:, :n], log_std, params[:, n:])
    torch.testing.assert_close(log_probs, theirs.log_prob(actions))
    torch.testing.assert_close(entropy, theirs.entropy())


def test_gsde_noise_is_the_last_layer_times_one_matrix():
    distribution = make(box(2), latent=3, std="gsde")
    params = params_of(distribution)
    noise = torch.randn(B, 6, dtype=torch.float64)
    actions = distribution.sample(params, noise)
    for b in range(B):
        expected = params[b, :2] + params[b, 2:] @ noise[b].view(3, 2)
        torch.testing.assert_close(actions[b].detach(), expected)


def test_mixed_actions_add_up_and_share_the_mask():
    space = spaces.Dict({"arm": box(2), "gear": spaces.Discrete(3), "lamps": spaces.MultiBinary(2)})
    distribution = make(space, std="gsde", latent=4)
    params = params_of(distribution)
    mask = torch.tensor([[True, True, False]] * B)
    noise = distribution.noise(B, generator=torch.Generator().manual_seed(0)).double()
    actions = distribution.sample(params, noise, mask)
    log_probs, entropy = distribution.log_prob_entropy(params, actions, mask)
    gear = td.Categorical(logits=params[:, 2:4])
    lamps = td.Bernoulli(logits=params[:, 5:7])
    arm_params = torch.cat((params[:, :2], params[:, 7:]), 1)
    arm = distribution.parts[0].log_prob_entropy(arm_params, actions["arm"])
    expected = (
        arm[0] + gear.log_prob(actions["gear"]) + lamps.log_prob(actions["lamps"].double()).sum(1)
    )
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropy, arm[1] + gear.entropy() + lamps.entropy().sum(1))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiBinary(2), box(1)])
def test_samples_follow_the_distribution(space):
    distribution = make(space).float()
    params = torch.tensor([[0.5, -0.3, 1.0][: distribution.num_params]]).repeat(40_000, 1)
    noise = distribution.noise(40_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        draws = distribution.sample(params, noise).float()
    if isinstance(space, spaces.Discrete):
        frequencies = torch.bincount(draws.long(), minlength=3) / len(draws)
        torch.testing.assert_close(frequencies, params[0].softmax(0), atol=0.01, rtol=0)
    elif isinstance(space, spaces.MultiBinary):
        torch.testing.assert_close(draws.mean(0), params[0].sigmoid(), atol=0.01, rtol=0)
    else:
        torch.testing.assert_close(draws.mean(), torch.tensor(0.5), atol=0.02, rtol=0)
        torch.testing.assert_close(draws.std(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_world_actions_respect_bounds():
    raw = torch.tensor([[-30.0, 0.0], [0.25, 30.0]])
    space = spaces.Box(np.float32([-1, 0]), np.float32([2, 4]))
    clipped = make(space).float().to_world(raw)
    torch.testing.assert_close(clipped, torch.tensor([[-1.0, 0.0], [0.25, 4.0]]))
    squashed = make(space, squash=True).float().to_world(raw)
    assert squashed[0, 0] == -1.0 and squashed[1, 1] == 4.0
    assert squashed[0, 1] == 2.0  # the middle of 0..4
    free = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert make(free).float().to_world(raw) is raw


def test_what_cannot_be_an_action_is_refused_in_one_line():
    with pytest.raises(SpaceError, match="squash"):
        make(spaces.Box(-np.inf, np.inf, (2,), np.float32), squash=True)
    with pytest.raises(SpaceError, match="MultiDiscrete"):
        make(spaces.Box(0, 9, (2,), np.int32))
