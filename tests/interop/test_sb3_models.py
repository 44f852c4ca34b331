"""SB3's models and ours compute the same, in both directions."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from torch import nn

from rlgym.config import NetworkConfig
from rlgym.errors import CheckpointError, SpaceError, UserError
from rlgym.interop import sb3_models
from rlgym.spaces import Layout
from tests.interop.sb3_worlds import ARM, BOX, IMAGE, MIXED, PIXELS, World, model_of, observations
from tests.security.test_sb3_archives import model, saved

LARGE = spaces.Box(-2, 2, (2, 2))
PARTS = {"net_arch": {"pi": [16, 8], "vf": [12, 20]}, "activation_fn": nn.ReLU}
CASES = {
    "box": (PPO, BOX, ARM, {}),
    "uneven": (PPO, spaces.Discrete(5), spaces.Discrete(3), {"policy_kwargs": PARTS}),
    "linear": (PPO, BOX, spaces.Discrete(3), {"policy_kwargs": {"net_arch": []}}),
    "silu": (PPO, BOX, ARM, {"policy_kwargs": {"activation_fn": nn.SiLU, "net_arch": [8]}}),
    "a2c": (A2C, spaces.MultiBinary(4), spaces.MultiBinary(6), {}),
    "mixed": (PPO, MIXED, spaces.MultiDiscrete([2, 3]), {}),
    "image": (PPO, IMAGE, spaces.MultiBinary(3), {}),
    "pixels": (PPO, PIXELS, spaces.Discrete(4), {"policy_kwargs": {"net_arch": [8]}}),
    "gsde": (PPO, BOX, ARM, {"use_sde": True}),
    "gsde-squashed": (
        *(PPO, BOX, ARM),
        {"use_sde": True, "policy_kwargs": {"squash_output": True, "net_arch": [8]}},
    ),
    "sac": (SAC, BOX, ARM, {"policy_kwargs": {"net_arch": {"pi": [16, 8], "qf": [12, 20]}}}),
    "sac-critics": (SAC, MIXED, LARGE, {"policy_kwargs": {"net_arch": [8], "n_critics": 3}}),
    "sac-pixels": (SAC, PIXELS, ARM, {"policy_kwargs": {"net_arch": [8]}}),
    "sac-gsde": (
        *(SAC, BOX, ARM),
        {"use_sde": True, "policy_kwargs": {"clip_mean": 0.0, "net_arch": [8]}},
    ),
    "td3": (TD3, BOX, ARM, {"policy_kwargs": {"net_arch": [16, 8]}}),
}


def same(ours, theirs):
    """Equal to 1e-6, and not the same number everywhere."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_actions_are_equal_in_both_directions(case, tmp_path):
    kind, observation_space, action_space, settings = CASES[case]
    model = model_of(kind, observation_space, action_space, **settings)
    model.save(tmp_path / "model")
    given = {"observation_space": observation_space, "action_space": action_space}
    policy = sb3_models.load(tmp_path / "model.zip", **given)
    obs = observations(observation_space)
    theirs, _ = model.predict(obs, deterministic=True)
    same(policy.act(obs), theirs)
    assert policy.step == model.num_timesteps > 0
    _critics_are_equal(policy.policy, model, obs)

    back = sb3_models.to_sb3_model(policy)
    again, _ = back.predict(obs, deterministic=True)
    same(policy.act(obs), again)
    back.save(tmp_path / "back")
    once_more = sb3_models.load(tmp_path / "back.zip", **given)
    for name, tensor in policy.policy.state_dict().items():
        assert torch.equal(tensor, once_more.policy.state_dict()[name]), name


def _critics_are_equal(policy, model, obs):
    with torch.no_grad():
        theirs, _ = model.policy.obs_to_tensor(obs)
        tree = policy.obs_layout.flatten(obs)
        ours = (
            {k: torch.from_numpy(v) for k, v in tree.items()}
            if isinstance(tree, dict)
            else (torch.from_numpy(tree))
        )
        if isinstance(model, PPO | A2C):
            found, values = policy.values(ours), model.policy.predict_values(theirs).squeeze(1)
        else:
            actions = torch.rand(len(theirs["a"] if isinstance(theirs, dict) else theirs), 4) - 0.5
            actions = actions[:, : policy.actions.size]
            for side, critic in (
                (policy.critics, model.critic),
                (policy.target, model.critic_target),
            ):
                found = side(policy.preparation(ours), actions)[0].squeeze(-1)
                values = torch.cat(critic(theirs, actions), 1).t()
                torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5)


