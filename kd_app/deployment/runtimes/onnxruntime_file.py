"""ONNX files in onnxruntime; needs numpy, Pillow, onnx and onnxruntime only."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kd_app.config.regular_file import read_regular
from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile
from kd_app.deployment.runtimes.onnx_requirements import read_requirements

OPSETS = range(13, 26)
"""Supported versions of the ONNX operator set; 13 is the first with quantization per
channel.
"""
_DOMAINS = frozenset({"", "ai.onnx"})
_MAX_BYTES = 2**31
"""Maximum size of a protobuf message."""
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
        sizes: Sequence[object] = (outputs[0].shape if outputs else None) or ()
        if len(sizes) != 2 or (isinstance(sizes[1], int) and sizes[1] != entry.width):
            raise _build_error(
                entry,
                f"it returns an array of shape {tuple(sizes)}; expected a row of"
                f" {entry.width} numbers for each image, as its manifest says",
            )
        self._input, self._output = inputs[0].name, outputs[0].name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run([self._output], {self._input: images})[0]
        return logits


def open_file(entry: ManifestEntry, *, threads: int | None) -> OnnxFile:
    """Open the file of `entry`.

    Raises `ValueError` if the file is truncated, has an unsupported operator set or
    foreign operators, keeps weights in other files, or onnxruntime rejects it.
    """
    content = read_regular(entry.path, _MAX_BYTES)
    _check_requirements(entry, content)
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


def _check_requirements(entry: ManifestEntry, content: bytes) -> None:
    try:
        needed = read_requirements(content)
    except ValueError as error:
        raise _build_error(entry, str(error)) from None
    foreign = (needed.domains | set(needed.opsets)) - _DOMAINS
    if foreign:
        names = ", ".join(sorted(map(repr, foreign)))
        raise _build_error(entry, f"it needs operators of {names}, which are not ONNX's own")
    if needed.nonfinite:
        names = ", ".join(map(repr, needed.nonfinite[:3]))
        raise _build_error(entry, f"its weights hold NaN or infinite values ({names})")
    if needed.external:
        raise _build_error(
            entry, "its weights are in other files, which the manifest does not list"
        )
    opset = needed.opsets.get("", needed.opsets.get("ai.onnx"))
    if opset not in OPSETS:
        supported = f"{OPSETS.start} to {OPSETS.stop - 1}"
        raise _build_error(entry, f"it has the operator set {opset}; expected one of {supported}")
    declared = entry.record.get("opset")
    if opset != declared:
        raise _build_error(
            entry, f"it has the operator set {opset}, but its manifest has {declared}"
        )


def _build_error(entry: ManifestEntry, reason: str) -> ValueError:
    return ValueError(
        f"{str(entry.path)!r} can't be opened: {reason}. Export the run again with this version of"
        " kd_app."
    )
