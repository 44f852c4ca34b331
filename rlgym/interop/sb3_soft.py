"""SB3's SAC and TD3 policies and our `SoftPolicy`: parameters by name, both ways."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.critics import Ensemble
from rlgym.agents.soft_policy import Branch, SoftPolicy
from rlgym.config import NetworkConfig
from rlgym.errors import CheckpointError, UserError
from rlgym.interop.sb3_parameters import (
    Linear,
    Parameters,
    check_ends,
    columns,
    fill_images,
    has_small_encoder,
    image_layers,
    image_size,
    put,
    take_images,
    width_of,
    widths,
)
from rlgym.spaces import Layout

TD3_STD = 0.1
"""Deviation that a TD3 actor explores with here, in squashed units: TD3's own usual noise."""
EXTRACTOR = "features_extractor"


@dataclass(frozen=True)
class _Critics:
    """Q networks of one side, with the image encoders before them."""

    towers: list[list[Linear]]
    images: dict[str, Linear]


def read_soft(
    parameters: Parameters, layouts: tuple[Layout, Layout], settings: NetworkConfig
) -> tuple[SoftPolicy, NetworkConfig, int]:
    """Build our policy from the parameters of SB3's `SACPolicy` or `TD3Policy`.

    A TD3 actor has no deviation: its deterministic action is the same here, and sampled ones get
    `TD3_STD`. Its target actor has no counterpart.

    Args:
        parameters: the state_dict; every entry is taken.
        layouts: of observations and actions.
        settings: everything about the network but its widths.

    Returns:
        The policy, its settings, and the number of critics.

    Raises:
        CheckpointError: it has parts that ours has not, or does not fit the spaces.
    """
    source, (obs_layout, action_layout) = parameters.source, layouts
    parameters.discard("actor_target.")
    images = take_images(parameters, obs_layout, f"actor.{EXTRACTOR}")
    hidden, head, log_std = _take_actor(parameters, width_of(action_layout))
    critics, targets = (
        _take_critics(parameters, obs_layout, n) for n in ("critic", "critic_target")
    )
    parameters.finish()
    width, size = image_size(images), width_of(action_layout)
    inputs = width_of(obs_layout, width)
    check_ends(source, "actor", [*hidden, head], inputs, size if log_std is not None else 2 * size)
    for tower in critics.towers + targets.towers:
        check_ends(source, "critic", tower, inputs + size, 1)
    if len(targets.towers) != len(critics.towers) or not critics.towers:
        raise CheckpointError(f"{source} has not as many target critics as critics")
    bodies = [tower[:-1] for tower in critics.towers + targets.towers]
    settings = replace(settings, hidden=widths(source, hidden, *bodies))
    policy = SoftPolicy.build(*layouts, settings, num_critics=len(critics.towers))
    with torch.no_grad():
        order = columns(obs_layout, width)
        _fill(policy.actor, [[*hidden, head]], order)
        _fill_encoder(policy.actor, obs_layout, f"actor.{EXTRACTOR}", images, source)
        joined = torch.cat((order, width_of(obs_layout) + torch.arange(size)))
        sides = ("critic", policy.critics, critics), ("critic_target", policy.target, targets)
        for name, branch, taken in sides:
            _fill(branch, taken.towers, joined)
            _fill_encoder(branch, obs_layout, f"{name}.{EXTRACTOR}", taken.images, source)
        if log_std is not None:  # a row for each unit of the last layer
            put(policy.distribution.log_std.t(), log_std.t(), None if hidden else order)
    return policy, settings, len(critics.towers)


def write_soft(policy: SoftPolicy) -> dict[str, Tensor]:
    """Give our parameters the names of SB3's `SACPolicy`."""
    layout, size = policy.obs_layout, policy.actions.size
    order = columns(layout)
    joined = torch.cat((order, width_of(layout) + torch.arange(size)))
    found: dict[str, Tensor] = {}
    hidden, (weight, bias) = _layers(policy.actor.layers, 0, order)
    for i, layer in enumerate(hidden):
        found |= _named(f"actor.latent_pi.{2 * i}", layer)
    found |= _named("actor.mu", (weight[:size], bias[:size]))
    if policy.distribution.latent_size:
        log_std = policy.distribution.log_std
        found["actor.log_std"] = log_std if hidden else log_std[order]
    else:
        log_std_init = policy.distribution.log_std_init
        found |= _named("actor.log_std", (weight[size:], bias[size:] + log_std_init))
    branches = {"actor": policy.actor, "critic": policy.critics, "critic_target": policy.target}
    for name, branch in branches.items():
        own = image_layers(layout, branch.features.encoder, f"{name}.{EXTRACTOR}")
        for layer_name, layer in own.items():
            found |= _named(layer_name, (layer.weight, layer.bias))
        for member in range(branch.layers.members if branch is not policy.actor else 0):
            tower, last = _layers(branch.layers, member, joined)
            for i, layer in enumerate([*tower, last]):
                found |= _named(f"{name}.qf{member}.{2 * i}", layer)
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


