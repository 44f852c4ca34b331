"""What stands between an observation and the towers: inputs, encoders, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlgym.agents.normalize import RunningMeanStd
from rlgym.agents.towers import HIDDEN_GAIN
from rlgym.config import NetworkConfig
from rlgym.device import constant
from rlgym.errors import UserError
from rlgym.spaces import Layout, Leaf, Tree

SMALL_IMAGE = 36
"""Pixels per side under which Nature DQN's strides leave nothing."""

Inputs = dict[str, Tensor]
"""Prepared observations, rows first: "vector", "privileged", and one uint8 entry per image."""


@contextmanager
def seeded(seed: int | torch.Generator) -> Iterator[None]:
    """Let new weights depend on `seed` alone; the global generator is left as it was."""
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a QR of 64 x 64 takes 0.1 ms so, and up to 100 ms on a busy core
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def orthogonal(module: nn.Module, gain: float) -> nn.Module:
    """Give a layer orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) and zero biases."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.orthogonal_(parameter, gain)
        elif "bias" in name:
            nn.init.zeros_(parameter)
    return module


# ------------------------------------------------------------------------------------- inputs


class Preparation(nn.Module):
    """Turn a tree of observations into rows that a network takes; it has nothing to learn.

    Box leaves are normalised (with `cfg.normalize_obs`) and flattened, Discrete and MultiDiscrete
    ones become one-hot (their `start` subtracted), MultiBinary ones floats; in leaf order they
    make up "vector", or "privileged" for the keys that only the critic sees. Images stay uint8.

    Args:
        layout: leaves of the observation space.
        cfg: `normalize_obs`, `obs_clip`, `privileged`.
        as_leaves: keep one entry per leaf in its own shape, for a user's own network.

    Raises:
        UserError: when every leaf is privileged.
    """

    def __init__(self, layout: Layout, cfg: NetworkConfig, as_leaves: bool = False) -> None:
        super().__init__()
        self.layout = layout
        self.as_leaves = as_leaves
        self.hidden_from_actor = {
            leaf.key: not layout.single
            and (leaf.key in cfg.privileged or str(leaf.path[0]) in cfg.privileged)
            for leaf in layout.leaves
        }
        if all(self.hidden_from_actor.values()):
            raise UserError(
                f"every observation is privileged ({', '.join(self.hidden_from_actor)}): "
                "leave the actor at least one, with --network.privileged"
            )
        self.obs_norm = nn.ModuleDict()
        for i, leaf in enumerate(layout.leaves):
            if cfg.normalize_obs and isinstance(leaf.space, spaces.Box) and not leaf.is_image:
                self.obs_norm[_norm_name(i, leaf)] = RunningMeanStd(leaf.shape, cfg.obs_clip)
        self._norm_of: dict[str, Any] = {
            leaf.key: self.obs_norm[_norm_name(i, leaf)]
            for i, leaf in enumerate(layout.leaves)
            if _norm_name(i, leaf) in self.obs_norm
        }
        vectors = [leaf for leaf in layout.leaves if not leaf.is_image]
        self.vector = [leaf for leaf in vectors if not self.hidden_from_actor[leaf.key]]
        self.privileged = [leaf for leaf in vectors if self.hidden_from_actor[leaf.key]]
        self.images = [leaf for leaf in layout.leaves if leaf.is_image]
        self.vector_size = sum(_width(leaf) for leaf in self.vector)
        self.privileged_size = sum(_width(leaf) for leaf in self.privileged)
        leaf = layout.leaves[0]
        self._is_identity = (  # rows of floats already; a step should not pay for finding out
            layout.single
            and not self.obs_norm
            and not as_leaves
            and isinstance(leaf.space, spaces.Box)
            and leaf.dtype.kind == "f"
            and len(leaf.shape) == 1
        )

    def forward(self, obs: Tree[Tensor]) -> Inputs:
        """Prepare (B, ...) or (T, N, ...) observations; leading axes become one axis of rows."""
        if self._is_identity and obs.dim() == 2:  # type: ignore[union-attr]
            return {"vector": obs}  # type: ignore[dict-item]
        if self.as_leaves:
            return {leaf.key: self._leaf(leaf, _part(obs, leaf)) for leaf in self.layout.leaves}
        inputs = {}
        if self.vector:
            inputs["vector"] = self._rows(self.vector, obs)
        if self.privileged:
            inputs["privileged"] = self._rows(self.privileged, obs)
        for leaf in self.images:
            inputs[f"image:{leaf.key}"] = _part(obs, leaf).reshape(-1, *leaf.shape)
        return inputs

    @torch.no_grad()
    def update_normalizers(self, obs: Tree[Tensor], weights: Tensor) -> None:
        """Merge a rollout's observations (T, N, ...) where `weights` (T, N) is not 0."""
        for leaf in self.layout.leaves:
            if leaf.key in self._norm_of:
                self._norm_of[leaf.key].update(_part(obs, leaf), weights)

    def _rows(self, leaves: list[Leaf], obs: Tree[Tensor]) -> Tensor:
        columns = [_columns(leaf, self._leaf(leaf, _part(obs, leaf))) for leaf in leaves]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _leaf(self, leaf: Leaf, values: Tensor) -> Tensor:
        if len(values.shape) != 1 + len(leaf.shape):
            values = values.reshape(-1, *leaf.shape)
        if leaf.key in self._norm_of:
            return self._norm_of[leaf.key].normalize(values)
        return values


def _norm_name(index: int, leaf: Leaf) -> str:
    # ModuleDict refuses dots and the names of its own methods; the index keeps names apart
    return f"{index}_{(leaf.key or 'value').replace('.', '_')}"


