"""The stand-in: its scenes, its life cycle, and that Unity's own client reads it as it is meant."""

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
from rlgym.envs.unity.standin.academy import Academy, Coming
from rlgym.envs.unity.standin.agents import SceneOptions
from rlgym.envs.unity.standin.ball import FRAME, HALF, Balls
from rlgym.envs.unity.standin.channels import Channels
from rlgym.envs.unity.standin.scenes import SCENES, build
from rlgym.errors import WorldError

posix = pytest.mark.skipif(os.name != "posix", reason="a script is a program on POSIX only")
SPEAKING = sorted(set(SCENES) - {"silent", "empty", "huge"})


# ----- Scenes, in this process --------------------------------------------------------------------
def make_academy(
    scene: str, coming: Coming | None = None, seed: int = 0, **options: Any
) -> Academy:
    channels, rng = Channels(), np.random.default_rng(seed)
    populations = build(scene, SceneOptions(**options), channels, rng)
    return Academy(populations, rng, coming or Coming())


def next_message(academy: Academy) -> Any:
    """The next message; whoever asked acts at random in it."""
    while not academy.ask():
        academy.act()
    made = academy.output(b"")
    for crowd in academy.crowds:
        k = len(crowd.asking)
        population = crowd.population
        crowd.continuous[crowd.asking] = academy.rng.uniform(-1, 1, (k, population.continuous))
        if population.branches:
            crowd.discrete[crowd.asking] = academy.rng.integers(0, population.branches)
        crowd.asking = []
    academy.act()
    return made.unity_output


def infos_of(output: Any) -> list[Any]:
    return [info for infos in output.rl_output.agentInfos.values() for info in infos.value]


@pytest.mark.parametrize("scene", SPEAKING)
def test_the_life_of_agents_is_unitys(scene: str) -> None:
    academy = make_academy(scene)
    started, ended, described = set(), set(), []
    for _ in range(120):
        output = next_message(academy)
        described += [
            brain.brain_name for brain in output.rl_initialization_output.brain_parameters
        ]
        ids = [(info.id, info.done) for info in infos_of(output)]
        assert ids, "a message that says nothing"
        assert len(set(ids)) == len(ids)
        for agent, done in ids:
            assert agent not in ended, "an id came back after its end"
            (ended if done else started).add(agent)
    assert sorted(described) == sorted(c.population.behavior for c in academy.crowds)
    assert all(name.count("?team=") == 1 for name in described)
    if scene not in ("noise", "duel"):  # the one never ends, the other rarely
        assert ended


def test_ends_between_decisions_make_messages_without_a_question() -> None:
    academy = make_academy("3dball")
    kinds = set()
    for _ in range(300):
        done = [info.done for info in infos_of(next_message(academy))]
        kinds.add("ends" if all(done) else "asks" if not any(done) else "both")
    assert kinds == {"ends", "asks", "both"}


def test_staggered_agents_ask_in_turn_and_in_any_order() -> None:
    academy = make_academy("staggered", agents=10)
    ids = [[info.id for info in infos_of(next_message(academy)) if not info.done] for _ in range(5)]
    assert [sorted(x % 5 for x in one) for one in ids] == [[i, i] for i in range(5)]
    orders = {tuple(info.id for info in infos_of(next_message(academy))) for _ in range(40)}
    assert any(list(one) != sorted(one) for one in orders)


def test_a_limit_of_steps_interrupts_and_a_fall_does_not() -> None:
    academy = make_academy("3dball", max_steps=15)
    ends = [info for _ in range(200) for info in infos_of(next_message(academy)) if info.done]
    limits = [info for info in ends if info.max_step_reached]
    falls = [info for info in ends if not info.max_step_reached]
    assert limits and all(info.reward == pytest.approx(0.1) for info in limits)
    assert falls and all(info.reward == -1 for info in falls)


def test_a_reset_keeps_the_ids_and_forgets_the_rewards() -> None:
    academy = make_academy("3dball")
    before = {info.id for info in infos_of(next_message(academy))}
    assert next_message(academy)
    academy.reset()
    infos = [info for info in infos_of(next_message(academy)) if not info.done]
    assert {info.id for info in infos} == before
    assert all(info.reward == 0 for info in infos)


def test_too_few_actions_break_the_player_as_they_break_unity() -> None:
    academy = make_academy("grid")
    academy.ask()
    made = academy.output(b"")
    reply = type(made)().unity_input.rl_input
    with pytest.raises(IndexError, match="0 actions for 9 agents"):
        academy.take(reply)


def test_agents_may_come_late_leave_for_ever_and_return_with_a_reset() -> None:
    academy = make_academy("memory", Coming(late=2, late_frame=3, leave=1.0))
    counts = [len([i for i in infos_of(next_message(academy)) if not i.done]) for _ in range(9)]
    assert counts == [6, 6, 6, 8, 8, 2, 2, 2, 0]  # each stays for five steps
    academy.reset()
    assert len([i for i in infos_of(next_message(academy)) if not i.done]) == 8


