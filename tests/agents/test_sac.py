"""One gradient step: equal to stable-baselines3's, and to autograd's where it is written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import Env, spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from rlgym.agents.sac import SAC
from rlgym.agents.soft_updates import Autograd, WrittenOut
from rlgym.config import SACConfig
from rlgym.errors import CheckpointError, UserError
from tests.agents.transitions import Fixed, batch, learner

OBS = spaces.Box(-1, 1, (4,), np.float32)
TORQUES = spaces.Box(-1, 1, (3,), np.float32)
ARM = spaces.Box(-2, 2, (2, 2), np.float32)
SPACES = {
    "plain": (OBS, TORQUES, {}, {}),
    "layer norm": (OBS, TORQUES, {}, {"layer_norm": True, "num_critics": 3}),
    "one critic": (OBS, TORQUES, {"activation": "tanh"}, {"num_critics": 1}),
    "gsde": (OBS, TORQUES, {"std": "gsde", "gsde_every": 1, "log_std_init": -1.0}, {}),
    "normalised": (OBS, TORQUES, {"normalize_obs": True}, {}),
    "image": (
        spaces.Dict({"eye": spaces.Box(0, 255, (12, 12, 3), np.uint8), "privileged": OBS}),
        TORQUES,
        {},
        {},
    ),
    "discrete": (OBS, spaces.Discrete(4, start=1), {}, {}),
    "mixed": (
        OBS,
        spaces.Dict({"arm": TORQUES, "gear": spaces.MultiDiscrete([2, 3]), "on": TORQUES}),
        {},
        {},
    ),
    "switches": (
        OBS,
        spaces.Dict({"arm": TORQUES, "gear": spaces.Discrete(3), "on": spaces.MultiBinary(2)}),
        {},
        {},
    ),
}


class World(Env):
    observation_space, action_space = OBS, TORQUES

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), 0.0, False, False, {}


def layers(policy, theirs):
    """Pairs of (our weight and bias, their layer); ours are stored transposed, save the heads."""
    actor = policy.actor.layers
    pairs = [
        (getattr(actor, f"weight_{i}")[0].t(), getattr(actor, f"bias_{i}")[0, 0], layer)
        for i, layer in enumerate((theirs.actor.latent_pi[0], theirs.actor.latent_pi[2]))
    ]
    for k, layer in enumerate((theirs.actor.mu, theirs.actor.log_std)):
        rows = slice(3 * k, 3 * k + 3)
        pairs.append((actor.head_weight[0, rows], actor.head_bias[0, 0, rows], layer))
    for ours, critic in ((policy.critics, theirs.critic), (policy.target, theirs.critic_target)):
        for e, net in enumerate(critic.q_networks):
            own = ours.layers
            pairs += [
                (own.weight_0[e].t(), own.bias_0[e, 0], net[0]),
                (own.weight_1[e].t(), own.bias_1[e, 0], net[2]),
                (own.head_weight[e], own.head_bias[e, 0], net[4]),
            ]
    return pairs


def their_batch(ours, gamma):
    return ReplayBufferSamples(
        ours.obs,
        ours.actions,
        ours.next_obs,
        (ours.discounts == 0).float().unsqueeze(1),
        ours.rewards.unsqueeze(1),
        torch.full((len(ours.rewards), 1), gamma),
    )


@pytest.mark.parametrize("temperature", [None, 0.2], ids=["learned", "fixed"])
@pytest.mark.parametrize("way", [WrittenOut, Autograd])
def test_updates_equal_stable_baselines(monkeypatch, temperature, way):
    steps, rows = 20, 64
    cfg = SACConfig(temperature=temperature, learning_rate=1e-3, batch_size=rows)
    ours = learner(OBS, TORQUES, algo=cfg)
    assert isinstance(ours.way, WrittenOut)
    if way is Autograd:
        ours.way = Autograd(ours.policy, ours.actor_optimizer, ours.critic_optimizer)
    theirs = stable_baselines3.SAC(
        "MlpPolicy", World(), policy_kwargs={"net_arch": [16, 16]}, learning_rate=1e-3,
        ent_coef="auto" if temperature is None else temperature, device="cpu", seed=0,
    )  # fmt: skip
    theirs.set_logger(configure(None, []))
    pairs = layers(ours.policy, theirs)
    with torch.no_grad():
        for weight, bias, layer in pairs:
            weight.copy_(layer.weight)
            bias.copy_(layer.bias)

    batches = [batch(ours.policy, rows, seed) for seed in range(steps)]
    for b in batches:
        b.weights = torch.ones(rows)
    replay = Fixed(*batches)
    generator = torch.Generator().manual_seed(5)
    noises = []
    drawn = ours.policy.actions.learner_noise

    def noted(count, generator):
        noise = drawn(count, generator)
        noises.extend(noise[0].split(rows))
        return noise

    monkeypatch.setattr(ours.policy.actions, "learner_noise", noted)
    metrics = ours.update(replay, steps, 0.0, generator)
    monkeypatch.setattr(
        torch.distributions.normal, "_standard_normal", lambda *_, **__: noises.pop(0).clone()
    )
    samples = iter([their_batch(b, 0.9) for b in batches])
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: next(samples))
    theirs.train(steps, rows)

    for weight, bias, layer in pairs:
        torch.testing.assert_close(weight, layer.weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(bias, layer.bias, atol=1e-5, rtol=0)
    logged = theirs.logger.name_to_value
    names = ["actor_loss", "critic_loss", "ent_coef"]
    if temperature is None:
        names.append("ent_coef_loss")
        assert ours.log_temperature.item() == pytest.approx(theirs.log_ent_coef.item(), abs=1e-5)
    for name in names:
        got, want = float(metrics[f"train/{name}"]), logged[f"train/{name}"]
        # their log(1 - tanh^2 + 1e-6) differs from the exact one by about 1e-5 on the whole
        assert got == pytest.approx(want, rel=1e-4, abs=1e-5), name
    assert int(metrics["train/n_updates"]) == logged["train/n_updates"] == steps


# ------------------------------------------------------------------- written out and by autograd


def gradients(way, dtype, obs_space, network):
    """One step's gradients, the critics' and the actor's, and the numbers that it returns."""
    space = spaces.Tuple((TORQUES, ARM)) if network.pop("joint", False) else TORQUES
    policy = learner(obs_space, space, network).policy.to(dtype)
    with torch.no_grad():  # a clamped log_std in some rows, and critics unlike their copies
        policy.actor.layers.head_bias[0, 0, -2] = 1.9
        policy.critics.layers.head_bias.add_(0.3)
    own = SAC(policy, SACConfig())
    data = batch(policy, 40)
    for name in ("obs", "next_obs", "actions", "rewards", "discounts", "weights"):
        tree = getattr(data, name)
        if isinstance(tree, torch.Tensor):
            setattr(data, name, tree.to(dtype))
    noises = [
        noise.to(dtype)
        for noise in policy.actions.learner_noise(80, torch.Generator().manual_seed(1))
    ]
    temperature = torch.tensor(0.7, dtype=dtype)
    assert isinstance(own.way, WrittenOut)
    if way is Autograd:
        own.way = Autograd(policy, own.actor_optimizer, own.critic_optimizer)
    with torch.no_grad():
        log_probs = own.way.begin(data, noises, True)
        numbers = [log_probs, *own.way.critic_gradient(temperature)]
        numbers.append(own.way.actor_gradient(temperature))
    return [own.critic_optimizer.grad, own.actor_optimizer.grad, *numbers]


