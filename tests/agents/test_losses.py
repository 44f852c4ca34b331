"""Losses against numbers worked by hand, and the gradient formulas against autograd."""

import math

import pytest
import torch

from rlgym.agents import losses


def log(*ratios):
    return torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)


def test_policy_loss_by_hand():
    # ratios 1.5 (clipped to 1.2), 0.5 (clipped to 0.8), 1.1, and one row that does not count
    advantages = torch.tensor([2.0, -1.0, 1.0, 100.0]).double()
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    new, old = log(1.5, 0.5, 1.1, 3.0), torch.zeros(4).double()
    # min(1.5 * 2, 1.2 * 2) = 2.4; min(0.5 * -1, 0.8 * -1) = -0.8; 1.1
    loss = losses.policy_loss(new, old, advantages, weights, 0.2)
    assert loss.item() == pytest.approx(-(2.4 - 0.8 + 1.1) / 3)


def test_value_loss_by_hand():
    values, returns = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])
    old, weights = torch.tensor([1.0, 0.0]), torch.ones(2)
    assert losses.value_loss(values, old, returns, weights).item() == pytest.approx(1.0)
    # the second value moved 3 from 0: clipped to 0.5, whose error 1.5 is the larger one
    clipped = losses.value_loss(values, old, returns, weights, 0.5)
    assert clipped.item() == pytest.approx((1.0 + 2.25) / 2)


def test_kl_and_explained_variance_by_hand():
    kl = losses.approximate_kl(log(2.0, 1.0), log(1.0, 1.0), torch.ones(2).double())
    assert kl.item() == pytest.approx((1.0 - math.log(2.0)) / 2)
    returns = torch.tensor([0.0, 2.0, 4.0, 50.0])
    values = torch.tensor([1.0, 2.0, 3.0, 0.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    # errors -1, 0, 1 have variance 2/3; returns 8/3
    explained = losses.explained_variance(values, returns, weights)
    assert explained.item() == pytest.approx(0.75)
    assert losses.explained_variance(values, torch.ones(4), weights).isnan()


def test_standardize_leaves_out_rows_without_weight():
    advantages = torch.tensor([[1.0, 2.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    got = losses.standardize(advantages, weights)
    torch.testing.assert_close(got[0, :3], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(got[1], torch.zeros(4))


@pytest.mark.parametrize("clip", [None, 0.3])
def test_gradient_formulas_equal_autograd(clip):
    generator = torch.Generator().manual_seed(0)
    new, old, advantages, values, old_values, returns = (
        torch.randn(6, 200, generator=generator, dtype=torch.float64) * 0.4
    )
    weights = (torch.rand(200, generator=generator) < 0.8).double()
    advantages[:5] = 0.0
    share = weights / weights.sum()
    new.requires_grad_()
    values.requires_grad_()
    surrogate = losses.policy_loss(new, old, advantages, weights, 0.2)
    error = losses.value_loss(values, old_values, returns, weights, clip)
    expected = torch.autograd.grad(surrogate + error, (new, values))
    sign = advantages.sign()
    with torch.no_grad():
        got = losses.log_prob_gradient(new, old, -advantages * share, sign, sign + 0.2)
        torch.testing.assert_close(got, expected[0])
        got = losses.value_gradient(values, old_values, returns, 2.0 * share, clip)
        torch.testing.assert_close(got, expected[1])
    assert (expected[0] == 0).sum() > (weights == 0).sum()  # some rows were clipped


def test_soft_target_by_hand():
    # 1 + 0.9 (2 - 0.5 * -3) = 4.15; a terminated row keeps its reward
    target = losses.soft_target(
        torch.tensor([1.0, 7.0]),
        torch.tensor([0.9, 0.0]),
        torch.tensor([2.0, 100.0]),
        torch.tensor([-3.0, 100.0]),
        torch.tensor(0.5),
    )
    assert target.tolist() == pytest.approx([4.15, 7.0])


def test_soft_losses_by_hand():
    weights = torch.tensor([1.0, 3.0, 0.0])
    q = torch.tensor([[1.0, 2.0, 9.0], [3.0, 0.0, 9.0]])
    targets = torch.tensor([2.0, 1.0, -50.0])
    # first critic: errors -1 and 1; second: 1 and -1. Half of (1 + 1 * 3) / 4, twice
    assert losses.critic_loss(q, targets, losses.shares(weights)).item() == pytest.approx(1.0)
    log_probs, temperature = torch.tensor([-1.0, 2.0, 9.0]), torch.tensor(0.5)
    # (0.5 * -1 - 1) * 1 + (0.5 * 2 - 2) * 3 = -4.5, over 4
    loss = losses.actor_loss(q[0], log_probs, losses.shares(weights), temperature)
    assert loss.item() == pytest.approx(-1.125)
    # the entropy is -(-1 + 2 * 3) / 4 = -1.25; with a target of 0.25 it is 1.5 too low, so the
    # slope is -1.5 and the temperature rises
    log_temperature = torch.tensor(2.0, requires_grad=True)
    loss = losses.temperature_loss(log_temperature, log_probs, 0.25, losses.shares(weights))
    assert loss.item() == pytest.approx(-3.0)
    loss.backward()
    assert log_temperature.grad.item() == pytest.approx(-1.5)


def test_cloning_losses_by_hand():
    weights = torch.tensor([1.0, 3.0, 0.0])
    actions = torch.tensor([[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]])
    shown = torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    # rows: (1 + 0) / 2 = 0.5 and (4 + 4) / 2 = 4; (0.5 * 1 + 4 * 3) / 4
    assert losses.box_cloning_loss(actions, shown, weights).item() == pytest.approx(3.125)
    # two choices side by side, of 2 and of 3
    log_probs = torch.log(
        torch.tensor([[0.25, 0.75, 0.2, 0.3, 0.5], [0.5, 0.5, 0.1, 0.1, 0.8], [1.0] * 5])
    )
    chosen = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0], [1.0] * 5])
    # -log(0.75 * 0.2) = -log 0.15 and -log(0.5 * 0.8) = -log 0.4
    expected = -(math.log(0.15) + 3 * math.log(0.4)) / 4
    loss = losses.choice_cloning_loss(log_probs, chosen, weights)
    assert loss.item() == pytest.approx(expected)