def check_writable(policy: SoftPolicy) -> None:
    """Refuse what SB3's SAC cannot hold.

    Raises:
        UserError: names it.
    """
    reason = ""
    if type(policy).forward is not SoftPolicy.forward or policy.has_own_network:
        reason = "a network of its own"
    elif policy.actions.choices or not policy.action_layout.single:
        reason = "actions that are not one Box"
    elif policy.critics.layers.layer_norm:
        reason = "layer normalisation (algo.layer_norm)"
    elif any(policy.preparation.hidden_from_actor.values()):
        reason = "observations that only its critics see (network.privileged)"
    elif has_small_encoder(policy.actor.features.encoder):
        reason = "an image encoder that SB3 has not (network.cnn small)"
    if reason:
        raise UserError(f"this policy has {reason}, and SB3's SAC has no such thing: train without")


def _take_actor(parameters: Parameters, size: int) -> tuple[list[Linear], Linear, Tensor | None]:
    """Hidden layers, the last layer, and gSDE's matrix."""
    if (
        "actor.latent_pi.0.weight" not in parameters.left
        and "actor.mu.weight" not in parameters.left
    ):
        *hidden, (weight, bias) = parameters.layers("actor.mu")  # TD3
        constant = torch.full_like(bias, math.log(TD3_STD))
        head = torch.cat((weight, torch.zeros_like(weight))), torch.cat((bias, constant))
        return hidden, head, None
    if "actor.mu.0.weight" in parameters.left:
        raise CheckpointError(
            f"{parameters.source} explores with gSDE and clips its means (clip_mean), which ours "
            "does not: train it with policy_kwargs=dict(clip_mean=0.0), or without use_sde"
        )
    hidden = parameters.layers("actor.latent_pi")
    weight, bias = parameters.linear("actor.mu")
    if "actor.log_std" not in parameters.left:
        std_weight, std_bias = parameters.linear("actor.log_std")
        if weight.shape != std_weight.shape:
            raise CheckpointError(f"{parameters.source}: actor.mu and actor.log_std differ in size")
        return hidden, (torch.cat((weight, std_weight)), torch.cat((bias, std_bias))), None
    log_std = parameters.take("actor.log_std")
    if log_std.shape != (weight.shape[1], size):
        raise CheckpointError(
            f"{parameters.source}: gSDE's log_std is {list(log_std.shape)} and ours "
            f"{[weight.shape[1], size]}: only full_std=True can be brought in"
        )
    return hidden, (weight, bias), log_std


def _take_critics(parameters: Parameters, layout: Layout, name: str) -> _Critics:
    images = take_images(parameters, layout, f"{name}.{EXTRACTOR}")
    towers: list[list[Linear]] = []
    while tower := parameters.layers(f"{name}.qf{len(towers)}"):
        towers.append(tower)
    return _Critics(towers, images)


def _fill(branch: Branch, towers: list[list[Linear]], order: Tensor) -> None:
    state = dict(branch.layers.named_parameters())
    for member, (*hidden, (weight, bias)) in enumerate(towers):
        for i, (own, shift) in enumerate(hidden):
            put(state[f"weight_{i}"][member].t(), own, None if i else order)
            put(state[f"bias_{i}"][member], shift.unsqueeze(0))
        put(state["head_weight"][member], weight, None if hidden else order)
        state["head_bias"][member, 0].copy_(bias)


def _fill_encoder(
    branch: Branch, layout: Layout, prefix: str, images: dict[str, Linear], source: Any
) -> None:
    fill_images(source, image_layers(layout, branch.features.encoder, prefix), images)


def _layers(net: Ensemble, member: int, order: Tensor) -> tuple[list[Linear], Linear]:
    """One member's hidden layers and last layer, with the columns that SB3 gives."""
    state = dict(net.named_parameters())
    hidden = []
    for i in range(len(net.hidden)):
        weight = state[f"weight_{i}"][member].t()
        hidden.append((weight if i else weight[:, order], state[f"bias_{i}"][member, 0]))
    weight = state["head_weight"][member]
    last = weight if hidden else weight[:, order], state["head_bias"][member, 0]
    return hidden, last


def _named(name: str, layer: Linear) -> dict[str, Tensor]:
    return {f"{name}.weight": layer[0], f"{name}.bias": layer[1]}
