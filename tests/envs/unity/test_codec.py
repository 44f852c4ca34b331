"""What is read from a player's bytes is what Unity's own Python code reads from them."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rlgym.envs.unity import compat, messages
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.frames import Actions
from rlgym.envs.unity.wire import NotPlain, Record, split
from rlgym.errors import ContractError, StateError, WorldError

stock = compat.load()
Message = messages.message("UnityMessageProto")
NAME = "Ball?team=0"


# ----- Players' messages, made with Unity's own message types ------------------------------------


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def agent_of(values: dict[str, Any], observations: list[dict[str, Any]]) -> Any:
    agent = messages.message("AgentInfoProto")(**values)
    for content in observations:
        content = dict(content)
        floats = content.pop("floats", None)
        obs = agent.observations.add(**content)
        if floats is not None:
            obs.float_data.data.extend(floats)
    return agent


def vector(floats: list[float], **more: Any) -> dict[str, Any]:
    return {"shape": [len(floats)], "floats": floats, "dimension_properties": [1], **more}


def message(
    agents: list[Any],
    *,
    name: str = NAME,
    introduce: tuple[int, tuple[int, ...]] | None = None,
    side_channel: bytes = b"",
) -> bytes:
    made = Message()
    made.header.status = 200
    output = made.unity_output
    if introduce is not None:
        brain = output.rl_initialization_output.brain_parameters.add(brain_name=name)
        brain.action_spec.num_continuous_actions = introduce[0]
        brain.action_spec.num_discrete_actions = len(introduce[1])
        brain.action_spec.discrete_branch_sizes.extend(introduce[1])
    output.rl_output.agentInfos[name].value.extend(agents)
    output.rl_output.side_channel = side_channel
    return made.SerializeToString()


def introduced(
    agents: list[Any], continuous: int = 2, branches: tuple[int, ...] = (), **settings: Any
) -> tuple[Codec, Any]:
    """A codec that has met the behaviour through these agents, and what it read of them."""
    codec = Codec("a player", **settings)
    frame = codec.decode(message(agents, introduce=(continuous, branches)))
    return codec, frame.batches[NAME]


def stock_spec(first: bytes) -> Any:
    output = Message.FromString(first).unity_output
    (brain,) = output.rl_initialization_output.brain_parameters
    agents = output.rl_output.agentInfos[brain.brain_name].value
    return stock.rpc_utils.behavior_spec_from_proto(brain, agents[0])


def assert_as_stock(batch: Any, data: bytes, spec: Any) -> None:
    """Compare a batch with what `steps_from_proto` makes of the same message."""
    agents = Message.FromString(data).unity_output.rl_output.agentInfos[NAME].value
    decisions, terminals = stock.rpc_utils.steps_from_proto(agents, spec)
    for rows, steps in ((~batch.done, decisions), (batch.done, terminals)):
        assert batch.ids[rows].tolist() == steps.agent_id.tolist()
        np.testing.assert_array_equal(batch.reward[rows], steps.reward)
        np.testing.assert_array_equal(batch.group_reward[rows], steps.group_reward)
        assert batch.group_ids[rows].tolist() == list(steps.group_id)
        for ours, theirs in zip(batch.obs, steps.obs, strict=True):
            np.testing.assert_array_equal(ours[rows], theirs)
    np.testing.assert_array_equal(batch.interrupted[batch.done], terminals.interrupted)
    if spec.action_spec.discrete_branches and len(decisions):
        forbidden = np.concatenate(decisions.action_mask, axis=1)
        np.testing.assert_array_equal(batch.masks[~batch.done], ~forbidden)
    assert (batch.masks is None) == (not spec.action_spec.discrete_branches)


# ----- Property: any scene's messages ------------------------------------------------------------


@st.composite
def scenes(draw: Any) -> tuple[int, tuple[int, ...], list[list[Any]]]:
    """Actions of a behaviour and some messages about its agents, as unlike as they may be."""
    shapes = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=3))
    continuous = draw(st.integers(0, 3))
    branches = tuple(draw(st.lists(st.integers(1, 4), min_size=0 if continuous else 1, max_size=3)))
    properties = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def number() -> float:
        return float(np.float32(rng.choice([0.0, 0.0, 1.0, -1e-30, 1e30, rng.standard_normal()])))

    def count(most: int = 2**31) -> int:
        return int(rng.choice([0, rng.integers(300), rng.integers(1, most)]))

    def agent() -> Any:
        observations = []
        for i, shape in enumerate(shapes):
            size = int(np.prod(shape))
            numbers = (1000 * rng.standard_normal(size)).astype(np.float32)
            content = {"shape": shape, "name": f"s{i}é", "floats": numbers}
            if properties or len(shape) == 3:
                # an image of numbers stays as it is sent: channels first
                content["dimension_properties"] = [1, 2, 2][: len(shape)]
            observations.append(content)
        mask = rng.random(sum(branches) * int(rng.integers(2))) < 0.5
        return agent_of(
            {
                "reward": number(),
                "done": bool(rng.random() < 0.3),
                "max_step_reached": bool(rng.random() < 0.3),
                "id": count(),
                "group_id": count(),
                "group_reward": number(),
                "action_mask": mask.tolist(),
            },
            observations,
        )

    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    return continuous, branches, [[agent() for _ in range(size)] for size in sizes]


def negated(agent: Any) -> Any:
    """The same agent with every number and flag that may change in place changed."""
    other = type(agent)()
    other.CopyFrom(agent)
    other.reward = agent.reward and -agent.reward  # a zero stays absent on the wire
    other.group_reward = agent.group_reward and -agent.group_reward
    other.action_mask[:] = [not flag for flag in agent.action_mask]
    for obs in other.observations:
        obs.float_data.data[:] = [-value for value in obs.float_data.data]
    return other


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenes())
def test_any_message_reads_as_unity_reads_it(scene: Any) -> None:
    continuous, branches, steps = scene
    codec = Codec()
    first = message(steps[0], introduce=(continuous, branches))
    spec = stock_spec(first)
    assert_as_stock(codec.decode(first).batches[NAME], first, spec)
    ours = codec.specs[NAME]
    assert (ours.continuous, ours.branches) == (continuous, branches)
    assert [obs.shape for obs in ours.observations] == [o.shape for o in spec.observation_specs]
    for agents in (*steps[1:], steps[0]):  # the last layouts are met again
        data = message(agents)
        assert_as_stock(codec.decode(data).batches[NAME], data, spec)
        agents = [negated(agent) for agent in agents]  # laid out alike, with other numbers
        data = message(agents)
        assert_as_stock(codec.decode(data).batches[NAME], data, spec)
        assert_as_stock(codec.decode(data).batches[NAME], data, spec)
        codec._readers[NAME].plain = False  # the general way reads the same
        assert_as_stock(codec.decode(data).batches[NAME], data, spec)
        codec._readers[NAME].plain = True


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_action_is_written_as_unity_writes_it(data: Any) -> None:
    continuous = data.draw(st.integers(0, 40))
    branches = tuple(
        data.draw(st.lists(st.integers(1, 300), min_size=0 if continuous else 1, max_size=3))
    )
    count = data.draw(st.integers(1, 5))
    hybrid = data.draw(st.booleans())
    agents = [agent_of({"id": i}, [vector([0.0])]) for i in range(count)]
    codec, _ = introduced(agents, continuous, branches, hybrid=hybrid)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    floats = rng.standard_normal((count, continuous)).astype(np.float32)
    choices = np.stack([rng.integers(0, b, count) for b in branches], axis=1) if branches else None
    given_actions = Actions(floats if continuous else None, choices)
    reply = Message.FromString(codec.encode({NAME: given_actions}, side_channel=b"xyz"))
    assert reply.header.status == 200
    rl_input = reply.unity_input.rl_input
    assert (rl_input.command, rl_input.side_channel) == (0, b"xyz")
    rows = rl_input.agent_actions[NAME].value
    assert len(rows) == count
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(np.asarray(row.continuous_actions, np.float32), floats[i])
        wanted = choices[i].tolist() if choices is not None else []
        assert list(row.discrete_actions) == wanted
        shared = [*floats[i].tolist(), *map(float, wanted)]
        assert list(row.vector_actions_deprecated) == ([] if hybrid else shared)


# ----- What the property cannot reach ------------------------------------------------------------


def test_most_records_are_read_as_a_table() -> None:
    """Else it would still be right, and slow."""
    agents = [agent_of({"id": i, "reward": 1.0}, [vector([float(i)] * 8)]) for i in range(20)]
    codec, _ = introduced(agents)
    reader = codec._readers[NAME]
    called = []
    reader.read_messages = lambda data: called.append(data)  # type: ignore[method-assign]
    mixed = [*agents[:10], agent_of({"id": 900, "done": True}, [vector([1.0] * 8)]), *agents[10:]]
    batch = codec.decode(message(mixed)).batches[NAME]
    assert not called
    assert batch.ids.tolist() == [*range(10), 900, *range(10, 20)]
    assert batch.done.tolist() == [False] * 10 + [True] + [False] * 10
    assert batch.reward.tolist() == [1.0] * 10 + [0.0] + [1.0] * 10
    assert batch.num_deciding == 20


def test_a_small_message_that_comes_again_is_read_at_once() -> None:
    """Agent 0's number is absent on the wire, so that these are never all alike."""
    agents = [agent_of({"id": i, "reward": 1.0 + i}, [vector([float(i)] * 8)]) for i in range(6)]
    codec, _ = introduced(agents)
    reader = codec._readers[NAME]
    codec.decode(message(agents))
    reader.read_group = None  # type: ignore[method-assign, assignment]
    batch = codec.decode(message([negated(agent) for agent in agents])).batches[NAME]
    assert batch.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.reward.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    assert batch.obs[0][5].tolist() == [-5.0] * 8


