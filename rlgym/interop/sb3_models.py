"""Models of Stable-Baselines3 as policies of ours, and ours as models of SB3.

    from rlgym.interop import sb3_models

    policy = sb3_models.load("model.zip", env="Pendulum-v1")      # policy.act(obs)
    sb3_models.import_run("model.zip", "runs/pendulum", env="Pendulum-v1")
    model = sb3_models.to_sb3_model("runs/pendulum", env)         # model.save(...), .learn(...)

Coming in does not load Stable-Baselines3, and unpickles nothing of the file: see `sb3_archive`.
Deterministic actions are SB3's within 1e-6, or the model is refused with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gymnasium

from rlgym.config import NetworkConfig, TrainConfig, default_config, merge
from rlgym.device import resolve
from rlgym.errors import CheckpointError, SpaceError
from rlgym.interop.sb3_actor_critic import read_actor_critic
from rlgym.interop.sb3_archive import Archive, read_archive
from rlgym.interop.sb3_normalize import Statistics, apply, read_statistics
from rlgym.interop.sb3_parameters import Parameters
from rlgym.interop.sb3_soft import read_soft
from rlgym.settings import short
from rlgym.spaces import Layout
from rlgym.training import checkpoint as checkpoints
from rlgym.training.folder import CALLABLE, choose_folder, open_folder
from rlgym.training.loaded import LoadedPolicy, describe
from rlgym.training.session import Run
from rlgym.training.worlds import make_worlds

Kind = Literal["ppo", "sac", "td3"]

ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "SiLU": "silu"}
"""torch.nn's name of an activation -> `NetworkConfig.activation`."""
MAX_WORLDS, MAX_ROLLOUT = 1024, 2**22
"""Bounds on what a file may ask for; beyond them our own defaults are taken."""

_EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
_HARMLESS = {
    *("net_arch", "ortho_init", "log_std_init", "n_critics", "features_extractor_kwargs"),
    *("optimizer_class", "optimizer_kwargs", "use_sde", "share_features_extractor", "full_std"),
    *("clip_mean",),
}
"""policy_kwargs that show in the parameters, or that acting does not depend on."""


def load(
    path: str | Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    frame_stack: int = 1,
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
    vec_normalize: str | Path | None = None,
    trust: bool = False,
    device: str = "cpu",
) -> LoadedPolicy:
    """Turn a model file of SB3 (PPO, A2C, SAC or TD3) into a policy, without unpickling it.

    Args:
        path: what `model.save(...)` wrote.
        env: id of the world that it was trained in; its spaces are used. Without it the spaces
            come from the file's plain text, which is not always enough.
        env_kwargs: keyword arguments of that world.
        frame_stack: observations that `VecFrameStack` joined.
        observation_space: the space, in place of the world's or the file's.
        action_space: as `observation_space`.
        vec_normalize: file with the statistics of `VecNormalize`; see `sb3_normalize`.
        trust: unpickle that file, when it is a pickle.
        device: where the policy computes.

    Returns:
        The policy, with the settings that a run of it starts from as `config`.

    Raises:
        CheckpointError: the file is no such model, is damaged, holds more than tensors, or a
            network that cannot be represented exactly; the message says what and the nearest fix.
        SpaceError: a space is not known or contradicts the file.
    """
    archive = read_archive(path)
    kind = _kind_of(archive)
    config = _config(archive, kind, env, dict(env_kwargs or {}), frame_stack)
    given = {"observation_space": observation_space, "action_space": action_space}
    found = _spaces(archive, given, None if env is None else config)
    layouts = Layout(found["observation_space"]), Layout(found["action_space"])
    check_starts(*layouts)
    _check_images(archive, layouts[0])
    statistics = None if vec_normalize is None else read_statistics(vec_normalize, trust)
    settings = _network(archive, kind, statistics)
    parameters, algo = Parameters(archive.parameters, f"{archive.path}: policy.pth"), config.algo
    if kind == "ppo":
        policy, settings = read_actor_critic(parameters, layouts, settings)
    else:
        policy, settings, num_critics = read_soft(parameters, layouts, settings)
        algo = replace(algo, num_critics=num_critics)
    if statistics is not None:
        apply(statistics, layouts[0], policy.obs_norm, vec_normalize)
    return LoadedPolicy(
        policy.to(resolve(device)),
        **found,
        config=replace(config, network=settings, algo=algo),
        step=_steps(archive),
    )


