"""ONNX, by torch's exporter of exported programs."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from torch import nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.errors import list_causes, take_first_line
from kd_app.deployment.formats.base import Format, UInt8Model, make_blank_images


class Onnx(Format):
    """An ONNX file in float32 with batches of any size: ``images`` uint8 -> ``logits``
    float32.

    opset: version of ONNX's operators. tolerance: see `Format`.
    """

    name: ClassVar[str] = "onnx"
    ending: ClassVar[str] = ".onnx"
    runtime: ClassVar[str] = "onnxruntime"

    def __init__(
        self, *, opset: Annotated[int, Field(ge=18, le=25, strict=True)], tolerance: PositiveFloat
    ) -> None:
        self.opset = opset
        self.tolerance = tolerance

    def write(
        self,
        model: nn.Module,
        pixels: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        """See `Format`."""
        write_onnx(model, pixels, path, opset=self.opset)
        return {"opset": self.opset}


def write_onnx(model: nn.Module, pixels: InputSpec, path: Path, *, opset: int) -> None:
    """Write a float model as ONNX. Nothing of it says where on the machine its code
    lay. Raises `RunError` where torch's exporter can't.
    """
    try:
        import onnx
        import onnxscript
    except ModuleNotFoundError as error:
        raise RequestError(
            f"ONNX files are written with the package {error.name}, which is not installed. pip"
            " install kd_app[deploy]"
        ) from None
    assert onnxscript
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        try:
            program = torch.onnx.export(
                UInt8Model(model, pixels),
                (make_blank_images(pixels, 2),),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
            )
        except Exception as error:  # of many kinds: what a model may hold has no bounds
            raise RunError(
                f"The model can't be written as ONNX: {take_first_line(list_causes(error)[-1])}"
            ) from error
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
        del holder.metadata_props[:]  # stack traces
        holder.doc_string = ""
    onnx.save(proto, path)