def test_more_agents_than_before_and_then_fewer() -> None:
    codec, batch = introduced([agent_of({"id": 1}, [vector([1.0])])])
    assert batch.num_agents == 1
    many = [agent_of({"id": i, "reward": float(i)}, [vector([float(i)])]) for i in range(500)]
    batch = codec.decode(message(many)).batches[NAME]
    assert batch.obs[0][:, 0].tolist() == [float(i) for i in range(500)]
    batch = codec.decode(message(many[:2])).batches[NAME]
    assert batch.reward.tolist() == [0.0, 1.0]


def test_floats_that_are_not_packed_are_read_too() -> None:
    """Legal protobuf, which no known player sends."""
    codec, _ = introduced([agent_of({"id": 1}, [vector([1.0, 2.0])])])
    for content in (
        b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\x40",  # one by one
        b"\x0a\x04\x00\x00\x80\x3f" + b"\x0a\x04\x00\x00\x00\x40",  # packed in two parts
    ):
        observation = b"\x0a\x01\x02" + b"\x22" + bytes([len(content)]) + content
        agent = b"\x50\x07" + b"\x6a" + bytes([len(observation)]) + observation
        record = b"\x0a" + bytes([len(agent)]) + agent
        batch = codec._readers[NAME].read(record)
        assert batch.ids.tolist() == [7]
        assert batch.obs[0].tolist() == [[1.0, 2.0]]


