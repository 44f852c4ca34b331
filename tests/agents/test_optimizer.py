import pytest
import torch
from torch import nn

from rlgym.agents.optimizer import FlatAdam


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return net, torch.randn(32, 4), torch.randn(32, 1)


def gradients(net, x, y, scale=1.0):
    return torch.autograd.grad(scale * (net(x) - y).square().mean(), list(net.parameters()))


@pytest.mark.parametrize("way", ["fused", "plain"])
def test_steps_equal_torch_adam_with_clipping(way, monkeypatch):
    if way == "plain":
        monkeypatch.setattr("rlgym.agents.optimizer._FUSED", ())
    net, x, y = problem()
    other, *_ = problem()
    ours = FlatAdam(net.parameters(), 0.01)
    theirs = torch.optim.Adam(other.parameters(), 0.01, eps=1e-5)
    for step in range(20):
        scale = 10.0 if step % 2 else 0.01  # clipped, and not
        ours.gather(gradients(net, x, y, scale))
        norm = ours.step(0.5)
        for parameter, gradient in zip(
            other.parameters(), gradients(other, x, y, scale), strict=True
        ):
            parameter.grad = gradient
        expected = nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        theirs.step()
        torch.testing.assert_close(norm, expected)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert ours.steps == 20


@pytest.mark.parametrize("way", ["fused", "plain"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_bad_gradient_or_a_hold_changes_nothing(bad, way, monkeypatch):
    if way == "plain":
        monkeypatch.setattr("rlgym.agents.optimizer._FUSED", ())
    net, x, y = problem()
    adam = FlatAdam(net.parameters(), 0.01)
    adam.gather(gradients(net, x, y))
    if bad is not None:
        adam.grad[3] = bad
    before, flat = adam.state_dict(), adam.flat.clone()
    adam.step(0.5, torch.tensor(bad is None))
    assert torch.equal(adam.flat, flat)
    assert all(torch.equal(before[name], value) for name, value in adam.state_dict().items())
    adam.gather(gradients(net, x, y))
    adam.step(0.5, torch.tensor(False))
    assert not torch.equal(adam.flat, flat) and adam.steps == 1


def test_without_a_bound_it_is_torchs_adam():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    flat = FlatAdam(ours.parameters(), 1e-2, eps=1e-8)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(5):
        x = 100.0 * torch.randn(7, 5)
        for net in (ours, theirs):
            net.zero_grad(set_to_none=False)
            net(x).square().sum().backward()
        flat.step(None)
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
