"""What the verbs that take a RUN have in common: finding it, not trusting it, and its policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlgym.config import TrainConfig, load_config, merge
from rlgym.errors import SpaceError, UserError
from rlgym.registry import require_trusted_worlds
from rlgym.settings import short
from rlgym.training.folder import CALLABLE, require_plain


def is_run(path: str) -> bool:
    """Tell whether this is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()


def read_run(path: str, trust: bool = False, env: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings of the run in this folder.

    Args:
        path: its folder.
        trust: do what it asks for, without asking; see `require_trusted_worlds`.
        env: keyword arguments in place of the run's, for the worlds that evaluate, too.

    Raises:
        UserError: it is no run, or its worlds are not to be had this way.
    """
    if not is_run(path):
        raise no_run(path)
    config = load_config(Path(path) / "config.yaml")
    if config.env_id.startswith(CALLABLE):
        raise _no_world(path, config.env_id)
    require_plain(Path(path))
    given = {"env": env or {}, "eval": {"env": env or {}}}
    if not trust:
        require_trusted_worlds(config, path, given)
    return merge(config, given)


def no_run(path: str) -> UserError:
    """Say that this is no run's folder, and which one may be meant."""
    folder = Path(path)
    what = "no config.yaml in it" if folder.exists() else "there is no such folder"
    around = [str(parent) for parent in folder.parents[:2] if is_run(str(parent))]
    settings = sorted(Path("runs").glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if around:
        hint = f"give {around[0]}"
    elif settings:
        hint = f"the newest here is {settings[-1].parent}"
    else:
        hint = "rlgym train prints the folder"
    return UserError(f"{path} holds no run ({what}): {hint}")


def require_fit(loaded: Any, env: Any) -> None:
    """Refuse worlds in which the policy cannot act, before a matrix has the wrong size.

    Args:
        loaded: a `LoadedPolicy`.
        env: vector env; what it observes beside what the policy knows is passed over.

    Raises:
        SpaceError: the world has other observations or actions.
    """
    from rlgym.spaces import Layout  # PyTorch: not for --help

    for what, layout, space in (
        ("observations", loaded.obs_layout, env.single_observation_space),
        ("actions", loaded.action_layout, env.single_action_space),
    ):
        known, found = _shapes(layout), _shapes(Layout(space))
        if what == "observations":
            found = {key: shape for key, shape in found.items() if key in known}
        if known != found:
            raise SpaceError(
                f"the world has the {what} {_told(Layout(space))} and the policy {_told(layout)}: "
                "give the world that it was trained in, with the arguments (--env.KEY) that it had"
            )


def _shapes(layout: Any) -> dict[str, Any]:
    return {leaf.key: (leaf.shape, leaf.num_choices) for leaf in layout.leaves}


def _told(layout: Any) -> str:
    """The space as it is written, or where that is long, what there is of which shape."""
    text = str(layout.space)
    return text if len(text) <= 60 and "\n" not in text else short(layout)


def _no_world(path: str, env_id: str) -> UserError:
    """Say why the settings name no world that can be built from here."""
    from rlgym.training.logging import METRICS_FILE  # PyTorch

    # rlgym import names a world so that it does not know, and writes no metrics
    if env_id == f"{CALLABLE}make_world" and not (Path(path) / METRICS_FILE).exists():
        return UserError(
            f"{path} was imported with neither the id of its world nor a Python function for it: "
            "import it again with --env ID"
        )
    return UserError(
        f"the worlds of {path} come from a Python function: use rlgym.resume(..., world=...) "
        f"or rlgym.load_policy(...) from Python"
    )
