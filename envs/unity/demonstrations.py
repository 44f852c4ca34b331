"""Unity's .demo files: what somebody did in a scene, as its DemonstrationRecorder writes it.

    recording = read("Ball.demo")          every record, with the action that was taken in it
    write("Ball.demo", recording)

A file is a DemonstrationMetaProto, padded to 33 bytes, a BrainParametersProto, and then one
AgentInfoActionPairProto per decision, each after its length. The action in a record is the one that
the agent took *before* it observed what the record shows: Unity records an agent when it asks for a
decision, and what it then does stands in the next record. `read` puts the two together again.
(Unity's own trainer does not, and so clones each action one decision late.)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlgym.envs.unity import messages
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.frames import BehaviorSpec, ObservationSpec
from rlgym.errors import UserError, WorldError
from rlgym.spaces import Layout

VERSIONS = (0, 1)
"""Numbers of the format that this reader knows."""
BRAIN_AT = 33
"""Byte at which the description of the behaviour begins."""
NAME_LENGTH = 16
"""Characters of a recording's name; longer ones would reach into the description."""
CHUNK = 256
"""Records that are decoded at a time."""
LARGEST_PICTURE = 1 << 24
"""Values of a compressed observation; more of them are taken for damage."""
_PNG = 1  # of CompressionTypeProto


@dataclass
class Recording:
    """What one agent saw and did, decision after decision, episode after episode (R rows)."""

    spec: BehaviorSpec
    obs: list[np.ndarray]
    """One (R, *decoded_shape) array for each of the spec's observations."""
    rewards: np.ndarray
    """(R,) float32: since the row before, the group's included."""
    done: np.ndarray
    """(R,) bool: the episode is over with this row; nothing is done in it."""
    interrupted: np.ndarray
    """(R,) bool: where done, because a limit of steps was reached."""
    continuous: np.ndarray
    """(R, continuous) float32: taken in this row; zeros where it is not known."""
    discrete: np.ndarray
    """(R, number of branches) int32, likewise."""
    masks: np.ndarray | None = None
    """(R, choices) bool, True = allowed; None without discrete actions."""

    @property
    def known(self) -> np.ndarray:
        """(R,) bool: the row's action and what followed are known."""
        return ~self.done & (np.arange(len(self.done)) < len(self.done) - 1)


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording; nothing in it is run.

    Raises:
        UserError: there is no such file, or it is no recording.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    try:
        brain, pairs = _parse(data)
        return _recording(path, brain, pairs)
    except (ValueError, WorldError) as error:
        raise UserError(f"{path} is no .demo that can be read ({error}): record it again") from None


def write(path: str | os.PathLike[str], recording: Recording, name: str = "rlgym") -> None:
    """Write a recording that `read`, and Unity's own trainer, read.

    Args:
        path: a file that is there is replaced.
        recording: whole; its actions are written where Unity writes them.
        name: of the demonstration; letters and digits, the first 16 of them.
    """
    spec = recording.spec
    meta = messages.message("DemonstrationMetaProto")(
        api_version=VERSIONS[-1],
        demonstration_name=re.sub(r"\W", "", name, flags=re.ASCII)[:NAME_LENGTH],
        number_steps=len(recording.done),
        number_episodes=int(recording.done.sum()) + 1,  # Unity counts one more as it closes
    )
    meta.mean_reward = float(recording.rewards.sum()) / meta.number_episodes
    brain = messages.message("BrainParametersProto")(brain_name=spec.name)
    brain.action_spec.num_continuous_actions = spec.continuous
    brain.action_spec.num_discrete_actions = len(spec.branches)
    brain.action_spec.discrete_branch_sizes.extend(spec.branches)
    head = _delimited(meta)
    parts = [head, bytes(BRAIN_AT - len(head)), _delimited(brain)]
    parts += [_delimited(_pair(recording, row)) for row in range(len(recording.done))]
    parts.append(meta.SerializeToString())  # Unity leaves it there, too
    Path(path).write_bytes(b"".join(parts))


def arrays_of(
    files: Sequence[str | os.PathLike[str]], obs: Layout, actions: Layout
) -> dict[str, np.ndarray]:
    """Steps of all files, under the names of `rlgym.rollout.demonstrations`.

    Args:
        files: recordings of the same behaviour.
        obs: layout of the world's observations: one, or obs_0, obs_1, ... in Unity's order.
        actions: layout of its actions: one, or "continuous" and "discrete".

    Raises:
        UserError: a file is no recording, or is of other sensors or actions than the world's.
    """
    parts: list[dict[str, np.ndarray]] = []
    for file in files:
        recording = read(file)
        steps = np.flatnonzero(recording.known)
        if len(steps):
            _check(file, recording.spec, obs, actions)
            parts.append(_steps(recording, steps, obs, actions))
    if not parts:
        raise UserError(f"{files[0]} shows no step from one decision to the next: record longer")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ------------------------------------------------------------------------------------- reading


