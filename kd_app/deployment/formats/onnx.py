"""ONNX, by torch's exporter for exported programs."""

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
    """A float32 ONNX file for batches of any size.

    The file maps ``images`` (uint8) to ``logits`` (float32).

    opset: version of the ONNX operator set · tolerance: see `Format`.
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
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        write_onnx(model, input_spec, path, opset=self.opset)
        return {"opset": self.opset}


def write_onnx(model: nn.Module, input_spec: InputSpec, path: Path, *, opset: int) -> None:
    """Write a float model as ONNX, without paths of this machine.

    Raises `RequestError` if a package is missing, `RunError` if torch's exporter fails.
    """
    try:
        import onnx
        import onnxscript
    except ModuleNotFoundError as error:
        raise RequestError(
            f"ONNX files need the package {error.name}, which is not installed. Install it: pip"
            " install kd_app[deploy]"
        ) from None
    assert onnxscript
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                UInt8Model(model, input_spec),
                (make_blank_images(input_spec, 2),),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
            )
        except Exception as error:  # models can contain anything, so any error can occur
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
        # Stack traces and docs contain paths of this machine.
        del holder.metadata_props[:]
        holder.doc_string = ""
    onnx.save(proto, path)
