"""What ML-Agents' C# code asks of a model before and while it uses it, told in Python.

The rules are those of `SentisModelParamLoader`, `SentisModelInfo`, `TensorGenerator` and
`ApplierImpl` (com.unity.ml-agents 3.x and 4.x). The real code runs in Unity alone; this is what can
be held against a file here. `failures` gives what Unity would warn of, in the order of its checks;
an empty list is a model that it takes without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

VERSIONS = (2, 3)
PLAIN_INPUTS = {"action_masks", "recurrent_in", "prev_action", "epsilon", "sequence_length"}


@dataclass(frozen=True)
class Behavior:
    """A scene's Behavior Parameters and sensors."""

    sensors: tuple[tuple[int, ...], ...]
    """Shape of each sensor; a picture's is (C, H, W)."""
    continuous: int = 0
    branches: tuple[int, ...] = ()


def failures(data: bytes, scene: Behavior, deterministic: bool = False) -> list[str]:
    """Everything that Unity would say of a model in this scene."""
    model = Model(data)
    said = model.missing_tensors(deterministic)
    if said:
        return said  # the loader looks no further
    said = []
    version, memory = model.whole("version_number"), model.whole("memory_size")
    if not VERSIONS[0] <= version <= VERSIONS[1]:
        said.append(f"model version {version}")
    said += model.inputs_of(scene, memory) + model.shapes_of(scene)
    if model.continuous_size() != scene.continuous:
        said.append(f"continuous size {model.continuous_size()}, expected {scene.continuous}")
    shape = model.values.get("discrete_action_output_shape", np.zeros(0)).reshape(-1)
    sizes = tuple(int(size) for size in shape)
    if sizes != scene.branches:
        said.append(f"branches {sizes}, expected {scene.branches}")
    if memory > 0 and "recurrent_out" not in model.outputs:
        said.append("memory without recurrent_out")
    return said + model.what_the_appliers_read(scene, memory, deterministic)


class Model:
    """A file as Unity's importer sees it: run once on zeros, as `SentisModelInfo` does."""

    def __init__(self, data: bytes) -> None:
        proto = onnx.load_from_string(data)
        self.inputs = {i.name: [_dim(d) for d in _dims(i)] for i in proto.graph.input}
        self.input_types = {i.name: i.type.tensor_type.elem_type for i in proto.graph.input}
        self.outputs = [output.name for output in proto.graph.output]
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.values = self.run(1)

    def run(self, batch: int) -> dict[str, np.ndarray]:
        """The outputs on zeros; every input is fed as float, as Unity does."""
        fed = {
            name: np.zeros([batch if size is None else size for size in shape], np.float32)
            for name, shape in self.inputs.items()
        }
        found: Any = self.session.run(self.outputs, fed)
        return dict(zip(self.outputs, found, strict=True))

    def has(self, name: str) -> bool:
        """The C# code looks for names that *contain* this one."""
        return any(name in output for output in self.outputs)

    def whole(self, name: str) -> int:
        """A constant as a whole number; C# casts its tensor to one of floats, or throws."""
        return int(_floats(name, self.values[name]).reshape(-1)[0])

    def continuous_size(self) -> int:
        name = "continuous_action_output_shape"
        return self.whole(name) if name in self.values else 0

    def missing_tensors(self, deterministic: bool) -> list[str]:
        """`CheckExpectedTensors`: what stops the loader at once."""
        for name in ("version_number", "memory_size"):
            if name not in self.values:
                return [f"{name} is missing"]
        if not self.has("continuous_actions") and not self.has("discrete_actions"):
            return ["no action output"]
        for kind in ("continuous", "discrete"):
            if not self.has(f"{kind}_actions"):
                continue
            shape = f"{kind}_action_output_shape"
            if shape not in self.values:
                return [f"{shape} is missing"]
            wanted = f"deterministic_{kind}_actions" if deterministic else f"{kind}_actions"
            if not self.has(wanted) or _floats(shape, self.values[shape]).sum() <= 0:
                return [f"{wanted} is missing"]
        return []

    def inputs_of(self, scene: Behavior, memory: int) -> list[str]:
        """`CheckInputTensorPresence`."""
        said = [f"no obs_{k}" for k in range(len(scene.sensors)) if f"obs_{k}" not in self.inputs]
        if memory > 0 and "recurrent_in" not in self.inputs:
            said.append("memory without recurrent_in")
        if "discrete_action_output_shape" in self.values and "action_masks" not in self.inputs:
            said.append("discrete actions without action_masks")
        return said

    def shapes_of(self, scene: Behavior) -> list[str]:
        """`CheckInputTensorShape`, and the generators, which know no other names."""
        sensors = {f"obs_{k}": list(shape) for k, shape in enumerate(scene.sensors)}
        said = []
        for name, shape in self.inputs.items():
            if name not in sensors and name not in PLAIN_INPUTS:
                said.append(f"unexpected input {name}")
            if name in sensors and shape[1:] != sensors[name]:
                said.append(f"{name} is {shape[1:]}, the sensor {sensors[name]}")
            if shape[0] is not None:
                said.append(f"{name} has a fixed batch")
            if self.input_types[name] != TensorProto.FLOAT:
                said.append(f"{name} is not float")
        return said

    def what_the_appliers_read(
        self, scene: Behavior, memory: int, deterministic: bool
    ) -> list[str]:
        """`ApplierImpl` reads floats here and whole numbers there, a row for each agent."""
        prefix, batch, said = "deterministic_" if deterministic else "", 3, []
        values = self.run(batch)
        if scene.continuous:
            found = _floats("actions", values[f"{prefix}continuous_actions"])
            if found.shape != (batch, scene.continuous):
                said.append(f"continuous actions of shape {found.shape}")
        if scene.branches:
            found = values[f"{prefix}discrete_actions"]
            if found.dtype not in (np.int64, np.int32):
                raise TypeError("discrete actions are read as Tensor<int>")
            if found.shape != (batch, len(scene.branches)):
                said.append(f"discrete actions of shape {found.shape}")
            elif (found < 0).any() or (found >= scene.branches).any():
                said.append("a choice that the branch does not have")
        if memory > 0 and "recurrent_out" in values:
            found = _floats("recurrent_out", values["recurrent_out"])
            if found.shape != (batch, 1, memory) or self.inputs["recurrent_in"][1:] != [1, memory]:
                said.append(f"memory of shape {found.shape}")
        return said


def _floats(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32:
        raise TypeError(f"{name} is read as Tensor<float>, and it is {array.dtype}")
    return array


def _dims(info: Any) -> Any:
    return info.type.tensor_type.shape.dim


def _dim(dim: Any) -> int | None:
    return None if dim.dim_param else dim.dim_value
