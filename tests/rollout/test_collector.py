"""What the collector writes down, whatever the worlds do, with one group of worlds and with two."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.errors import StateError
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.collector import HostCollector, set_generator
from rlgym.rollout.transfer import Transfer


class Steps(gymnasium.Env):
    """Observes how many steps its episode has; ends or is cut where it is told."""

    observation_space = spaces.Box(-1e6, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(5)

    def __init__(self, length=4, cut=False, crash_at=None):
        self.length, self.cut, self.crash_at = length, cut, crash_at
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.t += 1
        if self.crash_at == self.t:
            raise RuntimeError("broken on purpose")
        end = self.t == self.length
        info = {"is_success": float(action == 1)} if end else {}
        obs = np.array([self.t], np.float32)
        return obs, float(action), end and not self.cut, end and self.cut, info


class Masked(Steps):
    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, {"action_mask": self.mask()}

    def step(self, action):
        assert self.mask()[action]
        *rest, _ = super().step(action)
        return *rest, {"action_mask": self.mask()}

    def mask(self):
        return np.arange(5) == self.t % 5


class NoisyPolicy:
    """Its action is its noise; V(obs) = 10 + obs; notes what it was given."""

    def __init__(self, action_layout, recurrent=False):
        self.action_layout = action_layout
        self.recurrent = recurrent
        self.value_batches = []

    def noise(self, num_steps, num_envs, generator):
        return torch.rand((num_steps, num_envs, 1), generator=generator)

    def initial_state(self, num_envs):
        return {"h": torch.zeros(num_envs, 2)} if self.recurrent else None

    def act(self, obs, noise=None, state=None, start=None, mask=None, deterministic=False):
        if mask is not None:
            actions = mask.int().argmax(1)
        elif self.action_layout.mask_size:
            actions = (noise[:, 0] * 5).long()
        else:
            shape = (len(noise), *self.action_layout.leaves[0].shape)
            actions = noise.expand(shape)
        if state is not None:  # counts the steps since the episode's start, to be seen in values
            state = {"h": torch.where(start[:, None], 0.0, state["h"]) + 1.0}
        return actions, actions, state

    def values(self, obs, state=None, start=None):
        self.value_batches.append(len(obs))
        values = 10 + obs[:, 0]
        return values if state is None else values + 100 * (state["h"][:, 0] + 1)


def make(world, num_envs=2, num_steps=6, num_groups=1, recurrent=False, seed=0, **kwargs):
    env = rlgym.make_vec(
        world, num_envs, backend="sync", num_groups=num_groups, env_kwargs=kwargs, max_restarts=99
    )
    policy = NoisyPolicy(env.action_layout, recurrent)
    buffer = RolloutBuffer(
        num_steps,
        num_envs,
        env.obs_layout,
        env.action_layout,
        mask_size=env.mask_size,
        state_shape={"h": (2,)} if recurrent else None,
    )
    collector = HostCollector(env, policy, buffer, torch.Generator().manual_seed(seed))
    collector.start(*env.reset(seed=0))
    return collector


def test_rows_hold_what_happened():
    collector = make(Steps, length=4)
    stats = collector.collect()
    buffer = collector.buffer
    assert buffer.obs[:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert buffer.last_obs[0, 0] == 2 and not buffer.last_start[0]
    assert torch.equal(buffer.rewards, buffer.actions.float())
    assert buffer.terminated[:, 1].tolist() == [False, False, False, True, False, False]
    assert not buffer.truncated.any() and buffer.all_active
    assert buffer.episode_start[:, 0].tolist() == [True, False, False, False, True, False]
    assert stats.returns == buffer.rewards[:4].sum(0).tolist()
    assert stats.lengths == [4, 4]
    assert stats.successes == (buffer.actions[3] == 1).float().tolist()
    assert stats.env_steps == 12
    assert 0 < stats.idle + stats.policy <= stats.seconds


def test_the_next_rollout_goes_on_where_the_last_one_ended():
    collector = make(Steps, length=4)
    collector.collect()
    first = collector.buffer.actions.clone()
    collector.collect()
    assert collector.buffer.obs[:, 0, 0].tolist() == [2, 3, 0, 1, 2, 3]
    assert collector.buffer.episode_start[:, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert not torch.equal(first, collector.buffer.actions)  # new noise


@pytest.mark.parametrize("recurrent", [False, True])
def test_two_groups_collect_the_same_as_one(recurrent):
    buffers = []
    for num_groups in (1, 2):
        collector = make(
            Steps, num_envs=4, num_groups=num_groups, cut=True, length=3, recurrent=recurrent
        )
        stats = [collector.collect() for _ in range(3)]
        buffers.append((collector.buffer, stats, collector.state()))
    (one, stats_one, state_one), (two, stats_two, state_two) = buffers
    for name in ("obs", "actions", "rewards", "truncated", "bootstrap", "episode_start"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for a, b in zip(stats_one, stats_two, strict=True):
        assert (a.returns, a.lengths, a.successes) == (b.returns, b.lengths, b.successes)
    for name in state_one:
        assert torch.equal(state_one[name], state_two[name]), name


def test_truncated_episodes_bootstrap_from_their_final_observation_in_one_batch():
    collector = make(Steps, length=2, cut=True)
    collector.collect()
    # cut after steps 1, 3, 5 with final_obs 2: V = 12; never from the next episode's first (10)
    expected = torch.tensor([0.0, 12, 0, 12, 0, 12])[:, None].expand(6, 2)
    assert torch.equal(collector.buffer.bootstrap, expected)
    assert collector.policy.value_batches == [6]  # 3 cuts x 2 slots, once


def test_without_truncation_no_value_is_computed():
    collector = make(Steps, length=2)
    collector.collect()
    assert collector.policy.value_batches == []
    assert not collector.buffer.bootstrap.any()


def test_bootstrap_is_cleared_between_rollouts():
    collector = make(Steps, length=5, cut=True)
    collector.collect()
    assert collector.buffer.bootstrap[4].tolist() == [15.0, 15.0]
    collector.collect()
    assert collector.buffer.bootstrap.count_nonzero() == 2
    assert collector.buffer.bootstrap[3].tolist() == [15.0, 15.0]


def test_recurrent_state_is_reset_at_episode_starts_and_used_in_bootstraps():
    collector = make(Steps, length=4, cut=True, recurrent=True)
    collector.collect()
    # after the fourth step of an episode h = 4; V(final_obs) = 10 + 4 + 100 * (4 + 1)
    assert collector.buffer.bootstrap[3].tolist() == [514.0, 514.0]
    assert collector.buffer.initial_state["h"].tolist() == [[0, 0], [0, 0]]
    assert collector.buffer.last_state["h"].tolist() == [[2, 2], [2, 2]]
    collector.collect()
    assert collector.buffer.initial_state["h"].tolist() == [[2, 2], [2, 2]]


def test_lost_slot_is_inactive_and_bootstraps_from_its_last_observation():
    collector = make(Steps, length=99, crash_at=3)
    stats = collector.collect()
    buffer = collector.buffer
    assert buffer.active[:, 0].tolist() == [True, True, False, True, True, False]
    assert buffer.truncated[:, 0].tolist() == [False, False, True, False, False, True]
    assert not buffer.all_active
    assert buffer.rewards[2].tolist() == [0, 0]
    assert buffer.obs[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert buffer.bootstrap[:, 0].tolist() == [0, 0, 12, 0, 0, 12]  # V of the row's own obs
    assert stats.env_steps == 8
    assert stats.lengths == [2, 2, 2, 2]


def test_masks_belong_to_the_observation_of_their_row():
    collector = make(Masked, length=3)
    for _ in range(2):
        collector.collect()
        t = collector.buffer.obs[..., 0].long() % 5
        assert torch.equal(collector.buffer.action_mask, torch.nn.functional.one_hot(t, 5).bool())
        assert torch.equal(collector.buffer.actions, t)


def test_reward_terms_are_averaged():
    env_id = "rlgym.envs.toy:rlgym/RewardTerms-v0"
    collector = make(env_id, num_steps=5)
    stats = collector.collect()
    assert set(stats.reward_terms) == set(collector.env.reward_term_names)
    total = sum(stats.reward_terms.values())
    assert total == pytest.approx(collector.buffer.rewards.mean().item(), abs=1e-5)


def test_dict_observations_are_stored_by_key():
    collector = make("rlgym.envs.toy:rlgym/DictObs-v0")
    layout = collector.env.obs_layout
    keys = {leaf.key for leaf in layout.leaves}
    assert len(keys) > 1
    collector.policy.values = lambda obs, *rest: torch.zeros(len(next(iter(obs.values()))))
    seen = []
    receive = collector.env.recv

    def recv(group):
        result = receive(group)
        seen.append({key: value.clone() for key, value in result[0].items()})
        return result

    collector.env.recv = recv
    collector.collect()
    assert set(collector.buffer.obs) == keys
    for key in keys:
        expected = torch.stack([obs[key] for obs in seen])
        assert torch.equal(collector.buffer.obs[key][1:], expected[:-1])
        assert torch.equal(collector.buffer.last_obs[key], expected[-1])


def test_state_describes_the_last_mark_even_after_a_broken_rollout():
    collector = make(Steps, length=4, recurrent=True)
    collector.collect()
    collector.mark()
    marked = {name: tensor.clone() for name, tensor in collector.state().items()}
    snapshot = collector.env.snapshot(at_mark=True)

    class BrokenError(Exception):
        pass

    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise BrokenError
        return NoisyPolicy.act(collector.policy, *args, **kwargs)

    collector.policy.act = failing
    with pytest.raises(BrokenError):
        collector.collect()
    for name, tensor in collector.state().items():
        assert torch.equal(tensor, marked[name]), name
    again = collector.env.snapshot(at_mark=True)
    for name, array in snapshot.items():
        np.testing.assert_array_equal(array, again[name])


def test_a_collector_resumes_where_it_was_saved():
    straight = make(Steps, num_envs=4, length=5, cut=True, recurrent=True)
    straight.collect()
    straight.mark()
    state = {name: tensor.clone() for name, tensor in straight.state().items()}
    snapshot = straight.env.snapshot(at_mark=True)
    straight.collect()

    other = make(Steps, num_envs=4, num_groups=2, length=5, cut=True, recurrent=True, seed=1)
    obs, info = other.env.restore(snapshot)
    other.start(obs, info)
    other.load_state(state, info["replayed"])
    other.collect()
    for name in ("obs", "actions", "rewards", "bootstrap", "episode_start"):
        assert torch.equal(getattr(straight.buffer, name), getattr(other.buffer, name)), name


def test_slots_that_were_not_replayed_start_anew():
    collector = make(Steps, length=9, recurrent=True)
    collector.collect()
    collector.mark()
    assert collector.state()["episode_start"].tolist() == [False, False]
    collector.load_state(collector.state(), torch.tensor([True, False]))
    assert collector.buffer.last_start.tolist() == [False, True]


def test_mark_in_the_middle_of_a_step_is_refused():
    collector = make(Steps)
    collector.env.send(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(StateError, match="recv"):
        collector.mark()


def test_generator_of_another_device_begins_a_new_sequence():
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    expected = torch.rand(4, generator=generator)
    set_generator(generator, state)
    assert torch.equal(torch.rand(4, generator=generator), expected)
    set_generator(generator, torch.zeros(16, dtype=torch.uint8))  # as CUDA's are
    assert not torch.equal(torch.rand(4, generator=generator), expected)


@pytest.mark.parametrize("world", [Steps, Masked])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_copies_by_way_of_page_locked_memory_change_nothing(world, num_groups):
    plain = make(world, num_envs=4, num_groups=num_groups, cut=True)
    other = make(world, num_envs=4, num_groups=num_groups, cut=True)
    other.transfer = Transfer(torch.device("cpu"), num_groups)
    for _ in range(3):
        ours, theirs = other.collect(), plain.collect()
        assert ours.returns == theirs.returns and ours.env_steps == theirs.env_steps
        for name in ("all_obs", "actions", "rewards", "bootstrap", "truncated", "all_masks"):
            one, two = getattr(other.buffer, name), getattr(plain.buffer, name)
            assert one is two is None or torch.equal(one, two), name


@pytest.mark.gpu
@pytest.mark.parametrize("num_groups", [1, 2])
def test_rollouts_of_an_accelerator_equal_those_of_the_cpu(num_groups):
    from rlgym.agents.policy import ActorCritic
    from rlgym.config import NetworkConfig
    from rlgym.device import resolve

    buffers = []
    for device in (torch.device("cpu"), resolve("auto")):
        env = rlgym.make_vec("CartPole-v1", 8, backend="process", num_groups=num_groups)
        layouts = env.obs_layout, env.action_layout
        policy = ActorCritic.build(*layouts, NetworkConfig(hidden=(32,)), 0).to(device)
        buffer = RolloutBuffer(64, 8, *layouts, device)
        # noise of the CPU's generator in both cases
        collector = HostCollector(env, policy, buffer, torch.Generator().manual_seed(1))
        collector.start(*env.reset(seed=0))
        stats = [collector.collect() for _ in range(2)][-1]
        assert 0 < stats.policy < stats.seconds and 0 < stats.busy < stats.seconds
        buffers.append(buffer)
        env.close()
    for name in ("all_obs", "actions", "rewards", "terminated"):
        one, two = (getattr(buffer, name).cpu() for buffer in buffers)
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_workers_say_how_long_they_stepped():
    env = rlgym.make_vec("CartPole-v1", 4, backend="process", num_workers=2)
    env.reset(seed=0)
    assert env.busy_seconds() == 0.0
    for _ in range(50):
        env.step(np.zeros(4, np.int64))
    assert 0.0 < env.busy_seconds() < 5.0
    env.close()
    assert np.isnan(rlgym.make_vec("CartPole-v1", 1, backend="sync").busy_seconds())