@pytest.mark.parametrize(
    "case", ["relu", "tanh", "elu", "silu", "normalised", "privileged", "gsde", "joint"]
)
def test_written_out_gradients_equal_autograds(case):
    network, obs_space, dtype = {"log_std_init": 0.2}, OBS, torch.float32
    if case == "normalised":
        network["normalize_obs"] = True
    elif case == "privileged":
        obs_space = spaces.Dict({"seen": OBS, "privileged": OBS, "room": spaces.Discrete(3)})
    elif case == "gsde":
        network = {"std": "gsde", "gsde_every": 1, "log_std_init": -1.0}
    elif case == "joint":
        network["joint"] = True
    else:
        network["activation"], dtype = case, torch.float64
    written, wanted = (
        gradients(way, dtype, obs_space, dict(network)) for way in (WrittenOut, Autograd)
    )
    assert min(wanted[0].abs().max(), wanted[1].abs().max()) > 1e-3
    tolerance = 1e-6 if dtype is torch.float32 else 1e-12
    for got, want in zip(written, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=1e-5)


def test_without_the_actor_only_what_follows_is_acted_in():
    for way in (WrittenOut, Autograd):
        own = learner(OBS, TORQUES)
        if way is Autograd:
            own.way = Autograd(own.policy, own.actor_optimizer, own.critic_optimizer)
        data, noise = batch(own.policy, 40), torch.randn(80, 3)
        found = []
        with torch.no_grad():
            for part, with_actor in ((noise, True), (noise[40:], False)):
                log_probs = own.way.begin(data, [part], with_actor)
                assert (log_probs is None) != with_actor
                own.way.critic_gradient(torch.tensor(0.5))
                found.append(own.critic_optimizer.grad.clone())
        torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


