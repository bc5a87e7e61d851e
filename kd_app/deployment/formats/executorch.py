"""ExecuTorch with XNNPACK: in float32, and in int8 by torchao's PT2E."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import nn

from kd_app.config import InputSpec
from kd_app.deployment.formats.base import Format, MaxBatch, UInt8Model
from kd_app.deployment.xnnpack import lower, trace_model
from kd_app.models.normalized import NormalizedEmbedding


class ExecuTorch(Format):
    """A float32 program with memory planned for batches of up to `max_batch` images.

    Operators without an XNNPACK kernel use portable kernels.
    """

    name: ClassVar[str] = "executorch"
    title: ClassVar[str] = "ExecuTorch"
    ending: ClassVar[str] = ".pte"
    runtime: ClassVar[str] = "executorch"

    def __init__(self, *, max_batch: MaxBatch, tolerance: PositiveFloat) -> None:
        super().__init__(tolerance=tolerance)
        self.max_batch = max_batch

    def lower(
        self,
        model: UInt8Model,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        lower(model, input_spec, path, max_batch=self.max_batch)
        return {"max_batch": self.max_batch}


class ExecuTorchInt8(Format):
    """An int8 program, otherwise like `ExecuTorch`.

    Weights have a scale per channel; activation ranges come from calibration images.
    """

    name: ClassVar[str] = "executorch_int8"
    title: ClassVar[str] = "ExecuTorch"
    ending: ClassVar[str] = "_int8.pte"
    runtime: ClassVar[str] = "executorch"
    calibrated: ClassVar[bool] = True

    def __init__(self, *, max_batch: MaxBatch) -> None:
        self.max_batch = max_batch

    def lower(
        self,
        model: UInt8Model,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization.pt2e import quantize_pt2e

        config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        quantizer = (
            xnnpack_quantizer.XNNPACKQuantizer()
            .set_global(config)
            .set_filter_function(_is_model_op)
        )
        graph = trace_model(model, input_spec, max_batch=self.max_batch).module()
        prepared = quantize_pt2e.prepare_pt2e(graph, quantizer)
        for batch in calibration:
            prepared(torch.from_numpy(batch[: self.max_batch]))
        converted = quantize_pt2e.convert_pt2e(prepared)
        lower(converted, input_spec, path, max_batch=self.max_batch)
        return {
            "max_batch": self.max_batch,
            "calibration_images": sum(len(batch[: self.max_batch]) for batch in calibration),
        }


class Quantized(ExecuTorchInt8):
    """The program of a student that kd-compress has quantized, with learned ranges.

    program: the file that kd-compress wrote · max_batch: number of images to process at
    once, if the program's memory is planned for as many.
    """

    def __init__(self, *, program: Path, max_batch: MaxBatch) -> None:
        super().__init__(max_batch=max_batch)
        self.program = program

    def write(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        shutil.copyfile(self.program, path)
        return {"max_batch": self.max_batch}


def _is_model_op(node: Any) -> bool:
    """Whether an operation belongs to the model: neither to the normalization of the
    pixels before it, which are rounded only once, nor to that of an embedding after it,
    as the square of a length needs more digits than int8 has.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if node.op != "call_function":
        return True
    return len(stack) > 1 and not str(stack[-1][1]).endswith(NormalizedEmbedding.__name__)