def test_a_list_that_is_cut_short_is_not_a_table() -> None:
    whole = messages.message("UnityRLOutputProto.ListAgentInfoProto")(
        value=[agent_of({"id": 1}, [vector([1.0] * 100)])]
    ).SerializeToString()
    assert split(whole) == ([0], [len(whole)])
    Record.of(whole)
    for cut in (1, 2, 5, len(whole) - 1):
        with pytest.raises(NotPlain):
            split(whole[:cut])
    for cut in (1, 2, 3, len(whole) - 1):
        with pytest.raises(NotPlain):
            Record.of(whole[:cut])


def test_several_behaviors_and_side_channels() -> None:
    codec = Codec()
    made = Message.FromString(
        message([agent_of({"id": 1}, [vector([1.0])])], name="A", introduce=(1, ()))
    )
    made.MergeFromString(
        message([agent_of({"id": 2}, [vector([2.0, 3.0])])], name="B", introduce=(0, (3,)))
    )
    made.unity_output.rl_output.side_channel = b"hello"
    frame = codec.decode(made.SerializeToString())
    assert [spec.name for spec in frame.new_specs] == ["A", "B"]
    assert frame.side_channel == b"hello"
    assert frame.num_deciding == 2
    assert frame.batches["B"].masks.tolist() == [[True, True, True]]
    later = codec.decode(message([agent_of({"id": 3}, [vector([4.0])])], name="A"))
    assert (list(later.batches), later.new_specs) == (["A"], ())
    nothing = codec.decode(message([], name="A"))
    assert nothing.batches == {}
    reply = Message.FromString(codec.encode({}))
    assert reply.unity_input.HasField("rl_input")  # else Unity takes it for no reply
    assert not reply.unity_input.rl_input.agent_actions


def test_actions_go_to_the_agents_that_are_not_done() -> None:
    agents = [agent_of({"id": i, "done": i % 2 == 1}, [vector([0.0])]) for i in range(5)]
    codec, batch = introduced(agents, continuous=1)
    assert batch.num_deciding == 3
    reply = Message.FromString(codec.encode({NAME: Actions(np.asarray([[0.0], [2.0], [4.0]]))}))
    rows = reply.unity_input.rl_input.agent_actions[NAME].value
    assert [list(row.continuous_actions) for row in rows] == [[0.0], [2.0], [4.0]]