def test_samples_have_the_same_spread(tmp_path):
    model = model_of(SAC, BOX, ARM, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "model")
    policy = sb3_models.load(tmp_path / "model.zip")
    row = observations(BOX, 1)
    obs = np.repeat(row, 4000, 0)
    ours = policy.act(obs, deterministic=False)
    theirs, _ = model.predict(obs, deterministic=False)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.1)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.1)


def test_zeros_that_fill_a_narrow_layer_stay_zero(tmp_path):
    model = model_of(PPO, BOX, ARM, policy_kwargs={"net_arch": {"pi": [4, 6], "vf": [6, 3]}})
    model.save(tmp_path / "model")
    policy = sb3_models.load(tmp_path / "model.zip").policy
    obs = torch.from_numpy(observations(BOX, 32))
    optimizer = torch.optim.Adam(policy.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        log_probs, _, values = policy.evaluate(obs, torch.ones(32, 2))
        (log_probs.mean() + values.mean()).backward()
        optimizer.step()
    weights = dict(policy.towers.named_parameters())
    assert weights["weight_0"][0, :, 4:].abs().max() == 0
    assert weights["weight_1"][0, 4:].abs().max() == 0
    assert weights["weight_1"][1, :, 3:].abs().max() == 0
    assert weights["weight_1"][0, :4].abs().min() > 0


def test_layers_that_old_versions_shared_stand_in_both_networks(tmp_path):
    torch.manual_seed(0)
    names = {
        "mlp_extractor.shared_net.0": nn.Linear(2, 5),
        "mlp_extractor.policy_net.0": nn.Linear(5, 3),
        "mlp_extractor.value_net.0": nn.Linear(5, 4),
        "action_net": nn.Linear(3, 2),
        "value_net": nn.Linear(4, 1),
    }
    parameters = {"log_std": torch.zeros(2)}
    for name, layer in names.items():
        parameters |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    policy = sb3_models.load(model(tmp_path / "old.zip", parameters=saved(parameters)))
    obs = torch.from_numpy(observations(spaces.Box(-1, 1, (2,))))
    shared, actor, critic, action, value = names.values()
    with torch.no_grad():
        below = torch.tanh(shared(obs))
        actions = action(torch.tanh(actor(below))).clamp(-1, 1)
        values = value(torch.tanh(critic(below))).squeeze(1)
        torch.testing.assert_close(policy.policy.values(obs), values, rtol=0, atol=1e-6)
    same(policy.act(obs.numpy()), actions)


# ---------------------------------------------------------------------------------- spaces


def test_spaces_come_from_the_plain_text(tmp_path):
    odd = spaces.Box(np.array([-np.inf, 0.1, -3.25], np.float32), np.float32(1e6))
    model_of(PPO, odd, spaces.MultiDiscrete([2, 3]), 32).save(tmp_path / "model")
    policy = sb3_models.load(tmp_path / "model.zip")
    assert policy.observation_space == odd
    assert policy.action_space == spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    ("observation_space", "reason"),
    [
        (MIXED, "it is a Dict"),
        (spaces.Box(-1, 1, (2000,)), "left entries out"),
        (spaces.Box(-0.012345678, 1, (2,)), "rounded a bound"),
        (spaces.Box(-1 / 3, 1, (2,), np.float64), "rounded a bound"),
    ],
)
def test_spaces_that_text_does_not_say_are_asked_for(observation_space, reason, tmp_path):
    model_of(PPO, observation_space, ARM, 32).save(tmp_path / "model")
    with pytest.raises(SpaceError, match=rf"{reason}.*--env ID"):
        sb3_models.load(tmp_path / "model.zip")
    assert sb3_models.load(tmp_path / "model.zip", observation_space=observation_space)


