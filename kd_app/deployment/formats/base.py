"""Base class of export formats, and the module that they export.

The module maps uint8 images to logits.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from torch import Tensor, fx, nn

from kd_app.config import InputSpec, RequestError, RunError, Typed
from kd_app.config.errors import list_causes, take_first_line

Opset = Annotated[int, Field(ge=18, le=25, strict=True)]
"""Version of the ONNX operator set that is written."""
MaxBatch = Annotated[int, Field(ge=2, le=1024, strict=True)]
"""Number of images for which an ExecuTorch program plans memory."""


class Format(Typed):
    """An export format, the ``_target_`` of ``conf/formats/<name>.yaml``.

    The other keys of that file are the arguments of ``__init__``. A subclass defines
    `lower`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The format's name in messages."""
    ending: ClassVar[str]
    """Suffix of the file name, such as '.onnx' or '_int8.onnx'."""
    runtime: ClassVar[str]
    """The package that runs the file."""
    cacheable: ClassVar[bool] = True
    """Whether later commands may open the file. If not, each command writes its own."""
    calibrated: ClassVar[bool] = False
    """Whether the file needs activation ranges of calibration images."""
    tolerance: float | None = None
    """Largest difference from torch's logits, relative to the largest logit (absolute
    if that is below 1). None for formats that change the weights on purpose.
    """

    def __init__(self, *, tolerance: PositiveFloat | None) -> None:
        self.tolerance = tolerance

    def write(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        """Write `model` to `path` and return extra entries for the manifest.

        calibration: batches ``[B, C, H, W]`` of training images.

        Raises `RequestError` if a package is missing or the calibration images are
        unsuitable, `RunError` if the model can't be written in this format.
        """
        if self.calibrated:
            check_calibration(calibration, input_spec)
        try:
            with warnings.catch_warnings(action="ignore"), torch.no_grad():
                return self.lower(UInt8Model(model, input_spec), input_spec, calibration, path)
        except (RequestError, RunError):
            raise
        except ModuleNotFoundError as error:
            raise RequestError(
                f"{self.title} files need the package {error.name}, which is not installed. Install"
                " it: pip install kd_app[deploy]"
            ) from None
        except Exception as error:  # models can contain anything, so any error can occur
            raise RunError(
                f"The model can't be written as {self.title}:"
                f" {take_first_line(list_causes(error)[-1])}"
            ) from error

    @abstractmethod
    def lower(
        self,
        model: "UInt8Model",
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        """Do the work of `write`; `write` explains whatever is raised."""


class UInt8Model(nn.Module):
    """``model((images / 255 - mean) / std)`` for uint8 images ``[B, C, H, W]``.

    The model is a copy on the CPU, in float32 and eval mode.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, input_spec: InputSpec) -> None:
        super().__init__()
        self.model = deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
        mean = torch.tensor(input_spec.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(input_spec.std, dtype=torch.float64).view(1, -1, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("bias", (-mean / std).float())
        self.requires_grad_(False)
        # An exported graph has a fixed mode, and its eval() raises.
        if not isinstance(model, fx.GraphModule):
            self.eval()

    def forward(
        self, images: UInt8[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch classes"]:
        logits: Tensor = self.model(images.float() * self.scale + self.bias)
        return logits


def make_blank_images(input_spec: InputSpec, batch: int) -> Tensor:
    """Make images of zeros, for tracing a model."""
    shape = (batch, input_spec.channels, input_spec.height, input_spec.width)
    return torch.zeros(shape, dtype=torch.uint8)


def check_calibration(calibration: Sequence[NDArray[np.uint8]], input_spec: InputSpec) -> None:
    """Raise `RequestError` if there are no calibration images, or any do not fit."""
    shape = (input_spec.channels, input_spec.height, input_spec.width)
    wrong = next(
        (batch for batch in calibration if batch.shape[1:] != shape or batch.dtype != np.uint8),
        None,
    )
    if wrong is not None:
        raise RequestError(
            f"The calibration images are {wrong.dtype} of shape {wrong.shape}; the model takes"
            f" uint8 images of shape (batch, {', '.join(map(str, shape))}). Other images give wrong"
            " activation ranges: calibrate with training images, prepared as for the model."
        )
    if not sum(len(batch) for batch in calibration):
        raise RequestError(
            "An int8 file needs calibration images for the activation ranges, but there are none."
            " Set calibration_images to 1 or more."
        )
