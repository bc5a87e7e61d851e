"""An ONNX file in onnxruntime; needs numpy, Pillow and onnxruntime alone."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile
from kd_app.deployment.runtimes.onnx_header import read_header

OPSETS = range(13, 26)
"""Versions of ONNX's operators that are run: from the first with quantization per
channel on.
"""
_DOMAINS = frozenset({"", "ai.onnx"})
_LOUD = 3
"""onnxruntime's level for errors."""


class OnnxFile(RuntimeFile):
    """A session of onnxruntime on the CPU."""

    def __init__(self, entry: ManifestEntry, session: onnxruntime.InferenceSession) -> None:
        super().__init__(entry)
        self._session = session
        self._name = session.get_inputs()[0].name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `RuntimeFile`."""
        found: NDArray[np.float32] = self._session.run(None, {self._name: images})[0]
        return found


def open_file(entry: ManifestEntry, *, threads: int | None) -> OnnxFile:
    """The file of `entry`. Raises `ValueError`: not whole, another operator set,
    operators or files that are not ONNX's own.
    """
    content = entry.path.read_bytes()
    _check(entry, content)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOUD
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ValueError(
            _build_refusal(
                entry,
                f"onnxruntime {onnxruntime.__version__} does not take it:"
                f" {str(error).splitlines()[0]}",
            )
        ) from None
    return OnnxFile(entry, session)


def _check(entry: ManifestEntry, content: bytes) -> None:
    try:
        header = read_header(content)
    except ValueError as error:
        raise ValueError(_build_refusal(entry, str(error))) from None
    strange = (header.domains | set(header.opsets)) - _DOMAINS
    if strange:
        raise ValueError(
            _build_refusal(
                entry,
                f"it needs operators of {', '.join(sorted(map(repr, strange)))}, which are not"
                " ONNX's own",
            )
        )
    if header.external:
        raise ValueError(
            _build_refusal(
                entry, "its weights lie in other files, which its manifest says nothing of"
            )
        )
    opset = header.opsets.get("", header.opsets.get("ai.onnx"))
    if opset not in OPSETS:
        raise ValueError(
            _build_refusal(
                entry,
                f"it has the operator set {opset}; expected one of {OPSETS.start} to"
                f" {OPSETS.stop - 1}",
            )
        )
    if opset != entry.told.get("opset"):
        raise ValueError(
            _build_refusal(
                entry,
                f"it has the operator set {opset}, and its manifest says {entry.told.get('opset')}",
            )
        )


def _build_refusal(entry: ManifestEntry, why: str) -> str:
    return f"{str(entry.path)!r} is not run: {why}. Export the run again with this kd_app."
