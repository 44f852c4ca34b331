"""`rlgym import`: bring a model of another library in as a run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError


@dataclass(frozen=True)
class Options:
    """Turn a model of Stable-Baselines3 into a run.

    rlgym import sb3 ppo_pendulum.zip --env Pendulum-v1

    --env.KEY VALUE gives that world a keyword argument; --env-kwargs '{KEY: VALUE}' gives several.

    PPO, A2C, SAC and TD3 with MlpPolicy, CnnPolicy or MultiInputPolicy. Nothing of the file is
    executed: parameters are read by name, pickles are left alone, and what cannot be represented
    exactly is refused with the reason. The folder that comes out is a run like any other:
    rlgym eval, play, record, and with --env also resume --total-steps N, which goes on training
    with a fresh optimizer.

    A model that was trained behind VecNormalize needs its statistics as numbers; docs/sb3.md has
    the three lines that write them.
    """

    library: Positional[Literal["sb3"]]
    """Where the model comes from."""
    model: Positional[str]
    """What model.save(...) wrote, such as model.zip."""
    env: str | None = None
    """World that it was trained in; without it eval, play and resume are not possible."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world, such as '{xml_file: walker.xml}'; or --env.KEY VALUE."""
    frame_stack: int = 1
    """Observations that VecFrameStack joined."""
    run_dir: str | None = None
    """Folder of the run; by default a new one under runs/."""
    overwrite: bool = False
    """Replace a run that stands in the folder."""
    vec_normalize: str | None = None
    """Statistics of VecNormalize: .npz, .safetensors or .json with mean, var, count, clip."""
    trust: bool = False
    """Unpickle that file if it is what VecNormalize.save wrote, which runs code in it."""


def run(argv: list[str]) -> int:
    """Import and say where the run is."""
    # as the other verbs have it, where `env` is the mapping; here it is the world's id
    argv = [re.sub(r"^--env\.", "--env-kwargs.", word) for word in argv]
    wanted = parse(Options, argv, "rlgym import", ("library", "model"))
    if wanted.library != "sb3":
        raise UserError(f"'{wanted.library}' is not known: rlgym import sb3 MODEL.zip")
    if wanted.frame_stack < 1:
        raise UserError("--frame-stack must be at least 1")
    from rlgym.interop import sb3_models
    from rlgym.training.run import load_policy

    folder = sb3_models.import_run(
        wanted.model,
        wanted.run_dir,
        overwrite=wanted.overwrite,
        env=wanted.env,
        env_kwargs=wanted.env_kwargs,
        frame_stack=wanted.frame_stack,
        vec_normalize=wanted.vec_normalize,
        trust=wanted.trust,
    )
    loaded = load_policy(folder, "last")
    count = sum(parameter.numel() for parameter in loaded.policy.parameters())
    print(f"{wanted.model}: {count:,} parameters of step {loaded.step:,} are now in {folder}")
    if wanted.env is None:
        print(
            f"its world is not known: rlgym.load_policy('{folder}') acts; import it again with "
            "--env ID to evaluate, watch and train it"
        )
    else:
        print(f"rlgym eval {folder}       rlgym resume {folder} --total-steps N")
    return 0
