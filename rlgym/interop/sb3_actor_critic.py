"""SB3's `ActorCriticPolicy` (PPO, A2C) and our `ActorCritic`: parameters by name, both ways."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlgym.agents.gaussian import Gaussian
from rlgym.agents.policy import ActorCritic
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

EXTRACTORS = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
"""Names under which SB3 lists the one encoder that actor and critic share."""


def read_actor_critic(
    parameters: Parameters, layouts: tuple[Layout, Layout], settings: NetworkConfig
) -> tuple[ActorCritic, NetworkConfig]:
    """Build our actor-critic from SB3's parameters.

    Args:
        parameters: its state_dict; every entry is taken.
        layouts: of observations and actions.
        settings: everything about the network but its widths.

    Raises:
        CheckpointError: it has parts that ours has not, or does not fit the spaces.
    """
    source = parameters.source
    for copy in EXTRACTORS[1:]:
        parameters.drop_copies(f"{copy}.", f"{EXTRACTORS[0]}.")
    images = take_images(parameters, layouts[0], EXTRACTORS[0])
    shared = parameters.layers("mlp_extractor.shared_net")  # up to SB3 1.7
    actor = shared + parameters.layers("mlp_extractor.policy_net")
    critic = shared + parameters.layers("mlp_extractor.value_net")
    heads = parameters.linear("action_net"), parameters.linear("value_net")
    log_std = parameters.take("log_std") if "log_std" in parameters.left else None
    parameters.finish()
    inputs = width_of(layouts[0], image_size(images))
    check_ends(source, "actor", [*actor, heads[0]], inputs, width_of(layouts[1]))
    check_ends(source, "critic", [*critic, heads[1]], inputs, 1)
    settings = replace(settings, hidden=widths(source, actor, critic))
    policy = ActorCritic.build(*layouts, settings)
    with torch.no_grad():
        fill_images(source, image_layers(layouts[0], policy.encoder, EXTRACTORS[0]), images)
        order = columns(layouts[0], image_size(images))
        _fill_towers(policy, (actor, critic), heads, order)
        latent = len(actor[-1][1]) if actor else inputs
        _fill_log_std(policy, log_std, latent, None if actor else order, source)
    return policy, settings


def write_actor_critic(policy: ActorCritic) -> dict[str, Tensor]:
    """Give our parameters SB3's names; `read_actor_critic` the other way round."""
    order = columns(policy.obs_layout)
    towers, state = policy.towers, dict(policy.towers.named_parameters())
    found: dict[str, Tensor] = {}
    nets = ("policy_net", "action_net", "actor"), ("value_net", "value_net", "critic")
    for half, (net, head, ours) in enumerate(nets):
        for i in range(len(towers.hidden)):
            weight = state[f"weight_{i}"][half].t()
            found[f"mlp_extractor.{net}.{2 * i}.weight"] = weight[:, order] if i == 0 else weight
            found[f"mlp_extractor.{net}.{2 * i}.bias"] = state[f"bias_{i}"][half, 0]
        weight = state[f"{ours}_weight"]
        found[f"{head}.weight"] = weight if towers.hidden else weight[:, order]
        found[f"{head}.bias"] = state[f"{ours}_bias"]
    for extractor in EXTRACTORS:
        for name, layer in image_layers(policy.obs_layout, policy.encoder, extractor).items():
            found[f"{name}.weight"], found[f"{name}.bias"] = layer.weight, layer.bias
    log_std = getattr(policy.distribution, "log_std", None)
    if log_std is not None:
        found["log_std"] = log_std
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


def check_writable(policy: ActorCritic) -> None:
    """Refuse what SB3's policy cannot hold.

    Raises:
        UserError: names it.
    """
    dist, reason = policy.distribution, ""
    if type(policy).forward is not ActorCritic.forward or policy.network is not None:
        reason = "a network of its own"
    elif policy.memory is not None:
        reason = "a memory (network.recurrent)"
    elif any(policy.preparation.hidden_from_actor.values()):
        reason = "observations that only its critic sees (network.privileged)"
    elif isinstance(dist, Gaussian) and not dist.is_global:
        reason = "a deviation that depends on the state (network.std state)"
    elif isinstance(dist, Gaussian) and dist.squash:
        reason = "squashed actions without gSDE (network.squash)"
    elif has_small_encoder(policy.encoder):
        reason = "an image encoder that SB3 has not (network.cnn small)"
    if reason:
        raise UserError(f"this policy has {reason}, and SB3's PPO has no such thing: train without")


def _fill_towers(
    policy: ActorCritic,
    towers: tuple[list[Linear], list[Linear]],
    heads: tuple[Linear, Linear],
    order: Tensor,
) -> None:
    """Write SB3's layers of the actor and of the critic into our towers."""
    state = dict(policy.towers.named_parameters())
    for half, kind in enumerate(("actor", "critic")):
        for i, (weight, bias) in enumerate(towers[half]):
            put(state[f"weight_{i}"][half].t(), weight, None if i else order)
            put(state[f"bias_{i}"][half], bias.unsqueeze(0))
        weight, bias = heads[half]
        put(state[f"{kind}_weight"], weight, None if towers[half] else order)
        state[f"{kind}_bias"].copy_(bias)


def _fill_log_std(
    policy: ActorCritic, log_std: Tensor | None, latent: int, order: Tensor | None, source: object
) -> None:
    target = getattr(policy.distribution, "log_std", None)
    if target is None and log_std is None:
        return
    size = width_of(policy.action_layout)
    expected = (size,) if target is None or target.dim() == 1 else (latent, size)
    if target is None or log_std is None or log_std.shape != expected:
        found = "none" if log_std is None else list(log_std.shape)
        raise CheckpointError(
            f"{source}: its log_std is {found} and ours {list(expected)}: only one deviation per "
            "action, or gSDE with full_std=True, can be brought in"
        )
    if target.dim() == 1:
        target.copy_(log_std)
    else:  # a row for each unit of the last layer
        put(target.t(), log_std.t(), order)
