"""Transitions from files and old runs: what is kept of them, and files that are refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces

from rlgym.errors import UserError
from rlgym.rollout.demonstrations import load, save
from rlgym.rollout.replay import ReplayBuffer
from rlgym.rollout.ring import FINAL
from rlgym.spaces import Layout
from tests.rollout.test_replay import ONE, PAIR, History, check_against, column, seeded, table


def steps(*rows):
    """Arrays of a file from rows (obs, reward, kind); next_observations are obs + 0.5."""
    obs = np.array([[row[0], row[0]] for row in rows], np.float32)
    return {
        "observations": obs,
        "actions": obs[:, :1] / 100,
        "rewards": np.array([row[1] for row in rows], np.float64),
        "terminated": np.array(["t" in row[2] for row in rows]),
        "truncated": np.array(["c" in row[2] for row in rows]),
        "next_observations": obs + np.float32(0.5),
    }


ROWS = ((1, 8, ""), (2, 4, "t"), (3, 2, ""), (4, 1, "c"), (5, 6, "c"), (6, 3, ""), (7, 5, ""))


def filled(demos, num_envs=1, capacity=40, scale=None):
    replay = ReplayBuffer(capacity, num_envs, PAIR, ONE, gamma=0.5)
    replay.add_demonstrations(demos, scale)
    return replay


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_file_with_next_observations_keeps_every_step(tmp_path, suffix, num_envs):
    path = tmp_path / f"demos{suffix}"
    save(path, **steps(*ROWS))
    demos = load(path, PAIR, ONE)
    assert demos.size == 7 and len(list(demos.episodes())) == 4
    replay = filled(demos, num_envs)
    assert replay.size == 7
    # inside an episode the next row is the next observation, at its end the one that was given
    assert table(replay) == {
        1: (8, 2, 0.5),
        2: (4, 2.5, 0),
        3: (2, 4, 0.5),
        4: (1, 4.5, 0.5),
        5: (6, 5.5, 0.5),
        6: (3, 7, 0.5),
        7: (5, 7.5, 0.5),  # the end of the file cuts the last episode
    }


def test_without_next_observations_a_cut_step_only_says_where_the_one_before_led(tmp_path):
    arrays = steps(*ROWS)
    del arrays["next_observations"]
    save(tmp_path / "demos.npz", **arrays)
    demos = load(tmp_path / "demos.npz", PAIR, ONE)
    # 4 follows 3 and 7 follows 6; 5 was an episode of one cut step and says nothing
    assert table(filled(demos)) == {1: (8, 2, 0.5), 2: (4, 2, 0), 3: (2, 4, 0.5), 6: (3, 7, 0.5)}
    save(tmp_path / "one.npz", **{name: value[4:5] for name, value in arrays.items()})
    with pytest.raises(UserError, match="no whole step: record next_observations"):
        load(tmp_path / "one.npz", PAIR, ONE)


def test_masks_of_a_file_stay_with_their_steps(tmp_path):
    choice = Layout(spaces.Discrete(3))
    arrays = {**steps(*ROWS), "actions": np.zeros(7, np.int64)}
    allowed = np.arange(21).reshape(7, 3) % 2 == 0
    np.savez(tmp_path / "demos.npz", **arrays, action_masks=allowed.astype(np.uint8))
    demos = load(tmp_path / "demos.npz", PAIR, choice)
    kept = demos.mask[demos.flags < FINAL]
    np.testing.assert_array_equal(kept, allowed)
    assert demos.mask[demos.flags == FINAL].all()  # nobody said, so nothing is forbidden
    np.savez(tmp_path / "wide.npz", **arrays, action_masks=allowed[:, :2])
    with pytest.raises(UserError, match=r"'action_masks' has shape \[7, 2\], .* have \[7, 3\]"):
        load(tmp_path / "wide.npz", PAIR, choice)


def test_actions_come_in_the_units_of_the_world(tmp_path):
    save(tmp_path / "demos.npz", **steps(*ROWS))
    demos = load(tmp_path / "demos.npz", PAIR, ONE)
    batch = filled(demos, scale=lambda actions: actions * 10).sample(50, seeded())
    real = batch.weights.bool()
    torch.testing.assert_close(batch.actions[real], batch.obs[real, :1] / 10)


def test_rollouts_follow_demonstrations_and_overwrite_them(tmp_path):
    save(tmp_path / "demos.npz", **steps(*ROWS))
    replay = filled(load(tmp_path / "demos.npz", PAIR, ONE), capacity=14)
    replay.add(column((20, 1, ""), 21))
    assert table(replay)[20] == (1, 21, 0.5) and table(replay)[7] == (5, 7.5, 0.5)
    for k in range(21, 40):
        replay.add(column((k, 1, ""), k + 1))
    assert set(table(replay)) == set(range(26, 40))


def test_demonstrations_in_the_middle_of_an_episode_cut_it(tmp_path):
    save(tmp_path / "demos.npz", **steps(*ROWS))
    replay = ReplayBuffer(40, 1, PAIR, ONE, gamma=0.5)
    replay.add(column((50, 1, ""), 51))
    replay.add_demonstrations(load(tmp_path / "demos.npz", PAIR, ONE))
    assert table(replay)[50] == (1, 51, 0.5) and replay.size == 8


def test_dict_observations_and_discrete_actions(tmp_path):
    obs = Layout(
        spaces.Dict({"eye": spaces.Box(0, 255, (2, 2, 3), np.uint8), "x": spaces.Box(-1, 1, (2,))})
    )
    actions = Layout(spaces.Discrete(3, start=1))
    rng = np.random.default_rng(0)
    seen = {"eye": rng.integers(0, 255, (4, 2, 2, 3), np.uint8), "x": rng.random((4, 2))}
    chosen = np.array([1, 3, 2, 1], np.int32)
    ends = np.array([False, False, False, True])
    for suffix in (".npz", ".safetensors"):
        save(tmp_path / f"demos{suffix}", seen, chosen, np.ones(4), ends, ~ends & ends)
        demos = load(tmp_path / f"demos{suffix}", obs, actions)
        assert demos.obs["eye"].dtype == torch.uint8 and demos.obs["x"].dtype == torch.float32
        assert demos.actions.tolist()[:4] == [1, 3, 2, 1] and demos.actions.dtype == torch.int64
        np.testing.assert_array_equal(demos.obs["eye"][:4], seen["eye"])
    chosen[1] = 4
    save(tmp_path / "demos.npz", seen, chosen, np.ones(4), ends, ~ends & ends)
    with pytest.raises(UserError, match="'actions' has values outside Discrete"):
        load(tmp_path / "demos.npz", obs, actions)


# ----- refused ----------------------------------------------------------------------------------


def changed(**changes):
    arrays = steps(*ROWS) | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(actions=None), r"lacks \['actions'\] and has the unknown nothing: it must hold"),
        (changed(obs=np.zeros(7)), r"lacks nothing and has the unknown \['obs'\]"),
        (
            changed(actions=np.zeros((7, 2))),
            r"'actions' has shape \[7, 2\], and 7 steps .*\[7, 1\]",
        ),
        (changed(rewards=np.zeros((7, 1))), r"'rewards' has shape \[7, 1\], make it \[K\]"),
        (changed(truncated=np.zeros(6, bool)), r"'truncated' has shape \[6\]"),
        (changed(rewards=np.full(7, np.nan)), r"'rewards' holds values that are not finite"),
        (changed(observations=np.full((7, 2), np.inf)), r"'observations' holds values that are no"),
        (changed(actions=np.zeros((7, 1), complex)), r"'actions' is complex128, this world has fl"),
        ({name: value[:0] for name, value in steps(*ROWS).items()}, r"make it \[K\]"),
    ],
)
def test_files_that_do_not_fit_say_which_array(tmp_path, arrays, message):
    np.savez(tmp_path / "demos.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "demos.npz", PAIR, ONE)


class Hostile:
    """Leaves a mark when a file's pickle is run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_nothing_in_a_file_runs(tmp_path):
    mark = tmp_path / "ran"
    objects = np.empty(1, object)
    objects[0] = Hostile(mark)
    np.savez(tmp_path / "objects.npz", allow_pickle=True, **changed(rewards=objects))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Hostile(mark)))
    with zipfile.ZipFile(tmp_path / "inside.npz", "w") as archive:
        archive.writestr("rewards.npy", pickle.dumps(Hostile(mark)))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "single.npz").write_bytes(buffer.getvalue())
    for name in ("objects.npz", "plain.npz", "inside.npz", "cut.safetensors", "single.npz"):
        with pytest.raises(UserError, match=name):
            load(tmp_path / name, PAIR, ONE)
    assert not mark.exists()
    with pytest.raises(UserError, match=r"neither .safetensors nor .npz: convert it"):
        load(tmp_path / "demos.pkl", PAIR, ONE)
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "absent.npz", PAIR, ONE)


