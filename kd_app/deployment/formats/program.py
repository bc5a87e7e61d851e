"""A torch.export program (``.pt2``), which loads without kd_app.

``torch.export.load(path).module()`` loads the file.
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
    """A float32 program for batches of any size.

    See `kd_app.deployment.runtimes.torch_file` for the files that kd_app opens.
    """

    name: ClassVar[str] = "program"
    ending: ClassVar[str] = ".pt2"
    runtime: ClassVar[str] = "torch"
    cacheable: ClassVar[bool] = False

    def __init__(self, *, tolerance: PositiveFloat) -> None:
        self.tolerance = tolerance

    def write(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        try:
            with torch.no_grad():
                program = torch.export.export(
                    UInt8Model(model, input_spec),
                    (make_blank_images(input_spec, 2),),
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                )
        except Exception as error:  # models can contain anything, so any error can occur
            raise RunError(f"torch.export rejects the model: {take_first_line(error)}") from error
        torch.export.save(program, path)
        mark_written(path)
        return {}