def _part(tree: Tree[Tensor], leaf: Leaf) -> Tensor:
    return tree[leaf.key] if isinstance(tree, dict) else tree


def _width(leaf: Leaf) -> int:
    return sum(leaf.num_choices) or math.prod(leaf.shape)


def _columns(leaf: Leaf, values: Tensor) -> Tensor:
    """One leaf's rows as (B, width) floats."""
    if leaf.num_choices:
        values = from_zero(leaf, values.reshape(len(values), -1))
        return torch.cat([one_hot(values[:, i], n) for i, n in enumerate(leaf.num_choices)], 1)
    return values.reshape(len(values), -1).to(torch.float32)


def from_zero(leaf: Leaf, choices: Tensor) -> Tensor:
    """(B, n) values of a leaf's choices, as numbers from 0 on."""
    start = tuple(np.reshape(leaf.start, -1).tolist())
    return choices - constant(start, torch.int64, choices.device) if any(start) else choices


def one_hot(values: Tensor, num_choices: int) -> Tensor:
    """(B,) integers as (B, num_choices) floats; torch's own reads the values back."""
    choices = torch.arange(num_choices, device=values.device)
    return (values.unsqueeze(-1) == choices).to(torch.float32)


# ----------------------------------------------------------------------------------- encoders


class ImageEncoder(nn.Module):
    """Features of a uint8 image, (H, W, C) or (C, H, W): the smaller end is taken for channels.

    `nature` is the network of Mnih et al. 2015 (doi 10.1038/nature14236, Methods); `small`, two
    3x3 layers, also takes the place of `nature` where a side has fewer than 36 pixels.
    """

    def __init__(self, shape: tuple[int, int, int], kind: str) -> None:
        super().__init__()
        self.channels_last = shape[2] < shape[0]
        height, width, channels = shape if self.channels_last else (shape[1], shape[2], shape[0])
        if kind == "nature" and min(height, width) >= SMALL_IMAGE:
            plan, self.size = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)), 512
        else:
            plan, self.size = ((16, 3, 1, 1), (32, 3, 2, 1)), 128
        layers: list[nn.Module] = []
        for filters, kernel, stride, padding in plan:
            layers += [nn.Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
            channels = filters
        layers += [nn.Flatten(), nn.Linear(channels * height * width, self.size), nn.ReLU()]
        self.layers = orthogonal(nn.Sequential(*layers), HIDDEN_GAIN)

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) uint8 to (B, size)."""
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        return self.layers(images.to(torch.float32) / 255.0)


class Encoder(nn.Module):
    """Prepared inputs to features: vectors as they are, each image through its own network."""

    def __init__(self, preparation: Preparation, kind: str) -> None:
        super().__init__()
        self.actor_size = preparation.vector_size
        self.critic_size = preparation.privileged_size
        self._actor_parts = ["vector"] if preparation.vector else []
        self._critic_parts = ["privileged"] if preparation.privileged else []
        self.image_encoders = nn.ModuleList()
        self._encoder_of: dict[str, int] = {}
        for i, leaf in enumerate(preparation.images):
            encoder = ImageEncoder(leaf.shape, kind)  # type: ignore[arg-type]
            self.image_encoders.append(encoder)
            name = f"image:{leaf.key}"
            self._encoder_of[name] = i
            if preparation.hidden_from_actor[leaf.key]:
                self._critic_parts.append(name)
                self.critic_size += encoder.size
            else:
                self._actor_parts.append(name)
                self.actor_size += encoder.size

    def actor(self, inputs: Inputs) -> Tensor:
        """(B, actor_size): what the actor sees."""
        return self._join(self._actor_parts, inputs)

    def critic(self, inputs: Inputs) -> Tensor | None:
        """(B, critic_size): what only the critic sees; None when there is nothing."""
        return self._join(self._critic_parts, inputs) if self._critic_parts else None

    def _join(self, parts: list[str], inputs: Inputs) -> Tensor:
        if not self._encoder_of and len(parts) == 1:
            return inputs[parts[0]]
        features = [
            self.image_encoders[self._encoder_of[name]](inputs[name])
            if name in self._encoder_of
            else inputs[name]
            for name in parts
        ]
        return features[0] if len(features) == 1 else torch.cat(features, 1)


# ------------------------------------------------------------------------------------- memory


class Memory(nn.Module):
    """A GRU or LSTM whose state starts from zero wherever an episode starts.

    The state is one tensor (N, state_size): a GRU's hidden vector, or an LSTM's hidden and cell
    vectors side by side.
    """

    def __init__(self, kind: str, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.is_lstm = kind == "lstm"
        self.state_size = 2 * size if self.is_lstm else size
        cell = nn.LSTMCell(inputs, size) if self.is_lstm else nn.GRUCell(inputs, size)
        self.cell = orthogonal(cell, 1.0)

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            features: (T, N, inputs).
            state: (N, state_size) before the first step.
            start: (T, N) bool, True where the row is its episode's first.

        Returns:
            (T, N, size) outputs and the (N, state_size) state after the last step.
        """
        keep = (~start).to(features.dtype).unsqueeze(-1)
        outputs = []
        for t in range(len(features)):
            state = state * keep[t]
            if self.is_lstm:
                hidden, cell = self.cell(features[t], state.chunk(2, -1))
                state = torch.cat((hidden, cell), -1)
            else:
                hidden = state = self.cell(features[t], state)
            outputs.append(hidden)
        return torch.stack(outputs), state
