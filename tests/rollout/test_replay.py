"""Replay buffers: sums worked by hand, random histories against plain Python, saving in pieces."""

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlgym.errors import CheckpointError, StateError, UserError
from rlgym.rollout import budget
from rlgym.rollout.buffer import Finals, RolloutBuffer
from rlgym.rollout.priorities import Prioritized
from rlgym.rollout.replay import ReplayBuffer
from rlgym.spaces import Layout, map_tree
from tests.agents.test_device_clean import DeviceClean

PAIR = Layout(spaces.Box(-np.inf, np.inf, (2,), np.float32))
ONE = Layout(spaces.Box(-1, 1, (1,), np.float32))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class History:
    """Random worlds, and what each slot should have stored, as plain Python lists of rows.

    Observations are (slot, count) with a count that never repeats, so that each names its row.
    """

    def __init__(self, num_envs, seed, idle=0.0, end=0.15):
        self.rng = np.random.default_rng(seed)
        self.N, self.end = num_envs, end
        self.idle = np.broadcast_to(idle, num_envs)
        self.rows = [[] for _ in range(num_envs)]  # [obs, action, reward, flags], final: flags 4
        self.open = [False] * num_envs
        self.count = 0
        self.now = np.stack([self.see(n) for n in range(num_envs)])
        self.starts = np.ones(num_envs, bool)

    def see(self, slot):
        self.count += 1
        return np.array([slot, self.count], np.float32)

    def rollout(self, num_steps):
        T, N, rng = num_steps, self.N, self.rng
        buffer = RolloutBuffer(T, N, PAIR, ONE, keep_finals=True)
        buffer.host["episode_start"][0] = self.starts
        for t in range(T):
            buffer.all_obs[t] = torch.from_numpy(self.now)
            gone, last = [], []
            for n in range(N):
                active = rng.random() >= self.idle[n]
                action, reward = rng.uniform(-1, 1, 1), rng.normal()
                kind = rng.choice([0, 1, 2, 3], p=[1 - self.end, *[self.end / 3] * 3])
                if active:
                    self.rows[n].append([self.now[n].copy(), action, reward, kind])
                    self.open[n] = True
                elif self.open[n]:
                    self.rows[n][-1][2] += reward
                    self.rows[n][-1][3] |= kind
                buffer.actions[t, n] = torch.from_numpy(action)
                for name, value in (
                    ("rewards", reward),
                    ("terminated", kind & 1),
                    ("truncated", kind & 2),
                    ("active", active),
                ):
                    buffer.host[name][t, n] = value
                buffer.host["episode_start"][t + 1, n] = kind > 0
                if kind:
                    gone.append(n)
                    last.append(self.see(n))
                    if self.open[n]:
                        self.rows[n].append([last[-1], None, 0.0, 4])
                        self.open[n] = False
                if active or kind:
                    self.now[n] = self.see(n)
            if gone:
                # in two parts, as two groups of workers report them
                for part in (slice(0, 1), slice(1, None)):
                    if gone[part]:
                        obs = torch.from_numpy(np.stack(last[part]))
                        buffer.finals.append(Finals(t, np.array(gone[part]), obs))
        buffer.all_obs[T] = torch.from_numpy(self.now)
        self.starts = buffer.host["episode_start"][T].copy()
        return buffer

    def expected(self, slot, row, n_step, gamma):
        """(sum, discount, observation after) from a row on, by walking."""
        rows = self.rows[slot]
        total, discount = 0.0, 1.0
        for k in range(row, min(row + n_step, len(rows))):
            if rows[k][3] == 4:
                break
            total += discount * rows[k][2]
            discount *= gamma
            after = rows[k + 1][0] if k + 1 < len(rows) else self.now[slot]
            if rows[k][3]:
                discount *= not rows[k][3] & 1
                break
        return total, discount, after