def _parse(data: bytes) -> tuple[Any, list[Any]]:
    """The description of the behaviour, and the records."""
    if len(data) <= BRAIN_AT:
        raise ValueError("it is too short")
    meta, _ = _message(data, 0, "DemonstrationMetaProto")
    if meta.api_version not in VERSIONS:
        raise ValueError(f"its format is version {meta.api_version}, known are 0 and 1")
    brain, at = _message(data, BRAIN_AT, "BrainParametersProto")
    pairs: list[Any] = []
    # a recording that broke off counts no steps, and nothing follows its last record
    while at < len(data) and (not meta.number_steps or len(pairs) < meta.number_steps):
        try:
            pair, at = _message(data, at, "AgentInfoActionPairProto")
        except ValueError:
            if meta.number_steps or not pairs:
                raise
            break
        pairs.append(pair)
    if not pairs or len(pairs) < meta.number_steps:
        raise ValueError(f"it has {len(pairs)} of {meta.number_steps} steps")
    return brain, pairs


def _message(data: bytes, at: int, kind: str) -> tuple[Any, int]:
    """A message with its length before it, and where the next one begins."""
    size = shift = 0
    while True:
        if at >= len(data) or shift > 28:
            raise ValueError("it is cut short")
        byte = data[at]
        size |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    if at + size > len(data):
        raise ValueError("it is cut short")
    try:
        return messages.message(kind).FromString(data[at : at + size]), at + size
    except Exception as error:  # protobuf's own class is not public in every release
        raise ValueError(f"its {kind} is damaged") from error


def _recording(path: Path, brain: Any, pairs: list[Any]) -> Recording:
    """Decode the records as if a player had sent them, and give each its action."""
    _check_sizes(pairs[0].agent_info.observations)
    codec, name = Codec(str(path)), brain.brain_name
    batches = []
    for message in _as_messages(brain, [pair.agent_info for pair in pairs]):
        batch = codec.decode(message).batches[name]
        masks = None if batch.masks is None else batch.masks.copy()
        reward = batch.reward + batch.group_reward
        flags = batch.done.copy(), batch.interrupted.copy()
        batches.append(([obs.copy() for obs in batch.obs], reward, *flags, masks))
    obs, rewards, done, interrupted, masks = zip(*batches, strict=True)
    spec = codec.specs[name]
    continuous, discrete = _actions(spec, [pair.action_info for pair in pairs])
    return Recording(
        spec,
        [np.concatenate(parts) for parts in zip(*obs, strict=True)],
        np.concatenate(rewards),
        np.concatenate(done),
        np.concatenate(interrupted),
        _one_earlier(continuous),
        _one_earlier(discrete),
        None if masks[0] is None else np.concatenate(masks),
    )


def _check_sizes(observations: Any) -> None:
    """Refuse shapes that the file does not fill, before there are arrays of them."""
    if not observations:
        raise ValueError("its records show no observations, as of packages before 1.0")
    for obs in observations:
        size = math.prod(obs.shape)
        if obs.compression_type and size > LARGEST_PICTURE:
            raise ValueError(f"observation '{obs.name}' is said to be a picture of {size} values")
        if not obs.compression_type and size != len(obs.float_data.data):
            raise ValueError(
                f"observation '{obs.name}' has {len(obs.float_data.data)} values in the shape "
                f"{list(obs.shape)}"
            )


def _as_messages(brain: Any, infos: list[Any]) -> Iterator[bytes]:
    kind = messages.message("UnityMessageProto")
    for begin in range(0, len(infos), CHUNK):
        message = kind()
        output = message.unity_output
        if not begin:
            output.rl_initialization_output.brain_parameters.add().CopyFrom(brain)
        output.rl_output.agentInfos[brain.brain_name].value.extend(infos[begin : begin + CHUNK])
        yield message.SerializeToString()


