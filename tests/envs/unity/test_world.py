"""Players with several behaviours, and what they are told beside actions."""

import struct
import uuid

import numpy as np
import pytest
import torch

import rlgym
from rlgym.envs.unity.side_channels import Channel
from rlgym.envs.unity.world import UnityWorld
from rlgym.errors import ConfigError, StateError


@pytest.fixture
def world():
    made = []

    def make(name, **settings):
        made.append(UnityWorld("standin", scene=name, timeout=30, **settings))
        return made[-1]

    yield make
    for one in made:
        for view in one.views().values():
            view.close()


def test_behaviours_are_views_of_one_world(world):
    views = world("roles", agents=2, num_players=2).views()
    assert len(views) == 2 and all(view.num_envs == 4 for view in views.values())
    starts = {name: view.reset(seed=0)[0].clone() for name, view in views.items()}
    (one, other) = views.values()
    # the reset of the second is that of the first: nothing has moved in between
    assert torch.equal(starts[one.behavior], torch.as_tensor(one.arrays.obs))
    for view in views.values():
        view.action_space.seed(0)
    for _ in range(30):
        for group in (0, 1):
            for view in views.values():
                part = view.action_space.sample()[view.group_slice(group)]
                view.send(part, group)
        for group in (0, 1):
            for view in views.values():
                _, reward, *_ = view.recv(group)
                assert torch.isfinite(reward).all()
    with pytest.raises(StateError, match=f"call send of {other.behavior.split('?')[0]}"):
        one.step(one.action_space.sample())


def test_a_player_waits_for_all_behaviours_and_lives_until_all_views_are_closed(world):
    made = world("roles", agents=1)
    one, other = made.views().values()
    one.reset(seed=0)
    other.reset(seed=0)
    one.send(one.action_space.sample())
    with pytest.raises(StateError, match="reset while a step is pending"):
        one.reset()
    other.send(other.action_space.sample())
    one.recv()
    one.close()
    assert made.links[0].player is not None
    other.recv()
    other.close()
    assert made.links[0].player is None


def test_one_behaviour_can_be_chosen(world):
    with pytest.raises(ConfigError, match=r"behaviours .*pass behavior="):
        rlgym.make_vec("unity:standin", scene="roles", timeout=30)
    names = sorted(world("roles", agents=2).views())
    env = rlgym.make_vec("unity:standin", scene="roles", agents=2, behavior=names[0], timeout=30)
    try:
        env.reset(seed=0)
        for _ in range(20):  # the others do nothing, and everything goes on
            env.step(env.action_space.sample())
        assert env.num_envs == 2
    finally:
        env.close()
    with pytest.raises(ConfigError, match="has no behaviour 'Hunte'"):
        UnityWorld("standin", scene="roles", behavior="Hunte", timeout=30)


def test_one_policy_can_play_both_teams():
    with pytest.raises(ConfigError, match="behavior='Pusher' to let one policy play all its teams"):
        rlgym.make_vec("unity:standin", scene="duel", timeout=30)
    env = rlgym.make_vec("unity:standin", scene="duel", agents=3, behavior="Pusher", timeout=30)
    try:
        assert env.num_envs == 6 and env.members == ["Pusher?team=0", "Pusher?team=1"]
        env.reset(seed=0)
        push = np.full((6, 1), -0.1, np.float32)  # as hard as the breath lasts
        push[3:] = -1.0  # team 1 does nothing, so team 0 pushes it out
        won = np.zeros(6)
        for _ in range(100):
            _, reward, *_ = env.step(push)
            won += reward.numpy()
        assert (won[:3] > 0).all() and (won[3:] == -won[:3]).all()
    finally:
        env.close()


class Echo(Channel):
    """Keeps what comes back."""

    def __init__(self):
        super().__init__("6f0a9a3c-1d1e-4b6a-9a53-2f1f6b1f5c11")
        self.heard = []

    def receive(self, payload):
        self.heard.append(payload)


def test_channels_of_the_users_own_reach_every_player(world):
    echo = Echo()
    (view,) = world("3dball", agents=1, num_players=2, side_channels=[echo]).views().values()
    view.reset(seed=0)
    echo.send(b"hello")
    view.step(view.action_space.sample())
    view.step(view.action_space.sample())
    assert echo.heard == [b"hello", b"hello"]


def test_channels_made_for_unitys_package_work(world):
    from rlgym.envs.unity import compat

    compat.load()
    from mlagents_envs.side_channel import OutgoingMessage, SideChannel

    class Theirs(SideChannel):
        heard = ()

        def on_message_received(self, msg):
            self.heard = (*self.heard, msg.read_string(), msg.read_int32())

    channel = Theirs(uuid.UUID(int=5))
    (view,) = world("3dball", agents=1, side_channels=[channel]).views().values()
    view.reset(seed=0)
    message = OutgoingMessage()
    message.write_string("abc")
    message.write_int32(-7)
    channel.queue_message_to_send(message)
    for _ in range(2):
        view.step(view.action_space.sample())
    assert channel.heard == ("abc", -7)


def test_parameters_and_engine_settings_arrive(world):
    uniform = {"sampler_type": "uniform", "sampler_parameters": {"min_value": 1, "max_value": 2}}
    made = world(
        "3dball",
        agents=2,
        time_scale=7.0,
        quality_level=2,
        width=64,
        height=48,
        parameters={"gravity": 3.0, "scale": uniform},
    )
    (view,) = made.views().values()
    view.reset(seed=0)
    for _ in range(3):
        view.step(view.action_space.sample())
    told = made.scalars()
    assert told["unity/Engine/time_scale"] == 7.0 and told["unity/Engine/quality_level"] == 2.0
    assert told["unity/Parameter/gravity"] == 3.0


def test_a_curriculum_is_told_to_the_player(world):
    lessons = [
        {"value": 0.5, "completion_criteria": {"measure": "reward", "threshold": -5.0}},
        {"value": 2.5, "completion_criteria": {"measure": "steps", "threshold": 100}},
        {"value": 9.5},
    ]
    made = world("3dball", agents=2, parameters={"gravity": {"curriculum": lessons}})
    (view,) = made.views().values()
    view.reset(seed=0)
    seen = []
    for _ in range(600):  # until the balls have fallen often enough
        view.step(view.action_space.sample())
        value = made.scalars().get("unity/Parameter/gravity")
        seen += [] if value is None else [value]
        if value == 9.5:
            break
    assert seen == [0.5, 2.5, 9.5]
    late = world(
        "3dball", agents=1, evaluation=True, parameters={"gravity": {"curriculum": lessons}}
    )
    (view,) = late.views().values()
    view.reset(seed=0)
    view.step(view.action_space.sample())
    assert late.scalars()["unity/Parameter/gravity"] == 9.5


def test_a_message_that_breaks_off_is_refused():
    from rlgym.envs.unity.side_channels import STATS, SideChannels, Stats, part
    from rlgym.errors import WorldError

    stats = Stats()
    channels = SideChannels(stats)
    good = part(STATS, struct.pack("<i", 2) + b"ab" + struct.pack("<fi", 1.5, 0))
    channels.incoming(good + good)
    assert stats.take() == {"ab": 1.5}
    for bad in (good[:10], good[:-1], part(STATS, b"\1"), good + b"x"):
        with pytest.raises(WorldError, match="breaks off"):
            channels.incoming(bad)
