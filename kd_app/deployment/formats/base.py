"""What a format is, and the module that every one of them writes: uint8 images in,
logits out.
"""

from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from kd_app.config import InputSpec, RequestError, Typed


class Format(Typed):
    """A format as ``conf/formats/<name>.yaml`` names it by ``_target_``; the other keys
    are the arguments of its ``__init__``.
    """

    name: ClassVar[str]
    ending: ClassVar[str]
    """Behind the stem of the file's name: '.onnx', '_int8.onnx'."""
    runtime: ClassVar[str]
    """The package that runs it."""
    found_again: ClassVar[bool] = True
    """Whether a file of an earlier command, or another process, is opened; where not,
    each command writes its own and opens it itself.
    """
    tolerance: float | None
    """What the logits may be off from torch's: a share of the largest one, absolute
    where that is below 1. None: other weights are what it is for.
    """

    @abstractmethod
    def write(
        self,
        model: nn.Module,
        pixels: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        """Write `model` to `path`; what the manifest says of the file beside the rest.
        `calibration`: batches ``[B, C, H, W]`` of training images.

        Raises `RequestError` for a package that is missing, `RunError` where the model
        can't be written in this format.
        """


class UInt8Model(nn.Module):
    """``model((images / 255 - mean) / std)`` in float32 and eval mode, of uint8 images
    ``[B, C, H, W]``; a copy on the CPU.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, pixels: InputSpec) -> None:
        super().__init__()
        self.model = deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
        deviation = torch.tensor(pixels.std, dtype=torch.float64).view(1, -1, 1, 1)
        self.register_buffer("scale", (1 / (255 * deviation)).float())
        self.register_buffer(
            "bias",
            (-torch.tensor(pixels.mean, dtype=torch.float64).view(1, -1, 1, 1) / deviation).float(),
        )
        self.requires_grad_(False)
        if not isinstance(
            model, fx.GraphModule
        ):  # which is of one mode for good, and refuses to be told
            self.eval()

    def forward(
        self, images: UInt8[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch classes"]:
        """The logits."""
        logits: Tensor = self.model(images.float() * self.scale + self.bias)
        return logits


def make_blank_images(pixels: InputSpec, batch: int) -> Tensor:
    """Images of zeros, to trace a model with."""
    return torch.zeros(batch, pixels.channels, pixels.height, pixels.width, dtype=torch.uint8)


def check_calibration(calibration: Sequence[NDArray[np.uint8]], pixels: InputSpec) -> None:
    """Raises `RequestError` where there are no calibration images, or some are none
    that the model sees.
    """
    shape = (pixels.channels, pixels.height, pixels.width)
    wrong = next(
        (batch for batch in calibration if batch.shape[1:] != shape or batch.dtype != np.uint8),
        None,
    )
    if wrong is not None:
        raise RequestError(
            f"The images to calibrate with are {wrong.dtype} of shape {wrong.shape}; the model"
            f" takes uint8 images of shape (batch, {', '.join(map(str, shape))}). Ranges found on"
            " other images are wrong for these: calibrate with training images as the model sees"
            " them."
        )
    if not sum(len(batch) for batch in calibration):
        raise RequestError(
            "An int8 file needs images to find its ranges with, and there are none. Set"
            " calibration_images to 1 or more."
        )
