"""The batched network: equal to plain MLPs, and its written-out gradients to autograd's."""

import copy

import pytest
import torch
from torch import nn

from rlgym.agents.critics import Ensemble
from rlgym.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "elu": nn.ELU(), "silu": nn.SiLU()}


def build(activation="relu", hidden=(8, 6), members=2, outputs=3, layer_norm=False):
    torch.manual_seed(0)
    net = Ensemble(members, 5, hidden, activation, outputs, layer_norm).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "scale" in name or "shift" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)  # must be overwritten
    return net


def plain(net, x):
    """Each member spelled out with torch's own layers."""
    outputs = []
    for m in range(net.members):
        h = x
        for i, width in enumerate(net.hidden):
            weight, bias = getattr(net, f"weight_{i}")[m], getattr(net, f"bias_{i}")[m, 0]
            h = nn.functional.linear(h, weight.t(), bias)
            if net.layer_norm:
                scale, shift = getattr(net, f"scale_{i}")[m, 0], getattr(net, f"shift_{i}")[m, 0]
                h = nn.functional.layer_norm(h, (width,), scale, shift)
            h = ACTIVATIONS[net.activation](h)
        outputs.append(nn.functional.linear(h, net.head_weight[m], net.head_bias[m, 0]))
    return torch.stack(outputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_outputs_and_gradients_equal_plain_networks(activation, hidden, members):
    net = build(activation, hidden, members)
    x = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    d = torch.randn(members, 11, 3, dtype=torch.float64)
    parameters = list(net.parameters())
    wanted = plain(net, x)
    *expected, d_x = torch.autograd.grad(wanted, (*parameters, x), d)

    torch.testing.assert_close(net(x)[0], wanted)
    by_autograd = torch.autograd.grad(net(x)[0], parameters, d)
    with torch.no_grad():
        torch.testing.assert_close(net.run(x.detach()), wanted)
        net.backprop(d)
        first = net.first(x.detach())
        torch.testing.assert_close(first[0], wanted[0])
        torch.testing.assert_close(first[1], net(x)[1][0])
    for parameter, theirs, want in zip(parameters, by_autograd, expected, strict=True):
        torch.testing.assert_close(theirs, want)
        torch.testing.assert_close(parameter.grad, want)

    before = [parameter.grad.clone() for parameter in parameters]
    with torch.no_grad():
        net.run(x.detach())
        got = net.input_gradient(d)
        tail = net.input_gradient(d, 3)
    torch.testing.assert_close(got.sum(0), d_x)
    torch.testing.assert_close(tail, got[:, :, 3:])
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter.grad, old), "parameters are left alone"


def test_a_gradient_of_the_first_rows_is_that_of_those_rows():
    net = build(members=1)
    x, d = torch.randn(10, 5).double(), torch.randn(1, 4, 3).double()
    expected = torch.autograd.grad(plain(net, x[:4]), list(net.parameters()), d)
    with torch.no_grad():
        net.run(x)
        net.backprop(d)
    for parameter, want in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layer_norm_stands_before_the_activation(activation):
    net = build(activation, layer_norm=True)
    x = torch.randn(7, 5).double()
    torch.testing.assert_close(net(x)[0], plain(net, x))
    with torch.no_grad():
        torch.testing.assert_close(net.first(x)[0], plain(net, x)[0])


def test_members_begin_apart_and_within_torchs_bounds():
    net = build(members=4, hidden=(256,))
    assert not torch.equal(net.weight_0[0], net.weight_0[1])
    bound = 5**-0.5
    assert 0.9 * bound < net.weight_0.abs().max() <= bound
    assert net.head_weight.abs().max() <= 1 / 16 < net.head_weight.abs().max() * 1.1


def test_a_copy_shares_nothing():
    net = build()
    x = torch.randn(4, 5).double()
    with torch.no_grad():
        before = net.run(x).clone(), net.first(x)[0]
        twin = copy.deepcopy(net)
        for parameter in twin.parameters():
            parameter.mul_(2.0)
        assert torch.equal(net.run(x), before[0])
        assert torch.equal(net.first(x)[0], before[1])
        torch.testing.assert_close(twin.run(x), plain(twin, x))
        torch.testing.assert_close(twin.first(x)[0], plain(twin, x)[0])


def test_wrong_settings_name_the_fix():
    with pytest.raises(UserError, match="tanh, relu, elu, silu"):
        build("gelu")
    with pytest.raises(UserError, match=r"--algo\.num-critics"):
        build(members=0)
