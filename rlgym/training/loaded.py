"""A trained policy taken out of its run folder, ready to act on whatever holds an observation."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlgym.config import NetworkConfig, TrainConfig, load_config, merge, to_dict
from rlgym.device import resolve
from rlgym.errors import CheckpointError, SpaceError, UserError
from rlgym.settings import short
from rlgym.space_json import space_from_json, space_to_json
from rlgym.spaces import Layout, map_tree, tree_items
from rlgym.training import checkpoint as checkpoints
from rlgym.training.algorithms import algorithm, algorithm_of
from rlgym.vector.contract import VectorEnv


class LoadedPolicy:
    """A policy that acts; it remembers its recurrent state between calls.

    Args:
        policy: the network with its normaliser.
        observation_space: space of one observation, after the run's wrappers.
        action_space: space of one action.
        config: the run's settings; None when it comes from elsewhere.
        step: environment steps that it had learned from.
    """

    def __init__(
        self,
        policy: Any,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        config: TrainConfig | None = None,
        step: int = 0,
    ) -> None:
        self.policy = policy.eval()
        self.observation_space = observation_space
        self.action_space = action_space
        self.config = config
        self.step = step
        self.obs_layout = Layout(observation_space)
        self.action_layout = Layout(action_space)
        self._generator = torch.Generator(policy.device).manual_seed(0)
        self._state: Any = None
        self._count = 0
        self._start: Tensor | None = None

    def reset(self, *, seed: int | None = None, rows: Any = None) -> None:
        """Begin a new episode: forget the recurrent state.

        Args:
            seed: of the samples that `act(deterministic=False)` draws.
            rows: (batch,) bool: only in these rows of the batch.
        """
        if seed is not None:
            self._generator.manual_seed(seed)
        if rows is None or self._start is None:
            self._start = None
            return
        self._start |= torch.as_tensor(rows, dtype=torch.bool, device=self.policy.device)

    @torch.no_grad()
    def act(self, obs: Any, deterministic: bool = True, mask: Any = None) -> Any:
        """Choose an action for one observation, or one for each of a batch.

        Args:
            obs: numpy or torch, one observation or a batch along the first axis, nested as the
                space or a flat dict. Of a batched call, each row is an episode of its own.
            deterministic: the mode of the distribution instead of a sample.
            mask: allowed actions, True = allowed, (mask_size,) or (batch, mask_size).

        Returns:
            What the world's `step` takes: for one observation an action of `action_space`; for a
            batch the same nesting of (batch, ...) arrays.

        Raises:
            SpaceError: the observation does not have the space's shape.
        """
        batch, single = self._batch(obs)
        rows = len(tree_items(batch)[0][1])
        if self._start is None or rows != self._count:
            self._count = rows
            self._state = self.policy.initial_state(rows)
            self._start = torch.ones(rows, dtype=torch.bool, device=self.policy.device)
        noise = None
        if not deterministic:
            noise = self.policy.noise(1, rows, self._generator)[0]
        if mask is not None:
            mask = torch.as_tensor(mask, dtype=torch.bool, device=self.policy.device)
            mask = mask.reshape(rows, -1)
        actions, _, self._state = self.policy.act(
            batch,
            noise=noise,
            state=self._state,
            start=self._start,
            mask=mask,
            deterministic=deterministic,
        )
        self._start = torch.zeros_like(self._start)
        arrays = map_tree(lambda tensor: tensor.numpy(force=True), actions)
        if single:
            return self.action_layout.read(arrays, 0)
        return self.action_layout.nest(map_tree(np.copy, arrays))

    def _batch(self, obs: Any) -> tuple[Any, bool]:
        """The observation as a tree of (batch, ...) tensors, and whether it was a single one."""
        tree = self.obs_layout.flatten(obs)
        tensors, extra = {}, set()
        for leaf in self.obs_layout.leaves:
            value = tree[leaf.key] if isinstance(tree, dict) and leaf.key in tree else tree
            array = _numbers(value, leaf.key)
            lead = array.ndim - len(leaf.shape)
            if lead not in (0, 1) or array.shape[lead:] != leaf.shape:
                raise SpaceError(
                    f"observation {leaf.key!r} has shape {list(array.shape)}, the policy takes "
                    f"{list(leaf.shape)}, or a batch of them: give what the world it was trained "
                    "in gives"
                )
            extra.add(lead)
            array = np.ascontiguousarray(array if lead else array[None], dtype=leaf.dtype)
            tensors[leaf.key] = torch.from_numpy(array).to(self.policy.device)
        if len(extra) != 1:
            raise SpaceError("some entries of the observation are batched and some are not")
        return (tensors[""] if self.obs_layout.single else tensors), extra == {0}


def _numbers(value: Any, key: str) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.numpy(force=True)
    array = None
    with contextlib.suppress(ValueError):  # rows of unequal length
        array = np.asarray(value)
    if array is None or array.dtype.kind not in "biuf":
        raise SpaceError(
            f"observation {key!r} is {short(value)}, the policy takes numbers: give what the world "
            "it was trained in gives"
        )
    return array


def describe(env: VectorEnv, config: TrainConfig, *, custom: bool) -> dict[str, Any]:
    """What a checkpoint says of its policy: algorithm, spaces and network."""
    return {
        **algorithm(config.algo).policy_settings(),
        "observation_space": space_to_json(env.single_observation_space),
        "action_space": space_to_json(env.single_action_space),
        "network": to_dict(config.network),
        "custom_network": custom,
    }


def load_policy(
    run_dir: str | Path,
    which: Literal["best", "last"] = "best",
    *,
    network: Any = None,
    device: str = "cpu",
) -> LoadedPolicy:
    """Load a run's policy; no world is built.

    Args:
        run_dir: the run's folder.
        which: the checkpoint with the best score (the last one when none was scored), or the last.
        network: the user's own network, for a run that was trained with one.
        device: where it computes.

    Raises:
        UserError: there is no run, or its own network is missing.
        CheckpointError: there is no usable checkpoint.
    """
    folder = Path(run_dir)
    if which not in ("best", "last"):
        raise UserError(f'which={which!r}: use "best" or "last"')
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run: give the folder that has config.yaml in it")
    needed = ("model.safetensors", "policy.json")
    saved = checkpoints.best(folder, needed) if which == "best" else None
    saved = saved or checkpoints.newest(folder, needed=needed)
    if saved is None:
        raise CheckpointError(f"{folder} has no checkpoint yet: train for longer")
    document = saved.document("policy")
    try:
        if document["custom_network"] and network is None:
            raise UserError(
                f"{folder} was trained with a network of its own: pass it, "
                "load_policy(run_dir, network=...)"
            )
        observation_space = space_from_json(document["observation_space"])
        action_space = space_from_json(document["action_space"])
        layouts = Layout(observation_space), Layout(action_space)
        settings = merge(NetworkConfig(), document["network"])
        kind: Any = algorithm_of(document)
    except (KeyError, TypeError, RecursionError, SpaceError) as error:
        raise CheckpointError(f"{saved.path}/policy.json describes no policy ({error})") from None
    tensors = saved.tensors("model")
    if network is None:  # what the user builds is the user's to judge
        _require_described(kind, layouts, settings, tensors, str(saved.path))
    policy = kind.policy(*layouts, settings, 0, network).to(resolve(device))
    load_model(policy, tensors, str(saved.path))
    config = load_config(folder / "config.yaml")
    return LoadedPolicy(policy, observation_space, action_space, config, saved.step)


def _require_described(
    kind: Any,
    layouts: tuple[Layout, Layout],
    settings: NetworkConfig,
    tensors: dict[str, Tensor],
    source: str,
) -> None:
    """Compare what policy.json describes with what was saved, before memory is taken for it.

    A network on the device "meta" has shapes and no numbers, so that any size of it is free.

    Raises:
        CheckpointError: they differ, or there can be no such network.
    """
    try:
        if len(settings.hidden) > len(tensors):
            raise ValueError(f"{len(settings.hidden)} layers of {len(tensors)} tensors")
        with torch.device("meta"):
            policy = kind.policy(*layouts, settings, 0)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}/policy.json describes no policy ({short(str(error))})"
        ) from None
    _require_same_shapes(policy, tensors, source)


def load_model(policy: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Put saved tensors into a policy.

    Raises:
        CheckpointError: names or shapes differ; the message names the first.
    """
    _require_same_shapes(policy, tensors, source)
    policy.load_state_dict(tensors)


def _require_same_shapes(policy: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Compare names and shapes; see `load_model` for what is raised."""
    expected = policy.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "the checkpoint" if name in tensors else "the network"
            raise CheckpointError(f"{source}: only {where} has {name}: build the same network")
        if expected[name].shape != tensors[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(tensors[name].shape)}, the network expects "
                f"{list(expected[name].shape)}: build the same network"
            )