def import_run(
    path: str | Path,
    run_dir: str | Path | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Turn a model file of SB3 into a run folder, which is evaluated and played like one of ours.

    With a world (`env`) the run can also be resumed: the optimizer starts afresh, and SAC with an
    empty replay buffer, because SB3 keeps neither in a form that can be read safely. Without one
    the folder holds the policy alone.

    Args:
        path: what `model.save(...)` wrote.
        run_dir: the folder; by default a new one under runs/.
        overwrite: replace a run that stands there.
        options: as in `load`.

    Returns:
        The folder.

    Raises:
        UserError: as `load`, or the folder holds something already.
    """
    loaded = load(path, **options)
    assert loaded.config is not None
    folder = choose_folder(run_dir, loaded.config, overwrite)
    if options.get("env") is None:
        _save_policy(loaded, folder)
    else:
        _save_run(loaded, folder)
    return folder


def to_sb3_model(run_or_policy: Any, env: Any = None, *, device: str = "cpu") -> Any:
    """Turn a run or a policy of ours into a PPO or SAC model of Stable-Baselines3.

    Args:
        run_or_policy: a run's folder, a `LoadedPolicy`, an `ActorCritic` or a `SoftPolicy`.
        env: what the model is to learn in: a vector env of ours, a `VecEnv`, or a Gymnasium world;
            needed where the policy normalises observations, because SB3 does that around the
            world: `model.predict` then takes `model.get_vec_normalize_env().normalize_obs(obs)`.
        device: where it computes.

    Returns:
        A model whose deterministic actions are the policy's within 1e-6; `save` and `learn` it.

    Raises:
        UserError: SB3 has no such policy; the message says why.
    """
    from rlgym.interop.sb3_export import to_model  # loads SB3, which coming in does without

    return to_model(run_or_policy, env, device)


def check_starts(*layouts: Layout) -> None:
    """Refuse choices that do not begin at 0, which SB3 knows nothing of.

    Raises:
        SpaceError: names the entry.
    """
    for layout in layouts:
        for leaf in layout.leaves:
            if leaf.num_choices and leaf.start.any():
                raise SpaceError(
                    f"{leaf.key or 'a space'!r} is {leaf.space}, and SB3 counts from 0: use start=0"
                )


def _steps(archive: Archive) -> int:
    steps = archive.data.get("num_timesteps")
    return steps if type(steps) is int and 0 <= steps < 10**15 else 0


def _spaces(
    archive: Archive, given: dict[str, gymnasium.Space | None], config: TrainConfig | None
) -> dict[str, gymnasium.Space]:
    """The spaces that were given, else the world's, else the file's; checked against the file."""
    world: dict[str, gymnasium.Space] = {}
    if config is not None and None in given.values():
        env = make_worlds(config, None, ".", evaluation=True)
        world["observation_space"] = env.single_observation_space
        world["action_space"] = env.single_action_space
        env.close()
    found = {}
    for name, space in given.items():
        space = space or world.get(name)
        if space is None:
            space = archive.space(name)
        archive.check_space(name, space)
        found[name] = space
    return found


# -------------------------------------------------------------------------------------- settings


def _kind_of(archive: Archive) -> Kind:
    """Tell the algorithm by the names of the parameters."""
    names = archive.parameters
    if any("lstm" in name for name in names):
        found = "a policy with a memory (RecurrentPPO)"
    elif "action_net.weight" in names:
        return "ppo"
    elif "actor.latent_pi.0.weight" in names or "actor.mu.weight" in names:
        return "sac"
    elif "actor.mu.0.weight" in names:
        return "td3"
    elif any(name.startswith("q_net.") for name in names):
        found = "a DQN, which has values and no policy"
    else:
        found = f"a network with the parameter {short(next(iter(names), 'none'))}"
    raise CheckpointError(
        f"{archive.path} holds {found}: only PPO, A2C, SAC and TD3 can be brought in"
    )


def _config(
    archive: Archive, kind: Kind, env: str | None, env_kwargs: dict[str, Any], frame_stack: int
) -> TrainConfig:
    """What a run of this model starts from: SB3's settings where ours have the same."""
    base = default_config(env or f"{CALLABLE}make_world", "ppo" if kind == "ppo" else "sac")
    data = archive.data
    algo = _ppo_settings(archive) if kind == "ppo" else _sac_settings(archive)
    num_envs = data.get("n_envs")
    if type(num_envs) is not int or not 1 <= num_envs <= MAX_WORLDS:
        num_envs = base.num_envs
    if num_envs * algo.get("num_steps", 1) > MAX_ROLLOUT:
        raise CheckpointError(f"{archive.path} asks for rollouts of {algo['num_steps']} steps")
    seed = data.get("seed")
    changes = {
        "env": env_kwargs,
        "num_envs": num_envs,
        "seed": seed if type(seed) is int and 0 <= seed < 2**32 else 0,
        "total_steps": max(_steps(archive), 1),
        "algo": algo,
        "wrappers": {"frame_stack": frame_stack},
    }
    return merge(base, changes)


def _ppo_settings(archive: Archive) -> dict[str, Any]:
    names = {
        **{"num_steps": "n_steps", "minibatch_size": "batch_size", "epochs": "n_epochs"},
        **{"gamma": "gamma", "gae_lambda": "gae_lambda", "learning_rate": "learning_rate"},
        **{"clip": "clip_range", "value_coef": "vf_coef", "entropy_coef": "ent_coef"},
        **{"max_grad_norm": "max_grad_norm", "target_kl": "target_kl"},
        **{"value_clip": "clip_range_vf"},
    }
    found: dict[str, Any] = {"name": "ppo", **_numbers(archive, names)}
    if isinstance(archive.data.get("normalize_advantage"), bool):
        found["normalize_advantages"] = archive.data["normalize_advantage"]
    return found


def _sac_settings(archive: Archive) -> dict[str, Any]:
    names = {
        **{"buffer_size": "buffer_size", "learning_starts": "learning_starts"},
        **{"batch_size": "batch_size", "gamma": "gamma", "tau": "tau"},
        **{"learning_rate": "learning_rate", "target_entropy": "target_entropy"},
        **{"temperature": "ent_coef"},
    }
    found: dict[str, Any] = {"name": "sac", **_numbers(archive, names)}
    log_temperature = archive.variables.get("log_ent_coef")
    if log_temperature is not None and log_temperature.numel() == 1:
        found["initial_temperature"] = math.exp(max(-30.0, min(float(log_temperature), 30.0)))
    return found


def _numbers(archive: Archive, names: Mapping[str, str]) -> dict[str, float]:
    """Settings by our name, of those that the file states as plain numbers."""
    found = {ours: archive.number(theirs) for ours, theirs in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _network(archive: Archive, kind: Kind, statistics: Statistics | None) -> NetworkConfig:
    """Settings of the network but its widths.

    Raises:
        CheckpointError: policy_kwargs hold what changes the network in a way that ours has not.
    """
    kwargs = archive.policy_kwargs
    activation = "tanh" if kind == "ppo" else "relu"
    for name, value in kwargs.items():
        if name == "activation_fn":
            found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(value))
            activation = ACTIVATIONS.get(found[1]) if found else None
            known = activation is not None
        elif name == "features_extractor_class":
            known = str(value) in {
                f"<class 'stable_baselines3.common.torch_layers.{kind}'>" for kind in _EXTRACTORS
            }
        elif name == "use_expln":
            known = value is False
        elif name in ("squash_output", "normalize_images"):
            known = isinstance(value, bool)
        else:
            known = name in _HARMLESS
        if not known:
            what = f"{name[:40]}={short(value)}"
            raise CheckpointError(
                f"{archive.path} was built with {what} in policy_kwargs, and ours has no such "
                "network: train it without"
            )
    log_std = archive.parameters.get("log_std", archive.parameters.get("actor.log_std"))
    gsde = log_std is not None and log_std.dim() == 2
    every = archive.data.get("sde_sample_freq")
    return NetworkConfig(
        activation=activation,  # type: ignore[arg-type]
        std="gsde" if gsde else "global" if kind == "ppo" else "state",
        squash=kind != "ppo" or kwargs.get("squash_output") is True,
        gsde_every=every if kind == "ppo" and type(every) is int and 0 < every < 10**6 else 1,
        normalize_obs=statistics is not None,
        obs_clip=statistics.clip if statistics is not None else NetworkConfig.obs_clip,
        privileged=(),
    )


def _check_images(archive: Archive, layout: Layout) -> None:
    scaled = archive.policy_kwargs.get("normalize_images", True) is True
    if not scaled and any(leaf.is_image for leaf in layout.leaves):
        raise CheckpointError(
            f"{archive.path} was built with normalize_images=False, and ours divides images by "
            "255: train it with images from 0 to 255 and without this setting"
        )


# ------------------------------------------------------------------------------------------ runs


def _save_run(loaded: LoadedPolicy, folder: Path) -> None:
    """Save what a run would save that stands where the model stood, with a fresh optimizer."""
    assert loaded.config is not None
    run = Run(loaded.config, folder, console="off")
    try:
        run.policy.load_state_dict(loaded.policy.state_dict())
        run.state.env_steps = run.state.evaluated_at = loaded.step
        if run.replay is not None:
            run.replay.mark_unsaved()  # an empty buffer is saved too, so that resume finds one
        run.mark()
        run.save()
    finally:
        run.close()
    if checkpoints.newest(folder) is None:
        raise CheckpointError(f"the run was not saved in {folder}: free some space")


def _save_policy(loaded: LoadedPolicy, folder: Path) -> None:
    """Save the policy alone, for a model whose world is not known."""
    assert loaded.config is not None
    open_folder(folder, loaded.config)
    spaces: Any = SimpleNamespace(
        single_observation_space=loaded.observation_space, single_action_space=loaded.action_space
    )
    document = describe(spaces, loaded.config, custom=False)
    tensors = {"model": loaded.policy.state_dict()}
    checkpoints.save(folder, loaded.step, tensors, {"policy": document})
