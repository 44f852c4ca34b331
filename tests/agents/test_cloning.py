"""Behaviour cloning: what is shown is learned, whatever the policy, and it helps."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.agents.cloning import Cloning
from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import CloneConfig, NetworkConfig, PPOConfig, SACConfig, from_dict
from rlgym.errors import ConfigError, UserError
from rlgym.rollout.demonstrations import from_arrays, save
from rlgym.rollout.ring import FINAL
from rlgym.spaces import Layout, tree_items
from rlgym.training import checkpoint as checkpoints
from tests.agents.test_device_clean import DeviceClean

OBS = spaces.Box(-2.0, 2.0, (3,), np.float32)
ACTIONS = {
    "box": spaces.Box(np.float32([-1, 2]), np.float32([3, 4])),
    "open": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "discrete": spaces.Discrete(3, start=2),
    "multi": spaces.MultiDiscrete([2, 3]),
    "switches": spaces.MultiBinary(2),
    "mixed": spaces.Dict(
        {
            "continuous": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "discrete": spaces.MultiDiscrete([3]),
        }
    ),
}
SOFT = {"std": "state", "squash": True, "activation": "relu"}


def teacher(space, obs: np.ndarray):
    """What a simple rule does: every value of an action follows from the observation's sign."""
    up = (obs > 0).astype(np.int64)
    if isinstance(space, spaces.Dict):
        return {key: teacher(sub, obs) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Box):
        low = np.where(np.isfinite(space.low), space.low, -1.0)
        high = np.where(np.isfinite(space.high), space.high, 1.0)
        share = np.float32([0.2, 0.7])
        return (low + (high - low) * np.where(up[:, :2], share, 1 - share)).astype(np.float32)
    if isinstance(space, spaces.Discrete):
        return space.start + up[:, 0] + up[:, 1]
    if isinstance(space, spaces.MultiDiscrete):
        return np.stack([up[:, k] * (n - 1) for k, n in enumerate(space.nvec)], 1)
    return up[:, :2].astype(np.int8)


def demonstrations(space, count=400, seed=0, **more):
    obs = np.random.default_rng(seed).uniform(-2, 2, (count, 3)).astype(np.float32)
    arrays = {
        "observations": obs,
        "next_observations": obs,
        "rewards": np.zeros(count, np.float32),
        "terminated": np.arange(count) % 40 == 39,
        "truncated": np.zeros(count, bool),
        **{f"actions/{k}" if k else "actions": v for k, v in tree_items(teacher(space, obs))},
        **more,
    }
    return from_arrays("rule", arrays, Layout(OBS), Layout(space))


def learner(space, soft=False, seed=0, **network):
    layouts = Layout(OBS), Layout(space)
    if soft:
        policy = SoftPolicy.build(
            *layouts, NetworkConfig(hidden=(32,), **{**SOFT, **network}), seed
        )
        made = SAC(policy, SACConfig())
        return made, made.actor_optimizer
    policy = ActorCritic.build(*layouts, NetworkConfig(hidden=(32,), **network), seed)
    made = PPO(policy, PPOConfig())
    return made, made.optimizer


def misses(policy, space, count=200) -> float:
    """Share of values in which the policy's mode is not the teacher's (a box: off by 0.4)."""
    obs = np.random.default_rng(9).uniform(-2, 2, (count, 3)).astype(np.float32)
    obs = obs[np.abs(obs).min(1) > 0.2]
    state = policy.initial_state(len(obs))
    told = policy.act(torch.from_numpy(obs), state=state, deterministic=True)[0]
    wanted = dict(tree_items(teacher(space, obs)))
    wrong = [
        np.abs(value.numpy().reshape(len(obs), -1) - wanted[key].reshape(len(obs), -1)) > 0.4
        for key, value in tree_items(told)
    ]
    return float(np.concatenate(wrong, 1).mean())


CASES = [
    *((kind, False, {}) for kind in ACTIONS),
    ("box", False, {"squash": True}),
    ("box", False, {"std": "gsde"}),
    ("multi", False, {"recurrent": "gru", "recurrent_size": 16}),
    ("box", False, {"normalize_obs": True}),
    *((kind, True, {}) for kind in ("box", "multi", "mixed")),
]


