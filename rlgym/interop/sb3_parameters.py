"""What all of SB3's networks have in common with ours: layers by name, features, images.

Ours keep the layers of several networks in one array, so all have the same widths; a narrower layer
of SB3's is filled up with zeros. That is exact and stays so: tanh, ReLU, ELU and SiLU are 0 at 0,
so a unit without weights gives nothing and gets no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.networks import Encoder
from rlgym.errors import CheckpointError
from rlgym.settings import short
from rlgym.spaces import Layout

Linear = tuple[Tensor, Tensor]
"""Weight (outputs, inputs) and bias (outputs,), as nn.Linear and nn.Conv2d have them."""

MAX_PADDING = 16
"""How much larger than the file's networks ours may get by being filled up with zeros."""
IMAGE_LAYERS = {"cnn.0": 0, "cnn.2": 2, "cnn.4": 4, "linear.0": 7}
"""NatureCNN's layers -> their places in our `ImageEncoder.layers`."""
IMAGE_SIZE = 512
"""Features of our encoder of one image."""


class Parameters:
    """A state_dict of SB3's from which every entry must be taken.

    Args:
        tensors: by name.
        source: the file, for errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: Any) -> None:
        self.left = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
        self.source = source

    def take(self, name: str) -> Tensor:
        """Take one entry.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self.left:
            raise CheckpointError(f"{self.source} has no parameter {name}: it is not complete")
        tensor = self.left.pop(name)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{self.source}: {name} holds NaN or infinity: training broke")
        return tensor

    def linear(self, prefix: str) -> Linear:
        """Take one layer.

        Raises:
            CheckpointError: there is none, or its weight and bias do not belong together.
        """
        weight, bias = self.take(f"{prefix}.weight"), self.take(f"{prefix}.bias")
        if weight.dim() not in (2, 4) or bias.shape != weight.shape[:1] or not weight.numel():
            raise CheckpointError(
                f"{self.source}: {prefix} has weights {list(weight.shape)} and biases "
                f"{list(bias.shape)}, which make no layer"
            )
        return weight, bias

    def layers(self, prefix: str) -> list[Linear]:
        """Take `prefix.0`, `prefix.2`, ...: linear layers with an activation after each."""
        found = []
        while f"{prefix}.{2 * len(found)}.weight" in self.left:
            found.append(self.linear(f"{prefix}.{2 * len(found)}"))
        return found

    def discard(self, prefix: str) -> None:
        """Leave out entries that nothing of ours holds."""
        self.left = {n: tensor for n, tensor in self.left.items() if not n.startswith(prefix)}

    def drop_copies(self, copy: str, original: str) -> None:
        """Drop entries that repeat others: SB3 lists what two networks share once for each.

        Raises:
            CheckpointError: they differ.
        """
        for name in [name for name in self.left if name.startswith(copy)]:
            same = self.left.get(original + name.removeprefix(copy))
            if same is None or not torch.equal(same, self.left[name]):
                raise CheckpointError(
                    f"{self.source}: the actor's and the critic's image encoders differ (from "
                    f"{name} on), and ours share one: train it with share_features_extractor=True"
                )
            del self.left[name]

    def finish(self) -> None:
        """Refuse what nobody has taken.

        Raises:
            CheckpointError: names the first such parameter.
        """
        if self.left:
            raise CheckpointError(
                f"{self.source} has the parameter {short(next(iter(self.left)))} "
                f"{list(next(iter(self.left.values())).shape)}, which belongs to no network that "
                "is known here: only MlpPolicy, CnnPolicy and MultiInputPolicy are, without layers "
                "of one's own"
            )


def widths(source: Any, *towers: list[Linear]) -> tuple[int, ...]:
    """Widths of hidden layers that hold each of these networks.

    Raises:
        CheckpointError: they differ in depth, or too much in width.
    """
    depths = {len(tower) for tower in towers}
    if len(depths) > 1:
        raise CheckpointError(
            f"{source} has networks of {' and '.join(map(str, sorted(depths)))} hidden layers, and "
            "ours are equally deep: train it with as many layers in each part of net_arch"
        )
    hidden = tuple(max(len(bias) for _, bias in layer) for layer in zip(*towers, strict=True))
    given = sum(weight.numel() for tower in towers for weight, _ in tower)
    filled = sum(a * b for a, b in pairwise(hidden)) * len(towers)
    if filled > MAX_PADDING * given:
        raise CheckpointError(
            f"{source} has networks whose widths differ too much to lie side by side (together "
            f"{short(hidden)}): train it with similar parts of net_arch"
        )
    return hidden


def width_of(layout: Layout, image_size: int = IMAGE_SIZE) -> int:
    """Columns of one observation's features, or of one action's parameters, in SB3's networks."""
    return sum(
        image_size if leaf.is_image else sum(leaf.num_choices) or math.prod(leaf.shape)
        for leaf in layout.leaves
    )


