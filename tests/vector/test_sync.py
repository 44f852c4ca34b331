"""The in-process backend: the reference that every other backend must equal."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlgym.errors import ContractError, SpaceError, StateError, WorldError
from rlgym.registry import make_vec


class Script(gymnasium.Env):
    """Episodes of 2 steps (terminated) and 3 (truncated) in turn; reward = the step number."""

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"reward_terms": ("alive", "cost")}

    def __init__(self, fail_at: int = 0) -> None:
        self.episode = -1
        self.fail_at = fail_at

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: int) -> Any:
        self.t += 1
        if self.fail_at and self.t == self.fail_at:
            raise RuntimeError("the motor is on fire")
        odd = self.episode % 2
        terms = {"alive": 1.0, "cost": -0.5 * action}
        return (
            np.array([self.episode, self.t], np.float32),
            float(self.t),
            not odd and self.t == 2,
            bool(odd and self.t == 3),
            {"reward_terms": terms, "is_success": self.t == 2},
        )


def make(num_envs: int = 2, **kwargs: Any) -> Any:
    return make_vec(Script, num_envs, backend="sync", **kwargs)


def test_autoreset_is_same_step_and_final_obs_is_kept() -> None:
    env = make()
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [[0, 0], [0, 0]]
    zeros = torch.zeros(2, dtype=torch.int64)
    ends = {}
    for step in range(1, 6):
        obs, _, terminated, truncated, info = env.step(zeros)
        if terminated[0] or truncated[0]:
            ends[step] = (
                bool(terminated[0]),
                bool(truncated[0]),
                info["final_obs"][0].tolist(),
                obs[0].tolist(),
                float(info["episode_return"][0]),
                int(info["episode_length"][0]),
            )
    assert ends == {
        2: (True, False, [0, 2], [1, 0], 3.0, 2),
        5: (False, True, [1, 3], [2, 0], 6.0, 3),
    }
    env.close()


def test_reward_terms_and_info_keys_are_arrays() -> None:
    env = make(3)
    env.reset(seed=0)
    *_, info = env.step(torch.tensor([0, 1, 0]))
    assert info["reward_terms"]["cost"].tolist() == [0.0, -0.5, 0.0]
    assert info["reward_terms"]["alive"].tolist() == [1.0, 1.0, 1.0]
    assert info["is_success"].tolist() == [0.0, 0.0, 0.0]
    env.close()


def test_steps_overwrite_the_same_buffers() -> None:
    env = make_vec("CartPole-v1", 2, backend="sync")
    first, _ = env.reset(seed=0)
    obs = env.step(torch.zeros(2, dtype=torch.int64))[0]
    assert obs.data_ptr() == first.data_ptr()
    env.close()


def test_equal_to_gymnasium_step_for_step() -> None:
    ours = make_vec("CartPole-v1", 3, backend="sync", output="numpy")
    theirs = gymnasium.make_vec(
        "CartPole-v1",
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    assert np.array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    rng = np.random.default_rng(0)
    for _ in range(300):
        actions = rng.integers(0, 2, 3)
        a, b = ours.step(actions), theirs.step(actions)
        for i in range(4):
            assert np.array_equal(a[i], b[i])
        if "_final_obs" in b[4]:
            assert np.array_equal(a[4]["_final_obs"], b[4]["_final_obs"])
            for row in np.flatnonzero(b[4]["_final_obs"]):
                assert np.array_equal(a[4]["final_obs"][row], b[4]["final_obs"][row])
    ours.close()
    theirs.close()


def test_groups_give_the_same_worlds_as_whole_steps() -> None:
    whole = make_vec("CartPole-v1", 4, backend="sync")
    halves = make_vec("CartPole-v1", 4, backend="sync", num_groups=2)
    whole.reset(seed=1)
    halves.reset(seed=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        actions = torch.randint(0, 2, (4,), generator=generator)
        expected = whole.step(actions)
        halves.send(actions[2:], 1)
        halves.send(actions[:2], 0)
        for group in (0, 1):
            obs, reward, terminated, _, info = halves.recv(group)
            rows = halves.group_slice(group)
            assert torch.equal(obs, expected[0][rows])
            assert torch.equal(reward, expected[1][rows])
            assert torch.equal(terminated, expected[2][rows])
            assert torch.equal(info["episode_return"], expected[4]["episode_return"][rows])
    whole.close()
    halves.close()


def test_calls_out_of_order_say_what_to_call() -> None:
    env = make(2, num_groups=2)
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(StateError, match="before the first reset"):
        env.send(one, 0)
    env.reset(seed=0)
    with pytest.raises(StateError, match="nothing was sent"):
        env.recv(1)
    env.send(one, 1)
    with pytest.raises(StateError, match=r"sent twice: call recv\(1\)"):
        env.send(one, 1)
    with pytest.raises(StateError, match="reset while"):
        env.reset()
    with pytest.raises(StateError, match="mark while"):
        env.mark()
    env.recv(1)
    env.close()
    env.close()
    with pytest.raises(StateError, match="closed"):
        env.step(torch.zeros(2, dtype=torch.int64))


def test_actions_of_another_shape_are_refused() -> None:
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(SpaceError, match=r"shape \[3\], expected \[2\]"):
        env.step(torch.zeros(3, dtype=torch.int64))
    env.close()


class FailsOnce(gymnasium.Env):
    """Its third reset raises, which a new one's first does not."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fail_at: int = 3) -> None:
        self.left = fail_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the simulator coughed")
        return np.zeros(1, np.float32), {}


