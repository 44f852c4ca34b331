"""A look into an ONNX file before onnxruntime gets it: standard operators, all weights inside.

The file is a protocol buffer. Only the few fields that decide are read (numbers from onnx.proto3);
a robot needs no onnx package for that.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import BundleError

OPERATORS = {
    *("Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip"),
    *("Concat", "Constant", "Conv", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Flatten"),
    *("GRU", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual"),
    *("HardSigmoid", "HardSwish", "Identity", "LSTM", "LayerNormalization", "LeakyRelu", "Less"),
    *("LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul"),
    *("Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceSum", "Relu", "Reshape", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Slice"),
    *("Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh"),
    *("Transpose", "Unsqueeze", "Where", "Xor"),
}
"""What a policy may consist of: no control flow, and nothing that makes much out of little."""
MAX_NODES = 20_000
MAX_WHOLE = 1 << 16
"""Of a whole-number attribute, such as a padding."""
_DOMAINS = {"", "ai.onnx"}

# Fields of ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto.
_GRAPH, _OPSET, _FUNCTIONS = 7, 8, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_OP_TYPE, _ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_INT, _TENSOR, _SUBGRAPH, _INTS, _SUBGRAPHS = 3, 5, 6, 8, 11
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


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


def _check_model(model: memoryview) -> None:
    graphs = nodes = 0
    for field, value in _fields(model):
        if field == _FUNCTIONS:
            raise ValueError("it defines functions of its own")
        if field == _OPSET:
            for key, text in _fields(_message(value)):
                if key == 1 and _text(text) not in _DOMAINS:
                    raise ValueError(f"it needs operators of {_text(text)!a:.60}")
        if field == _GRAPH:
            graphs += 1
            for key, part in _fields(_message(value)):
                if key == _NODE:
                    nodes += 1
                    _check_node(_message(part))
                elif key == _INITIALIZER:
                    _check_tensor(_message(part))
                elif key == _SPARSE:
                    raise ValueError("it has sparse weights")
    if graphs != 1 or not 0 < nodes <= MAX_NODES:
        raise ValueError(f"it has {graphs} graphs and {nodes} operations")


def _check_node(node: memoryview) -> None:
    kind = domain = ""
    for field, value in _fields(node):
        if field == _OP_TYPE:
            kind = _text(value)
        elif field == _NODE_DOMAIN:
            domain = _text(value)
        elif field == _ATTRIBUTE:
            _check_attribute(_message(value))
    if domain not in _DOMAINS or kind not in OPERATORS:
        raise ValueError(f"it uses the operator {kind!a:.60} of {domain!a:.60}")


def _check_attribute(attribute: memoryview) -> None:
    for field, value in _fields(attribute):
        if field in (_SUBGRAPH, _SUBGRAPHS):
            raise ValueError("it has branches or loops")
        if field == _TENSOR:
            _check_tensor(_message(value))
        if field == _INT:
            _check_whole(value)
        if field == _INTS:
            for number in [value] if isinstance(value, int) else _packed(value):
                _check_whole(number)


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


def _check_tensor(tensor: memoryview) -> None:
    for field, value in _fields(tensor):
        if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
            raise ValueError("its weights are in another file")


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
