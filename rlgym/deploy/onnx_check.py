"""A look into an ONNX file before onnxruntime gets it: standard operators, all weights inside.

The file is a protocol buffer. Only the few fields that decide are read (numbers from onnx.proto3);
a robot needs no onnx package for that. What a file of a few operations can make out of little has
two bounds: here that of the shapes, which onnxruntime follows while it loads, and in the session
that of the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import BundleError

OPERATORS = {
    *("Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip"),
    *("Concat", "Constant", "Conv", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Flatten"),
    *("GRU", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual"),
    *("HardSigmoid", "HardSwish", "Identity", "LSTM", "LayerNormalization", "LeakyRelu", "Less"),
    *("LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul"),
    *("Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceSum", "Relu", "Reshape", "Selu", "Sigmoid", "Sign", "Sin", "Slice", "Softmax"),
    *("Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose"),
    *("Unsqueeze", "Where", "Xor"),
}
"""What a policy may consist of: no control flow, and nothing that has arrays of any size made."""
_JOIN = {"Concat", "Gather", "Unsqueeze"}
"""Operators whose output can be as long, or have as many axes, as all inputs together."""
_PLAIN = {"Flatten", "GRU", "Gemm", "LSTM"}
"""Operators whose output is numbers, of a few axes, whatever goes in."""
MAX_SHAPES = 1 << 23
"""Numbers in all shapes, and in all values that may become one."""
MAX_MEMORY = 1 << 31
"""Bytes of a session's arrays: weights, a copy of them in another order, and what it computes."""
MAX_NODES = 20_000
MAX_WHOLE = 1 << 16
"""Of a whole-number attribute, such as a padding."""
_DOMAINS = {"", "ai.onnx"}

# Fields of ModelProto, GraphProto, ValueInfoProto, NodeProto, AttributeProto and TensorProto.
_GRAPH, _OPSET, _FUNCTIONS = 7, 8, 25
_NODE, _INITIALIZER, _VALUES, _SPARSE = 1, 5, (11, 12, 13), 15
_VALUE_NAME = 1
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_INT, _TENSOR, _INTS = 3, 5, 8
_REFUSED = {6: "branches or loops", 11: "branches or loops", 22: "sparse weights"}
_REFUSED |= {10: "lists of weights", 23: "sparse weights"}
_DIMS, _DATA_TYPE, _TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_WHOLE_TYPES = {6, 7}
"""int32 and int64: a tensor of them may be a shape."""


def check_onnx(data: bytes, name: str) -> None:
    """Refuse a model that is more than arithmetic.

    Raises:
        BundleError: names what it holds: an operator that is not standard, weights in another file,
            control flow; or it is no ONNX at all.
    """
    try:
        _check_model(memoryview(data))
    except (ValueError, IndexError) as error:
        raise BundleError(f"{name} is no policy that may be loaded ({error})") from None


def open_onnx(data: bytes) -> Any:
    """Return an onnxruntime session of a checked model, whose arrays' memory is bounded.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        Exception: onnxruntime's, which have no common family: it cannot be loaded.
    """
    import onnxruntime as ort

    cpu = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # -1: as it is by default; 1: the arena grows by what is asked for, not to the next power of two
    sizes = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    arena = ort.OrtArenaCfg({"max_mem": MAX_MEMORY, "arena_extend_strategy": 1, **sizes})
    try:
        ort.create_and_register_allocator(cpu, arena)
    except RuntimeError as error:  # older ones (1.20) keep the first arena, for all sessions
        if "already" not in str(error):
            raise
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a small network is one task
    options.log_severity_level = 4  # what goes wrong is raised, too
    # what is folded while the model is loaded is not in the arena; we leave nothing to fold
    given: Any = {"disabled_optimizers": ["ConstantFolding"]}
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], **given)


def _check_model(model: memoryview) -> None:
    graphs = []
    for field, value in _fields(model):
        if field == _FUNCTIONS:
            raise ValueError("it defines functions of its own")
        if field == _OPSET:
            for key, text in _fields(_message(value)):
                if key == 1 and _text(text) not in _DOMAINS:
                    raise ValueError(f"it needs operators of {_text(text)!a:.60}")
        if field == _GRAPH:
            graphs.append(_message(value))
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    _check_graph(graphs[0])


