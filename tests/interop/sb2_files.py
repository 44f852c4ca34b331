"""Model files in the format of Stable-Baselines 2, with the networks of motion_imitation."""

import io
import zipfile
from pathlib import Path

import numpy as np

SHAPES = {
    **{"pi_fc0": (160, 512), "pi_fc1": (512, 256), "pi": (256, 12)},
    **{"vf_fc0": (160, 512), "vf_fc1": (512, 256), "vf": (256, 1), "q": (256, 12)},
}


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a policy, named as Stable-Baselines 2 names them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        scale = 1 / np.sqrt(shape[0])
        found[f"model/{name}/w:0"] = rng.normal(0, scale, shape).astype(np.float32)
        found[f"model/{name}/b:0"] = rng.normal(0, 0.1, shape[1]).astype(np.float32)
    return found


def save(path: Path, arrays: dict[str, np.ndarray], name: str = "parameters") -> Path:
    """Write a model file as Stable-Baselines 2 does."""
    inner = io.BytesIO()
    np.savez(inner, **arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", '{"policy": {":serialized:": "never looked at"}}')
        archive.writestr(name, inner.getvalue())
    return path
