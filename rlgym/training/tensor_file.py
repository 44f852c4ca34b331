"""The bytes of a safetensors file, one piece after the other, so that saving copies nothing whole.

A file is the length of its header (8 bytes, little-endian), the header (JSON: type, shape and place
of each tensor), and the tensors' bytes without gaps; https://github.com/huggingface/safetensors
describes it. What is written here, `safetensors.torch.load` reads. Writing through that library
would hold a tensor four times over: a segment of a replay buffer is as large as memory allows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rlgym.errors import CheckpointError

_ALIGNMENT = 8
_PIECE = 4 * 1024**2
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorFile:
    """A safetensors file that is about to be written.

    Args:
        tensors: named tensors, or numeric numpy arrays, of any device; views of others too. They
            must not change before the last piece is out.

    Attributes:
        size: bytes that the file will have.

    Raises:
        CheckpointError: one is of a type that no safetensors file holds.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        named = {name: torch.as_tensor(value).detach() for name, value in tensors.items()}
        order = sorted(named, key=lambda name: (-named[name].element_size(), name))  # aligned
        self._tensors = [named[name] for name in order]
        entries, end = {}, 0
        for name, tensor in zip(order, self._tensors, strict=True):
            if tensor.dtype not in _NAMES:
                raise CheckpointError(f"'{name}' is {tensor.dtype}, which cannot be saved: cast it")
            begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
            entries[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        self._header = len(header).to_bytes(8, "little") + header
        self.size = len(self._header) + end

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the file's bytes in order; at most one tensor at a time is copied to the host."""
        yield self._header
        for tensor in self._tensors:
            flat = tensor.to("cpu").contiguous().reshape(-1)
            flat = flat.as_strided(flat.shape, (1,))  # a single element may have any stride
            content = flat.view(torch.uint8).numpy().data
            for begin in range(0, len(content), _PIECE):
                yield content[begin : begin + _PIECE]