def test_a_reset_is_the_command_and_nothing_else() -> None:
    reply = Message.FromString(Codec().encode_reset(b"abc"))
    assert reply.unity_input.rl_input.command == 1
    assert reply.unity_input.rl_input.side_channel == b"abc"


def test_old_packages_describe_their_actions_otherwise() -> None:
    for space, sizes, expected in ((1, [3], (3, ())), (0, [2, 4], (0, (2, 4)))):
        made = Message.FromString(message([agent_of({"id": 1}, [vector([1.0])])]))
        brain = made.unity_output.rl_initialization_output.brain_parameters.add(brain_name=NAME)
        brain.vector_action_space_type_deprecated = space
        brain.vector_action_size_deprecated.extend(sizes)
        codec = Codec()
        codec.decode(made.SerializeToString())
        assert (codec.specs[NAME].continuous, codec.specs[NAME].branches) == expected


# ----- Images ------------------------------------------------------------------------------------


def image(pixels: np.ndarray, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"shape": shape, "compression_type": 1, "compressed_data": png(pixels), **more}


@pytest.mark.parametrize("order", ["HWC", "CHW"])
@pytest.mark.parametrize("count", [1, 9])
def test_images_arrive_as_channels_first(order: str, count: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
    shape = [5, 7, 3] if order == "HWC" else [3, 5, 7]
    agents = [agent_of({"id": i}, [image(p, shape), vector([1.0])]) for i, p in enumerate(pixels)]
    codec, batch = introduced(agents)
    spec = codec.specs[NAME].observations[0]
    assert (spec.order, spec.decoded_shape, spec.kind) == (order, (3, 5, 7), "image")
    assert batch.obs[0].dtype == np.uint8
    np.testing.assert_array_equal(batch.obs[0], pixels.transpose(0, 3, 1, 2))
    if order == "HWC":  # what Unity's own code of release 0.28 can read
        data = message(agents, introduce=(2, ()))
        decoded = stock.rpc_utils.steps_from_proto(agents, stock_spec(data))[0].obs[0]
        np.testing.assert_allclose(batch.obs[0] / 255, decoded.transpose(0, 3, 1, 2), atol=1e-6)


def test_a_square_image_of_three_rows_goes_by_its_properties() -> None:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    for properties, order in (([1, 2, 2], "CHW"), ([2, 2, 1], "HWC"), ([], "HWC")):
        content = image(pixels, [3, 3, 3], dimension_properties=properties)
        codec, _ = introduced([agent_of({"id": 1}, [content])])
        assert codec.specs[NAME].observations[0].order == order


@pytest.mark.parametrize(
    ("channels", "mapping"),
    [
        (1, []),  # gray: the average of a picture's channels
        (2, [0, 0, 0, 1, 1, 1]),  # two stacked gray pictures
        (6, [0, 1, 2, 3, 4, 5]),
        (4, [0, 1, 2, 3, -1, -1]),
        (5, []),  # the first five of six
    ],
)
def test_stacked_and_gray_images_are_as_unity_makes_them(channels: int, mapping: list[int]) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    content = {
        "shape": [4, 6, channels],
        "compression_type": 1,
        "compressed_data": png(pixels[0]) + (png(pixels[1]) if channels > 1 else b""),
        "compressed_channel_mapping": mapping,
    }
    agents = [agent_of({"id": 1}, [content])]
    _, batch = introduced(agents)
    spec = stock_spec(message(agents, introduce=(2, ())))
    decoded = stock.rpc_utils.steps_from_proto(agents, spec)[0].obs[0]
    tolerance = 0.5 / 255 + 1e-6  # an average is rounded to a whole number
    np.testing.assert_allclose(
        batch.obs[0] / 255, decoded.transpose(0, 3, 1, 2), atol=tolerance, rtol=0
    )


def test_images_of_numbers_are_turned_too() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    content = {"shape": [2, 3, 4], "floats": values.ravel(), "dimension_properties": [2, 2, 1]}
    codec, batch = introduced([agent_of({"id": i}, [content]) for i in range(3)])
    assert codec.specs[NAME].observations[0].decoded_shape == (4, 2, 3)
    np.testing.assert_array_equal(batch.obs[0][2], values.transpose(2, 0, 1))


# ----- Bad input ---------------------------------------------------------------------------------


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(WorldError, match="no message of Unity's protocol"):
        Codec("a player").decode(b"\x0a\xff\xff\xff")


def test_agents_of_an_unknown_behavior_are_refused() -> None:
    with pytest.raises(WorldError, match="never said what they observe"):
        Codec("a player").decode(message([agent_of({"id": 1}, [vector([1.0])])]))


@pytest.mark.parametrize("observations", [[vector([1.0] * 3)], [vector([1.0])] * 2, []])
def test_changed_observations_name_the_agent(observations: list[Any]) -> None:
    codec, _ = introduced([agent_of({"id": 1}, [vector([1.0, 2.0])])])
    agents = [agent_of({"id": 1}, [vector([1.0, 2.0])]), agent_of({"id": 44}, observations)]
    with pytest.raises(WorldError, match=r"agent 44 of 'Ball.team=0' observes"):
        codec.decode(message(agents))


def test_too_few_numbers_are_named() -> None:
    codec, _ = introduced([agent_of({"id": 1}, [vector([1.0, 2.0])])])
    bad = agent_of({"id": 5}, [{"shape": [2], "floats": [1.0], "dimension_properties": [1]}])
    with pytest.raises(WorldError, match=r"1 numbers and the shape \(2,\) \(agent 5\)"):
        codec.decode(message([bad]))


def test_damaged_images_are_named() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    codec, _ = introduced([agent_of({"id": 1}, [image(pixels, [4, 4, 3], name="eye")])])
    whole = png(pixels)
    for data, text in (
        (b"GIF89a", "no PNG image"),
        (b"", "fill no channel"),
        (whole[:-20], "cut short"),
        (whole[:45] + b"\0" * 8 + whole[53:], "damaged"),
        (png(np.zeros((8, 4, 3), np.uint8)), "8 x 4 pixels"),
    ):
        content = {**image(pixels, [4, 4, 3], name="eye"), "compressed_data": data}
        with pytest.raises(WorldError, match=f"'eye' of 'Ball.team=0': .*{text}"):
            codec.decode(message([agent_of({"id": 1}, [content])]))


def test_an_image_of_another_size_than_said_is_refused() -> None:
    content = image(np.zeros((4, 4, 3), np.uint8), [8, 8, 3], name="eye")
    with pytest.raises(WorldError, match=r"\(8, 8, 3\) and comes as an image of 4 x 4"):
        introduced([agent_of({"id": 1}, [content])])


def test_wrong_actions_are_refused() -> None:
    agents = [agent_of({"id": i}, [vector([0.0])]) for i in range(2)]
    codec, _ = introduced(agents, continuous=1, branches=(3,))
    floats, choices = np.zeros((2, 1)), np.zeros((2, 1), int)
    with pytest.raises(StateError, match=r"2 agents of 'Ball.team=0' wait for actions"):
        codec.encode({})
    with pytest.raises(StateError, match="1 are given"):
        codec.encode({NAME: Actions(floats[:1], choices)})
    with pytest.raises(ContractError, match=r"shape \(2, 2\)"):
        codec.encode({NAME: Actions(np.zeros((2, 2)), choices)})
    for choice in (3, -1):
        with pytest.raises(ContractError, match="outside its branch"):
            codec.encode({NAME: Actions(floats, choices + choice)})
    codec.encode({NAME: Actions(floats, choices)})


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_damaged_messages_are_refused_or_read_the_same_both_ways(seed: int, count: int) -> None:
    """No byte that a player can send gets past the table's checks, or ends in a foreign error."""
    rng = np.random.default_rng(seed)
    agents = [
        agent_of({"id": 100 + i, "reward": 1.0, "action_mask": [True, False]}, [vector([1.0, 2.0])])
        for i in range(6)
    ]
    codec, _ = introduced(agents, 0, (2,))
    codec.decode(message(agents))
    reader = codec._readers[NAME]
    lists = messages.message("UnityRLOutputProto.ListAgentInfoProto")
    data = bytearray(lists(value=agents).SerializeToString())
    for _ in range(count):
        place = int(rng.integers(len(data)))
        kind = rng.integers(3)
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            del data[place]
        else:
            data.insert(place, int(rng.integers(256)))

    def read(plain: bool) -> Any:
        reader.plain = plain
        try:
            batch = reader.read(bytes(data))
        except WorldError as error:
            return str(error)[:40]
        columns = (batch.ids, batch.reward, batch.done, batch.interrupted, batch.masks)
        columns += (batch.group_ids, batch.group_reward, batch.obs[0])
        return [column.tobytes() for column in columns]

    assert read(True) == read(False)