def check_against(history, replay, seed=0):
    """Draw until every row was seen, and compare each with the walk in plain Python."""
    batch = replay.sample(2000, seeded(seed))
    slots, counts = batch.obs.numpy().T.astype(int)
    where = {
        tuple(row[0].astype(int)): (n, i)
        for n in range(history.N)
        for i, row in enumerate(history.rows[n])
    }
    kept = {
        (n, i)
        for n in range(history.N)
        for i in range(len(history.rows[n]))[-(replay.num_rows - 1) :]
    }
    seen, full, wanted = set(), [], []
    weights = batch.weights.tolist()
    for j, key in enumerate(zip(slots.tolist(), counts.tolist(), strict=True)):
        if key not in where:
            assert weights[j] == 0  # an open row
            continue
        n, i = where[key]
        seen.add((n, i))
        row = history.rows[n][i]
        assert weights[j] == (row[3] != 4)
        if row[3] != 4:
            total, discount, after = history.expected(n, i, replay.n_step, replay.gamma)
            full.append(j)
            wanted.append([total, discount, row[1].item(), *(after * (discount > 0))])
    found = torch.stack((batch.rewards, batch.discounts, batch.actions[:, 0]), 1)
    after = batch.next_obs * (batch.discounts > 0)[:, None]
    found = torch.cat((found, after), 1)[full].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert seen == kept
    assert replay.size == sum(history.rows[n][i][3] != 4 for n, i in kept)


@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize(
    ("num_envs", "num_steps", "idle"), [(1, 1, 0.0), (1, 4, 0.3), (3, 1, 0.3), (4, 3, 0.0)]
)
def test_random_histories_equal_plain_python(num_envs, num_steps, idle, n_step):
    history = History(num_envs, seed=n_step, idle=idle)
    replay = ReplayBuffer(num_envs * 25, num_envs, PAIR, ONE, gamma=0.9, n_step=n_step)
    for turn in range(60):
        replay.add(history.rollout(num_steps))
        if turn in (3, 20, 40, 59):  # before and after the ring went round
            check_against(history, replay, seed=turn)


def test_rows_on_another_device_hold_the_same(monkeypatch):
    """The path with a host copy and tensor indexing, as accelerators take it, tried on the CPU."""
    history = History(3, seed=1, idle=0.2)
    replay = ReplayBuffer(75, 3, PAIR, ONE, gamma=0.9, n_step=3, prioritized=Prioritized())
    replay._shared = False
    replay._copies = {name: copy.clone() for name, copy in replay._copies.items()}
    replay._views = {}
    for _ in range(50):
        replay.add(history.rollout(2))
    replay._priorities = None  # draws every row, the final ones too
    check_against(history, replay)


# ----- by hand ----------------------------------------------------------------------------------


def column(*steps, num_envs=1):
    """A rollout of one slot: (obs, reward, kind, active), kind "" or t, c (terminated, cut)."""
    *steps, last = steps
    buffer = RolloutBuffer(len(steps), num_envs, PAIR, ONE, keep_finals=True)
    for t, (obs, reward, kind, *active) in enumerate(steps):
        buffer.all_obs[t] = obs
        buffer.actions[t] = obs / 100
        buffer.host["rewards"][t] = reward
        buffer.host["terminated"][t] = "t" in kind
        buffer.host["truncated"][t] = "c" in kind
        buffer.host["active"][t] = not active or active[0]
        buffer.host["episode_start"][t + 1] = kind != ""
        if kind:
            final = torch.full((num_envs, 2), float(obs + 0.5))
            buffer.finals.append(Finals(t, np.arange(num_envs), final))
    buffer.all_obs[len(steps)] = last
    return buffer


def table(replay, batch_size=400):
    """{obs: (reward, next_obs, discount)} of all transitions."""
    batch = replay.sample(batch_size, seeded())
    return {
        float(obs): (float(reward), float(after), float(discount))
        for obs, reward, after, discount, weight in zip(
            batch.obs[:, 0],
            batch.rewards,
            batch.next_obs[:, 0],
            batch.discounts,
            batch.weights,
            strict=True,
        )
        if weight
    }


