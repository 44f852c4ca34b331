"""One lab for robot policies: any world, one training loop, a file that runs on the robot.

    env = rlgym.make_vec("CartPole-v1", num_envs=8)       # worlds as one batch of tensors
    rlgym.train("CartPole-v1", run_dir="runs/cartpole")   # what `rlgym train` does
    policy = rlgym.load_policy("runs/cartpole")           # policy.act(obs)

The names below load their module when they are first used: `import rlgym` alone imports neither
PyTorch nor Gymnasium, so the command line answers at once and workers start quickly.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlgym.registry import make, make_vec, register
    from rlgym.training.run import load_policy, resume, train

__version__ = "0.1.0"

__all__ = ["__version__", "load_policy", "make", "make_vec", "register", "resume", "train"]

# envs/, agents/, configs/ and assets/ stand beside this folder in a checkout and inside it when
# installed. With the checkout's root on the path, `rlgym.envs` is found in both cases.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs").is_dir():
    __path__.append(str(_root))

_HOME_OF = {
    "make": "rlgym.registry",
    "make_vec": "rlgym.registry",
    "register": "rlgym.registry",
    "load_policy": "rlgym.training.run",
    "resume": "rlgym.training.run",
    "train": "rlgym.training.run",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home module when it is first used (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(
            f"module 'rlgym' has no attribute '{name}': its public names are "
            f"{', '.join(sorted(_HOME_OF))}; a sub-package needs its own import, "
            f"as in `import rlgym.vector`"
        )
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
