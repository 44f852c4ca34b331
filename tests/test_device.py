"""Devices: what a person asks for, and what is there."""

import pytest
import torch

from rlgym import device
from rlgym.errors import DeviceError


def test_cpu_is_always_there() -> None:
    assert device.resolve("cpu") == torch.device("cpu")
    assert device.available()[-1] == "cpu"
    device.synchronize(torch.device("cpu"))


def test_auto_takes_the_best() -> None:
    assert device.resolve("auto") == torch.device(device.available()[0])


def test_absent_device_lists_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available", lambda: ["cuda:0", "cpu"])
    assert device.resolve("cuda") == torch.device("cuda")
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
