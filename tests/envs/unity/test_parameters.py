"""Environment parameters as ML-Agents' files have them: samplers, curricula, mistakes."""

import struct

import pytest

from rlgym.envs.unity.parameters import Parameters, Sampler
from rlgym.envs.unity.side_channels import (
    ENGINE,
    PARAMETERS,
    STATS,
    Channel,
    SideChannels,
    Stats,
    drain,
    engine_parts,
    parameter_part,
    part,
)
from rlgym.errors import ConfigError

UNIFORM = {"sampler_type": "uniform", "sampler_parameters": {"min_value": 1, "max_value": 2}}


def lessons(*criteria):
    """A curriculum of the values 0, 1, ..., each lesson but the last with its criteria."""
    entries = [
        {"value": float(value), "completion_criteria": given}
        for value, given in enumerate(criteria)
    ]
    return {"curriculum": [*entries, {"value": float(len(criteria))}]}


def test_numbers_and_samplers():
    gauss = {"sampler_type": "gaussian", "sampler_parameters": {"mean": 1, "st_dev": 0.5}}
    ranges = {
        "sampler_type": "multirangeuniform",
        "sampler_parameters": {"intervals": [[0, 1], [3, 4]]},
    }
    found = Parameters({"a": 3, "b": UNIFORM, "c": gauss, "d": ranges}).values()
    assert found == {
        "a": 3.0,
        "b": Sampler("uniform", (1.0, 2.0)),
        "c": Sampler("gaussian", (1.0, 0.5)),
        "d": Sampler("multirangeuniform", (0.0, 1.0, 3.0, 4.0)),
    }


def test_a_lesson_ends_when_the_returns_are_high_enough():
    criteria = {"measure": "reward", "threshold": 2.0, "min_lesson_length": 3}
    criteria |= {"signal_smoothing": False, "behavior": "Walk", "require_reset": True}
    parameters = Parameters({"wall": lessons(criteria)})
    assert parameters.values() == {"wall": 0.0}
    assert parameters.count(10, [5.0, 5.0]) == {}  # too few episodes
    assert parameters.count(10, [-9.0]) == {}  # a mean of 1/3
    assert parameters.count(10, [5.0, 5.0, 5.0]) == {"wall": 1.0}
    assert parameters.count(10, [99.0] * 9) == {} and parameters.values() == {"wall": 1.0}


def test_smoothing_holds_a_lucky_streak_back():
    criteria = {"measure": "reward", "threshold": 2.0, "min_lesson_length": 1}
    smooth, rough = (
        Parameters({"wall": lessons({**criteria, "signal_smoothing": on})}) for on in (True, False)
    )
    for parameters in (smooth, rough):
        assert parameters.count(1, [-2.0]) == {}
    # 0.25 * -2 + 0.75 * 2.5 = 1.375
    assert smooth.count(1, [2.5]) == {} and rough.count(1, [2.5]) == {"wall": 1.0}


def test_lessons_by_steps_and_by_progress():
    parameters = Parameters(
        {
            "a": lessons({"measure": "steps", "threshold": 100}),
            "b": lessons({"measure": "progress", "threshold": 0.5}),
        },
        total_steps=1000,
    )
    assert parameters.count(99, []) == {}
    assert parameters.count(1, []) == {"a": 1.0}
    assert parameters.count(400, []) == {} and parameters.count(1, []) == {"b": 1.0}
    at_end = Parameters({"b": lessons({"measure": "progress", "threshold": 0.5})}, at_end=True)
    assert at_end.values() == {"b": 1.0}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"a": "high"}, "env.parameters.a must be a number"),
        ({"a": True}, "must be a number"),
        ({"a": {"sampler": 1}}, "has no setting 'sampler'"),
        ({"a": {"sampler_type": "unifrm"}}, "did you mean 'uniform'"),
        ({"a": {**UNIFORM, "sampler_parameters": {"min_value": 1}}}, "min_value and max_value"),
        (
            {"a": {**UNIFORM, "sampler_parameters": {"min_value": 3, "max_value": 1}}},
            "lower bound is above",
        ),
        ({"a": {"curriculum": []}}, "list of lessons"),
        ({"a": {"curriculum": [{"value": 1}, {"value": 2}]}}, "no completion_criteria"),
        ({"a": {"curriculum": [{"name": "x"}]}}, "has no value"),
        ({"a": lessons({"measure": "luck", "threshold": 1})}, "there is no measure 'luck'"),
        ({"a": lessons({"measure": "reward"})}, "threshold must be a number"),
        ({"a": lessons({"measure": "progress", "threshold": 1})}, "pass total_steps"),
        ({"größe": 1.0}, "not ASCII"),
    ],
)
def test_mistakes_are_named(settings, text):
    with pytest.raises(ConfigError, match=text):
        Parameters(settings)


