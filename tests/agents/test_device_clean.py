"""The learner never reads the device and never makes a shape depend on data."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from rlgym.config import NetworkConfig, PPOConfig

READS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "equal",
)


class DeviceClean(TorchDispatchMode):
    """Count operations that make the host wait for a device, or that break a captured graph."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = (
            [a for a in args[1] if a is not None]
            if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple))
            else []
        )
        if name in READS or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


OBS = spaces.Box(-1, 1, (4,), np.float32)
CASES = {
    "discrete with masks": (OBS, spaces.Discrete(3), {}),
    "normalised torques": (OBS, spaces.Box(-1, 1, (2,), np.float32), {"normalize_obs": True}),
    "squashed": (OBS, spaces.Box(-1, 1, (2,), np.float32), {"squash": True}),
    "gsde": (OBS, spaces.Box(-1, 1, (2,), np.float32), {"std": "gsde"}),
    "memory": (OBS, spaces.MultiDiscrete([2, 3]), {"recurrent": "lstm"}),
    "dict with an image": (
        spaces.Dict({"eye": spaces.Box(0, 255, (16, 16, 3), np.uint8), "room": spaces.Discrete(3)}),
        spaces.Dict({"lamps": spaces.MultiBinary(2), "arm": spaces.Box(-1, 1, (2,), np.float32)}),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_and_a_step_read_nothing_back(rollout, case):
    obs_space, action_space, network = CASES[case]
    net = NetworkConfig(hidden=(16,), recurrent_size=8, **network)
    cfg = PPOConfig(minibatch_size=24, epochs=2, entropy_coef=0.01, value_clip=0.2)
    learner, buffer, generator = rollout(
        obs_space, action_space, net, cfg, num_steps=8, masks="masks" in case
    )
    buffer.active[2, 1] = False
    policy = learner.policy
    noise = policy.noise(2, 4, generator)
    mask = None if buffer.all_masks is None else buffer.all_masks[-1]
    with DeviceClean() as mode:
        learner.update(buffer, 0.1, generator)
        policy.act(buffer.last_obs, noise[0], policy.initial_state(4), buffer.last_start, mask)
    assert mode.found == []


def test_target_kl_reads_once_per_epoch(rollout):
    cfg = PPOConfig(minibatch_size=16, epochs=3, target_kl=1e9)
    learner, buffer, generator = rollout(OBS, spaces.Discrete(3), algo=cfg)
    with DeviceClean() as mode:
        learner.update(buffer, 0.1, generator)
    assert mode.found == ["is_nonzero"] * 3


@pytest.mark.parametrize(
    "dirty",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, 1.0) if (x > 0).any() else None,
        lambda x: x.unique(),
    ],
)
def test_the_check_can_fail(dirty):
    with DeviceClean() as mode:
        dirty(torch.randn(20))
    assert mode.found
