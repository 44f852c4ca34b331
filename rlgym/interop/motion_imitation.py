"""Policies of google-research/motion_imitation (motion_imitation 0.0.6) as policies of ours.

    from rlgym.interop.motion_imitation import load_policy

    policy = load_policy("dog_pace.zip")              # policy.act(obs), obs of spec="reference"

Such a file is what Stable-Baselines 2 saved: a zip whose member `parameters` is an npz of plain
arrays, 160 - 512 - 256 - 12 with ReLU for the actor and - 1 for the critic. The other member with
content, `data`, holds pickles and is never looked at. Nothing else of that project is read here.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from rlgym.config import NetworkConfig
from rlgym.errors import CheckpointError
from rlgym.interop.sb3_actor_critic import read_actor_critic
from rlgym.interop.sb3_parameters import Parameters
from rlgym.interop.torch_tensors import open_zip, read_member
from rlgym.spaces import Layout
from rlgym.training.loaded import LoadedPolicy

NUM_OBS, NUM_ACTIONS = 160, 12
"""Of the quadrupeds of that project."""
ACTION_BOUND = 6.28318548203
"""rad, around the default pose."""
STD = 0.125
"""rad, the fixed deviation of its policies (learning/imitation_policies.py)."""
MAX_BYTES = 64 * 1024**2
"""Of the parameters; those that were published have 1.7 MB."""

LAYERS = {
    "pi_fc0": "mlp_extractor.policy_net.0",
    "pi_fc1": "mlp_extractor.policy_net.2",
    "pi": "action_net",
    "vf_fc0": "mlp_extractor.value_net.0",
    "vf_fc1": "mlp_extractor.value_net.2",
    "vf": "value_net",
}
"""Layer there -> the same layer in the words of `read_actor_critic`."""


def load_policy(path: str | Path, *, device: str = "cpu") -> LoadedPolicy:
    """Load a published policy, or one that was trained with the original code.

    Args:
        path: the zip file, such as data/policies/dog_pace.zip in the package's sdist.
        device: where it computes.

    Returns:
        A policy on `Box(160)` whose deterministic action is the original's mean, clipped to
        `ACTION_BOUND`.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file; the sdist of motion_imitation 0.0.6 has policies in "
            "motion_imitation/data/policies (pip download --no-binary :all: --no-deps)"
        )
    arrays = read_arrays(path)
    tensors = {}
    for theirs, ours in LAYERS.items():
        for kind, name in (("weight", f"model/{theirs}/w:0"), ("bias", f"model/{theirs}/b:0")):
            if name not in arrays:
                raise CheckpointError(f"{path} has no parameter {name}: it holds no such policy")
            tensors[f"{ours}.{kind}"] = torch.tensor(arrays[name].T)
    tensors["log_std"] = torch.full((NUM_ACTIONS,), math.log(STD))
    spaces: dict[str, Any] = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (NUM_OBS,), np.float32),
        "action_space": gymnasium.spaces.Box(
            -ACTION_BOUND, ACTION_BOUND, (NUM_ACTIONS,), np.float32
        ),
    }
    layouts = Layout(spaces["observation_space"]), Layout(spaces["action_space"])
    settings = NetworkConfig(activation="relu", privileged=())
    policy, _ = read_actor_critic(Parameters(tensors, path), layouts, settings)
    return LoadedPolicy(policy.to(device), **spaces)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a model file of Stable-Baselines 2; nothing is unpickled.

    Raises:
        CheckpointError: it is no such file, is damaged, or holds anything but float32 arrays.
    """
    source = str(path)
    with open(path, "rb") as file, open_zip(file, source) as archive:
        if "parameters" not in archive.namelist():
            raise CheckpointError(
                f"{path} holds no model of Stable-Baselines 2 (parameters): give a zip file such "
                "as motion_imitation/data/policies/dog_pace.zip"
            )
        content = io.BytesIO(read_member(archive, "parameters", MAX_BYTES, source))
    inside = f"{path}: parameters"
    with open_zip(content, inside) as archive:
        return {
            name.removesuffix(".npy"): _read_array(
                read_member(archive, name, MAX_BYTES, inside), f"{inside}: {name}"
            )
            for name in archive.namelist()
        }


def _read_array(content: bytes, source: str) -> np.ndarray:
    """Read one .npy of float32 whose header claims exactly the numbers that are there."""
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise CheckpointError(f"{source} is not an array ({error}): copy the file again") from None
    count = math.prod(shape)
    if dtype != np.float32 or fortran or count * 4 != len(content) - file.tell():
        raise CheckpointError(
            f"{source} claims {shape} numbers of {dtype} and has {len(content) - file.tell()} "
            "bytes: copy the file again"
        )
    return np.frombuffer(content, np.float32, offset=file.tell()).reshape(shape)