def test_masks_forbid_what_leaves_the_board_and_are_left_out_where_all_is_allowed() -> None:
    academy = make_academy("grid", agents=50)
    masks = [list(info.action_mask) for info in infos_of(next_message(academy)) if not info.done]
    assert {len(mask) for mask in masks} == {0, 5}
    assert all(not mask[0] and any(mask) for mask in masks if mask)


def test_groups_end_together_and_say_what_the_group_earned() -> None:
    academy = make_academy("groups", agents=6)
    for _ in range(11):
        infos = infos_of(next_message(academy))
        whole = [info for info in infos if info.done and info.max_step_reached]
    assert sorted(info.group_id for info in whole) == [1, 1, 1, 2, 2, 2]
    assert all(info.group_reward in (0.0, 1.0) for info in whole)
    by_group = {info.group_id: info.group_reward for info in whole}
    assert all(info.group_reward == by_group[info.group_id] for info in whole)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_images_declare_their_order(layout: str) -> None:
    academy = make_academy("camera", agents=1, layout=layout, stack=2)
    image = infos_of(next_message(academy))[0].observations[0]
    assert list(image.shape) == ([84, 84, 6] if layout == "hwc" else [6, 84, 84])
    assert list(image.dimension_properties) == ([2, 2, 1] if layout == "hwc" else [1, 2, 2])
    assert image.compressed_data.count(b"\x89PNG") == 2
    assert list(image.compressed_channel_mapping) == list(range(6))


# ----- The physics of the ball --------------------------------------------------------------------
def make_balls(n: int = 1, **values: float) -> Balls:
    channels = Channels()
    channels._values.update(values)
    balls = Balls(n, channels, np.random.default_rng(0))
    balls.reset(np.arange(n))
    return balls


def still(balls: Balls) -> np.ndarray:
    return np.zeros((balls.num_agents, 2), np.float32)


def test_a_ball_falls_freely_until_it_touches() -> None:
    balls = make_balls(gravity=5.0)
    balls.tilt[:], balls.position[:] = 0, [[0.0], [4.0], [0.0]]
    for _ in range(10):
        balls.act(still(balls), still(balls))
    assert balls.velocity[1, 0] == pytest.approx(-5.0 * 10 * FRAME)
    for _ in range(90):
        balls.act(still(balls), still(balls))
    assert balls.position[:, 0] == pytest.approx([0, HALF + 0.5, 0])
    assert balls.velocity[:, 0] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_rolling_ball_takes_five_sevenths_of_the_pull() -> None:
    balls = make_balls(gravity=7.0)
    angle = 0.2  # about z: the plate leans so that the ball rolls towards -x
    balls.tilt[:] = [[0.0], [angle]]
    up = np.array([-np.sin(angle), np.cos(angle), 0])
    balls.position[:, 0], balls.velocity[:] = up * (HALF + 0.5), 0
    for _ in range(20):
        balls.act(still(balls), still(balls))
    along = np.array([np.cos(angle), np.sin(angle), 0])
    speed = float(balls.velocity[:, 0] @ along)
    assert speed == pytest.approx(-5 / 7 * 7.0 * np.sin(angle) * 20 * FRAME)
    assert float(balls.velocity[:, 0] @ up) == pytest.approx(0, abs=1e-9)


def test_balancing_can_be_done_and_doing_nothing_is_not_enough() -> None:
    balls = make_balls(12)
    falls = 0
    for frame in range(1500):
        if frame % 5 == 0:  # a hand-made controller: lean against place and speed
            o = balls.observe(np.arange(12))[0]
            wish = 0.05 * np.stack([o[:, 2] + o[:, 5], -o[:, 4] - o[:, 7]], 1)
            action = (10 * (wish - o[:, :2])).astype(np.float32)
        balls.act(action, action)
        falls += int(balls.done.sum())
    assert falls == 0
    idle, alive = make_balls(12), np.ones(12, bool)
    for _ in range(300):
        idle.act(still(idle), still(idle))
        alive &= ~idle.done
    assert not alive.any()


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
        env = compat.load().environment.UnityEnvironment(
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
        for _ in range(30):
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


@posix
@pytest.mark.parametrize(
    ("scene", "options"),
    [
        ("staggered", {}),
        ("grid", {}),
        ("camera", {"stack": 2, "agents": 2}),
        ("groups", {}),
        ("hybrid", {}),
        ("buffer", {}),
        ("roles", {}),
    ],
)
def test_both_clients_read_the_same_trajectory(
    stock: Stock, scene: str, options: dict[str, Any]
) -> None:
    args = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    player = Player(find_player("standin", scene=scene, **options), seed=3)
    player.start()
    try:
        theirs = read_by_stock(stock("--scene", scene, *args), 50)
        player.connect()
        ours = read_by_us(player, 50)
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
