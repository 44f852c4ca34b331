"""Devices: what a person asks for, and what is there."""

import pytest
import torch

from rlgym import device
from rlgym.device import WARM_UP, GraphedFn
from rlgym.errors import DeviceError
from tests import tape


def test_cpu_is_always_there() -> None:
    assert device.resolve("cpu") == torch.device("cpu")
    assert device.available()[-1] == "cpu"
    device.synchronize(torch.device("cpu"))


def test_auto_takes_the_best() -> None:
    assert device.resolve("auto") == torch.device(device.available()[0])


def test_auto_takes_the_accelerator_that_the_process_has_taken(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 2)
    assert device.available() == ["cuda:2", "cuda:0", "cuda:1", "cpu"]
    assert device.resolve("auto") == torch.device("cuda:2")
    assert device.resolve("cuda") == torch.device("cuda:2")
    assert device.resolve("cuda:1") == torch.device("cuda:1")


def test_absent_device_lists_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available", lambda: ["cuda:0", "cpu"])
    assert device.resolve("cuda") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match=r"'cuda:7' is not there: this machine has cuda:0, cpu"):
        device.resolve("cuda:7")
    with pytest.raises(DeviceError, match="'mps' is not there"):
        device.resolve("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:-1"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        device.resolve(name)


def test_pinning_is_free_on_the_cpu() -> None:
    tensor = torch.zeros(3)
    assert device.pin(tensor, torch.device("cpu")) is tensor


def test_double_precision_is_found_out_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.has_float64(torch.device("cpu"))

    def refuse(*args: object, dtype: torch.dtype, **kwargs: object) -> None:
        raise TypeError(f"this device has no {dtype}")

    monkeypatch.setattr(torch, "ones", refuse)
    assert not device.has_float64(torch.device("cpu", 7))  # another key than the one remembered


# ----- GraphedFn ---------------------------------------------------------------------------------

CPU = torch.device("cpu")


def test_without_graphs_a_function_runs_as_it_is(capfd):
    graphed = GraphedFn(lambda x: x * 2, CPU)
    assert graphed.mode == "eager"
    assert graphed(torch.ones(2)).tolist() == [2.0, 2.0]
    assert capfd.readouterr().err == ""
    asked = GraphedFn(lambda x: x * 2, CPU, "graph", name="the rollout")
    assert asked(torch.ones(2)).tolist() == [2.0, 2.0]
    assert "the rollout is not a graph, it runs as it is: cpu has no graphs" in (
        capfd.readouterr().err
    )


def test_a_recorded_function_is_replayed_on_new_inputs(monkeypatch):
    recorded = tape.with_graphs(monkeypatch)
    total = torch.zeros(2)
    calls = []

    def add(batch):
        calls.append(1)
        return {"sum": total.add_(batch["x"]), "twice": batch["x"] * 2}

    graphed = GraphedFn(add, CPU)
    for value in range(1, 8):
        out = graphed({"x": torch.full((2,), float(value))})
        assert out["twice"].tolist() == [2.0 * value] * 2
    assert total.tolist() == [28.0, 28.0]
    assert len(recorded) == 1
    assert len(calls) == WARM_UP + 1  # Python is not asked again


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(monkeypatch, capfd):
    tape.with_graphs(monkeypatch)
    graphed = GraphedFn(lambda x: x * x.sum().item(), CPU, name="a reader")
    for _ in range(6):
        assert graphed(torch.ones(2)).tolist() == [2.0, 2.0]
    assert graphed.mode == "eager"
    assert capfd.readouterr().err.count("a reader is not a graph") == 1


def test_a_known_obstacle_is_said(monkeypatch, capfd):
    recorded = tape.with_graphs(monkeypatch)
    graphed = GraphedFn(lambda x: x, CPU, name="the rollout", obstacle="the world reads back")
    for _ in range(6):
        graphed(torch.ones(1))
    assert not recorded
    assert "runs as it is: the world reads back" in capfd.readouterr().err


def test_the_tape_freezes_what_python_counts(monkeypatch):
    """Or it would not show what a graph does to such a function."""
    tape.with_graphs(monkeypatch)
    count = [0]

    def wrong(x):
        count[0] += 1
        return x + count[0]

    graphed = GraphedFn(wrong, CPU)
    outs = [graphed(torch.zeros(1)).item() for _ in range(7)]
    assert outs == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]


@pytest.mark.slow
def test_compiled_functions_give_the_same():
    graphed = GraphedFn(lambda x: torch.sin(x) * 2 + 1, CPU, "compile")
    x = torch.linspace(0, 1, 50)
    torch.testing.assert_close(graphed(x), torch.sin(x) * 2 + 1)