# ----- The bytes, against Unity's own package ----------------------------------------------------
def theirs(channel):
    return [bytes(message) for message in channel.message_queue]


def test_the_bytes_are_those_of_unitys_package():
    from rlgym.envs.unity import compat

    compat.load()
    from mlagents_envs.side_channel.engine_configuration_channel import EngineConfigurationChannel
    from mlagents_envs.side_channel.environment_parameters_channel import (
        EnvironmentParametersChannel,
    )

    engine, parameters = EngineConfigurationChannel(), EnvironmentParametersChannel()
    engine.set_configuration_parameters(80, 60, 3, 20.0, -1, 60)
    ours = engine_parts(
        time_scale=20.0,
        width=80,
        height=60,
        quality_level=3,
        target_frame_rate=-1,
        capture_frame_rate=60,
    )
    assert ours == [part(ENGINE, message) for message in theirs(engine)]
    parameters.set_float_parameter("gravity", 9.5)
    parameters.set_uniform_sampler_parameters("mass", 1.0, 2.0, 7)
    parameters.set_gaussian_sampler_parameters("mass", 1.0, 2.0, 7)
    parameters.set_multirangeuniform_sampler_parameters("mass", [(0.0, 1.0), (3.0, 4.0)], 7)
    ours = [parameter_part("gravity", 9.5, 7)] + [
        parameter_part("mass", Sampler(kind, numbers), 7)
        for kind, numbers in (
            ("uniform", (1.0, 2.0)),
            ("gaussian", (1.0, 2.0)),
            ("multirangeuniform", (0.0, 1.0, 3.0, 4.0)),
        )
    ]
    assert ours == [part(PARAMETERS, message) for message in theirs(parameters)]
    with pytest.raises(ConfigError, match="go together"):
        engine_parts(width=80)


def test_statistics_are_averaged_summed_or_replaced():
    stats = Stats()
    channels = SideChannels(stats)
    for name, value, kind in (
        ("mean", 1.0, 0),
        ("mean", 2.0, 0),
        ("newest", 1.0, 1),
        ("newest", 5.0, 1),
        ("sum", 1.0, 2),
        ("sum", 2.0, 2),
        ("bars", 2.0, 3),
        ("bars", 4.0, 3),
    ):
        word = name.encode()
        payload = struct.pack("<i", len(word)) + word + struct.pack("<fi", value, kind)
        channels.incoming(part(STATS, payload))
    assert stats.take() == {"mean": 1.5, "newest": 5.0, "sum": 3.0, "bars": 3.0}
    assert stats.take() == {}


def test_channels_are_checked_and_drained():
    one = Channel("6f0a9a3c-1d1e-4b6a-9a53-2f1f6b1f5c11")
    one.send(b"a")
    assert drain([one]) == [part(one.channel_id, b"a")] and drain([one]) == []
    with pytest.raises(ConfigError, match="is no GUID"):
        Channel("goals")
    with pytest.raises(ConfigError, match="have the id"):
        SideChannels(Stats(), [one, one])
    with pytest.raises(ConfigError, match="have the id"):
        SideChannels(Stats(), [Channel(ENGINE)])
    with pytest.raises(ConfigError, match="is no side channel"):
        SideChannels(Stats(), ["goals"])
