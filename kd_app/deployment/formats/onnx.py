"""ONNX, by torch's exporter for exported programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat

from kd_app.config import InputSpec
from kd_app.deployment.formats.base import Format, Opset, UInt8Model, make_blank_images


class Onnx(Format):
    """A float32 ONNX file for batches of any size.

    The file maps ``images`` (uint8) to ``logits`` (float32).

    opset: version of the ONNX operator set · tolerance: see `Format`.
    """

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    ending: ClassVar[str] = ".onnx"
    runtime: ClassVar[str] = "onnxruntime"

    def __init__(self, *, opset: Opset, tolerance: PositiveFloat) -> None:
        super().__init__(tolerance=tolerance)
        self.opset = opset

    def lower(
        self,
        model: UInt8Model,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        write_onnx(model, input_spec, path, opset=self.opset)
        return {"opset": self.opset}


def write_onnx(model: UInt8Model, input_spec: InputSpec, path: Path, *, opset: int) -> None:
    """Write a float model as ONNX, without paths of this machine."""
    import onnx
    import onnxscript

    assert onnxscript
    program = torch.onnx.export(
        model,
        (make_blank_images(input_spec, 2),),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
    )
    assert program is not None
    proto = program.model_proto
    for holder in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
    ):
        # Stack traces and docs contain paths of this machine.
        del holder.metadata_props[:]
        holder.doc_string = ""
    onnx.save(proto, path)
