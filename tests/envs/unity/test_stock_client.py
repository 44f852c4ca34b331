"""Unity's own client on the stand-in, and ours: both read the same, message for message."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlgym
from rlgym.envs.unity import compat
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import Player, PlayerFrozen, PlayerLost
from rlgym.envs.unity.frames import Actions
from rlgym.envs.unity.launch import find_player
from rlgym.envs.unity.standin.ball import FRAME
from rlgym.errors import WorldError

posix = pytest.mark.skipif(os.name != "posix", reason="a script is a program on POSIX only")


# ----- Against Unity's own client -----------------------------------------------------------------
@pytest.fixture
def program(tmp_path: Path) -> str:
    """The stand-in as one executable file, as a Unity build is."""
    file = tmp_path / "Player"
    home = Path(rlgym.__file__).resolve().parent.parent
    file.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(home)!r})\n"
        "from rlgym.envs.unity.standin.__main__ import main\nsys.exit(main())\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


class Stock:
    """Unity's own Python client on a stand-in of ours; closed for certain."""

    def __init__(self, program: str) -> None:
        self.program, self.opened = program, []

    def __call__(self, *args: str, channels: tuple = (), seed: int = 3) -> Any:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        unity = compat.load()
        from mlagents_envs.side_channel.stats_side_channel import StatsSideChannel

        # without one, each statistic is a warning that Unity's client writes more and more often
        channels = channels or (StatsSideChannel(),)
        env = unity.environment.UnityEnvironment(
            self.program,
            base_port=port,
            seed=seed,
            timeout_wait=40,
            additional_args=list(args),
            side_channels=list(channels),
        )
        self.opened.append(env)
        return env


@pytest.fixture
def stock(program: str) -> Iterator[Stock]:
    made = Stock(program)
    yield made
    for env in made.opened:
        env._close(5)


@posix
def test_unitys_client_reads_every_kind_of_observation_and_action(stock: Stock) -> None:
    shapes = {
        "grid": ([(6,), (2,)], 0, (5,)),
        "camera": ([(84, 84, 3), (1,)], 0, (3,)),
        "hybrid": ([(7,)], 2, (3, 2)),
        "buffer": ([(6, 4), (1,)], 2, ()),
    }
    for scene, (obs, continuous, branches) in shapes.items():
        env = stock("--scene", scene, "--agents", "2")
        env.reset()
        ((name, spec),) = env.behavior_specs.items()
        assert [o.shape for o in spec.observation_specs] == obs
        assert spec.action_spec.continuous_size == continuous
        assert spec.action_spec.discrete_branches == branches
        for _ in range(12):
            decisions, _ = env.get_steps(name)
            for batch, shape in zip(decisions.obs, obs, strict=True):
                assert batch.shape == (len(decisions), *shape)
            env.set_actions(name, spec.action_spec.random_action(len(decisions)))
            env.step()


@posix
def test_side_channels_arrive_and_statistics_return(stock: Stock) -> None:
    compat.load()
    from mlagents_envs.side_channel.engine_configuration_channel import EngineConfigurationChannel
    from mlagents_envs.side_channel.environment_parameters_channel import (
        EnvironmentParametersChannel,
    )
    from mlagents_envs.side_channel.stats_side_channel import StatsSideChannel

    engine, parameters, stats = (
        EngineConfigurationChannel(),
        EnvironmentParametersChannel(),
        StatsSideChannel(),
    )
    env = stock("--scene", "3dball", "--agents", "3", channels=(engine, parameters, stats))
    engine.set_configuration_parameters(width=80, height=60, time_scale=20.0, capture_frame_rate=60)
    parameters.set_float_parameter("gravity", 0.0)
    env.reset()
    for _ in range(8):
        env.step()
    (name,) = env.behavior_specs
    assert env.get_steps(name)[0].obs[0][:, 3] == pytest.approx([4.0] * 3)  # it does not fall
    told = {key: values[-1][0] for key, values in stats.get_and_reset_stats().items()}
    assert told["Engine/time_scale"] == 20.0
    assert told["Engine/capture_frame_rate"] == 60
    assert told["Parameter/gravity"] == 0.0
    parameters.set_uniform_sampler_parameters("gravity", 20.0, 30.0, seed=5)
    env.reset()
    env.step()
    speeds = -env.get_steps(name)[0].obs[0][:, 6] / (6 * FRAME)
    assert all(15 < speed < 31 for speed in speeds) and len(set(speeds)) == 3


# ----- Unity's client and ours --------------------------------------------------------------------
def scripted(step: int, n: int, continuous: int, branches: tuple[int, ...]) -> Actions:
    """Actions that both clients take: a matter of the step and of the number of agents."""
    rng = np.random.default_rng([step, n])
    return Actions(
        rng.uniform(-1, 1, (n, continuous)).astype(np.float32) if continuous else None,
        rng.integers(0, branches, (n, len(branches))).astype(np.int32) if branches else None,
    )