def test_three_steps_by_hand():
    # gamma 1/2, three steps. 1 -> 2 -> 3 (cut, last seen 3.5) | 4 -> 5 (terminated) | 6 -> 7 newest
    replay = ReplayBuffer(20, 1, PAIR, ONE, gamma=0.5, n_step=3)
    replay.add(column((1, 8, ""), (2, 4, ""), (3, 2, "c"), (4, 1, ""), (5, 6, "t"), (6, 3, ""), 7))
    found = table(replay)
    assert found == {
        1: (8 + 2 + 0.5, 3.5, 0.125),
        2: (4 + 1, 3.5, 0.25),
        3: (2, 3.5, 0.5),
        4: (1 + 3, 5.5, 0),
        5: (6, 5.5, 0),
        6: (3, 7, 0.5),
    }
    assert replay.size == 6


def test_a_sum_grows_as_the_newest_rows_come():
    replay = ReplayBuffer(20, 1, PAIR, ONE, gamma=0.5, n_step=2)
    replay.add(column((1, 8, ""), 2))
    assert table(replay) == {1: (8, 2, 0.5)}
    replay.add(column((2, 4, ""), 3))
    assert table(replay) == {1: (10, 3, 0.25), 2: (4, 3, 0.5)}


def test_an_inactive_step_hands_its_reward_and_end_to_the_newest_transition():
    replay = ReplayBuffer(20, 1, PAIR, ONE, gamma=0.5)
    replay.add(column((1, 8, ""), (1, 2, "", False), 2))
    assert table(replay) == {1: (10, 2, 0.5)}
    replay.add(column((2, 1, "c", False), 5))  # lost: the last observation it gave
    assert table(replay) == {1: (11, 2.5, 0.5)}
    replay.add(column((5, 4, "", False), 5))  # has not acted yet: counts for nothing
    replay.add(column((5, 3, "t"), 6))
    assert table(replay) == {1: (11, 2.5, 0.5), 5: (3, 5.5, 0)}


def test_n_step_longer_than_every_episode():
    replay = ReplayBuffer(20, 1, PAIR, ONE, gamma=0.5, n_step=50)
    replay.add(column((1, 8, ""), (2, 4, "t"), (3, 2, "c"), 4))
    assert table(replay) == {1: (10, 2.5, 0), 2: (4, 2.5, 0), 3: (2, 3.5, 0.5)}


def test_a_world_that_was_replaced_truncates_the_episode_before():
    replay = ReplayBuffer(20, 1, PAIR, ONE, gamma=0.5)
    replay.add(column((1, 8, ""), 2))
    rollout = column((9, 4, ""), 10)
    rollout.host["episode_start"][0] = True
    replay.add(rollout)
    assert table(replay) == {1: (8, 2, 0.5), 9: (4, 10, 0.5)}
    assert replay.unsaved()["flags"].tolist() == [2, 4, 0, 8]


def test_only_an_ended_episode_needs_its_last_observation():
    replay = ReplayBuffer(20, 1, PAIR, ONE)
    rollout = column((1, 8, "t"), 2)
    rollout.finals.clear()
    with pytest.raises(StateError, match="keep_finals=True"):
        replay.add(rollout)


@pytest.mark.parametrize("idle", [0.0, (0.0, 0.8)])  # rings filled alike, and not
def test_every_row_has_the_same_chance(idle):
    history = History(2, seed=0, idle=idle)
    replay = ReplayBuffer(60, 2, PAIR, ONE)
    for _ in range(20):
        replay.add(history.rollout(1))
    counts = np.bincount(replay.sample(40_000, seeded()).index.numpy(), minlength=62)
    rows = [row * 2 + n for n in range(2) for row in range(len(history.rows[n]))]
    drawn = counts[rows]
    assert drawn.sum() > 0.9 * 40_000
    assert max(map(len, history.rows)) < 31
    expected = drawn.mean()
    assert ((drawn - expected) ** 2 / expected).sum() < len(rows) + 5 * np.sqrt(2 * len(rows))


