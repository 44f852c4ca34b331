"""A graph as a LiteRT (TensorFlow Lite) file, for policies that see one vector.

The file takes one observation, (1, n) float32 under the graph's name, and gives the graph's outputs
by name; whole numbers are int32, which every LiteRT runtime knows. It is written directly, so that
the same graph always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlgym.deploy import graph as g
from rlgym.deploy.graph import Graph, Op, Port
from rlgym.deploy.reference import LAYER_NORM_EPSILON, run
from rlgym.errors import MissingExtraError, UserError
from rlgym.export.bundle import INT8_TOLERANCE
from rlgym.export.c99 import pack_inputs, to_int8
from rlgym.export.golden import TOLERANCE

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    message = 'LiteRT needs flatbuffers and ai-edge-litert: pip install "rlgym-lab[tflite]"'
    raise MissingExtraError(message) from None

schema: Any = schema_py_generated  # its classes declare no types for what they hold
Quantize = Literal["weights", "full"]
Arrays = Mapping[str, np.ndarray]
FULL_INT8_TOLERANCE = 1e-2
"""Largest error where hidden layers are int8, too, as a share of the action's range."""
KINDS: dict[str, tuple[Quantize | None, float]] = {
    "tflite": (None, TOLERANCE),
    "tflite-int8": ("weights", INT8_TOLERANCE),
    "tflite-full-int8": ("full", FULL_INT8_TOLERANCE),
}
"""Name of a format -> how its file is quantized, and the largest error that is allowed."""
VERSION = 3
"""Of the file format."""
ALIGN = 16
"""Bytes to whose multiples constants are aligned, as the format demands."""
PER_ROW = 12
"""Version of FULLY_CONNECTED from which each row of weights has a scale of its own."""
MARGIN = 1.1
"""Room for values that are larger than the calibration's."""
PER_LINE = 16
"""Bytes on a line of a C array."""
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "bool": schema.TensorType.BOOL,
}


def to_tflite(
    graph: Graph, quantize: Quantize | None = None, calibration: Arrays | None = None
) -> bytes:
    """Return the bytes of a .tflite.

    Args:
        graph: what `read_policy` gave.
        quantize: None for float32; "weights" for dense weights in bytes with one scale per row,
            whose inputs the runtime rounds to bytes as it goes; "full" for dense layers and hidden
            activations in bytes, between a normaliser and a squash in float32.
        calibration: (K, *shape) inputs by the graph's names, from which "full" learns how large
            values become; larger ones saturate.

    Raises:
        UserError: the policy is not a plain network of one vector, or "full" has no calibration,
            or one that overflows.
    """
    if not graph.is_mlp or graph.state_size:
        raise UserError(
            "LiteRT files hold plain networks that see one vector, without images, memory, masks "
            "or several inputs: use onnx, which holds them all, or c, which holds all but images"
        )
    if quantize == "full" and calibration is None:
        raise UserError("full int8 needs observations to calibrate with: give it golden inputs")
    ranges = _ranges(graph, calibration) if quantize == "full" and calibration else {}
    writer = _Writer(graph, quantize, ranges)
    return writer.file()


def write_tflite(
    graph: Graph,
    path: str | Path,
    quantize: Quantize | None = None,
    calibration: Arrays | None = None,
) -> None:
    """Write a .tflite; see `to_tflite`."""
    Path(path).write_bytes(to_tflite(graph, quantize, calibration))


def to_c_array(data: bytes, name: str = "policy_tflite") -> str:
    """A file's bytes as a C or C++ header, for runtimes without a file system."""
    lines = (data[i : i + PER_LINE] for i in range(0, len(data), PER_LINE))
    numbers = ",\n".join(", ".join(str(byte) for byte in line) for line in lines)
    return (
        f"/* A policy exported by rlgym: {name}, {len(data)} bytes of LiteRT. Include it once. */\n"
        f"#ifndef {name.upper()}_H\n#define {name.upper()}_H\n\n"
        f"#ifdef __cplusplus\nalignas({ALIGN})\n#else\n_Alignas({ALIGN})\n#endif\n"
        f"const unsigned char {name}[] = {{\n{numbers}}};\n"
        f"const unsigned int {name}_len = {len(data)};\n\n#endif\n"
    )


