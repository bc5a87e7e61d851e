"""Requirements of an ONNX file, read from its bytes without running any of its content.

The module parses protobuf's wire format and needs no package.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

_IR_VERSION, _GRAPH, _OPSET, _FUNCTIONS = 1, 7, 8, 25
_DOMAIN, _VERSION = 1, 2
_NODE, _INITIALIZER = 1, 5
_NODE_DOMAIN, _ATTRIBUTE = 7, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DATA_TYPE, _TENSOR_NAME = 2, 8
_VALUES = frozenset({4, 9, 10})
"""Fields float_data, raw_data and double_data of a tensor."""
_DEPTH = 32
"""Maximum nesting of graphs (as in If and Loop); real models stay far below."""


@dataclass
class StoredTensor:
    """A constant of an ONNX file. type: number of the data type · parts: the values."""

    name: str = ""
    type: int = 0
    parts: list[memoryview] = field(default_factory=list)


@dataclass
class Header:
    """Requirements of an ONNX file.

    opsets: version of the operator set by domain ('' is ONNX's own) · domains: domains
    of all operators and functions · external: whether weights are in other files ·
    tensors: weights and other constants.
    """

    opsets: dict[str, int] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    external: bool = False
    tensors: list[StoredTensor] = field(default_factory=list)


def read_header(content: bytes) -> Header:
    """Read the header from the content of a file.

    Raises `ValueError` if the content is truncated or not an ONNX model.
    """
    header, numbers = Header(), set()
    try:
        for number, value in _iterate_fields(memoryview(content)):
            numbers.add(number)
            if number == _OPSET and isinstance(value, memoryview):
                opset = dict(_iterate_fields(value))
                domain = _decode_text(opset.get(_DOMAIN, b""))
                header.opsets[domain] = int(opset.get(_VERSION, 0))
            elif number == _GRAPH and isinstance(value, memoryview):
                _read_graph(value, header, 0)
            elif number == _FUNCTIONS:
                header.domains.add("local functions")
    except (IndexError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"it is truncated or no ONNX model ({type(error).__name__})") from None
    if not {_IR_VERSION, _GRAPH, _OPSET} <= numbers:
        raise ValueError("it is truncated or no ONNX model (no graph or no operator set)")
    return header


def _read_graph(graph: memoryview, header: Header, depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _iterate_fields(graph):
        if number == _NODE and isinstance(value, memoryview):
            _read_node(value, header, depth)
        elif number == _INITIALIZER and isinstance(value, memoryview):
            _read_tensor(value, header)


def _read_node(node: memoryview, header: Header, depth: int) -> None:
    domain = ""
    for number, value in _iterate_fields(node):
        if number == _NODE_DOMAIN:
            domain = _decode_text(value)
        elif number == _ATTRIBUTE and isinstance(value, memoryview):
            for kind, inner in _iterate_fields(value):
                if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and isinstance(inner, memoryview):
                    _read_graph(inner, header, depth + 1)
                elif kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS) and isinstance(
                    inner, memoryview
                ):
                    _read_tensor(inner, header)
    header.domains.add(domain)


def _read_tensor(tensor: memoryview, header: Header) -> None:
    stored = StoredTensor()
    for number, value in _iterate_fields(tensor):
        header.external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and bool(value))
        if number == _DATA_TYPE and isinstance(value, int):
            stored.type = value
        elif number == _TENSOR_NAME:
            stored.name = _decode_text(value)
        elif number in _VALUES and isinstance(value, memoryview):
            stored.parts.append(value)
    header.tensors.append(stored)


def _decode_text(value: object) -> str:
    return bytes(value).decode("utf-8")  # type: ignore[call-overload, no-any-return]


def _iterate_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer, or the bytes of other types."""
    at = 0
    while at < len(message):
        tag, at = _decode_varint(message, at)
        kind, size = tag & 7, 0
        if kind == 0:
            value, at = _decode_varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _decode_varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no ONNX model (an unknown field type)")
        if at + size > len(message):
            raise IndexError("a field ends after its message")
        yield tag >> 3, message[at : at + size]
        at += size


def _decode_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it is no ONNX model (an integer is too long)")
