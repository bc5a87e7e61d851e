"""ONNX files in onnxruntime; needs numpy, Pillow and onnxruntime only."""

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile
from kd_app.deployment.runtimes.onnx_header import StoredTensor, read_header

OPSETS = range(13, 26)
"""Supported versions of the ONNX operator set; 13 is the first with quantization per
channel.
"""
_DOMAINS = frozenset({"", "ai.onnx"})
_BFLOAT16 = 16
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8", _BFLOAT16: "<u2"}
"""Layout of ONNX's floating-point types; numpy has no bfloat16."""
_ERROR_LEVEL = 3
"""onnxruntime's log level for errors."""


class OnnxFile(RuntimeFile):
    """An onnxruntime session on the CPU."""

    def __init__(self, entry: ManifestEntry, session: onnxruntime.InferenceSession) -> None:
        super().__init__(entry)
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [each.type for each in inputs] != ["tensor(uint8)"]:
            types = ", ".join(each.type for each in inputs) or "nothing"
            raise _build_error(entry, f"it takes {types}; expected uint8 images")
        sizes = outputs[0].shape
        if len(sizes) != 2 or (isinstance(sizes[1], int) and sizes[1] != len(entry.classes)):
            raise _build_error(
                entry,
                f"it returns an array of shape {tuple(sizes)}; expected a row of"
                f" {len(entry.classes)} logits for each image, one for each class of its manifest",
            )
        self._name = inputs[0].name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run(None, {self._name: images})[0]
        return logits


def open_file(entry: ManifestEntry, *, threads: int | None) -> OnnxFile:
    """Open the file of `entry`.

    Raises `ValueError` if the file is truncated, has an unsupported operator set or
    foreign operators, keeps weights in other files, or onnxruntime rejects it.
    """
    content = entry.path.read_bytes()
    _check_header(entry, content)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR_LEVEL
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        reason = str(error).splitlines()[0]
        raise _build_error(
            entry, f"onnxruntime {onnxruntime.__version__} rejects the file: {reason}"
        ) from None
    return OnnxFile(entry, session)


def _check_header(entry: ManifestEntry, content: bytes) -> None:
    try:
        header = read_header(content)
    except ValueError as error:
        raise _build_error(entry, str(error)) from None
    foreign = (header.domains | set(header.opsets)) - _DOMAINS
    if foreign:
        names = ", ".join(sorted(map(repr, foreign)))
        raise _build_error(entry, f"it needs operators of {names}, which are not ONNX's own")
    wrong = [tensor.name for tensor in header.tensors if not _is_finite(tensor)]
    if wrong:
        raise _build_error(
            entry, f"its weights hold NaN or infinite values ({', '.join(map(repr, wrong[:3]))})"
        )
    if header.external:
        raise _build_error(
            entry, "its weights are in other files, which the manifest does not list"
        )
    opset = header.opsets.get("", header.opsets.get("ai.onnx"))
    if opset not in OPSETS:
        supported = f"{OPSETS.start} to {OPSETS.stop - 1}"
        raise _build_error(entry, f"it has the operator set {opset}; expected one of {supported}")
    declared = entry.record.get("opset")
    if opset != declared:
        raise _build_error(
            entry, f"it has the operator set {opset}, but its manifest has {declared}"
        )


def _is_finite(tensor: StoredTensor) -> bool:
    """Whether a tensor has no NaN and no positive infinity.

    Attention masks hold negative infinity, and single numbers may be any bound.
    """
    if tensor.type not in _FLOATS:
        return True
    kind = _FLOATS[tensor.type]
    size = np.dtype(kind).itemsize
    values: NDArray[Any] = np.concatenate(
        [
            np.frombuffer(part, dtype=kind, count=len(part) // size).astype(np.float64)
            for part in tensor.parts
        ]
        or [np.zeros(0)]
    )
    if tensor.type == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return not (np.isnan(values).any() or (values.size > 1 and np.isposinf(values).any()))


def _build_error(entry: ManifestEntry, reason: str) -> ValueError:
    return ValueError(
        f"{str(entry.path)!r} can't be opened: {reason}. Export the run again with this version of"
        " kd_app."
    )