# ----------------------------------------------------------------------------- the whole update


def run(own, count=5, batches=None, seed=3, progress=0.0):
    replay = Fixed(*(batches or [batch(own.policy, 32, seed) for seed in range(count)]))
    metrics = own.update(replay, count, progress, torch.Generator().manual_seed(seed))
    return metrics, replay


@pytest.mark.parametrize("case", SPACES)
def test_every_space_learns_and_is_repeatable(case):
    obs_space, action_space, network, build = SPACES[case]
    states = []
    for _ in range(2):
        own = learner(obs_space, action_space, network, **build)
        before = [optimizer.flat.clone() for optimizer in own._optimizers().values()]
        target = own._target.clone()
        data = [batch(own.policy, 16, seed, masks=True) for seed in range(3)]
        metrics, _ = run(own, 3, data)
        for optimizer, old in zip(own._optimizers().values(), before, strict=True):
            assert not torch.equal(optimizer.flat, old)
        moved = torch.cat([p.reshape(-1) for p in own.policy.target.parameters()])
        assert torch.equal(moved, own._target)
        assert not torch.equal(moved, target)
        assert all(np.isfinite(float(value)) for value in metrics.values())
        assert isinstance(own.way, WrittenOut) == (
            case in ("plain", "one critic", "normalised", "gsde")
        )
        states.append(own.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("case", ["plain", "gsde", "mixed", "image"])
def test_a_saved_learner_goes_on_bit_for_bit(case):
    obs_space, action_space, network, build = SPACES[case]
    cfg = SACConfig(actor_every=2)
    one = learner(obs_space, action_space, network, cfg, **build)
    data = [batch(one.policy, 16, seed) for seed in range(3)]
    run(one, 3, data)
    saved = one.state_dict()
    two = learner(obs_space, action_space, network, cfg, seed=9, **build)
    two.load_state_dict(saved)
    assert two.updates == 3
    run(one, 3, data, seed=8)
    run(two, 3, data, seed=8)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(one.state_dict()["log_temperature"], saved["log_temperature"])
    fixed = learner(obs_space, action_space, network, SACConfig(temperature=0.5), **build)
    fixed.load_state_dict(saved)  # a changed setting counts from there on
    assert fixed.log_temperature.exp().item() == pytest.approx(0.5)


def test_a_checkpoint_of_another_policy_is_refused():
    own = learner(OBS, TORQUES)
    saved = own.state_dict()
    other = learner(OBS, TORQUES, {"hidden": (8, 16)})
    with pytest.raises(CheckpointError, match="must be those of what was saved"):
        other.load_state_dict(saved)
    saved.pop("log_temperature")
    with pytest.raises(CheckpointError, match="checkpoint has no 'log_temperature'"):
        own.load_state_dict(saved)


@pytest.mark.parametrize("case", ["plain", "layer norm", "mixed"])
def test_rows_without_weight_change_nothing(case):
    obs_space, action_space, network, build = SPACES[case]
    states = []
    for factor in (1.0, -50.0):
        own = learner(obs_space, action_space, network, **build)
        data = batch(own.policy, 32)
        idle = data.weights == 0
        assert 0 < idle.sum() < 16
        data.rewards[idle] *= factor
        data.obs[idle] *= factor
        run(own, 2, [data])
        states.append(own.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("case", ["plain", "layer norm"])
def test_a_batch_that_is_not_finite_is_skipped_and_counted(case):
    obs_space, action_space, network, build = SPACES[case]
    own = learner(obs_space, action_space, network, SACConfig(prioritized=True), **build)
    bad = batch(own.policy, 16)
    bad.rewards[3] = torch.nan
    bad.weights[3] = 1.0
    before = own.critic_optimizer.flat.clone()
    metrics, replay = run(own, 1, [bad])
    assert torch.equal(own.critic_optimizer.flat, before)
    assert int(metrics["health/skipped_updates"]) == 1
    assert torch.isfinite(replay.priorities[0][1]).all()
    metrics, _ = run(own, 2)
    assert int(metrics["health/skipped_updates"]) == 0


def test_priorities_are_the_critics_mean_errors():
    own = learner(OBS, TORQUES, algo=SACConfig(prioritized=True, temperature=0.0, tau=1e-9))
    data = batch(own.policy, 16)
    data.discounts = torch.zeros(16)
    with torch.no_grad():
        q = own.policy.critics(own.policy.preparation(data.obs), data.actions)[0].squeeze(2)
    _, replay = run(own, 1, [data])
    index, errors = replay.priorities[0]
    assert torch.equal(index, data.index)
    torch.testing.assert_close(errors, (q - data.rewards).abs().mean(0))


def test_the_actor_waits_for_its_turn():
    own = learner(OBS, TORQUES, algo=SACConfig(actor_every=3))
    actor, temperature = [], []
    for _ in range(7):
        metrics, _ = run(own, 1)
        actor.append("train/actor_loss" in metrics)
        temperature.append(float(own.temperature_optimizer.steps))
    assert actor == [True, False, False] * 2 + [True]
    assert temperature == [1, 1, 1, 2, 2, 2, 3]
    assert float(own.actor_optimizer.steps) == 3
    assert float(own.critic_optimizer.steps) == 7
    metrics, _ = run(own, 4)
    assert int(metrics["health/skipped_updates"]) == 0


def test_arrays_of_a_step_stay_where_a_recorded_one_would_look_for_them():
    own = learner(OBS, TORQUES, algo=SACConfig(actor_every=3))
    layers = [own.policy.actor.layers, own.policy.critics.layers, own.policy.target.layers]
    run(own, 3)  # with the actor, and twice without
    kept = [dict(part._kept) for part in layers]
    assert len(kept[0]) == 2  # the batch's rows, and with the actor twice as many
    run(own, 6)
    assert [dict(part._kept) for part in layers] == kept


def test_settings_reach_the_optimisers():
    cfg = SACConfig(
        learning_rate=1e-3, critic_learning_rate=2e-3, learning_rate_schedule="linear",
        max_grad_norm=1e-12, adam_eps=1.0, temperature=0.3,
    )  # fmt: skip
    own = learner(OBS, TORQUES, algo=cfg)
    before = own.critic_optimizer.flat.clone()
    metrics, _ = run(own, 2, progress=0.25)
    assert float(metrics["train/learning_rate"]) == pytest.approx(7.5e-4)
    assert float(own.critic_optimizer.learning_rate) == pytest.approx(1.5e-3)
    assert float(metrics["train/ent_coef"]) == pytest.approx(0.3)
    assert "train/ent_coef_loss" not in metrics
    # with the gradient's norm at 1e-12 and eps at 1 nothing moves by more than the rate times that
    assert (own.critic_optimizer.flat - before).abs().max() < 1e-8


def test_the_copy_follows_by_tau():
    own = learner(OBS, TORQUES, algo=SACConfig(tau=0.25))
    old = own._target.clone()
    run(own, 1)
    torch.testing.assert_close(own._target, 0.75 * old + 0.25 * own.critic_optimizer.flat)


def test_the_normaliser_counts_active_rows():
    own = learner(OBS, TORQUES, {"normalize_obs": True})
    obs = torch.randn(5, 2, 4)
    active = torch.ones(5, 2, dtype=torch.bool)
    active[1, 1] = False
    own.policy.update_normalizer(SimpleNamespace(obs=obs, active=active))
    (norm,) = own.policy.obs_norm.values()
    assert float(norm.count) == 9
    torch.testing.assert_close(norm.mean.float(), obs[active].mean(0))


@pytest.mark.parametrize(
    ("network", "algo", "message"),
    [
        ({"std": "gsde"}, {}, "gsde_every is 64.* --algo.num-steps 8"),
        ({}, {"batch_size": 0}, "--algo.batch-size"),
        ({}, {"actor_every": 0}, "--algo.actor-every"),
        ({}, {"tau": 0.0}, "--algo.tau"),
        ({}, {"initial_temperature": 0.0}, "--algo.initial-temperature"),
    ],
)
def test_settings_that_contradict_each_other(network, algo, message):
    with pytest.raises(UserError, match=message) as caught:
        learner(OBS, TORQUES, network, SACConfig(**algo))
    assert "\n" not in str(caught.value)
