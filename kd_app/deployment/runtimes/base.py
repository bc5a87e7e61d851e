"""Base class of opened files: image preparation and input checks.

This module needs numpy and Pillow only.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.pixels import Decoding
from kd_app.data.preparation import prepare_image
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
        """``images[B, C, H, W] -> [B, K]``.

        Raises `ValueError` for images of another shape or type.
        """
        shape = (self.pixels.channels, self.pixels.height, self.pixels.width)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"{self.entry.path.name} takes uint8 images of shape (batch,"
                f" {', '.join(map(str, shape))}), got {images.dtype} of shape {images.shape}."
                " prepare_image() converts any image."
            )
        logits = self.run(np.ascontiguousarray(images))
        if logits.shape != (len(images), len(self.classes)):
            raise ValueError(
                f"{self.entry.path.name} returned an array of shape {logits.shape} for"
                f" {len(images)} images, but its manifest lists {len(self.classes)} classes. Export"
                " the run again."
            )
        return logits.astype(np.float32, copy=False)

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the logits of contiguous images of the right shape."""
