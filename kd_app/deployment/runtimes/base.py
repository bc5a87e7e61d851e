"""Base class of opened files: image preparation and input checks.

This module needs numpy and Pillow only.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.errors import RequestError, take_first_line
from kd_app.config.pixels import Decoding
from kd_app.data.preparation import prepare_image
from kd_app.deployment.logits import check_finite
from kd_app.deployment.manifest import ManifestEntry


class RuntimeFile(ABC):
    """An `Artifact` with the facts of its manifest entry; subclasses run the model."""

    def __init__(self, entry: ManifestEntry) -> None:
        self.entry = entry
        self.classes = entry.classes
        self.pixels = entry.pixels
        self.decoding = entry.decoding

    def prepare_image(
        self, image: Image.Image, decoding: Decoding | None = None
    ) -> NDArray[np.uint8]:
        """Convert an opened image to ``[C, H, W]``, as in the evaluation.

        decoding: how to decode; None: as in the run that wrote the file.
        """
        return prepare_image(image, self.pixels, decoding or self.decoding)

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``images[B, C, H, W] -> [B, K]``; of a file without classes, an embedding of
        length 1.

        Raises `RequestError`, which names the file: images of another shape or type, a
        runtime that fails, logits of another shape, and NaN or infinite logits.
        """
        shape = (self.pixels.channels, self.pixels.height, self.pixels.width)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
            raise RequestError(
                f"{self.entry.path.name} takes uint8 images of shape (batch,"
                f" {', '.join(map(str, shape))}), got {images.dtype} of shape {images.shape}."
                " prepare_image() converts any image."
            )
        name = str(self.entry.path)
        try:
            logits = np.asarray(self.run(np.ascontiguousarray(images)), dtype=np.float32)
        except Exception as error:  # the errors of runtimes have no common base class
            raise RequestError(
                f"{name!r} can't be run on {len(images)} images: {take_first_line(error)}. The"
                " file is damaged, or was not written by kd-export. Export the run again."
            ) from error
        if logits.shape != (len(images), self.entry.width):
            raise RequestError(
                f"{name!r} returned an array of shape {logits.shape} for {len(images)} images, but"
                f" its manifest lists {self._describe_output()}. Export the run again."
            )
        check_finite(logits, repr(name))
        return logits

    def _describe_output(self) -> str:
        if self.classes:
            return f"{len(self.classes)} classes"
        return f"an embedding of {self.entry.width} numbers"

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the logits of contiguous images of the right shape."""
