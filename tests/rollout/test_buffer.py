"""Advantages worked by hand and against Stable-Baselines3, and what a buffer holds."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer as Sb3Buffer

from rlgym.rollout.buffer import RolloutBuffer, gae
from rlgym.spaces import Layout

GAMMA, LAM = 0.5, 0.5  # powers of two: the hand-worked numbers below are exact


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)[:, None]


def solve(rewards, values, last, terminated=(), truncated=(), bootstrap=None, active=None):
    """Run `gae` on one slot; `terminated` and `truncated` are rows."""
    T = len(rewards)
    ended = flags(*(t in terminated for t in range(T)))
    cut = flags(*(t in truncated for t in range(T)))
    advantages, returns = gae(
        column(*rewards),
        column(*values),
        torch.tensor([float(last)]),
        ended,
        cut,
        column(*(bootstrap or [0.0] * T)),
        None if active is None else flags(*active),
        GAMMA,
        LAM,
    )
    assert torch.equal(returns, advantages + column(*values))
    return advantages[:, 0].tolist()


@pytest.mark.parametrize("active", [None, (True, True, True)])
def test_no_end(active):
    # delta2 = 4 + .5*8 - 2 = 6            A2 = 6
    # delta1 = 2 + .5*2 - 1 = 2            A1 = 2 + .25*6 = 3.5
    # delta0 = 1 + .5*1 - 3 = -1.5         A0 = -1.5 + .25*3.5 = -0.625
    assert solve((1, 2, 4), (3, 1, 2), 8, active=active) == [-0.625, 3.5, 6.0]


@pytest.mark.parametrize("active", [None, (True, True, True)])
def test_termination_sees_no_next_value(active):
    # A2 = 6 as above; row 1 ends: A1 = 2 - 1 = 1; A0 = -1.5 + .25*1 = -1.25
    found = solve((1, 2, 4), (3, 1, 2), 8, terminated=(1,), active=active)
    assert found == [-1.25, 1.0, 6.0]


@pytest.mark.parametrize("active", [None, (True, True, True)])
def test_truncation_bootstraps_from_the_final_observation(active):
    # row 1: delta = 2 + .5*6 - 1 = 4 = A1; A0 = -1.5 + .25*4 = -0.5
    found = solve((1, 2, 4), (3, 1, 2), 8, truncated=(1,), bootstrap=[0.0, 6.0, 0.0], active=active)
    assert found == [-0.5, 4.0, 6.0]


def test_a_row_that_is_both_terminated_and_truncated_has_no_future():
    found = solve(
        (1, 2, 4), (3, 1, 2), 8, terminated=(1,), truncated=(1,), bootstrap=[0.0, 6.0, 0.0]
    )
    assert found == [-1.25, 1.0, 6.0]


def test_inactive_row_hands_its_reward_to_the_pending_transition():
    # Rows 0, [1 inactive], 2. A2 = 4 + .5*8 - 2 = 6.
    # Row 0: reward 1 + 2, next value V2 = 2 and A2 pass through:
    # delta0 = 3 + .5*2 - 3 = 1; A0 = 1 + .25*6 = 2.5
    found = solve((1, 2, 4), (3, 100, 2), 8, active=(True, False, True))
    assert found == [2.5, 0.0, 6.0]


def test_two_inactive_rows_in_a_row_and_at_the_end():
    # Row 0 pending: reward 1 + 2 + 4 = 7, next value last = 8: delta0 = 7 + 4 - 3 = 8 = A0
    found = solve((1, 2, 4), (3, 100, 100), 8, active=(True, False, False))
    assert found == [8.0, 0.0, 0.0]


def test_inactive_rows_before_the_first_action_count_for_nothing():
    assert solve((1, 2, 4), (3, 1, 2), 8, active=(False, True, True)) == [0.0, 3.5, 6.0]


def test_episode_that_ends_in_an_inactive_row():
    # Terminated in row 1: reward 3, no next value: A0 = 3 - 3 = 0; the next episode stays apart.
    found = solve((1, 2, 4), (3, 100, 2), 8, terminated=(1,), active=(True, False, True))
    assert found == [0.0, 0.0, 6.0]


def test_lost_slot_bootstraps_from_its_last_observation():
    # Lost in row 1: reward 0, final_obs is the observation of row 1, whose value is 10.
    # Row 0: delta0 = 1 + .5*10 - 3 = 3 = A0. Row 2 is the first of the new episode: A2 = 6.
    found = solve(
        (1, 0, 4),
        (3, 10, 2),
        8,
        truncated=(1,),
        bootstrap=[0.0, 10.0, 0.0],
        active=(True, False, True),
    )
    assert found == [3.0, 0.0, 6.0]


def test_active_mask_equals_removing_the_inactive_rows():
    rng = torch.Generator().manual_seed(0)
    T = 40
    rewards, values = torch.randn(T, generator=rng), torch.randn(T, generator=rng)
    active = torch.rand(T, generator=rng) < 0.7
    active[0] = True
    terminated = torch.rand(T, generator=rng) < 0.1
    truncated = (torch.rand(T, generator=rng) < 0.1) & ~terminated
    boot = torch.where(truncated, torch.randn(T, generator=rng), 0.0)
    last = torch.randn(1, generator=rng)

    rows = []  # transitions by hand: reward, value, end, bootstrap, original row
    open_row = False
    for t in range(T):
        ended = bool(terminated[t] | truncated[t])
        if active[t]:
            rows.append([rewards[t].item(), values[t].item(), 0, 0.0, t])
            open_row = True
        elif open_row:
            rows[-1][0] += rewards[t].item()
        if ended and open_row:
            rows[-1][2] = 1 if terminated[t] else 2
            rows[-1][3] = boot[t].item()
            open_row = False
    expected = torch.zeros(T)
    next_value, next_advantage = last.item(), 0.0
    for reward, value, end, bootstrap, t in reversed(rows):
        if end:
            next_value, next_advantage = bootstrap, 0.0
        next_advantage = reward + 0.9 * next_value - value + 0.9 * 0.8 * next_advantage
        next_value = value
        expected[t] = next_advantage

    found, _ = gae(
        rewards[:, None],
        values[:, None],
        last,
        terminated[:, None],
        truncated[:, None],
        boot[:, None],
        active[:, None],
        0.9,
        0.8,
    )
    assert (~active).sum() > 5 and len([r for r in rows if r[2]]) > 4
    torch.testing.assert_close(found[:, 0], expected)


def test_matches_stable_baselines3():
    rng = np.random.default_rng(0)
    T, N, gamma, lam = 50, 6, 0.98, 0.9
    rewards = rng.normal(size=(T, N)).astype(np.float32)
    values = rng.normal(size=(T, N)).astype(np.float32)
    last_values = rng.normal(size=N).astype(np.float32)
    terminated = rng.random((T, N)) < 0.05
    truncated = (rng.random((T, N)) < 0.05) & ~terminated
    boot = np.where(truncated, rng.normal(size=(T, N)), 0.0).astype(np.float32)
    done = terminated | truncated

    theirs = Sb3Buffer(
        T,
        spaces.Box(-1, 1, (1,)),
        spaces.Discrete(2),
        gamma=gamma,
        gae_lambda=lam,
        n_envs=N,
    )
    start = np.ones(N, np.float32)
    for t in range(T):
        theirs.add(
            np.zeros((N, 1)),
            np.zeros((N, 1)),
            rewards[t] + gamma * boot[t],  # how their collector bootstraps a time limit
            start,
            torch.from_numpy(values[t]),
            torch.zeros(N),
        )
        start = done[t].astype(np.float32)
    theirs.compute_returns_and_advantage(torch.from_numpy(last_values), done[-1].astype(np.float32))

    args = [
        torch.from_numpy(a) for a in (rewards, values, last_values, terminated, truncated, boot)
    ]
    for active in (None, torch.ones(T, N, dtype=torch.bool)):
        advantages, returns = gae(*args, active, gamma, lam)
        np.testing.assert_allclose(advantages, theirs.advantages, atol=2e-5)
        np.testing.assert_allclose(returns, theirs.returns, atol=2e-5)


def test_images_stay_bytes_and_memory_is_stated():
    obs = Layout(spaces.Dict({"eye": spaces.Box(0, 255, (8, 8, 3), np.uint8)}))
    action = Layout(spaces.Discrete(3))
    buffer = RolloutBuffer(5, 2, obs, action, mask_size=3, state_shape={"h": (4,)})
    assert buffer.obs["eye"].dtype == torch.uint8
    assert buffer.obs["eye"].shape == (5, 2, 8, 8, 3)
    assert buffer.actions.dtype == torch.int64
    rows = 5 * 2
    expected = rows * (192 + 8 + 4 + 3 + 4 + 3)  # obs, action, reward, flags, bootstrap, mask
    expected += 6 * 2 * 1 + 2 * (192 + 3) + 2 * 2 * 4 * 4  # starts, last obs and mask, two states
    assert buffer.nbytes == expected


def test_upload_knows_whether_all_rows_are_active():
    space = gymnasium.spaces.Box(-1, 1, (2,))
    buffer = RolloutBuffer(4, 2, Layout(space), Layout(space))
    buffer.host["rewards"][1, 0] = 7.0
    buffer.upload()
    assert buffer.all_active and buffer.rewards[1, 0] == 7.0
    buffer.host["active"][2, 1] = False
    buffer.upload()
    assert not buffer.all_active and not buffer.active[2, 1]
