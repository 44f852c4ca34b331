"""Any space in, any space out; the user's own network; what the critic alone sees."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlgym.agents.policy import ActorCritic
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.errors import UserError
from rlgym.spaces import Layout, tree_items

VECTOR = spaces.Box(-1, 1, (4,), np.float32)
OBS_SPACES = {
    "vector": VECTOR,
    "matrix of float64": spaces.Box(-1, 1, (3, 2), np.float64),
    "integers": spaces.Box(0, 9, (3,), np.int64),
    "discrete": spaces.Discrete(5, start=2),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (3, 40, 48), np.uint8),
    "small image": spaces.Box(0, 255, (12, 16, 1), np.uint8),
    "nested": spaces.Dict(
        {
            "camera": spaces.Dict({"left": spaces.Box(0, 255, (16, 16, 3), np.uint8)}),
            "joints": spaces.Tuple((VECTOR, spaces.Discrete(3))),
            "privileged": VECTOR,
        }
    ),
}
ACTION_SPACES = {
    "discrete": spaces.Discrete(3, start=1),
    "box": spaces.Box(-1, 1, (2, 2), np.float64),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
    "mixed": spaces.Dict(
        {"arm": VECTOR, "gear": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))}
    ),
}


@pytest.mark.parametrize("obs_name", OBS_SPACES)
@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_every_observation_space_trains(rollout, obs_name, recurrent):
    net = NetworkConfig(
        hidden=(8,), recurrent=recurrent, recurrent_size=8, normalize_obs=True, std="state"
    )
    cfg = PPOConfig(minibatch_size=6, epochs=1)
    learner, buffer, generator = rollout(
        OBS_SPACES[obs_name], VECTOR, net, cfg, num_steps=3, num_envs=3
    )
    before = learner.optimizer.flat.clone()
    metrics = learner.update(buffer, 0.0, generator)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not torch.equal(before, learner.optimizer.flat)


@pytest.mark.parametrize("action_name", ACTION_SPACES)
@pytest.mark.parametrize("masks", [False, True])
def test_every_action_space_trains_and_gives_valid_actions(rollout, action_name, masks):
    space = ACTION_SPACES[action_name]
    cfg = PPOConfig(minibatch_size=8, epochs=2, entropy_coef=0.01)
    learner, buffer, generator = rollout(VECTOR, space, algo=cfg, num_steps=4, masks=masks)
    metrics = learner.update(buffer, 0.0, generator)
    assert all(torch.isfinite(value) for value in metrics.values())
    noise = learner.policy.noise(1, 4, generator)[0]
    layout = Layout(space)
    for deterministic in (False, True):
        actions, raw, _ = learner.policy.act(buffer.last_obs, noise, deterministic=deterministic)
        for leaf in layout.leaves:
            got = dict(tree_items(actions))[leaf.key]
            assert tuple(got.shape) == (4, *leaf.shape)
            assert dict(tree_items(raw))[leaf.key].shape == got.shape
        values = {key: value.numpy() for key, value in tree_items(actions)}
        for row in range(4):
            assert space.contains(layout.read(values.get("", values), row))


def test_evaluate_and_values_keep_the_leading_axes(rollout):
    learner, buffer, _ = rollout(OBS_SPACES["nested"], ACTION_SPACES["mixed"], num_steps=3)
    policy = learner.policy
    results = policy.evaluate(buffer.obs, buffer.actions)
    assert [tuple(x.shape) for x in results] == [(3, 4)] * 3
    assert tuple(policy.values(buffer.last_obs).shape) == (4,)
    one = {key: x[1] for key, x in buffer.obs.items()}
    torch.testing.assert_close(policy.values(one), results[2][1].detach())


def test_only_the_critic_sees_privileged_observations():
    space = spaces.Dict({"privileged": spaces.Dict({"mass": VECTOR}), "seen": VECTOR})
    policy = ActorCritic.build(Layout(space), Layout(spaces.Discrete(2)), NetworkConfig())
    obs = {"privileged/mass": torch.randn(5, 4), "seen": torch.randn(5, 4)}
    other = {**obs, "privileged/mass": torch.randn(5, 4)}
    noise = policy.noise(1, 5, torch.Generator().manual_seed(0))[0]
    params = [policy(policy.preparation(x))[0] for x in (obs, other)]
    assert torch.equal(*params)
    assert torch.equal(policy.act(obs, noise)[0], policy.act(other, noise)[0])
    assert not torch.equal(policy.values(obs), policy.values(other))
    with pytest.raises(UserError, match="every observation is privileged"):
        ActorCritic.build(
            Layout(space),
            Layout(spaces.Discrete(2)),
            NetworkConfig(privileged=("privileged", "seen")),
        )


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    layouts = Layout(VECTOR), Layout(spaces.Discrete(2))

    def weights(seed):
        policy = ActorCritic.build(*layouts, NetworkConfig(recurrent="gru"), seed)
        return nn.utils.parameters_to_vector(policy.parameters())

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))
    drawn = [weights(torch.Generator().manual_seed(9)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_the_first_policy_is_nearly_uniform_and_hidden_layers_are_orthogonal():
    policy = ActorCritic.build(Layout(VECTOR), Layout(spaces.Discrete(2)), NetworkConfig())
    params, values, _ = policy(policy.preparation(torch.randn(64, 4)))
    assert params.abs().max() < 0.1 < values.abs().max()
    for half in policy.towers.weight_1.detach():
        torch.testing.assert_close(half @ half.t(), 2.0 * torch.eye(64), atol=1e-4, rtol=0)


def test_gsde_noise_is_held_for_the_given_steps():
    net = NetworkConfig(std="gsde", gsde_every=4)
    policy = ActorCritic.build(Layout(VECTOR), Layout(VECTOR), net)
    noise = policy.noise(10, 3, torch.Generator().manual_seed(0))
    assert noise.shape == (10, 3, 64 * 4) and len(noise) == 10
    for t in range(10):
        assert torch.equal(noise[t, 1:3], noise[t // 4 * 4, 1:3])
    assert not torch.equal(noise[3], noise[4])


class Own(nn.Module):
    """A user's network: one hidden layer, features for the actor and the critic apart."""

    def __init__(self, layout):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(layout.leaves[0].shape[0], 16), nn.ReLU())
        self.extra = nn.Linear(16, 6)

    def forward(self, obs):
        hidden = self.body(obs)
        return hidden, self.extra(hidden)