def read_by_stock(env: Any, steps: int) -> list[dict[str, list[tuple]]]:
    """What Unity's client says of each message: by behaviour, first of ends, then of questions."""
    from mlagents_envs.base_env import ActionTuple

    env.reset()
    told = []
    for step in range(steps):
        message = {}
        for name, spec in env.behavior_specs.items():
            decisions, ends = env.get_steps(name)
            said = []
            for k, agent in enumerate(ends.agent_id):
                row = [obs[k] for obs in ends.obs]
                end = (True, bool(ends.interrupted[k]), None)
                said.append((agent, *end, ends.reward[k], ends.group_reward[k], row))
            for k, agent in enumerate(decisions.agent_id):
                row = [obs[k] for obs in decisions.obs]
                masks = decisions.action_mask
                mask = None if masks is None else ~np.concatenate([m[k] for m in masks])
                reward = (decisions.reward[k], decisions.group_reward[k])
                said.append((agent, False, False, mask, *reward, row))
            if said:
                message[name] = said
            a = scripted(
                step,
                len(decisions),
                spec.action_spec.continuous_size,
                spec.action_spec.discrete_branches,
            )
            env.set_actions(name, ActionTuple(a.continuous, a.discrete))
        told.append(message)
        env.step()
    return told


def read_by_us(player: Player, steps: int) -> list[dict[str, list[tuple]]]:
    """The same of our connector and codec, images as Unity's client gives them."""
    codec = Codec()
    player.send(codec.encode_reset())
    told = []
    for step in range(steps):
        frame = codec.decode(player.recv())
        message, actions = {}, {}
        for name, batch in frame.batches.items():
            spec = codec.specs[name]
            said = []
            for k in np.argsort(~batch.done, kind="stable"):
                row = [obs[k].copy() for obs in batch.obs]
                for i, seen in enumerate(spec.observations):
                    if seen.kind == "image":
                        row[i] = row[i].transpose(1, 2, 0)
                        row[i] = row[i].astype(np.float32) / 255 if seen.compressed else row[i]
                done = bool(batch.done[k])
                mask = None if done or batch.masks is None else batch.masks[k].copy()
                ends = (done, bool(batch.interrupted[k]), mask)
                said.append((batch.ids[k], *ends, batch.reward[k], batch.group_reward[k], row))
            message[name] = said
            actions[name] = scripted(step, batch.num_deciding, spec.continuous, spec.branches)
        told.append(message)
        player.send(codec.encode(actions))
    return told


def compare(stock: Stock, steps: int, scene: str, **options: Any) -> None:
    """Let both clients play the same scene with the same actions, and compare all they read."""
    args = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    player = Player(find_player("standin", scene=scene, **options), seed=3, timeout=40)
    player.start()
    try:
        theirs = read_by_stock(stock("--scene", scene, *args), steps)
        player.connect()
        ours = read_by_us(player, steps)
    finally:
        player.quit()
    for step, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        assert their.keys() == our.keys(), step
        for name, said in their.items():
            assert len(said) == len(our[name]), step
            for one, other in zip(said, our[name], strict=True):
                assert one[:3] == other[:3], step
                np.testing.assert_array_equal(one[3], other[3])
                assert one[4:6] == other[4:6], step
                for x, y in zip(one[6], other[6], strict=True):
                    np.testing.assert_array_equal(x, y)


@posix
@pytest.mark.parametrize("scene", ["staggered", "grid", "roles"])
def test_both_clients_read_the_same_trajectory(stock: Stock, scene: str) -> None:
    compare(stock, 30, scene)


@posix
def test_both_clients_see_the_same_images(stock: Stock) -> None:
    compare(stock, 12, "camera", stack=2, agents=2)


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    "scene",
    ["3dball", "staggered", "grid", "groups", "hybrid", "buffer", "memory", "duel", "roles"],
)
def test_both_clients_read_the_same_long_trajectory(stock: Stock, scene: str) -> None:
    compare(stock, 400, scene)


# ----- Failing on purpose -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("crash@start", PlayerLost, "exit code 3"),
        ("crash@reset", PlayerLost, "exit code 3"),
        ("abort@3", PlayerLost, "SIGABRT"),
        ("hang@3", PlayerFrozen, "froze"),
        ("garbage@2", WorldError, "no message"),
        ("nonsense@1", PlayerLost, "exit code 1"),
    ],
)
def test_it_fails_when_it_is_told_to(fault: str, error: type, words: str) -> None:
    if "SIG" in words and os.name != "posix":
        pytest.skip("signals end processes on POSIX only")
    player = Player(find_player("standin", scene="grid", fault=fault), timeout=20)
    player.start()
    try:
        with pytest.raises(error, match=words):
            player.connect()
            player.timeout = 1.0
            read_by_us(player, 6)
    finally:
        player.quit(grace=0.2)


def test_a_reply_without_actions_ends_the_player_as_it_ends_unitys() -> None:
    player = Player(find_player("standin", scene="grid"), timeout=20)
    player.start()
    try:
        player.connect()
        codec = Codec()
        player.send(codec.encode_reset())
        codec.decode(player.recv())
        player.send(Codec().encode({}))
        with pytest.raises(PlayerLost) as caught:
            player.recv()
    finally:
        player.quit()
    assert caught.value.exit_code == 1
    assert "0 actions for 9 agents" in caught.value.log


def test_a_replayed_scene_costs_little_and_says_the_same_to_all() -> None:
    player = Player(find_player("standin", scene="noise", agents=100, obs=64, replay=4), timeout=20)
    player.start()
    try:
        player.connect()
        told = read_by_us(player, 12)
    finally:
        player.quit()
    assert {row[0] for message in told for row in message["Noise?team=0"]} == {*range(100)}
    first, again, other = (told[i]["Noise?team=0"][0][6][0] for i in (1, 6, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
