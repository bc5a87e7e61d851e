"""A program of torch.export (``.pt2``), which loads without kd_app:
``torch.export.load(path).module()``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import nn

from kd_app.config import InputSpec, RunError
from kd_app.config.errors import take_first_line
from kd_app.deployment.formats.base import Format, UInt8Model, make_blank_images
from kd_app.deployment.runtimes.torch_file import mark_written


class Program(Format):
    """In float32, for any number of images at once.
    `kd_app.deployment.runtimes.torch_file` says which of these files are opened here.
    """

    name: ClassVar[str] = "program"
    ending: ClassVar[str] = ".pt2"
    runtime: ClassVar[str] = "torch"
    found_again: ClassVar[bool] = False

    def __init__(self, *, tolerance: PositiveFloat) -> None:
        self.tolerance = tolerance

    def write(
        self,
        model: nn.Module,
        pixels: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        """See `Format`."""
        try:
            with torch.no_grad():
                program = torch.export.export(
                    UInt8Model(model, pixels),
                    (make_blank_images(pixels, 2),),
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                )
        except Exception as error:  # of many kinds: what a model may hold has no bounds
            raise RunError(
                f"torch.export does not take the model: {take_first_line(error)}"
            ) from error
        torch.export.save(program, path)
        mark_written(path)
        return {}