# ----- kinds of observations --------------------------------------------------------------------


def test_dicts_images_and_masks_keep_their_types():
    obs_layout = Layout(
        spaces.Dict(
            {"eye": spaces.Box(0, 255, (8, 8, 3), np.uint8), "room": spaces.Discrete(5, start=1)}
        )
    )
    actions = Layout(spaces.Dict({"arm": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)}))
    N, T = 2, 3
    rollout = RolloutBuffer(T, N, obs_layout, actions, mask_size=3, keep_finals=True)
    for t in range(T + 1):
        rollout.all_obs["eye"][t], rollout.all_obs["room"][t] = 10 + t, 1 + t
        rollout.all_masks[t] = torch.tensor([True, t % 2 == 0, False])
    rollout.host["terminated"][1, 0] = True
    final = {"eye": torch.full((1, 8, 8, 3), 99, dtype=torch.uint8), "room": torch.tensor([5])}
    rollout.finals.append(Finals(1, np.array([0]), final))
    replay = ReplayBuffer(20, N, obs_layout, actions, mask_size=3)
    replay.add(rollout)
    batch = replay.sample(300, seeded())
    assert batch.obs["eye"].dtype == torch.uint8 and batch.actions["mode"].dtype == torch.int64
    assert batch.obs["eye"].shape == (300, 8, 8, 3) and batch.mask.shape == (300, 3)
    slots, first = batch.index % N, batch.obs["room"]
    ended = (slots == 0) & (first == 2)
    assert ended.any()
    assert (batch.next_obs["eye"][ended] == 99).all() and (batch.next_obs["room"][ended] == 5).all()
    assert batch.next_mask[ended].all() and (batch.discounts[ended] == 0).all()
    going = batch.weights.bool() & ~ended
    assert torch.equal(batch.next_obs["room"][going], first[going] + 1)
    assert torch.equal(batch.mask[going][:, 1], first[going] % 2 == 1)
    assert torch.equal(batch.next_mask[going][:, 1], first[going] % 2 == 0)
    # one image per row, seven rows of two slots and an open one each
    image = 8 * 8 * 3
    assert replay.row_bytes == image + 8 + 8 + 8 + 3 + 8
    assert replay.nbytes == 11 * N * replay.row_bytes
    assert ReplayBuffer.bytes_needed(20, N, obs_layout, actions, 3) == replay.nbytes


# ----- limits -----------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    image = Layout(spaces.Box(0, 255, (84, 84, 4), np.uint8))
    monkeypatch.setattr(budget, "free_memory", lambda device: 24 * 2**30)
    begin = time.perf_counter()
    with pytest.raises(UserError) as caught:
        ReplayBuffer(1_000_000, 1, image, ONE)
    assert str(caught.value) == (
        "a buffer of 1,000,000 transitions takes 26.3 GiB and 18.0 GiB, three quarters of what is "
        "free, may be used: pass --algo.buffer-size 680000"
    )
    with pytest.raises(UserError, match=r"buffer-memory allows 0.5 GiB: pass .* 19000"):
        ReplayBuffer(100_000, 1, image, ONE, memory=0.5)
    assert time.perf_counter() - begin < 0.2
    assert ReplayBuffer(680_000, 1, image, ONE).nbytes < 18 * 2**30  # not touched until written


def test_settings_that_cannot_work():
    with pytest.raises(UserError, match="at least 1"):
        ReplayBuffer(10, 1, PAIR, ONE, n_step=0)
    replay = ReplayBuffer(4, 1, PAIR, ONE)
    with pytest.raises(StateError, match="is empty"):
        replay.sample(2, seeded())
    with pytest.raises(UserError, match=r"pass --algo.buffer-size 6"):
        replay.add(column((1, 0, ""), (2, 0, ""), (3, 0, ""), 4))