def test_demonstrations_larger_than_the_buffer(tmp_path):
    save(tmp_path / "demos.npz", **steps(*ROWS))
    demos = load(tmp_path / "demos.npz", PAIR, ONE)
    with pytest.raises(UserError, match=r"11 rows .* do not fit the 10 .* --algo.buffer-size 11"):
        filled(demos, capacity=10)
    assert filled(demos, capacity=11).size == 7
    # episodes of 3, 3, 2 and 3 rows stay whole: one of two slots takes 5, the other 6
    with pytest.raises(UserError, match=r"the 5 rows of each of 2 slots.* --algo.buffer-size 12"):
        filled(demos, num_envs=2, capacity=10)
    assert filled(demos, num_envs=2, capacity=12).size == 7
    long = steps(*[(k, 0, "") for k in range(12)])
    save(tmp_path / "long.npz", **long)
    with pytest.raises(UserError, match=r"13 rows .* the 7 rows of each of 2 slots, .* 26"):
        filled(load(tmp_path / "long.npz", PAIR, ONE), num_envs=2, capacity=13)


# ----- an old run -------------------------------------------------------------------------------


def run_folder(tmp_path, history, turns=30):
    """Segments as a run leaves them: three files and a tail, in the newest of two checkpoints."""
    replay = ReplayBuffer(20 * history.N, history.N, PAIR, ONE, gamma=0.9)
    for step in ("000000001", "000000002"):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    for turn in range(turns):
        replay.add(history.rollout(1))
        if turn in (5, 14, 22, turns - 1):
            name = "tail" if turn == turns - 1 else f"{turn:09d}"
            file = folder / f"replay-{name}.safetensors"
            safetensors.torch.save_file(replay.unsaved(), file)
            replay.mark_saved()
    return replay


