"""SAC's policy acts in every space, within bounds and masks, and refuses what does not fit."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig
from rlgym.errors import SpaceError, UserError
from rlgym.spaces import Layout, tree_items
from tests.agents.transitions import PLAIN, observations

OBS = spaces.Box(-1, 1, (4,), np.float32)
ARM = spaces.Box(np.float32([-1, 0, -4]), np.float32([1, 2, 8]))
ACTIONS = {
    "box": ARM,
    "rank two": spaces.Box(-2, 2, (2, 3), np.float32),
    "discrete": spaces.Discrete(5, start=2),
    "multi": spaces.MultiDiscrete([3, 4], start=[1, 0]),
    "binary": spaces.MultiBinary(3),
    "mixed": spaces.Dict({"arm": ARM, "gear": spaces.Discrete(3, start=1)}),
    "all": spaces.Tuple((spaces.MultiBinary(2), ARM, spaces.MultiDiscrete([2, 3]), ARM)),
}


def build(action_space=ARM, obs_space=OBS, own=None, seed=0, **network):
    cfg = NetworkConfig(**{**PLAIN, **network})
    return SoftPolicy.build(Layout(obs_space), Layout(action_space), cfg, seed, own)


def noise_for(policy, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return policy.noise(1, rows, generator)[0]


def leaves(policy, tree):
    items = dict(tree_items(tree))
    return [(leaf, items[leaf.key]) for leaf in policy.action_layout.leaves]


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("mode", ["sample", "deterministic", "random"])
def test_actions_belong_to_the_space_and_are_stored_as_critics_take_them(kind, mode):
    policy = build(ACTIONS[kind])
    policy.random = mode == "random"
    obs = observations(policy.obs_layout, 300, torch.Generator().manual_seed(0))
    world, stored, state = policy.act(
        obs, noise_for(policy, 300), deterministic=mode == "deterministic"
    )
    assert state is None
    assert policy.initial_state(3) is None
    assert policy.state_shape is None
    for leaf, values in leaves(policy, world):
        assert values.shape == (300, *leaf.shape)
        for value in values.numpy().astype(leaf.dtype):
            native = leaf.dtype.type(value) if isinstance(leaf.space, spaces.Discrete) else value
            assert leaf.space.contains(native)
    for leaf, values in leaves(policy, stored):
        if leaf.dtype.kind == "f":
            assert values.abs().max() <= 1.0
    back = policy.scale_action(world)
    for (_, want), (_, got) in zip(leaves(policy, stored), leaves(policy, back), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    again = policy.to_world(stored)
    for (_, want), (_, got) in zip(leaves(policy, world), leaves(policy, again), strict=True):
        assert torch.equal(got, want)
    elsewhere = policy.to("meta").scale_action(world)  # a device that holds no numbers
    assert {values.device.type for _, values in leaves(policy, elsewhere)} == {"meta"}


@pytest.mark.parametrize("kind", ["box", "mixed", "gsde"])
def test_random_actions_are_uniform(kind):
    policy = build(ARM) if kind == "gsde" else build(ACTIONS[kind])
    if kind == "gsde":
        policy = build(ARM, std="gsde")
    policy.random = True
    obs = torch.zeros(20_000, 4)
    world, _, _ = policy.act(obs, noise_for(policy, 20_000))
    for leaf, values in leaves(policy, world):
        if leaf.dtype.kind == "f":
            unit = (values - torch.as_tensor(ARM.low)) / torch.as_tensor(ARM.high - ARM.low)
            assert (unit.mean(0) - 0.5).abs().max() < 0.01
            assert (unit.var(0) - 1 / 12).abs().max() < 0.005
            quarter = (unit < 0.25).float().mean(0)
            assert (quarter - 0.25).abs().max() < 0.015
        else:
            shares = torch.bincount(values - 1, minlength=3) / 20_000
            assert (shares - 1 / 3).abs().max() < 0.015


@pytest.mark.parametrize("mode", ["sample", "deterministic", "random"])
def test_masks_are_obeyed(mode):
    policy = build(spaces.Dict({"gear": spaces.Discrete(3), "arm": ARM, "two": ACTIONS["multi"]}))
    policy.random = mode == "random"
    mask = torch.rand(500, policy.action_layout.mask_size) < 0.4
    mask[:, ::3] |= ~mask.any(1, keepdim=True)
    _, stored, _ = policy.act(
        torch.randn(500, 4), noise_for(policy, 500), mask=mask, deterministic=mode[0] == "d"
    )
    gear, first, second = mask.split((3, 3, 4), 1)
    chosen = (stored["gear"], stored["two"][:, 0] - 1, stored["two"][:, 1])
    for allowed, choice in zip((gear, first, second), chosen, strict=True):
        ok = allowed.gather(1, choice.unsqueeze(1)).squeeze(1) | ~allowed.any(1)
        assert ok.all()


def test_a_sample_and_its_log_probability_equal_torchs_own():
    policy = build(ARM)
    obs, noise = torch.randn(50, 4), torch.randn(50, 3)
    params = policy(policy.preparation(obs))
    draw = policy.actions.draw(params, [noise], None)
    mean, log_std = params.chunk(2, 1)
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        gaussian, torch.distributions.transforms.TanhTransform(cache_size=1)
    )
    action = torch.tanh(mean + log_std.exp() * noise)
    torch.testing.assert_close(draw.continuous, action)
    torch.testing.assert_close(
        draw.log_prob, squashed.log_prob(action.clamp(-1 + 1e-7, 1 - 1e-7)).sum(1), atol=1e-3,
        rtol=1e-4,
    )  # fmt: skip
    assert torch.equal(policy.act(obs, noise)[1], draw.continuous.detach())


def test_choices_are_listed_with_their_probabilities():
    policy = build(ACTIONS["all"])
    params = torch.randn(6, policy.distribution.num_params)
    draw = policy.actions.draw(params, policy.actions.learner_noise(6, torch.Generator()), None)
    lamps, switches = params[:, :2].sigmoid(), params[:, 2 + 6 : 2 + 6 + 5]
    wanted = torch.cat(
        (
            torch.stack((1 - lamps, lamps), -1).flatten(1),
            switches[:, :2].softmax(1),
            switches[:, 2:].softmax(1),
        ),
        1,
    )
    torch.testing.assert_close(draw.probs, wanted)
    assert draw.continuous.shape == (6, 6)


def test_q_of_choices_by_hand():
    policy = build(spaces.MultiDiscrete([2, 2], start=[0, 5]))
    q = torch.tensor([[[1.0, 2.0, 10.0, 20.0]], [[5.0, 0.0, 0.0, 20.0]]])
    _, chosen = policy.actions.columns(torch.tensor([[1, 5]]))
    assert chosen.tolist() == [[0, 1, 1, 0]]
    assert policy.actions.taken_q(q, chosen).tolist() == [[12.0], [0.0]]
    params = torch.tensor([[0.25, 0.75, 0.5, 0.5]]).log()
    draw = policy.actions.draw(params, [], None)
    # totals: .25 + 1.5 + 15 = 16.75 and 1.25 + 10 = 11.25; the lower of the two counts
    assert policy.actions.expected_q(q, draw).tolist() == pytest.approx([11.25])
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3) + math.log(2)
    assert draw.log_prob.tolist() == pytest.approx([-entropy])

    single = build(spaces.Discrete(2))
    q = torch.tensor([[[1.0, 2.0]], [[5.0, 0.0]]])
    draw = single.actions.draw(torch.tensor([[0.25, 0.75]]).log(), [], None)
    # the lower value of each choice, 1 and 0
    assert single.actions.expected_q(q, draw).tolist() == pytest.approx([0.25])


def test_target_entropy_counts_what_is_allowed():
    assert build(ARM).actions.target_entropy(None) == -3.0
    discrete = build(spaces.Discrete(5)).actions
    assert discrete.target_entropy(None) == pytest.approx(0.98 * math.log(5))
    mask = torch.tensor([[True, True, False, False, False], [False] * 5, [True] + [False] * 4])
    assert discrete.target_entropy(mask).tolist() == pytest.approx(
        [0.98 * math.log(2), 0.98 * math.log(5), 0.0]
    )
    both = build(ACTIONS["all"]).actions
    total = -6 + 0.98 * (2 * math.log(2) + math.log(2) + math.log(3))
    assert both.target_entropy(None) == pytest.approx(total)


def test_a_state_dependent_matrix_is_held_within_a_rollout():
    policy = build(ARM, std="gsde", gsde_every=3, log_std_init=-1.0)
    noise = policy.noise(7, 2, torch.Generator().manual_seed(0))
    assert torch.equal(noise[0, 0:2], noise[2, 0:2])
    assert not torch.equal(noise[2, 0:2], noise[3, 0:2])
    world, stored, _ = policy.act(torch.randn(2, 4), noise[0, 0:2])
    assert world.shape == stored.shape == (2, 3)


def test_only_the_critics_see_what_is_privileged():
    obs_space = spaces.Dict({"seen": OBS, "privileged": OBS})
    policy = build(ARM, obs_space)
    generator = torch.Generator().manual_seed(0)
    obs: Any = observations(policy.obs_layout, 5, generator)
    other = {**obs, "privileged": obs["privileged"] + 1.0}
    assert torch.equal(policy.act(obs)[0], policy.act(other)[0])
    action = torch.zeros(5, 3)
    q, other_q = (policy.critics(policy.preparation(o), action)[0] for o in (obs, other))
    assert not torch.equal(q, other_q)


class Net(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.body = nn.Linear(layout.leaves[0].shape[0], 7)

    def forward(self, obs):
        return self.body(obs).relu()


class Twin(Net):
    def forward(self, obs):
        features = super().forward(obs)
        return features, torch.cat((features, obs), 1)


@pytest.mark.parametrize("own", [Net, Net(Layout(OBS)), Twin], ids=["class", "instance", "pair"])
def test_a_network_of_ones_own(own):
    policy = build(ACTIONS["mixed"], own=own)
    assert policy.actor.features.network is not policy.critics.features.network
    assert policy.critics.features.size == (11 if own is Twin else 7)
    world, _, _ = policy.act(torch.randn(3, 4), noise_for(policy, 3))
    assert world["arm"].shape == (3, 3)
    assert not policy.is_plain()


def test_a_network_of_ones_own_must_give_rows():
    class Flat(Net):
        def forward(self, obs):
            return super().forward(obs).sum()

    with pytest.raises(UserError, match="return \\(batch, features\\)"):
        build(own=Flat)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = build(seed=3)
    state = torch.random.get_rng_state()
    two, three = build(seed=3), build(seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.actor.layers.weight_0, three.actor.layers.weight_0)
    assert not torch.equal(one.critics.layers.weight_0[0], one.critics.layers.weight_0[1])
    for a, b in zip(one.critics.parameters(), one.target.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad


@pytest.mark.parametrize(
    ("space", "network", "message"),
    [
        (ARM, {"recurrent": "lstm"}, "--network.recurrent none"),
        (spaces.Discrete(2), {"recurrent": "gru"}, "--algo ppo"),
        (ARM, {"std": "global"}, "--network.std state"),
        (ARM, {"squash": False}, "--network.squash true"),
        (spaces.Box(-np.inf, np.inf, (2,)), {}, "has no bounds .* --algo ppo"),
        (
            spaces.Dict({"a": ARM, "b": spaces.Box(np.float32(0), np.float32(np.inf))}),
            {},
            "action 'b' has no bounds",
        ),
        (spaces.Box(0, 9, (2,), np.int32), {}, "Discrete or MultiDiscrete"),
        (ARM, {"activation": "gelu"}, "unknown activation"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(space, network, message):
    with pytest.raises(UserError, match=message) as caught:
        build(space, **network)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError | SpaceError)


def test_settings_of_boxes_do_not_matter_without_any():
    assert build(spaces.Discrete(3), std="global", squash=False).actions.size == 0