@pytest.mark.parametrize("prioritized", [None, Prioritized()])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_drawing_reads_nothing_back(num_envs, n_step, prioritized):
    history = History(num_envs, seed=0)
    replay = ReplayBuffer(60, num_envs, PAIR, ONE, n_step=n_step, prioritized=prioritized)
    for _ in range(10):
        replay.add(history.rollout(2))
    with DeviceClean() as mode:
        batch = replay.sample(16, seeded())
        replay.set_priorities(batch.index, batch.rewards)
    assert mode.found == []


# ----- saving -----------------------------------------------------------------------------------


def equal_batches(one, other):
    for name in vars(one):
        a, b = getattr(one, name), getattr(other, name)
        if a is not None:
            map_tree(lambda x, y, name=name: np.testing.assert_array_equal(x, y, name), a, b)


class Saver:
    """Keeps segments as a checkpoint folder does: what the buffer no longer needs is dropped."""

    def __init__(self):
        self.segments = []

    def save(self, replay):
        if replay.unsaved_bytes:
            segment = replay.unsaved()
            rows = sum(len(v) and v.nbytes for n, v in segment.items() if n not in HEADER)
            assert rows == replay.unsaved_bytes - self.per_row(replay, segment)
            replay.mark_saved()
            assert replay.unsaved_bytes == 0
            self.segments.append(map_tree(torch.clone, segment))
        self.segments = [s for s in self.segments if replay.holds({n: s[n] for n in HEADER})]
        return map_tree(torch.clone, replay.state())

    @staticmethod
    def per_row(replay, segment):
        extra = replay.row_bytes - sum(
            v[0].nbytes for name, v in segment.items() if name not in HEADER
        )
        return extra * len(segment["flags"])  # priorities are saved apart


HEADER = ("first", "count")


def restore(replay, segments, state):
    replay.load_state(state)
    for segment in segments:
        replay.load_segment(segment)
    replay.mark_saved()
    return replay


@pytest.mark.parametrize("prioritized", [None, Prioritized(exponent=0.7)])
@pytest.mark.parametrize(("num_envs", "idle"), [(1, 0.0), (3, 0.4)])
def test_a_buffer_saved_in_pieces_goes_on_as_if_nothing_had_happened(num_envs, idle, prioritized):
    def build():
        return ReplayBuffer(
            num_envs * 20, num_envs, PAIR, ONE, gamma=0.9, n_step=2, prioritized=prioritized
        )

    history, replay, saver = History(num_envs, seed=5, idle=idle), build(), Saver()
    rng = np.random.default_rng(0)
    most = 0
    for turn in range(80):
        rollout = history.rollout(1 + turn % 2)
        replay.add(rollout)
        drawn = replay.sample(8, seeded(turn))
        replay.set_priorities(drawn.index, torch.from_numpy(rng.normal(size=8)))
        if turn % 7 == 3:
            state = saver.save(replay)
            most = max(most, len(saver.segments))
            other = restore(build(), saver.segments, state)
            equal_batches(replay.sample(64, seeded(1)), other.sample(64, seeded(1)))
            assert (other.size, other.unsaved_bytes) == (replay.size, 0)
            # both go on alike, so what may still change was saved too
            if turn % 2:
                replay = other
            else:
                extra = history.rollout(1)
                replay.add(extra)
                other.add(extra)
                equal_batches(replay.sample(64, seeded(2)), other.sample(64, seeded(2)))
    assert 2 <= most <= 12  # more than one piece, and old ones were dropped
    if prioritized is None:
        check_against(history, replay)


def test_a_slot_that_never_acts_holds_no_segment_back():
    replay, saver = ReplayBuffer(40, 2, PAIR, ONE), Saver()
    for turn in range(100):
        rollout = column((turn, 1, ""), turn + 1, num_envs=2)
        rollout.host["active"][0, 1] = False
        replay.add(rollout)
        if turn % 5 == 0:
            state = saver.save(replay)
    assert len(saver.segments) <= 6
    other = restore(ReplayBuffer(40, 2, PAIR, ONE), saver.segments, state)
    assert other.size == 20 and table(other)