@pytest.mark.parametrize(("kind", "soft", "network"), CASES)
def test_pretraining_learns_what_was_shown(kind, soft, network):
    space = ACTIONS[kind]
    made, optimizer = learner(space, soft, **network)
    cfg = CloneConfig(steps=120, learning_rate=3e-2, batch_size=128, sequence=4)
    cloning = Cloning(made.policy, optimizer, demonstrations(space), cfg)
    cloning.normalize()
    before = misses(made.policy, space)
    generator = torch.Generator().manual_seed(0)
    first, last = cloning.pretrain(generator)
    assert last < 0.4 * first
    assert misses(made.policy, space) < 0.1 < before
    # the learner begins as if nothing had been
    assert optimizer.steps == 0 and not optimizer.exp_avg.any()
    assert optimizer.learning_rate.item() == pytest.approx(3e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_loss_and_spares_deviation_and_critic(soft):
    space = ACTIONS["box"]
    made, optimizer = learner(space, soft)
    cloning = Cloning(made.policy, optimizer, demonstrations(space), CloneConfig(coef=0.5))
    optimizer.grad.fill_(1.0)
    cloning.follow(0.25)
    assert cloning.coef == pytest.approx(0.375)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    loss = cloning.add_gradient(seeds[0])
    plain = cloning.loss(seeds[1])
    assert plain.item() == pytest.approx(loss.item())
    grads = torch.autograd.grad(
        plain, optimizer.parameters, allow_unused=True, materialize_grads=True
    )
    expected = 1.0 + 0.375 * torch.cat([grad.reshape(-1) for grad in grads])
    torch.testing.assert_close(optimizer.grad, expected)
    distribution = made.policy.distribution
    if not soft:
        assert (distribution.log_std.grad == 1.0).all()


def test_the_loss_by_hand():
    """A policy whose mean is zero: half ranges are (3 - -1) / 2 = 2 and 1, middles 1 and 3."""
    space = ACTIONS["box"]
    made, optimizer = learner(space)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.zero_()
    obs = np.zeros((2, 3), np.float32)
    arrays = {
        "observations": obs,
        "next_observations": obs,
        "actions": np.float32([[3, 3], [1, 2]]),
        "rewards": np.zeros(2, np.float32),
        "terminated": np.array([False, True]),
        "truncated": np.zeros(2, bool),
    }
    shown = from_arrays("hand", arrays, Layout(OBS), Layout(space))
    cloning = Cloning(made.policy, optimizer, shown, CloneConfig(batch_size=2))
    # shown: (1, 0) and (0, -1); the mean is (0 - 1) / 2 = -0.5 and (0 - 3) / 1 = -3
    rows = ((1.5**2 + 3**2) / 2, (0.5**2 + 2**2) / 2)
    everything = cloning._loss(torch.arange(3)[None])  # the third row ends the episode: no weight
    assert everything.item() == pytest.approx(sum(rows) / 2)


@pytest.mark.parametrize("squash", [False, True])
def test_the_buffer_of_a_sac_run_shows_the_same(squash):
    """Its actions are stored in half ranges already."""
    space = ACTIONS["box"]
    made, optimizer = learner(space, squash=squash)
    shown = demonstrations(space)
    rows = torch.arange(len(shown.flags))[None]
    wanted = Cloning(made.policy, optimizer, shown, CloneConfig())._loss(rows)
    shown.actions = (torch.as_tensor(shown.actions) - torch.tensor([1.0, 3.0])) / torch.tensor(
        [2.0, 1.0]
    )
    shown.stored = True
    found = Cloning(made.policy, optimizer, shown, CloneConfig())._loss(rows)
    torch.testing.assert_close(found, wanted)


def test_a_forbidden_choice_that_was_shown_is_learned_all_the_same():
    """Real recordings hold such choices: nothing holds a person to a mask."""
    space = ACTIONS["multi"]
    count = 400
    mask = np.random.default_rng(1).random((count, 5)) < 0.5
    made, optimizer = learner(space)
    shown = demonstrations(space, count, action_masks=mask)
    cfg = CloneConfig(steps=100, learning_rate=3e-2, batch_size=128)
    cloning = Cloning(made.policy, optimizer, shown, cfg)
    first, last = cloning.pretrain(torch.Generator().manual_seed(0))
    assert first < 10 and last < 0.4 * first  # one forbidden choice would cost 1e8


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_pictures_and_memory_read_nothing_back_from_the_device(recurrent):
    obs = spaces.Dict(
        {"eye": spaces.Box(0, 255, (12, 12, 3), np.uint8), "room": spaces.Discrete(3)}
    )
    space, count = ACTIONS["mixed"], 60
    rng = np.random.default_rng(0)
    arrays = {
        "observations/eye": rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8),
        "observations/room": rng.integers(0, 3, count),
        **{f"actions/{k}": v for k, v in teacher(space, rng.normal(size=(count, 3))).items()},
        "rewards": np.zeros(count, np.float32),
        "terminated": np.arange(count) % 7 == 6,
        "truncated": np.zeros(count, bool),
        "action_masks": rng.random((count, 3)) < 0.5,
    }
    layouts = Layout(obs), Layout(space)
    config = NetworkConfig(hidden=(8,), recurrent=recurrent, recurrent_size=8)
    policy = ActorCritic.build(*layouts, config, 0)
    optimizer = PPO(policy, PPOConfig()).optimizer
    shown = from_arrays("rule", arrays, *layouts)
    cloning = Cloning(policy, optimizer, shown, CloneConfig(coef=1.0, batch_size=24, sequence=4))
    generator = torch.Generator().manual_seed(0)
    with DeviceClean() as seen:
        loss = cloning.add_gradient(generator)
    assert not seen.found and loss > 0 and optimizer.grad.abs().sum() > 0
    if recurrent != "none":  # episodes of 7 steps: four, three and a row without weight
        assert cloning.sequences.shape == (2 * 8 + 1, 4)  # the last episode has 3 steps
        first = cloning.weights[cloning.sequences[1]]
        assert first.tolist() == [1, 1, 1, 0]