def _actions(spec: BehaviorSpec, infos: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(R, continuous) and (R, branches) as they stand in the records."""
    continuous = np.zeros((len(infos), spec.continuous), np.float32)
    discrete = np.zeros((len(infos), len(spec.branches)), np.int32)
    for row, info in enumerate(infos):
        both = list(info.continuous_actions), list(info.discrete_actions)
        if info.vector_actions_deprecated and not any(both):  # packages before 2.0
            old = list(info.vector_actions_deprecated)
            both = (old, []) if spec.continuous else ([], old)
        for array, values in zip((continuous, discrete), both, strict=True):
            if len(values) not in (0, array.shape[1]):  # an agent that never acted has none
                raise ValueError(f"record {row} has {len(values)} actions, not {array.shape[1]}")
            array[row, : len(values)] = values
    if (discrete < 0).any() or (discrete >= np.reshape(spec.branches, (1, -1))).any():
        raise ValueError("it shows choices that its branches do not have")
    return continuous, discrete


def _one_earlier(actions: np.ndarray) -> np.ndarray:
    """Give each row the action that stands in the next one."""
    return np.concatenate((actions[1:], np.zeros_like(actions[:1])))


def _steps(
    recording: Recording, steps: np.ndarray, obs: Layout, actions: Layout
) -> dict[str, np.ndarray]:
    after = steps + 1
    done, interrupted = recording.done[after], recording.interrupted[after]
    arrays = {
        "rewards": recording.rewards[after],
        "terminated": done & ~interrupted,
        # the last step of a file was cut there, when nothing had ended
        "truncated": (done & interrupted) | (~done & (after == len(recording.done) - 1)),
    }
    for name, rows in (("observations", steps), ("next_observations", after)):
        for leaf, array in zip(_sensors(obs), recording.obs, strict=True):
            arrays[f"{name}/{leaf.key}" if leaf.key else name] = array[rows]
    for leaf in actions.leaves:
        taken = recording.continuous if leaf.dtype.kind == "f" else recording.discrete
        values = taken[steps].reshape(len(steps), *leaf.shape)
        arrays[f"actions/{leaf.key}" if leaf.key else "actions"] = values
    if recording.masks is not None:
        arrays["action_masks"] = recording.masks[steps]
    return arrays


def _sensors(layout: Layout) -> list[Any]:
    """The leaves in Unity's order: obs_10 after obs_2."""
    return sorted(layout.leaves, key=lambda leaf: (len(leaf.key), leaf.key))


def _check(file: Any, spec: BehaviorSpec, obs: Layout, actions: Layout) -> None:
    shown = [one.decoded_shape for one in spec.observations]
    wanted = [leaf.shape for leaf in _sensors(obs)]
    if shown != wanted:
        raise UserError(
            f"{file} shows observations of the shapes {shown}, this world has {wanted}: record "
            "the scene that you train in, with its sensors"
        )
    boxes = sum(int(np.prod(leaf.shape)) for leaf in actions.leaves if leaf.dtype.kind == "f")
    sizes = tuple(n for leaf in actions.leaves for n in leaf.num_choices)
    if (spec.continuous, spec.branches) != (boxes, sizes):
        raise UserError(
            f"{file} shows {spec.continuous} continuous actions and the branches "
            f"{list(spec.branches)}, this world has {boxes} and {list(sizes)}: record the scene "
            "that you train in"
        )


# ------------------------------------------------------------------------------------- writing


def _delimited(message: Any) -> bytes:
    data = message.SerializeToString()
    size, head = len(data), bytearray()
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes((*head, size)) + data


def _pair(recording: Recording, row: int) -> Any:
    """One record: what is seen in a row, and what was done in the row before."""
    pair = messages.message("AgentInfoActionPairProto")()
    info, spec = pair.agent_info, recording.spec
    info.reward = float(recording.rewards[row])
    info.done = bool(recording.done[row])
    info.max_step_reached = bool(recording.interrupted[row])
    info.id = 1
    if recording.masks is not None and not recording.masks[row].all():
        info.action_mask.extend((~recording.masks[row]).tolist())
    for one, array in zip(spec.observations, recording.obs, strict=True):
        _write_observation(info.observations.add(), one, array[row])
    begins = row == 0 or recording.done[row - 1]
    for name, actions in (("continuous", recording.continuous), ("discrete", recording.discrete)):
        taken = np.zeros_like(actions[row]) if begins else actions[row - 1]
        getattr(pair.action_info, f"{name}_actions").extend(taken.tolist())
    return pair


def _write_observation(target: Any, spec: ObservationSpec, value: np.ndarray) -> None:
    target.name = spec.name
    target.shape.extend(spec.shape)
    target.dimension_properties.extend(spec.dimension_properties)
    target.observation_type = int(spec.goal)
    rows = value.transpose(1, 2, 0) if len(spec.shape) == 3 else value
    if not spec.compressed:
        data = rows if spec.order == "HWC" else value
        target.float_data.data.extend(data.astype(np.float32).reshape(-1).tolist())
        return
    target.compression_type = _PNG
    for begin in range(0, rows.shape[2], 3):  # up to three channels in each picture
        picture = np.zeros((*rows.shape[:2], 3), np.uint8)
        channels = rows[:, :, begin : begin + 3]
        picture[:, :, : channels.shape[2]] = channels
        if rows.shape[2] == 1:  # a reader takes the average of the three
            picture[:] = channels
        png = BytesIO()
        Image.fromarray(picture).save(png, "png")
        target.compressed_data += png.getvalue()
