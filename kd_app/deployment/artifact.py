"""Opening exported files: uint8 images in, logits out."""

from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.pixels import Decoding, InputSpec
from kd_app.deployment.golden import check_golden
from kd_app.deployment.manifest import ManifestEntry, read_entry
from kd_app.deployment.own_files import is_written

RUNTIMES: Final = {
    "onnx": "onnxruntime",
    "onnx_int8": "onnxruntime",
    "executorch": "executorch",
    "executorch_int8": "executorch",
    "program": "torch",
}
"""Runtime of each format, which is also the name of the required package. The module
``runtimes/<runtime>_file.py`` opens the file.
"""


class Artifact(Protocol):
    """A classifier in a file."""

    classes: tuple[str, ...]
    pixels: InputSpec
    decoding: Decoding

    def prepare_image(
        self, image: Image.Image, decoding: Decoding | None = None
    ) -> NDArray[np.uint8]:
        """Convert an opened image to ``[C, H, W]``, as in the evaluation: upright, on
        white, 8 bits, resized and cropped.

        decoding: how to decode; None: as in the run that wrote the file.
        """

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``images[B, C, H, W] -> [B, K]``."""


def open_artifact(path: Path, *, threads: int | None = None) -> Artifact:
    """Open a file that kd-export wrote.

    threads: number of compute threads; None for the default of the runtime.

    The file is compared with the manifest in the same folder before any of its content
    runs. The manifest detects damaged and swapped files. It is not a signature: trust
    the file only as far as you trust the sender, or use `open_foreign`. An ONNX file
    needs numpy, Pillow, onnx and onnxruntime only.

    Raises:
        ValueError: the file or its manifest is missing, the manifest does not list the
            file, the content differs from the manifest, the format is unknown, the
            file needs an unsupported operator set or foreign operators, the runtime is
            not installed, or an embedding is not what it was where it was written.
    """
    return _open_entry(read_entry(Path(path)), threads)


def open_foreign(path: Path, *, threads: int | None = None) -> Artifact:
    """Open a file that somebody else may have written: as `open_artifact`, but in a
    process of its own with a time limit, unless this process wrote the file.

    A runtime that aborts, or never answers, is a `ValueError` or `RequestError`.
    """
    entry = read_entry(Path(path))
    if entry.format not in _ISOLATED or is_written(entry.record["sha256"]):
        return _open_entry(entry, threads)
    from kd_app.deployment.runtimes.isolated import IsolatedFile

    return IsolatedFile(entry, threads=threads)


_ISOLATED = ("onnx", "onnx_int8", "executorch", "executorch_int8")


def _open_entry(entry: ManifestEntry, threads: int | None) -> Artifact:
    path = entry.path
    if entry.format not in RUNTIMES:
        raise ValueError(
            f"{str(path)!r} has the format {entry.format!r}, which this version of kd_app does not"
            f" support. Supported formats: {', '.join(RUNTIMES)}. Export the run again."
        )
    runtime = RUNTIMES[entry.format]
    try:
        module = import_module(f"kd_app.deployment.runtimes.{runtime}_file")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{str(path)!r} needs the runtime {runtime}, but the package {error.name} is not"
            f" installed. Install it: pip install {error.name} (or kd_app[deploy])."
        ) from None
    artifact: Artifact = module.open_file(entry, threads=threads)
    if entry.golden is not None:
        check_golden(artifact, entry.golden, str(path))
    return artifact
