"""Requirements of an ONNX file, read with the onnx library without running the file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx.numpy_helper import to_array

_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    }
)


@dataclass
class Requirements:
    """Requirements of an ONNX file.

    opsets: version of the operator set by domain ('' is ONNX's own) · domains: domains
    of all operators and functions · external: whether weights are in other files ·
    nonfinite: names of weights with NaN or infinite values.
    """

    opsets: dict[str, int] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    external: bool = False
    nonfinite: list[str] = field(default_factory=list)


def read_requirements(content: bytes) -> Requirements:
    """Read the requirements of a model: of its graph, with all graphs and tensors below
    it, its functions and its training graphs.

    Raises `ValueError` if the content is truncated or not an ONNX model, and for a
    tensor whose size is not that of its values.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # the errors of protobuf have no base class of their own
        raise ValueError("it is truncated or no ONNX model") from None
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise ValueError("it is truncated or no ONNX model (no graph or no operator set)")
    requirements = Requirements({each.domain: each.version for each in model.opset_import})
    for message in _walk(model):
        if isinstance(message, onnx.TensorProto):
            _add_tensor(message, requirements)
        elif isinstance(message, onnx.NodeProto):
            requirements.domains.add(message.domain)
        elif isinstance(message, onnx.FunctionProto):
            requirements.domains.add("local functions")
    return requirements


def _walk(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages in it. The library bounds the depth."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for each in value if _is_repeated(value) else (value,):
                yield from _walk(each)


def _is_repeated(value: Any) -> bool:
    return not hasattr(value, "ListFields")


def _add_tensor(tensor: onnx.TensorProto, requirements: Requirements) -> None:
    """Attention masks hold negative infinity, and single numbers may be any bound."""
    if tensor.external_data or tensor.data_location != onnx.TensorProto.DEFAULT:
        requirements.external = True
        return
    if tensor.data_type not in _FLOATS:
        return
    try:
        values = to_array(tensor)
    except (ValueError, TypeError, OverflowError, MemoryError):
        shape = "x".join(map(str, tensor.dims))
        raise ValueError(f"the values of {tensor.name!r} are not {shape} numbers") from None
    if np.isnan(values).any() or (values.size > 1 and np.isposinf(values).any()):
        requirements.nonfinite.append(tensor.name)