def _check_graph(graph: memoryview) -> None:
    nodes = []
    shapes = {b"": 0}  # by name, at most: numbers in a value's shape, or in it as one
    for field, value in _fields(graph):
        if field == _SPARSE:
            raise ValueError("it has sparse weights")
        if field == _NODE:
            nodes.append(_message(value))
        elif field == _INITIALIZER:
            _grow(shapes, _name(_message(value), _TENSOR_NAME), _check_tensor(_message(value)))
        elif field in _VALUES:  # of which any axis may be stated
            _grow(shapes, _name(_message(value), _VALUE_NAME), len(_message(value)))
    if not 0 < len(nodes) <= MAX_NODES:
        raise ValueError(f"it has {len(nodes)} operations")
    left = MAX_SHAPES - sum(shapes.values())
    for node in nodes:
        left -= _check_node(node, shapes)
        if left < 0:
            raise ValueError(f"it makes shapes of more than {MAX_SHAPES:,} numbers")


def _grow(shapes: dict[bytes, int], name: bytes, size: int) -> None:
    shapes[name] = max(size, shapes.get(name, 0))


def _name(message: memoryview, number: int) -> bytes:
    return b"".join(bytes(_message(value)) for field, value in _fields(message) if field == number)


def _check_node(node: memoryview, shapes: dict[bytes, int]) -> int:
    """Look at an operation; returns how many numbers the shapes of its outputs have at most."""
    kind = domain = ""
    sizes, outputs = [1], []
    for field, value in _fields(node):
        if field == _OP_TYPE:
            kind = _text(value)
        elif field == _NODE_DOMAIN:
            domain = _text(value)
        elif field == _ATTRIBUTE:
            sizes.append(_check_attribute(_message(value)))
        elif field == _INPUT:
            name = bytes(_message(value))
            if name not in shapes:
                raise ValueError(f"it reads {_text(value)!a:.60} before anything gives it")
            sizes.append(shapes[name])
        elif field == _OUTPUT:
            outputs.append(bytes(_message(value)))
    if domain not in _DOMAINS or kind not in OPERATORS:
        raise ValueError(f"it uses the operator {kind!a:.60} of {domain!a:.60}")
    size = 1 if kind in _PLAIN else sum(sizes) if kind in _JOIN else max(sizes)
    for name in outputs:
        _grow(shapes, name, size)
    return sum(shapes[name] for name in outputs)


def _check_attribute(attribute: memoryview) -> int:
    """Look at an attribute; returns how many numbers it can add to a shape."""
    size = 0
    for field, value in _fields(attribute):
        if field in _REFUSED:
            raise ValueError(f"it has {_REFUSED[field]}")
        if field == _TENSOR:
            size += _check_tensor(_message(value))
        if field == _INT:
            _check_whole(value)
        if field == _INTS:
            for number in [value] if isinstance(value, int) else _packed(value):
                _check_whole(number)
                size += 1
    return size


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is no ONNX file")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)[:200]).decode("utf-8", "replace")


def _check_whole(value: int | memoryview) -> None:
    signed = value - (1 << 64) if isinstance(value, int) and value >> 63 else value
    if not isinstance(signed, int) or abs(signed) > MAX_WHOLE:
        raise ValueError(f"it has an attribute of {signed}")


def _check_tensor(tensor: memoryview) -> int:
    """Look at where an array's numbers are; returns how many of them a shape can have."""
    axes = kind = 0
    for field, value in _fields(tensor):
        if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
            raise ValueError("its weights are in another file")
        if field == _DIMS:
            axes += 1 if isinstance(value, int) else len(value)
        if field == _DATA_TYPE and isinstance(value, int):
            kind = value
    return len(tensor) if kind in _WHOLE_TYPES else axes


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: whole numbers as int, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no ONNX file")
        if at + size > len(message):
            raise ValueError("it is no ONNX file, or a torn one")
        yield key >> 3, message[at : at + size]
        at += size


def _packed(values: memoryview) -> Iterator[int]:
    at = 0
    while at < len(values):
        value, at = _varint(values, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & ((1 << 64) - 1), at
    raise ValueError("it is no ONNX file")
