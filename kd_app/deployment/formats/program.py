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

from kd_app.config import InputSpec
from kd_app.deployment.formats.base import Format, UInt8Model, make_blank_images
from kd_app.deployment.own_files import mark_written


class Program(Format):
    """A float32 program for batches of any size.

    See `kd_app.deployment.runtimes.torch_file` for the files that kd_app opens.
    """

    name: ClassVar[str] = "program"
    title: ClassVar[str] = "a torch.export program"
    ending: ClassVar[str] = ".pt2"
    runtime: ClassVar[str] = "torch"
    cacheable: ClassVar[bool] = False

    def __init__(self, *, tolerance: PositiveFloat) -> None:
        super().__init__(tolerance=tolerance)

    def lower(
        self,
        model: UInt8Model,
        input_spec: InputSpec,
        calibration: Sequence[NDArray[np.uint8]],
        path: Path,
    ) -> dict[str, Any]:
        images = make_blank_images(input_spec, 2)
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        mark_written(path)
        return {}