@pytest.mark.parametrize(
    ("name", "space", "reason"),
    [
        ("action_space", spaces.Box(-1, 1, (2,)), "was trained with the action_space"),
        ("observation_space", spaces.Box(-1, 1, (4,)), "was trained with the observation_space"),
        ("observation_space", spaces.Discrete(3), "was trained with the observation_space"),
        (
            "observation_space",
            spaces.Discrete(3, start=1),
            "was trained with the observation_space",
        ),
    ],
)
def test_another_world_is_refused(name, space, reason, tmp_path):
    model_of(PPO, BOX, ARM, 32).save(tmp_path / "model")
    with pytest.raises(SpaceError, match=reason):
        sb3_models.load(tmp_path / "model.zip", **{name: space})


def test_a_network_that_does_not_fit_its_space_is_refused(tmp_path):
    model_of(PPO, MIXED, ARM, 32).save(tmp_path / "model")
    other = spaces.Dict({"z": BOX, "a": spaces.Discrete(3)})
    with pytest.raises(CheckpointError, match=r"takes 11 numbers .* given 6.*--env ID"):
        sb3_models.load(tmp_path / "model.zip", observation_space=other)
    with pytest.raises(SpaceError, match="counts from 0"):
        sb3_models.load(
            tmp_path / "model.zip",
            observation_space=spaces.Dict({"a": spaces.Discrete(9, start=1)}),
        )


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (
            PPO,
            {"policy_kwargs": {"net_arch": {"pi": [8, 8], "vf": [8]}}},
            "of 1 and 2 hidden layers",
        ),
        (PPO, {"policy_kwargs": {"activation_fn": nn.LeakyReLU}}, "activation_fn=.*LeakyReLU"),
        (PPO, {"policy_kwargs": {"activation_fn": nn.PReLU}}, "activation_fn=.*PReLU"),
        (PPO, {"use_sde": True, "policy_kwargs": {"full_std": False}}, "full_std=True"),
        (PPO, {"use_sde": True, "policy_kwargs": {"use_expln": True}}, "use_expln=True"),
        (SAC, {"use_sde": True}, "clip_mean=0.0"),
    ],
)
def test_what_ours_has_not_is_refused_with_the_reason(kind, settings, reason, tmp_path):
    model_of(kind, BOX, ARM, 0, **settings).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=reason):
        sb3_models.load(tmp_path / "model.zip")


def test_other_algorithms_are_refused(tmp_path):
    DQN("MlpPolicy", World(BOX, spaces.Discrete(2)), buffer_size=10).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="DQN, which has values and no policy"):
        sb3_models.load(tmp_path / "model.zip")


class OwnPolicy(PPO.policy_aliases["MlpPolicy"]):
    """A policy of one's own."""


def test_a_policy_of_ones_own_is_refused(tmp_path):
    PPO(OwnPolicy, World(BOX, ARM), n_steps=8, batch_size=8).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"a class from 'tests\.interop\.test_sb3"):
        sb3_models.load(tmp_path / "model.zip")


def test_a_broken_training_is_refused(tmp_path):
    model = model_of(PPO, BOX, ARM, 0)
    with torch.no_grad():
        model.policy.action_net.bias[0] = torch.nan
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"action_net.bias holds NaN"):
        sb3_models.load(tmp_path / "model.zip")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recurrent": "gru"}, "a memory"),
        ({"squash": True}, "squashed actions"),
        ({"std": "state"}, "depends on the state"),
        ({"normalize_obs": True}, "pass the world"),
    ],
)
def test_what_sb3_has_not_is_refused_with_the_reason(change, reason):
    from rlgym.agents.policy import ActorCritic

    policy = ActorCritic.build(Layout(BOX), Layout(ARM), NetworkConfig(**change))
    with pytest.raises(UserError, match=reason):
        sb3_models.to_sb3_model(policy)


def test_spaces_that_sb3_has_not_are_refused():
    from rlgym.agents.policy import ActorCritic

    for obs, actions in (
        (BOX, spaces.Dict({"a": ARM})),
        (BOX, spaces.Discrete(3, start=1)),
        (spaces.Dict({"a": spaces.Dict({"b": BOX})}), ARM),
        (spaces.Tuple([BOX, BOX]), ARM),
    ):
        policy = ActorCritic.build(Layout(obs), Layout(actions), NetworkConfig())
        with pytest.raises(SpaceError, match="SB3"):
            sb3_models.to_sb3_model(policy)
