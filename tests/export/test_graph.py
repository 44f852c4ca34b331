"""The graph of a policy, computed in numpy, is the policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rlgym.agents.policy import ActorCritic
from rlgym.config import NetworkConfig
from rlgym.deploy import graph as g
from rlgym.deploy.reference import run, to_world
from rlgym.errors import UserError
from rlgym.export.read import read_policy
from rlgym.spaces import Layout, tree_items
from tests.export.policies import BOUNDED, KINDS, VECTOR, make_policy, observations

ROWS = 300


def arrays_of(graph: g.Graph, obs) -> dict[str, np.ndarray]:
    named = {key or "obs": value.numpy() for key, value in tree_items(obs)}
    return {port.name: named[port.name] for port in graph.inputs if port.name in named}


def assert_equal(ours, theirs) -> None:
    for (_, own), (_, wanted) in zip(tree_items(ours), tree_items(theirs), strict=True):
        np.testing.assert_allclose(own, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_the_policy(kind):
    policy = make_policy(kind)
    graph = read_policy(policy)
    obs = observations(kind, ROWS)
    outputs = run(graph, arrays_of(graph, obs))
    assert_equal(to_world(graph, outputs), policy.act(obs, deterministic=True)[0])
    for port in graph.outputs:
        assert outputs[port.name].shape == (ROWS, *port.shape)
        assert str(outputs[port.name].dtype) == port.dtype


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_memory_is_carried_by_hand(kind):
    policy = make_policy(kind)
    graph = read_policy(policy)
    state, own = policy.initial_state(4), np.zeros((4, graph.state_size), np.float32)
    for step in range(20):
        obs = observations(kind, 4, seed=step)
        wanted, _, state = policy.act(obs, state=state, deterministic=True)
        outputs = run(graph, {"obs": obs.numpy(), g.STATE: own})
        own = outputs["next_state"]
        assert_equal(to_world(graph, outputs), wanted)
    np.testing.assert_allclose(own, state.numpy(), atol=1e-5)
    assert np.abs(own).max() > 0.1


@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "nested", "sac-mixed"])
def test_masks_forbid(kind):
    policy = make_policy(kind)
    graph = read_policy(policy, masked=True)
    size = next(port for port in graph.inputs if port.name == g.MASK).shape[0]
    mask = torch.rand(ROWS, size, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:20] = False  # where nothing is allowed, everything is
    obs = observations(kind, ROWS)
    outputs = run(graph, {**arrays_of(graph, obs), g.MASK: mask.numpy()})
    wanted = policy.act(obs, mask=mask, deterministic=True)[0]
    assert_equal(to_world(graph, outputs), wanted)
    free = run(graph, arrays_of(graph, obs))
    taken = next(action.output for action in graph.actions if action.kind.endswith("discrete"))
    assert (free[taken] != outputs[taken]).any()


def test_what_only_the_critic_sees_is_no_input():
    names = [port.name for port in read_policy(make_policy("nested")).inputs]
    assert "picture" in names and "privileged" not in names


def test_an_action_ends_normalised():
    graph = read_policy(make_policy("squashed"))
    (action,) = graph.actions
    outputs = run(graph, {"obs": observations("squashed", ROWS).numpy()})
    assert np.abs(outputs[action.output]).max() <= 1.0
    assert action.scale is not None and action.offset is not None
    np.testing.assert_allclose(action.offset - action.scale, BOUNDED.low)
    np.testing.assert_allclose(action.offset + action.scale, BOUNDED.high)


def test_networks_of_others_are_refused():
    class Net(nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.body = nn.Linear(6, 4)

        def forward(self, obs):
            return self.body(obs)

    policy = ActorCritic.build(Layout(VECTOR), Layout(BOUNDED), NetworkConfig(), network=Net)
    with pytest.raises(UserError, match="cannot be written as layers"):
        read_policy(policy)


def test_sizes_are_told():
    graph = read_policy(make_policy("clipped"))
    assert graph.is_mlp and graph.state_size == 0
    dense = 6 * 16 + 16 + 16 * 8 + 8 + 8 * 3 + 3
    assert graph.num_parameters == dense + 2 * 6 + 2 * 3  # the statistics, and the bounds
    assert not read_policy(make_policy("gru")).is_mlp
    assert not read_policy(make_policy("nature")).is_mlp