class LiteRT:
    """A file of ours in LiteRT, which takes one observation at a time as a robot does.

    Args:
        data: what `to_tflite` gave. LiteRT does not check what it loads, so never a stranger's.
        graph: that it was written from.

    Raises:
        UserError: LiteRT cannot load it.
    """

    def __init__(self, data: bytes, graph: Graph) -> None:
        self.graph = graph
        try:
            self._runtime = Interpreter(model_content=data, num_threads=1)
            self._runtime.allocate_tensors()
            (self._source,) = (entry["index"] for entry in self._runtime.get_input_details())
            outputs = self._runtime.get_output_details()
            places = {entry["name"]: entry["index"] for entry in outputs}
            self._places = {port.name: places[port.name] for port in graph.outputs}
        except (KeyError, RuntimeError, ValueError) as error:
            raise _failed(error) from None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The graph's outputs, (B, *shape), for (B, *shape) inputs by the graph's names.

        Raises:
            UserError: the file takes or gives something else than the graph.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in self._places}
        try:
            for row in pack_inputs(self.graph, dict(inputs)):
                for name, value in zip(self._places, self.decide(row[None]), strict=True):
                    found[name].append(value)
            return {
                port.name: np.reshape(found[port.name], (-1, *port.shape)).astype(port.dtype)
                for port in self.graph.outputs
            }
        except (RuntimeError, ValueError) as error:
            raise _failed(error) from None

    def decide(self, row: np.ndarray) -> list[np.ndarray]:
        """The outputs, in the graph's order and the file's types, for (1, n) packed inputs."""
        self._runtime.set_tensor(self._source, row)
        self._runtime.invoke()
        return [self._runtime.get_tensor(index) for index in self._places.values()]


def _failed(error: Exception) -> UserError:
    said = " ".join(str(error).split())[:200]
    return UserError(f"the .tflite cannot be run ({said}): export the policy again")


