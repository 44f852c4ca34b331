"""One update: equal to stable-baselines3's, indifferent to rows without weight, repeatable."""

import hashlib

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import Env, spaces
from stable_baselines3.common.logger import configure

from rlgym.agents.ppo import PPO
from rlgym.agents.ppo_gradients import Autograd, WrittenOut
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.errors import CheckpointError, UserError

OBS = spaces.Box(-1, 1, (4,), np.float32)
TORQUES = spaces.Box(-1, 1, (3,), np.float32)


class World(Env):
    def __init__(self, action_space):
        self.observation_space, self.action_space = OBS, action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), 0.0, False, False, {}


def parameter_hash(learner):
    return hashlib.sha256(learner.optimizer.flat.numpy().tobytes()).hexdigest()


def copy_weights(policy, theirs):
    """Ours into stable-baselines3's layers, which are stored transposed."""
    towers = policy.towers
    extractor = theirs.mlp_extractor
    layers = [
        (net[2 * i], getattr(towers, f"weight_{i}")[half], getattr(towers, f"bias_{i}")[half, 0])
        for half, net in enumerate((extractor.policy_net, extractor.value_net))
        for i in range(len(towers.hidden))
    ]
    layers += [
        (theirs.action_net, towers.actor_weight.t(), towers.actor_bias),
        (theirs.value_net, towers.critic_weight.t(), towers.critic_bias),
    ]
    with torch.no_grad():
        for layer, weight, bias in layers:
            layer.weight.copy_(weight.t())
            layer.bias.copy_(bias)
    return layers


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), TORQUES], ids=["discrete", "box"])
@pytest.mark.parametrize("epochs", [1, 4])
def test_an_update_equals_stable_baselines(rollout, action_space, epochs):
    T, N = 16, 4
    cfg = PPOConfig(
        minibatch_size=T * N, epochs=epochs, entropy_coef=0.01, learning_rate=1e-3, clip=0.1
    )
    learner, buffer, generator = rollout(OBS, action_space, algo=cfg, num_steps=T, num_envs=N)
    theirs = stable_baselines3.PPO(
        "MlpPolicy", World(action_space), n_steps=T * N, batch_size=T * N, n_epochs=epochs,
        ent_coef=0.01, learning_rate=1e-3, clip_range=0.1, device="cpu",
    )  # fmt: skip
    theirs.set_logger(configure(None, []))
    layers = copy_weights(learner.policy, theirs.policy)
    if learner.policy.distribution.std() is not None:
        theirs.policy.log_std.data.copy_(learner.policy.distribution.log_std)
    rows, _ = learner._rows(buffer)
    actions = rows["actions"].reshape(T * N, -1).numpy()
    theirs_buffer = theirs.rollout_buffer
    theirs_buffer.observations[:, 0] = buffer.obs.reshape(T * N, -1).numpy()
    theirs_buffer.actions[:, 0] = actions
    for name, ours in (
        ("values", "values"),
        ("log_probs", "log_probs"),
        ("advantages", "advantages"),
        ("returns", "returns"),
    ):
        getattr(theirs_buffer, name)[:, 0] = rows[ours].detach().numpy()
    theirs_buffer.pos, theirs_buffer.full = T * N, True
    theirs.train()
    metrics = learner.update(buffer, 0.0, generator)

    for layer, weight, bias in layers:
        torch.testing.assert_close(layer.weight.t(), weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.bias, bias, atol=1e-5, rtol=0)
    logged = theirs.logger.name_to_value
    names = ["policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction"]
    if epochs == 1:  # later, theirs is the last minibatch's loss and the mean of the entropies
        names += ["loss", "entropy_loss"]
    if action_space is TORQUES:
        names.append("std")
    for name in names:
        assert float(metrics[f"train/{name}"]) == pytest.approx(logged[f"train/{name}"], abs=1e-5)
    assert int(metrics["train/n_updates"]) == logged["train/n_updates"] == epochs


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), TORQUES], ids=["discrete", "box"])
@pytest.mark.parametrize("network", [{}, {"std": "state", "squash": True}, {"std": "gsde"}])
def test_written_out_gradients_equal_autograd(rollout, action_space, network):
    cfg = PPOConfig(entropy_coef=0.02, value_clip=0.3, minibatch_size=64)
    net = NetworkConfig(hidden=(16, 8), activation="elu", **network)
    learner, buffer, generator = rollout(OBS, action_space, net, cfg)
    autograd = Autograd(learner.policy, cfg, learner.optimizer, symmetry=None)
    assert isinstance(learner.way, WrittenOut)
    rows, _ = learner._rows(buffer)
    with torch.no_grad():
        learner.optimizer.flat.add_(0.05 * torch.randn_like(learner.optimizer.flat))
        _, batches = next(learner._epochs(rows, learner._orders(buffer, generator)))
        batch = next(batches)
        learner.optimizer.grad.fill_(7.0)
        learner.way(batch)
        written = learner.optimizer.grad.clone()
        autograd(batch)
    torch.testing.assert_close(written, learner.optimizer.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_inactive_rows_do_not_touch_the_gradient(rollout, recurrent):
    results = []
    for spoil in (0.0, 3.0):
        cfg = PPOConfig(minibatch_size=64, epochs=3, entropy_coef=0.01)
        net = NetworkConfig(hidden=(16,), recurrent=recurrent, recurrent_size=8)
        learner, buffer, generator = rollout(OBS, TORQUES, net, cfg)
        dead = torch.zeros(16, 4, dtype=torch.bool)
        dead[3:5, 1] = True
        dead[-1, 2] = True
        buffer.active.copy_(~dead)
        buffer.all_active = False
        buffer.actions[dead] += spoil  # what an inactive slot "did"
        metrics = learner.update(buffer, 0.0, generator)
        results.append((parameter_hash(learner), float(metrics["train/value_loss"])))
    assert results[0] == results[1]


def test_active_rows_weigh_as_if_the_others_were_not_there(rollout):
    """64 rows of which half are inactive equal the other half alone, to rounding."""
    cfg = PPOConfig(minibatch_size=64, epochs=1, entropy_coef=0.01, max_grad_norm=1e9)
    whole, buffer, generator = rollout(OBS, spaces.Discrete(3), algo=cfg)
    half, *_ = rollout(OBS, spaces.Discrete(3), algo=cfg)
    rows, _ = whole._rows(buffer)
    rows["weights"][32:] = 0.0
    few = {
        name: {key: x[:32] for key, x in part.items()}
        if isinstance(part, dict)
        else (None if part is None else part[:32])
        for name, part in rows.items()
    }
    with torch.no_grad():
        for learner, data in ((whole, rows), (half, few)):
            _, batches = next(learner._epochs(data, learner._orders(buffer, generator)))
            learner.way(next(batches))
    torch.testing.assert_close(whole.optimizer.grad, half.optimizer.grad)


def test_the_last_minibatch_is_filled_up_without_effect(rollout):
    """40 of 64 rows per minibatch: every row once per epoch, 16 fillers that weigh nothing."""
    cfg = PPOConfig(minibatch_size=40, epochs=1)
    learner, buffer, generator = rollout(OBS, spaces.Discrete(3), algo=cfg)
    rows, _ = learner._rows(buffer)
    _, batches = next(learner._epochs(rows, learner._orders(buffer, generator)))
    batches = list(batches)
    assert [len(batch["returns"]) for batch in batches] == [40, 40]
    counts = [batch["value_slope"] > 0 for batch in batches]
    assert [int(count.sum()) for count in counts] == [40, 24]
    seen = torch.cat(
        [batch["returns"][count] for batch, count in zip(batches, counts, strict=True)]
    )
    torch.testing.assert_close(seen.sort().values, rows["returns"].sort().values)
    for batch in batches:
        torch.testing.assert_close(batch["value_slope"].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("network", [{}, {"recurrent": "lstm"}])
def test_same_seed_same_parameters(rollout, network):
    def run(seed):
        torch.manual_seed(seed * 7 + torch.initial_seed() % 3)  # the global generator is not used
        net = NetworkConfig(hidden=(16,), normalize_obs=True, recurrent_size=8, **network)
        cfg = PPOConfig(minibatch_size=24, epochs=2)
        learner, buffer, generator = rollout(OBS, TORQUES, net, cfg, seed=seed)
        for _ in range(2):
            learner.update(buffer, 0.5, generator)
        return parameter_hash(learner)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_schedules_follow_progress(rollout):
    cfg = PPOConfig(
        learning_rate_schedule="linear", clip_schedule="linear", learning_rate=1e-3, clip=0.2
    )
    learner, buffer, generator = rollout(OBS, TORQUES, algo=cfg)
    for progress, left in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (1.2, 0.0)):
        metrics = learner.update(buffer, progress, generator)
        assert float(metrics["train/learning_rate"]) == pytest.approx(1e-3 * left)
        assert float(metrics["train/clip_range"]) == pytest.approx(0.2 * left)
    flat = learner.optimizer.flat.clone()
    learner.update(buffer, 1.0, generator)
    assert torch.equal(flat, learner.optimizer.flat)  # a rate of zero moves nothing


def test_target_kl_stops_before_the_step_that_goes_too_far(rollout):
    cfg = PPOConfig(
        minibatch_size=16, epochs=50, learning_rate=0.05, max_grad_norm=1e9, target_kl=0.01
    )
    learner, buffer, generator = rollout(OBS, TORQUES, algo=cfg)
    metrics = learner.update(buffer, 0.0, generator)
    assert 0 < learner.optimizer.steps < 4 * int(metrics["train/n_updates"])
    assert int(metrics["train/n_updates"]) < 50
    assert metrics["health/skipped_updates"] == 0  # held, not broken


def test_kl_schedule_moves_the_rate_towards_the_target(rollout):
    for target, factor in ((1e-6, 1 / 1.5), (10.0, 1.5)):
        cfg = PPOConfig(learning_rate_schedule="kl", target_kl=target, learning_rate=1e-3, epochs=4)
        learner, buffer, generator = rollout(OBS, TORQUES, algo=cfg)
        learner.update(buffer, 0.0, generator)
        assert float(learner.optimizer.learning_rate) == pytest.approx(1e-3 * factor)


def test_a_broken_minibatch_is_skipped_and_counted(rollout):
    cfg = PPOConfig(minibatch_size=16, epochs=2)
    learner, buffer, generator = rollout(OBS, TORQUES, algo=cfg)
    buffer.actions[2, 1, 0] = float("inf")
    metrics = learner.update(buffer, 0.0, generator)
    assert metrics["health/skipped_updates"] == 2  # once per epoch
    assert learner.optimizer.steps == 6
    assert torch.isfinite(learner.optimizer.flat).all()


@pytest.mark.parametrize("network", [{"normalize_obs": True}, {"recurrent": "gru"}])
def test_state_dict_continues_bit_for_bit(rollout, network):
    net = NetworkConfig(hidden=(16,), recurrent_size=8, **network)
    cfg = PPOConfig(minibatch_size=32, epochs=2, learning_rate_schedule="kl", target_kl=0.01)
    learner, buffer, generator = rollout(OBS, TORQUES, net, cfg)
    learner.update(buffer, 0.0, generator)
    state, noise = learner.state_dict(), generator.get_state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    learner.update(buffer, 0.1, generator)
    other, *_ = rollout(OBS, TORQUES, net, cfg, seed=5)
    other.load_state_dict(state)
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
    generator.set_state(noise)
    other.update(buffer, 0.1, generator)
    wanted = learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in other.state_dict().items())
    smaller, *_ = rollout(OBS, TORQUES, NetworkConfig(hidden=(8,), recurrent_size=8, **network))
    with pytest.raises(CheckpointError, match="must be those of what was saved"):
        smaller.load_state_dict(state)