@pytest.mark.parametrize("backend", ["sync", "process"])
def test_a_world_that_raises_in_a_later_reset_is_rebuilt(backend, tmp_path, capfd) -> None:
    env = make_vec(FailsOnce, 2, backend=backend, num_workers=1, crash_dir=tmp_path)
    env.reset(seed=0)
    _, info = env.reset(seed=1)
    assert env.health["world_errors"] == 0
    _, info = env.reset(seed=2)
    assert info["active"].all()
    assert env.health["world_errors"] == env.health["lost_slots"] == 2
    assert "RuntimeError: the simulator coughed" in capfd.readouterr().err
    env.close()


def test_a_first_reset_that_fails_is_one_clear_error() -> None:
    env = make_vec(FailsOnce, 2, backend="sync", env_kwargs={"fail_at": 2})  # 1 is to look at it
    env._slots[1].world.unwrapped.left = 1
    with pytest.raises(WorldError, match="first reset of world 1 failed: RuntimeError: the simul"):
        env.reset()
    env.close()


def test_a_world_that_raises_loses_its_slot_only(capfd) -> None:
    env = make(2, max_restarts=1, env_kwargs={"fail_at": 2})
    env.reset(seed=0)
    zeros = torch.zeros(2, dtype=torch.int64)
    env.step(zeros)
    env._slots[0].world.unwrapped.fail_at = 0
    obs, reward, terminated, truncated, info = env.step(zeros)
    assert info["active"].tolist() == [True, False]
    assert truncated.tolist()[1] is True and terminated.tolist()[1] is False
    assert reward.tolist()[1] == 0.0
    assert info["final_obs"][1].tolist()[1] == 1.0  # what it last showed
    assert obs[1].tolist()[1] == 0.0  # a new world's first observation
    assert info["episode_return"].tolist()[1] == 1.0
    assert env.health["lost_slots"] == 1
    assert "the motor is on fire" in capfd.readouterr().err
    env.step(zeros)
    with pytest.raises(WorldError, match="more than max_restarts=1"):
        env.step(zeros)
    env.close()


def play(env: Any, steps: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(steps):
        obs, reward, *_, info = env.step(torch.randint(0, 2, (env.num_envs,), generator=generator))
        rows += [obs.clone(), reward.clone(), info["episode_return"].clone()]
    return rows


def test_snapshot_and_restore_continue_bit_for_bit() -> None:
    env = make_vec("CartPole-v1", 3, backend="sync")
    env.reset(seed=2)
    play(env, 57, seed=0)
    snapshot = env.snapshot()
    expected = play(env, 80, seed=1)
    env.close()
    again = make_vec("CartPole-v1", 3, backend="sync")
    _, info = again.restore(snapshot)
    assert info["replayed"].all()
    assert all(map(torch.equal, expected, play(again, 80, seed=1)))
    again.close()


def test_a_mark_is_described_after_later_steps() -> None:
    env = make_vec("CartPole-v1", 3, backend="sync")
    env.reset(seed=2)
    play(env, 33, seed=0)
    env.mark()
    expected = play(env, 90, seed=1)  # every slot's episode ends at least once
    snapshot = env.snapshot(at_mark=True)
    again = make_vec("CartPole-v1", 3, backend="sync")
    _, info = again.restore(snapshot)
    assert info["replayed"].all()
    assert all(map(torch.equal, expected, play(again, 90, seed=1)))
    env.close()
    again.close()


def test_a_world_with_hidden_randomness_starts_anew_and_is_counted() -> None:
    env = make_vec("rlgym/Unreplayable-v0", 2, backend="sync")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    snapshot = env.snapshot()
    again = make_vec("rlgym/Unreplayable-v0", 2, backend="sync")
    _, info = again.restore(snapshot)
    assert not info["replayed"].any()
    assert again.health["unreplayed"] == 2
    assert again._lengths.tolist() == [0, 0]
    env.close()
    again.close()


def test_snapshot_of_another_env_is_refused() -> None:
    env = make_vec("CartPole-v1", 2, backend="sync")
    env.reset(seed=0)
    snapshot = env.snapshot()
    with pytest.raises(ContractError, match="use num_envs 2"):
        make_vec("CartPole-v1", 3, backend="sync").restore(snapshot)
    with pytest.raises(ContractError, match="this world takes"):
        make_vec("Pendulum-v1", 2, backend="sync").restore(snapshot)
    env.close()


def test_seeds() -> None:
    env = make_vec("CartPole-v1", 2, backend="sync", seed=4)
    default = env.reset()[0].clone()
    assert torch.equal(env.reset(seed=4)[0], default)
    assert torch.equal(env.reset(seed=[4, 5])[0], default)
    assert not torch.equal(env.reset()[0], default)  # the generators go on
    with pytest.raises(ContractError, match="3 seeds for 2 worlds"):
        env.reset(seed=[1, 2, 3])
    env.close()