def _ranges(graph: Graph, inputs: Arrays) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each array that an operation writes, with some room."""
    every = tuple(Port(op.output, (), "float32") for op in graph.ops)
    values = run(replace(graph, outputs=every), inputs)
    found = {name: (float(array.min()), float(array.max())) for name, array in values.items()}
    if not np.isfinite(list(found.values())).all():
        raise UserError("the policy computes numbers that are not finite: full int8 cannot hold it")
    return {name: (MARGIN * low, MARGIN * high) for name, (low, high) in found.items()}


class _Buffer(schema.BufferT):
    """Bytes of a constant; the generated class would not align them."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__()
        self.bytes = data

    def Pack(self, builder: Any) -> int:  # noqa: N802 (the generated name)
        if self.bytes:
            builder.StartVector(1, len(self.bytes), ALIGN)
            builder.head -= len(self.bytes)
            builder.Bytes[builder.head : builder.head + len(self.bytes)] = self.bytes
            data = builder.EndVector()
        schema.BufferStart(builder)
        if self.bytes:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Writer:
    """Turns operations into LiteRT's, and their arrays into tensors.

    An array may exist as float32, as int8, or as both; whoever reads it asks for one, and the
    conversion is written when somebody first needs it.
    """

    def __init__(
        self, graph: Graph, quantize: Quantize | None, ranges: dict[str, tuple[float, float]]
    ) -> None:
        self.graph, self.quantize, self.ranges = graph, quantize, ranges
        self.tensors: list[Any] = []
        self.buffers: list[_Buffer] = [_Buffer()]  # the first one stays empty by definition
        self.operators: list[Any] = []
        self.codes: dict[tuple[int, int], int] = {}
        """(LiteRT's number of an operation, its version) -> place in the list of those used."""
        self.floats: dict[str, int] = {}
        """Graph's name of an array -> its tensor that is not int8."""
        self.bytes: dict[str, int] = {}
        """Graph's name of an array -> its int8 tensor."""
        self.size: dict[str, int] = {}
        (port,) = graph.inputs
        self.size[port.name] = int(np.prod(port.shape))
        self.floats[port.name] = self.tensor(port.name, (1, self.size[port.name]))
        for op in graph.ops:
            _WRITE[type(op)](self, op)

    # ------------------------------------------------------------------------- for operations

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "float32",
        steps: tuple[Any, Any] | None = None,
    ) -> int:
        """Add a tensor; `steps` are the scales and zero points of int8."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), _TYPES[dtype]
        if steps is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(steps[0]).astype(np.float32)
            tensor.quantization.zeroPoint = np.atleast_1d(steps[1]).astype(np.int64)
            tensor.quantization.quantizedDimension = 0
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, op: Op, name: str, array: Any, steps: tuple[Any, Any] | None = None) -> int:
        """Add a constant under a name of its operation."""
        array = np.ascontiguousarray(array)
        index = self.tensor(f"{op.output}.{name}", array.shape, str(array.dtype), steps)
        self.tensors[index].buffer = len(self.buffers)
        self.buffers.append(_Buffer(array.astype(array.dtype.newbyteorder("<")).tobytes()))
        return index

    def node(
        self,
        kind: str,
        inputs: tuple[int, ...],
        output: int,
        options: tuple[str, dict[str, Any]] | None = None,
        version: int = 1,
    ) -> int:
        """Add an operation that writes the tensor `output`, and return that."""
        operator = schema.OperatorT()
        key = getattr(schema.BuiltinOperator, kind), version
        operator.opcodeIndex = self.codes.setdefault(key, len(self.codes))
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            name, values = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
            for field, value in values.items():
                setattr(operator.builtinOptions, field, value)
        self.operators.append(operator)
        return output

    def step(self, op: Op, name: str, kind: str, *inputs: int, width: int = 0, **rest: Any) -> int:
        """Add an operation on float32; `name` names what it gives, "" is the op's own output.

        Width is that of the operation's first input unless it is given.
        """
        width = width or self.size[op.inputs[0]]
        output = self.tensor(f"{op.output}.{name}" if name else op.output, (1, width))
        if not name:
            self.floats[op.output], self.size[op.output] = output, width
        return self.node(kind, inputs, output, **rest)

    def float(self, name: str) -> int:
        """The float32 tensor of an array."""
        if name not in self.floats:
            output = self.tensor(name, (1, self.size[name]))
            self.floats[name] = self.node("DEQUANTIZE", (self.bytes[name],), output, version=2)
        return self.floats[name]

    def byte(self, name: str) -> int:
        """The int8 tensor of an array."""
        if name not in self.bytes:
            output = self.new_byte(name, self.size[name], _steps(*self.ranges[name]))
            self.node("QUANTIZE", (self.floats[name],), output)
        return self.bytes[name]

    def new_byte(self, name: str, width: int, steps: tuple[Any, Any]) -> int:
        """Add the int8 tensor of an array."""
        self.bytes[name] = self.tensor(f"{name}.int8", (1, width), "int8", steps)
        self.size[name] = width
        return self.bytes[name]

    def scale(self, index: int) -> np.float32:
        """The step of an int8 tensor."""
        return self.tensors[index].quantization.scale[0]

    # ------------------------------------------------------------------------------- the file

    def file(self) -> bytes:
        """The bytes of the whole model."""
        part = schema.SubGraphT()
        part.name, part.tensors, part.operators = b"policy", self.tensors, self.operators
        part.inputs = [self.floats[port.name] for port in self.graph.inputs]
        part.outputs = [self.float(port.name) for port in self.graph.outputs]
        model = schema.ModelT()
        model.version, model.description = VERSION, b"rlgym"
        model.subgraphs, model.buffers = [part], self.buffers
        model.operatorCodes = [_code(*key) for key in self.codes]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _code(kind: int, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = kind, version
    code.deprecatedBuiltinCode = min(kind, 127)  # where readers of before 2020 look
    return code


def _steps(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point by which int8 reaches from `low` to `high`, and 0 is exact.

    The scale is rounded up to nine bits: what another machine's arithmetic changes in the last
    bits of a range must not change the file.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    part, power = np.frexp((high - low) / 255.0 or 1.0)
    scale = np.ldexp(np.ceil(part * 512.0) / 512.0, power)
    return np.float32(scale), int(np.clip(np.rint(-128.0 - low / scale), -128, 127))


def _columns(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32).reshape(1, -1)


def _whole(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


# ---------------------------------------------------------------------------------- operations


def _flatten(w: _Writer, op: g.Flatten) -> None:
    # inputs are written as flat float32 from the start
    w.floats[op.output], w.size[op.output] = w.float(op.inputs[0]), w.size[op.inputs[0]]


def _normalize(w: _Writer, op: g.Normalize) -> None:
    x = w.float(op.inputs[0])
    mean, inv_std = (w.constant(op, n, _columns(getattr(op, n))) for n in ("mean", "inv_std"))
    x = w.step(op, "centred", "SUB", x, mean, options=("SubOptions", {}))
    x = w.step(op, "scaled", "MUL", x, inv_std, options=("MulOptions", {}))
    low, high = (w.constant(op, n, _columns(v)) for n, v in (("low", -op.clip), ("high", op.clip)))
    _between(w, op, x, low, high)


def _between(w: _Writer, op: Op, x: int, low: int, high: int) -> None:
    options = ("MaximumMinimumOptions", {})
    above = w.step(op, "above", "MAXIMUM", x, low, options=options)
    w.step(op, "", "MINIMUM", above, high, options=options)


def _dense(w: _Writer, op: g.Dense) -> None:
    x, width, options = op.inputs[0], len(op.bias), ("FullyConnectedOptions", {})
    if w.quantize is None:
        arrays = w.constant(op, "weight", op.weight), w.constant(op, "bias", op.bias)
        w.step(op, "", "FULLY_CONNECTED", w.float(x), *arrays, width=width, options=options)
        return
    whole, scale = to_int8(op.weight)
    weight = w.constant(op, "weight", whole, (scale, np.zeros(width)))
    if w.quantize == "weights":
        arrays = w.float(x), weight, w.constant(op, "bias", op.bias)
        # rounding between the smallest and largest input of the moment, not about zero
        own = (options[0], {"asymmetricQuantizeInputs": True})
        w.step(op, "", "FULLY_CONNECTED", *arrays, width=width, options=own, version=PER_ROW)
        return
    source = w.byte(x)
    steps = w.scale(source) * scale
    bias = np.clip(np.rint(op.bias / steps), -(2**31), 2**31 - 1).astype(np.int32)
    arrays = source, weight, w.constant(op, "bias", bias, (steps, np.zeros(width)))
    output = w.new_byte(op.output, width, _steps(*w.ranges[op.output]))
    w.node("FULLY_CONNECTED", arrays, output, options, PER_ROW)


def _layer_norm(w: _Writer, op: g.LayerNorm) -> None:
    x, axis = w.float(op.inputs[0]), w.constant(op, "axis", _whole(1))
    mean_of = {"width": 1, "options": ("ReducerOptions", {"keepDims": True})}
    mean = w.step(op, "mean", "MEAN", x, axis, **mean_of)
    centred = w.step(op, "centred", "SUB", x, mean, options=("SubOptions", {}))
    square = w.step(op, "square", "MUL", centred, centred, options=("MulOptions", {}))
    variance = w.step(op, "variance", "MEAN", square, axis, **mean_of)
    epsilon = w.constant(op, "epsilon", _columns(LAYER_NORM_EPSILON))
    safe = w.step(op, "safe", "ADD", variance, epsilon, width=1, options=("AddOptions", {}))
    inverse = w.step(op, "inverse", "RSQRT", safe, width=1)
    unit = w.step(op, "unit", "MUL", centred, inverse, options=("MulOptions", {}))
    scale, shift = (w.constant(op, n, _columns(getattr(op, n))) for n in ("scale", "shift"))
    scaled = w.step(op, "scaled", "MUL", unit, scale, options=("MulOptions", {}))
    w.step(op, "", "ADD", scaled, shift, options=("AddOptions", {}))


def _activation(w: _Writer, op: g.Activation) -> None:
    x = op.inputs[0]
    if x not in w.bytes:
        if op.kind == "silu":
            gate = w.step(op, "sigmoid", "LOGISTIC", w.float(x))
            w.step(op, "", "MUL", w.float(x), gate, options=("MulOptions", {}))
        else:
            w.step(op, "", op.kind.upper(), w.float(x))
        return
    width, steps = w.size[x], _steps(*w.ranges[op.output])
    if op.kind == "silu":
        # the steps of a sigmoid and of a tanh are part of the format
        gate = w.tensor(f"{op.output}.sigmoid", (1, width), "int8", (1 / 256, -128))
        w.node("LOGISTIC", (w.byte(x),), gate, version=2)
        output = w.new_byte(op.output, width, steps)
        w.node("MUL", (w.byte(x), gate), output, ("MulOptions", {}), 2)
        return
    output = w.new_byte(op.output, width, (1 / 128, 0) if op.kind == "tanh" else steps)
    w.node(op.kind.upper(), (w.byte(x),), output, version=1 if op.kind == "elu" else 2)


def _slice(w: _Writer, op: g.Slice) -> None:
    _cut(w, op, "", w.float(op.inputs[0]), op.start, op.stop)


def _cut(w: _Writer, op: Op, name: str, x: int, start: int, stop: int) -> int:
    ends = (("start", _whole(0, start)), ("size", _whole(1, stop - start)))
    bounds = [w.constant(op, f"{name or 'columns'}_{end}", value) for end, value in ends]
    return w.step(op, name, "SLICE", x, *bounds, width=stop - start, options=("SliceOptions", {}))


def _clip(w: _Writer, op: g.Clip) -> None:
    low, high = (w.constant(op, n, _columns(getattr(op, n))) for n in ("low", "high"))
    _between(w, op, w.float(op.inputs[0]), low, high)


def _choose(w: _Writer, op: g.Choose) -> None:
    logits, axis, chosen, at = w.float(op.inputs[0]), w.constant(op, "axis", _whole(1)), [], 0
    whole = ("ArgMaxOptions", {"outputType": schema.TensorType.INT32})
    for k, size in enumerate(op.sizes):
        own = _cut(w, op, f"logits_{k}", logits, at, at + size)
        index = w.tensor(f"{op.output}.index_{k}", (1,), "int32")
        chosen.append(w.node("ARG_MAX", (own, axis), index, whole))
        at += size
    count = len(op.sizes)
    row = w.tensor(f"{op.output}.index", (1, count), "int32")
    w.node("PACK", tuple(chosen), row, ("PackOptions", {"valuesCount": count, "axis": 1}))
    first = w.constant(op, "first", _whole(op.start))
    output = w.tensor(op.output, (1, count), "int32")
    w.floats[op.output] = w.node("ADD", (row, first), output, ("AddOptions", {}))
    w.size[op.output] = count


def _switch(w: _Writer, op: g.Switch) -> None:
    width = w.size[op.inputs[0]]
    above = w.tensor(f"{op.output}.above", (1, width), "bool")
    inputs = w.float(op.inputs[0]), w.constant(op, "zero", _columns(0.0))
    w.node("GREATER", inputs, above, ("GreaterOptions", {}))
    types = {"inDataType": schema.TensorType.BOOL, "outDataType": schema.TensorType.INT32}
    output = w.tensor(op.output, (1, width), "int32")
    w.floats[op.output] = w.node("CAST", (above,), output, ("CastOptions", types))
    w.size[op.output] = width


_WRITE: dict[type[Op], Callable[[_Writer, Any], None]] = {
    g.Flatten: _flatten,
    g.Normalize: _normalize,
    g.Dense: _dense,
    g.LayerNorm: _layer_norm,
    g.Activation: _activation,
    g.Slice: _slice,
    g.Clip: _clip,
    g.Choose: _choose,
    g.Switch: _switch,
}