def test_what_cannot_be_cloned_is_refused():
    made, optimizer = learner(ACTIONS["box"])
    shown = demonstrations(ACTIONS["box"])
    shown.flags[:] = FINAL
    with pytest.raises(UserError, match="hold no whole step"):
        Cloning(made.policy, optimizer, shown, CloneConfig())
    with pytest.raises(ConfigError, match=r"need clone\.demonstrations"):
        from_dict({"clone": {"steps": 5}})
    with pytest.raises(ConfigError, match="would not be used"):
        from_dict({"clone": {"demonstrations": "a.npz"}})
    with pytest.raises(ConfigError, match=r"clone\.coef must be 0 or more"):
        from_dict({"clone": {"demonstrations": "a.npz", "coef": -1}})


# ---------------------------------------------------------------------------------- in training


class Corridor(gymnasium.Env):
    """Eight doors in a row; the wrong one of four ends all, and only the last one pays."""

    LENGTH = 8
    observation_space = spaces.Box(0.0, 1.0, (LENGTH,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._seen(), {}

    def step(self, action):
        right = int(action) == self.at % 4
        self.at += 1
        solved = right and self.at == self.LENGTH
        return self._seen(), float(solved), not right or solved, False, {}

    def _seen(self):
        return np.eye(self.LENGTH + 1, dtype=np.float32)[self.at][: self.LENGTH]


@pytest.fixture(scope="module")
def shown_way(tmp_path_factory):
    """The way through the corridor, once."""
    path = tmp_path_factory.mktemp("demos") / "way.npz"
    steps = np.arange(Corridor.LENGTH)
    ended = steps == Corridor.LENGTH - 1
    save(
        path,
        np.eye(Corridor.LENGTH, dtype=np.float32),
        steps % 4,
        ended.astype(np.float32),
        ended,
        np.zeros(len(steps), bool),
    )
    return str(path)


def go(run_dir, clone, steps=2048, **more):
    settings = {
        "num_envs": 4,
        "backend": "sync",
        "total_steps": steps,
        "network": {"hidden": (32,)},
        "algo": {"num_steps": 64, "minibatch_size": 64, "epochs": 4},
        "eval": {"episodes": 20},
        **more,
    }
    return rlgym.train(
        Corridor, run_dir=run_dir, console="off", preset=None, clone=clone, **settings
    )


def test_cloning_finds_a_reward_that_chance_does_not(tmp_path, shown_way):
    alone = go(tmp_path / "alone", {}, steps=1024)
    helped = go(tmp_path / "helped", {"demonstrations": shown_way, "coef": 0.5})
    assert alone.result.mean < 0.1 < 0.95 <= helped.result.mean
    first = go(tmp_path / "first", {"demonstrations": shown_way, "steps": 100}, steps=256)
    assert first.result.mean >= 0.95  # before the rewards had much to say


@pytest.mark.slow
def test_sac_is_helped_too(tmp_path, shown_way):
    algo = {"name": "sac", "learning_starts": 100, "buffer_size": 10_000, "batch_size": 64}
    network = {"hidden": (32,), "std": "state", "squash": True}
    clone = {"demonstrations": shown_way, "steps": 200, "coef": 1.0, "schedule": "constant"}
    run = go(tmp_path / "run", clone, steps=400, algo=algo, network=network)
    assert run.result.mean >= 0.95


def test_demonstrations_that_do_not_fit_leave_no_run_behind(tmp_path, shown_way):
    clone = {"demonstrations": shown_way, "steps": 10}
    with pytest.raises(UserError, match=r"'observations' has shape \[8, 8\]"):
        rlgym.train(
            "CartPole-v1", run_dir=tmp_path / "run", clone=clone, console="off", preset=None
        )
    assert not (tmp_path / "run" / "config.yaml").exists()


class Stop:
    """Ends a run half way."""

    def on_update(self, run, scalars):
        assert scalars["train/clone_loss"] >= 0
        return run.state.env_steps >= 512


def test_a_resumed_run_clones_on_as_the_uncut_one(tmp_path, shown_way):
    clone = {"demonstrations": shown_way, "steps": 20, "coef": 0.2}
    go(tmp_path / "whole", clone, steps=1024)
    go(tmp_path / "cut", clone, steps=1024, hooks=Stop())
    rlgym.resume(tmp_path / "cut", world=Corridor, console="off")
    ends = [checkpoints.newest(tmp_path / name).tensors("model") for name in ("whole", "cut")]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