@pytest.fixture
def saved():
    history, replay, saver = History(2, seed=0), ReplayBuffer(40, 2, PAIR, ONE), Saver()
    for _ in range(4):
        for _ in range(3):
            replay.add(history.rollout(1))
        state = saver.save(replay)
    return saver.segments, state


@pytest.mark.parametrize(
    ("capacity", "num_envs", "obs", "message"),
    [
        (80, 2, PAIR, r"21 rows per slot, this one 41: pass --algo.buffer-size 40"),
        (60, 3, PAIR, r"2 slots, this one 3: pass --num-envs 2"),
        (40, 2, Layout(spaces.Box(-1, 1, (3,))), r"float32 \[2\] values of 'obs', .*float32 \[3\]"),
        (40, 2, Layout(spaces.Discrete(2)), r"float32 \[2\] values of 'obs', .*int64 \[\]"),
        (
            40,
            2,
            Layout(spaces.Dict({"a": PAIR.space})),
            r"float32 \[2\] values of 'obs', .*no such",
        ),
    ],
)
def test_a_buffer_of_another_kind_is_refused(saved, capacity, num_envs, obs, message):
    with pytest.raises(CheckpointError, match=message):
        ReplayBuffer(capacity, num_envs, obs, ONE).load_state(saved[1])


def test_segments_that_are_missing_or_broken_are_refused(saved):
    segments, state = saved
    assert len(segments) >= 3

    def fresh():
        return ReplayBuffer(40, 2, PAIR, ONE)

    with pytest.raises(CheckpointError, match="segment of the replay buffer is missing"):
        restore(fresh(), segments[:1] + segments[2:], state)
    with pytest.raises(CheckpointError, match="lacks its newest rows"):
        restore(fresh(), segments[:-1], state)
    with pytest.raises(CheckpointError, match="does not fit this one: rewards"):
        restore(fresh(), [{k: v for k, v in segments[0].items() if k != "rewards"}], state)
    rows = len(segments[0]["obs"])
    for changes, message in (
        (
            {"obs": segments[0]["obs"][:, :1]},
            rf"'obs' .* float32 \[{rows}, 1\] instead of {rows} tim",
        ),
        ({"obs": segments[0]["obs"].double()}, r"'obs' .* float64 .* times float32 \[2\]"),
        ({"flags": segments[0]["flags"][1:]}, r"'flags' of a saved"),
        ({"count": -segments[0]["count"]}, "names no rows"),
        ({"first": segments[0]["first"][:1]}, "names no rows"),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore(fresh(), [{**segments[0], **changes}], state)
    for changes in ({"heads": torch.tensor([1])}, {"heads": torch.tensor([-1, 3])}):
        with pytest.raises(CheckpointError, match="not the state of a replay buffer"):
            fresh().load_state({**state, **changes})
    with pytest.raises(CheckpointError, match="not the state of a replay buffer"):
        fresh().load_state({"heads": torch.zeros(2)})
    with pytest.raises(StateError, match="comes after load_state"):
        fresh().load_segment(segments[0])


# ----- speed ------------------------------------------------------------------------------------


def test_one_step_in_and_one_batch_out_cost_little():
    """About 80 us on a quiet core; the bound leaves room for a busy machine."""
    obs = Layout(spaces.Box(-1, 1, (17,), np.float32))
    actions = Layout(spaces.Box(-1, 1, (6,), np.float32))
    replay = ReplayBuffer(100_000, 1, obs, actions)
    rollout = RolloutBuffer(1, 1, obs, actions, keep_finals=True)
    generator = seeded()
    best = 1.0
    for _ in range(500):
        begin = time.perf_counter()
        replay.add(rollout)
        replay.sample(256, generator)
        best = min(best, time.perf_counter() - begin)
    assert best < 300e-6
