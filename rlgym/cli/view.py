"""One world and who acts in it, for `play` and `record`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlgym.cli.runs import is_run, read_run, require_fit
from rlgym.config import TrainConfig
from rlgym.errors import ConfigError, MissingExtraError, UserError, WorldError

if TYPE_CHECKING:
    from rlgym.spaces import Leaf
    from rlgym.vector.contract import VectorEnv

Who = Literal["trained", "zero", "random"]
Which = Literal["best", "last"]
Act = Callable[[Any, dict[str, Any]], Any]


@dataclass(frozen=True)
class Frame:
    """What there is to see after a reset or a step."""

    env: Any
    """The world, in a vector env of one slot."""
    episode: int
    """Episodes that ended so far."""
    returned: float | None
    """Return of the episode that this step ended."""

    def image(self) -> np.ndarray:
        """Draw it, (H, W, 3) uint8.

        Raises:
            MissingExtraError: the world draws with a package that is not installed.
            WorldError: the world cannot draw.
        """
        with _explained(self.env):
            picture = self.env.render_slot(0)
        if picture is None:
            raise WorldError("this world draws no pictures: it has no render_mode rgb_array")
        return np.asarray(picture, np.uint8)


def settings_of(target: str, who: Who, env: Mapping[str, Any], trust: bool) -> TrainConfig:
    """Return the settings of a run, or plain ones around a world's id.

    Args:
        target: folder of a run, or id of a world.
        who: acts.
        env: keyword arguments of the world that replace the run's.
        trust: see `read_run`.

    Raises:
        UserError: a world without a policy, or no such run.
    """
    if is_run(target):
        return read_run(target, trust, env)
    if who == "trained":
        if "/" in target.replace("\\", "/") and ":" not in target:
            return read_run(target)  # says that there is no run
        raise UserError(f"{target} is not a run: add --policy zero or --policy random")
    return TrainConfig(env_id=target, env=dict(env))


def watch(
    target: str, config: TrainConfig, who: Who, which: Which, render_mode: str, seed: int
) -> Generator[Frame, None, None]:
    """Let the policy act for ever in one world, and yield what there is to see.

    Raises:
        UserError: the world or the policy cannot be had, or the world cannot be shown.
    """
    from rlgym.training.worlds import make_worlds

    config = replace(
        config,
        env={**config.env, "render_mode": render_mode},
        **{"num_envs": 1, "num_groups": 1, "backend": "sync", "seed": seed},
    )
    with warnings.catch_warnings():
        # Gymnasium warns where a world does not know the render mode; Frame.image says it in a line
        warnings.filterwarnings("ignore", message=".*render_mode")
        try:
            env = make_worlds(config, None, ".", evaluation=True)
        except ConfigError as error:
            if "render_mode" not in str(error):
                raise
            raise WorldError(f"{config.env_id} draws no pictures: it has no render_mode") from None
    try:
        act, begin = _actor(target, who, which, env, seed)
        with _explained(env):
            obs, info = env.reset(seed=seed)
        episode = 0
        yield Frame(env, episode, None)
        while True:
            with _explained(env):
                obs, _, terminated, truncated, info = env.step(act(obs, info))
            returned = None
            if bool(terminated[0] | truncated[0]):
                begin()
                episode += 1
                returned = float(info["episode_return"][0])
            yield Frame(env, episode, returned)
    finally:
        env.close()


def _actor(
    target: str, who: Who, which: Which, env: VectorEnv, seed: int
) -> tuple[Act, Callable[[], None]]:
    """Return what chooses actions, and what is called when an episode begins."""
    if who == "trained":
        from rlgym.training.run import load_policy

        policy = load_policy(target, which)
        require_fit(policy, env)
        return lambda obs, info: policy.act(obs, mask=info.get("action_mask")), policy.reset
    generator = np.random.default_rng(seed) if who == "random" else None
    return lambda obs, info: _untrained(env, info, generator), lambda: None


def _untrained(env: VectorEnv, info: dict[str, Any], generator: Any) -> Any:
    """Return one action for every slot: drawn where there is a generator, else nearest to zero."""
    layout = env.action_layout
    mask = info.get("action_mask")
    allowed = np.ones(layout.mask_size, bool) if mask is None else np.asarray(mask[0].cpu())
    actions: Any = {}
    at = 0
    for leaf in layout.leaves:
        width = sum(leaf.num_choices)
        value = _leaf_action(leaf, allowed[at : at + width], generator)
        batch = np.asarray(value, leaf.dtype).reshape(1, *leaf.shape)
        actions[leaf.key] = batch.repeat(env.num_envs, 0)  # a Unity scene is more than one
        at += width
    return actions[""] if layout.single else actions


def _leaf_action(leaf: Leaf, allowed: np.ndarray, generator: Any) -> Any:
    if leaf.num_choices:
        chosen = []
        for flags in np.split(allowed, np.cumsum(leaf.num_choices)[:-1]):
            options = np.flatnonzero(flags)
            chosen.append(options[0] if generator is None else generator.choice(options))
        return np.reshape(chosen, leaf.shape) + leaf.start
    low, high = (getattr(leaf.space, name, 0) for name in ("low", "high"))
    if generator is None:
        return np.clip(np.zeros(leaf.shape), low, high)
    leaf.space.seed(int(generator.integers(2**31)))
    return leaf.space.sample()


class _explained:  # noqa: N801 - reads as a statement: with _explained(env)
    """Turns what drawing libraries raise into one line."""

    def __init__(self, env: VectorEnv) -> None:
        self.env = env

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from gymnasium.error import DependencyNotInstalled

        text = " ".join(str(error).split())
        if isinstance(error, (DependencyNotInstalled, ModuleNotFoundError)):
            raise MissingExtraError(
                f'drawing this world needs a package: pip install "rlgym-lab[video]" ({text})'
            ) from None
        if type(error).__module__.partition(".")[0] in ("pygame", "glfw", "OpenGL"):
            raise WorldError(
                f"no window can be opened here ({text}): rlgym record films without a display"
            ) from None