def test_statistics_change_after_the_update_only(rollout):
    net = NetworkConfig(normalize_obs=True)
    learner, buffer, generator = rollout(OBS, TORQUES, net)
    before = learner._rows(buffer)[0]["log_probs"]
    metrics = learner.update(buffer, 0.0, generator)
    norm = next(iter(learner.policy.obs_norm.values()))
    assert norm.count == 64
    torch.testing.assert_close(norm.mean, buffer.obs.double().mean((0, 1)))
    assert float(metrics["train/approx_kl"]) < 0.1
    assert not torch.allclose(before, learner._rows(buffer)[0]["log_probs"])


def test_mirror_loss_makes_the_policy_symmetric(rollout):
    def symmetry(obs, actions):
        return (None if obs is None else -obs), (None if actions is None else -actions)

    def asymmetry(learner, buffer):
        policy = learner.policy
        here, there = (
            policy.act(x, deterministic=True)[1] for x in (buffer.last_obs, -buffer.last_obs)
        )
        return float((here + there).abs().mean())

    cfg = PPOConfig(minibatch_size=64, epochs=200, learning_rate=3e-3, symmetry_coef=50.0)
    learner, buffer, generator = rollout(OBS, TORQUES, algo=cfg, symmetry=symmetry)
    with torch.no_grad():
        learner.policy.towers.actor_bias.fill_(0.3)
    before = asymmetry(learner, buffer)
    learner.update(buffer, 0.0, generator)
    assert asymmetry(learner, buffer) < 0.2 * before


def test_settings_that_contradict_each_other_are_refused(rollout):
    for name in ("epochs", "minibatch_size", "max_grad_norm"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            rollout(OBS, TORQUES, algo=PPOConfig(**{name: 0}))
    with pytest.raises(UserError, match="target-kl"):
        rollout(OBS, TORQUES, algo=PPOConfig(learning_rate_schedule="kl"))
    with pytest.raises(UserError, match="symmetry"):
        rollout(OBS, TORQUES, algo=PPOConfig(symmetry_coef=0.1))
    learner, *_ = rollout(OBS, spaces.Discrete(2))
    with pytest.raises(UserError, match="Box"):
        PPO(
            learner.policy,
            PPOConfig(symmetry_coef=0.1),
            symmetry=lambda obs, actions: (obs, actions),
        )