@pytest.mark.parametrize(("num_envs", "idle"), [(1, 0.0), (3, 0.4)])
def test_the_buffer_of_an_old_run(tmp_path, num_envs, idle):
    history = History(num_envs, seed=3, idle=idle)
    run_folder(tmp_path, history)
    demos = load(tmp_path, PAIR, ONE)
    replay = ReplayBuffer(400, 1, PAIR, ONE, gamma=0.9)
    replay.add_demonstrations(demos, scale_action=lambda actions: actions + 100)
    # all segments are there, so is every row; what was open is cut, and actions are stored already
    for n in range(num_envs):
        if history.open[n]:
            history.rows[n][-1][3] |= 2
            history.rows[n].append([history.now[n], None, 0.0, 4])
    check_against(history, replay)


def test_an_old_buffer_that_is_larger_loses_its_oldest_rows(tmp_path):
    history = History(1, seed=3)
    run_folder(tmp_path, history)
    demos = load(tmp_path, PAIR, ONE)
    whole, small = (ReplayBuffer(size, 1, PAIR, ONE, gamma=0.9) for size in (400, 7))
    for replay in (whole, small):
        replay.add_demonstrations(demos)
    seen = []
    for replay in (whole, small):
        batch = replay.sample(2000, seeded())
        seen.append(sorted({float(count) for count in batch.obs[batch.weights > 0, 1]}))
    assert len(seen[1]) == small.size <= 7 < len(seen[0])
    assert seen[1] == seen[0][-small.size :]


def test_the_buffer_of_a_run_in_another_world(tmp_path):
    run_folder(tmp_path, History(1, seed=0))
    with pytest.raises(UserError, match=r"has \[2\] of 'obs', and this world has \[3\]"):
        load(tmp_path, Layout(spaces.Box(-1, 1, (3,))), ONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no replay buffer"):
        load(tmp_path / "empty", PAIR, ONE)
