"""What every learner does with saved tensors before it takes them back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlgym.errors import CheckpointError


def parts_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, dict]:
    """Split saved tensors by the first word of their names, once they are seen to fit.

    Args:
        state: what was saved: "model.x", "optimizer.y", or a name without a dot.
        expected: the learner's own `state_dict`.

    Returns:
        Part -> rest of the name -> tensor; the rest is "" for a name without a dot.

    Raises:
        CheckpointError: when names or shapes differ; the first difference is named.
    """
    for name in sorted(expected.keys() ^ state.keys()):
        where = "checkpoint" if name in expected else "policy"
        raise CheckpointError(
            f"the {where} has no {name!r}: the network, its settings and the world's spaces must "
            "be those of what was saved"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name!r} is {list(state[name].shape)} in the checkpoint and "
                f"{list(tensor.shape)} here: the network, its settings and the world's spaces must "
                "be those of what was saved"
            )
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = state[name]
    return parts
