"""The two towers: equal to two plain MLPs, and their gradient to autograd's."""

import copy

import pytest
import torch
from torch import nn

from rlgym.agents.towers import Towers, _TowersFunction

ACTIVATIONS = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "elu": nn.ELU(), "silu": nn.SiLU()}


def build(activation="tanh", hidden=(8, 6), inputs=5, actor_inputs=5):
    torch.manual_seed(0)
    towers = Towers(inputs, actor_inputs, hidden, activation, 3).double()
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if hidden:
            towers.weight_0[0, actor_inputs:] = 0.0
    return towers


def plain(towers, x):
    """The same two networks, spelled out layer by layer."""
    halves = []
    for half in range(2):
        h = x * towers.columns if half == 0 else x
        for i in range(len(towers.hidden)):
            weight, bias = getattr(towers, f"weight_{i}"), getattr(towers, f"bias_{i}")
            h = ACTIVATIONS[towers.activation](h @ weight[half] + bias[half])
        halves.append(h)
    actor = halves[0] @ towers.actor_weight.t() + towers.actor_bias
    critic = halves[1] @ towers.critic_weight.t() + towers.critic_bias
    return actor, critic.squeeze(1), halves[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("actor_inputs", [5, 3])
def test_outputs_and_gradients_equal_two_plain_networks(activation, hidden, actor_inputs):
    towers = build(activation, hidden, actor_inputs=actor_inputs)
    x = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    d_actor, d_values = torch.randn(11, 3).double(), torch.randn(11).double()
    wanted = plain(towers, x)
    parameters = list(towers.parameters())
    inputs = (x, *parameters)
    expected = torch.autograd.grad(wanted[:2], inputs, (d_actor, d_values))
    outputs = towers(x)
    for got, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(
        torch.autograd.grad(outputs[:2], inputs, (d_actor, d_values)), expected, strict=True
    ):
        torch.testing.assert_close(got, want)

    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 7.0)  # must be overwritten
    with torch.no_grad():
        for got, want in zip(towers.run(x.detach()), wanted, strict=True):
            torch.testing.assert_close(got, want)
        towers.backprop(d_actor, d_values)
        alone = towers.actor(x.detach()[:, :actor_inputs])
    for parameter, want in zip(parameters, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, want)
    torch.testing.assert_close(alone[0], wanted[0].detach())


def test_the_function_passes_gradcheck():
    towers = build("elu")
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)

    def outputs(x, *params):
        return _TowersFunction.apply(x, "elu", *params)[:2]

    assert torch.autograd.gradcheck(outputs, (x, *towers._params))


def test_float32_activations_are_exact_to_rounding():
    torch.manual_seed(0)
    for activation in ACTIVATIONS:
        towers = Towers(4, 4, (64, 64), activation, 2)
        x = 3.0 * torch.randn(300, 4)
        with torch.no_grad():
            got, want = towers(x), plain(towers, x)
        torch.testing.assert_close(got[0], want[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got[1], want[1], atol=2e-6, rtol=1e-5)


def test_a_long_batch_is_the_sum_of_its_parts():
    towers = build().float()
    x = torch.randn(2500, 5)
    with torch.no_grad():
        whole, parts = towers(x), [towers(rows) for rows in x.split(700)]
    for i in range(3):
        torch.testing.assert_close(whole[i], torch.cat([part[i] for part in parts]))


def test_privileged_columns_never_reach_the_actor():
    towers = build(actor_inputs=3)
    x = torch.randn(6, 5, dtype=torch.float64)
    other = x.clone()
    other[:, 3:] += 1.0
    with torch.no_grad():
        before, after = towers(x), towers(other)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    towers(x)[0].sum().backward()
    assert (towers.weight_0.grad[0, 3:] == 0).all()


def test_a_copy_shares_nothing_and_follows_its_own_parameters():
    towers = build()
    x = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        towers.run(x)
        before = towers.actor(x)[0]
        twin = copy.deepcopy(towers)
        for parameter in twin.parameters():
            parameter.mul_(2.0)
        assert torch.equal(towers.actor(x)[0], before)
        assert not torch.equal(twin.actor(x)[0], before)
        torch.testing.assert_close(twin.actor(x)[0], twin(x)[0])
