"""ONNX in int8, with quantize and dequantize pairs (QDQ).

Activation ranges come from training images.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import StrictBool

from kd_app.config import InputSpec
from kd_app.deployment.formats.base import Format, Opset, UInt8Model
from kd_app.deployment.formats.onnx import write_onnx
from kd_app.deployment.hardware import read_cpu_flags
from kd_app.files import PARTIAL
from kd_app.models.normalized import NormalizedEmbedding

_NORMALIZATION = frozenset({"Cast", "Mul", "Add"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


class OnnxInt8(Format):
    """Static quantization: int8 weights with a scale per channel, uint8 activations.

    reduce_range: use 7-bit weights. x86 CPUs without VNNI add pairs of products in 16
    bits, which 8-bit weights can overflow; 'auto' reduces the range on such a CPU ·
    calibration: onnxruntime's method for activation ranges · opset: see `Onnx`.
    """

    name: ClassVar[str] = "onnx_int8"
    title: ClassVar[str] = "ONNX"
    ending: ClassVar[str] = "_int8.onnx"
    runtime: ClassVar[str] = "onnxruntime"
    calibrated: ClassVar[bool] = True

    def __init__(
        self,
        *,
        opset: Opset,
        reduce_range: StrictBool | Literal["auto"],
        calibration: Literal["MinMax", "Entropy", "Percentile"],
    ) -> None:
        self.opset = opset
        self.reduce_range = (
            is_without_vnni(read_cpu_flags()) if reduce_range == "auto" else reduce_range
        )
        self.calibration = calibration

    def lower(
        self,
        model: UInt8Model,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        with (
            tempfile.TemporaryDirectory(PARTIAL, ".", path.parent) as folder,
            _silence_onnxruntime(),
        ):
            plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
            write_onnx(model, input_spec, plain, opset=self.opset)
            is_embedding = isinstance(model.model, NormalizedEmbedding)
            self._quantize(plain, prepared, calibration, path, keep_tail=is_embedding)
        return {
            "opset": self.opset,
            "reduce_range": self.reduce_range,
            "calibration_images": sum(len(batch) for batch in calibration),
        }

    def _quantize(
        self,
        plain: Path,
        prepared: Path,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
        *,
        keep_tail: bool,
    ) -> None:
        import onnx
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # onnxruntime calls get_next() until the result is None.
        batches = ({"images": batch} for batch in calibration)
        reader = SimpleNamespace(get_next=lambda: next(batches, None))
        quant_pre_process(str(plain), str(prepared), auto_merge=True)
        graph = onnx.load(prepared).graph
        tail = _find_tail_nodes(graph) if keep_tail else []
        quantize_static(
            str(prepared),
            str(path),
            reader,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=self.reduce_range,
            calibrate_method=CalibrationMethod[self.calibration],
            nodes_to_exclude=[*_find_normalization_nodes(graph), *tail],
        )
        quantized = onnx.load(path)
        used = {node.domain for node in quantized.graph.node}
        # onnxruntime imports all operator sets that it supports.
        for opset in [each for each in quantized.opset_import if each.domain not in used]:
            quantized.opset_import.remove(opset)
        onnx.save(quantized, path)


def is_without_vnni(flags: frozenset[str]) -> bool:
    """Whether the flags are of an x86 CPU that can't sum int8 products in 32 bits."""
    return "sse2" in flags and not flags & _VNNI


def _find_normalization_nodes(graph: Any) -> list[str]:
    """Find the nodes that normalize the pixels.

    These nodes stay in float, so that pixels are rounded only once.
    """
    names: list[str] = []
    value = graph.input[0].name
    while True:
        readers = [node for node in graph.node if value in node.input]
        if (
            len(readers) != 1
            or readers[0].op_type not in _NORMALIZATION
            or len(names) == len(_NORMALIZATION)
        ):
            return names
        names.append(readers[0].name)
        value = readers[0].output[0]


def _find_tail_nodes(graph: Any) -> list[str]:
    """Find the nodes after the last layer, which normalize the length of an embedding.

    The square of the length needs more digits than int8 has.
    """
    last = max(place for place, node in enumerate(graph.node) if node.op_type in _LAYERS)
    return [node.name for node in graph.node[last + 1 :]]


@contextmanager
def _silence_onnxruntime() -> Iterator[None]:
    """Suppress the log messages of onnxruntime's quantization."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