def test_a_users_network_trains_as_a_class_and_as_an_instance(rollout):
    cfg = PPOConfig(minibatch_size=32, epochs=2)
    for own in (Own, Own(Layout(VECTOR))):
        learner, buffer, generator = rollout(VECTOR, ACTION_SPACES["mixed"], algo=cfg, own=own)
        before = {k: v.clone() for k, v in learner.policy.network.state_dict().items()}
        metrics = learner.update(buffer, 0.0, generator)
        assert all(torch.isfinite(value) for value in metrics.values())
        after = learner.policy.network.state_dict()
        assert all(not torch.equal(before[name], after[name]) for name in before)
        assert learner.policy.critic_head.in_features == 6


def test_a_users_network_gets_normalised_leaves_and_is_checked():
    seen = []

    class Spy(nn.Module):
        def forward(self, obs):
            seen.append(obs)
            return obs["a"].flatten(1)

    space = spaces.Dict({"a": spaces.Box(-1, 1, (2, 2), np.float32), "b": spaces.Discrete(3)})
    layouts = Layout(space), Layout(spaces.Discrete(2))
    policy = ActorCritic.build(*layouts, NetworkConfig(normalize_obs=True), network=Spy())
    policy.obs_norm["0_a"].update(torch.tensor([2.0, 4.0]).view(2, 1, 1).expand(2, 2, 2))
    policy.act({"a": torch.full((1, 2, 2), 5.0), "b": torch.tensor([2])})
    torch.testing.assert_close(seen[-1]["a"], torch.full((1, 2, 2), 2.0))
    assert seen[-1]["b"].tolist() == [2]

    class Wrong(nn.Module):
        def forward(self, obs):
            return obs["a"]

    with pytest.raises(UserError, match="return \\(batch, features\\)"):
        ActorCritic.build(*layouts, NetworkConfig(), network=Wrong())
    with pytest.raises(UserError, match="subclass ActorCritic"):
        ActorCritic.build(*layouts, NetworkConfig(recurrent="gru"), network=Spy())


def test_a_subclass_with_its_own_forward_is_trained_through_autograd(rollout):
    class Scaled(ActorCritic):
        def forward(self, inputs, state=None, start=None):
            params, values, state = super().forward(inputs, state, start)
            return 2.0 * params, values, state

    from rlgym.agents.ppo import PPO
    from rlgym.agents.ppo_gradients import Autograd

    _, buffer, generator = rollout(VECTOR, spaces.Discrete(3))
    policy = Scaled.build(Layout(VECTOR), Layout(spaces.Discrete(3)), NetworkConfig())
    learner = PPO(policy, PPOConfig(minibatch_size=32, epochs=1))
    assert isinstance(learner.way, Autograd)
    before = learner.optimizer.flat.clone()
    learner.update(buffer, 0.0, generator)
    assert not torch.equal(before, learner.optimizer.flat)
