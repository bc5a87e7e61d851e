"""An exported file, opened in its own runtime: uint8 images in, logits out."""

from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.pixels import InputSpec
from kd_app.deployment.manifest import read_entry

RUNTIMES: Final = {
    "onnx": "onnxruntime",
    "onnx_int8": "onnxruntime",
    "executorch": "executorch",
    "executorch_int8": "executorch",
    "program": "torch",
}
"""Format -> the runtime that it is for, and the package that has to be installed for
it; each is opened by the module of that name in `runtimes`.
"""


class Artifact(Protocol):
    """A classifier that is a file."""

    classes: tuple[str, ...]
    pixels: InputSpec

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """``[C, H, W]``: the part of an image that the model sees, as the manifest
        says: the numbers that it was evaluated on.
        """

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``images[B, C, H, W] -> [B, K]``."""


def open_artifact(path: Path, *, threads: int | None = None) -> Artifact:
    """Open a file that kd-export wrote; `threads` is how many it may compute with
    (None: as many as its runtime takes).

    What is opened is compared with the manifest beside it first; nothing of it is run
    before that. The file can be trusted as far as whoever sent the folder: the manifest
    shows damage and exchanged files, it is no signature. An ONNX file needs numpy,
    Pillow and onnxruntime alone.

    Raises:
        ValueError: no such file, no manifest, a file that the manifest does not name,
        of other contents or of an unknown format, one that needs an
            operator set or operators that are not its runtime's own, or a runtime that
            is not installed.
    """
    path = Path(path)
    found = read_entry(path)
    if found.format not in RUNTIMES:
        raise ValueError(
            f"{str(path)!r} has the format {found.format!r}, which this kd_app does not know."
            f" Known: {', '.join(RUNTIMES)}. Export the run again."
        )
    runtime = RUNTIMES[found.format]
    try:
        module = import_module(f"kd_app.deployment.runtimes.{runtime}_file")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{str(path)!r} is run by {runtime}, and {error.name} is not installed. Install it: pip"
            f" install {runtime} (or kd_app[deploy])."
        ) from None
    opened: Artifact = module.open_file(found, threads=threads)
    return opened