def columns(layout: Layout, image_size: int = IMAGE_SIZE) -> Tensor:
    """Where each column of SB3's features stands among ours, (SB3's width,).

    SB3's come in the order of the keys; ours put all vectors first, then `IMAGE_SIZE` columns for
    each image, of which SB3 has the first `image_size`.
    """
    parts: dict[str, Tensor] = {}
    at = 0
    for leaf in sorted(layout.leaves, key=lambda leaf: leaf.is_image):  # a stable sort
        width = image_size if leaf.is_image else sum(leaf.num_choices) or math.prod(leaf.shape)
        parts[leaf.key] = torch.arange(at, at + width)
        at += IMAGE_SIZE if leaf.is_image else width
    return torch.cat([parts[leaf.key] for leaf in layout.leaves])


def check_ends(source: Any, name: str, tower: list[Linear], inputs: int, outputs: int) -> None:
    """Refuse a network that does not take and give what the spaces say.

    Raises:
        CheckpointError: says what it takes and what there is.
    """
    before = inputs
    for weight, bias in tower:
        if weight.dim() != 2 or weight.shape[1] != before:
            took = f"takes {weight.shape[1]} numbers where it is given {before}"
            break
        before = len(bias)
    else:
        if before == outputs:
            return
        took = f"gives {before} numbers where the action space asks for {outputs}"
    raise CheckpointError(
        f"{source}: its {name} {took}: give the world that it was trained in, --env ID, with the "
        "same wrappers"
    )


def put(target: Tensor, layer: Tensor, order: Tensor | None = None) -> None:
    """Write weights (outputs, inputs) into a matrix that is as large or larger, zeros elsewhere.

    Args:
        target: ours.
        layer: SB3's.
        order: our columns for SB3's inputs; None: the first ones.
    """
    target.zero_()
    if order is None:
        target[: len(layer), : layer.shape[1]] = layer
    else:
        target[: len(layer), order] = layer


def image_layers(layout: Layout, encoder: Encoder | None, extractor: str) -> dict[str, Any]:
    """SB3's names of the layers of all image encoders -> our layers."""
    images = [leaf for leaf in layout.leaves if leaf.is_image]
    encoders: Any = encoder.image_encoders if encoder is not None else []
    found: dict[str, Any] = {}
    for leaf, own in zip(images, encoders, strict=True):
        prefix = extractor if layout.single else f"{extractor}.extractors.{leaf.key}"
        found |= {f"{prefix}.{name}": own.layers[i] for name, i in IMAGE_LAYERS.items()}
    return found


def has_small_encoder(encoder: Encoder | None) -> bool:
    """Whether an image goes through a network that is not NatureCNN."""
    encoders: Any = encoder.image_encoders if encoder is not None else []
    return any(own.size != IMAGE_SIZE for own in encoders)


def take_images(parameters: Parameters, layout: Layout, extractor: str) -> dict[str, Linear]:
    """Take the layers of SB3's image encoders.

    Raises:
        CheckpointError: it has none, and the world gives images.
    """
    taken: dict[str, Linear] = {}
    for leaf in layout.leaves:
        prefix = extractor if layout.single else f"{extractor}.extractors.{leaf.key}"
        for name in IMAGE_LAYERS if leaf.is_image else ():
            if f"{prefix}.{name}.weight" not in parameters.left:
                raise CheckpointError(
                    f"{parameters.source} has no encoder of images ({prefix}.{name}), and the "
                    "world gives images: a model that flattens them cannot be brought in"
                )
            taken[f"{prefix}.{name}"] = parameters.linear(f"{prefix}.{name}")
    return taken


def image_size(taken: Mapping[str, Linear]) -> int:
    """Features that SB3's encoder gives of one image."""
    return max((len(bias) for name, (_, bias) in taken.items() if "linear" in name), default=0)


def fill_images(source: Any, ours: Mapping[str, Any], taken: Mapping[str, Linear]) -> None:
    """Write SB3's image encoders into ours.

    Raises:
        CheckpointError: they are of other sizes.
    """
    for name, (weight, bias) in taken.items():
        target = ours[name].weight
        is_last = weight.dim() == 2  # may be narrower than ours
        if (
            weight.dim() != target.dim()
            or weight.shape[is_last:] != target.shape[is_last:]
            or (len(bias) > len(target))
        ):
            raise CheckpointError(
                f"{source}: {name} is {list(weight.shape)}, and ours {list(target.shape)}: give "
                "the world with the frames that it was trained with (--frame-stack)"
            )
        if is_last:
            put(target, weight)
            put(ours[name].bias.unsqueeze(0), bias.unsqueeze(0))
        else:
            target.copy_(weight)
            ours[name].bias.copy_(bias)
