"""What all opened files share: the picture that they see, and the check of what they
are given; needs numpy and Pillow alone.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.pixels import InputSpec
from kd_app.data.crop import center
from kd_app.data.images import convert_mode
from kd_app.deployment.manifest import ManifestEntry


def prepare_image(image: Image.Image, pixels: InputSpec) -> NDArray[np.uint8]:
    """``[C, H, W]``: the part of an image that a model sees which expects `pixels`."""
    seen = np.asarray(center(convert_mode(image, pixels.channels), pixels))
    return np.ascontiguousarray(seen.reshape(*seen.shape[:2], -1).transpose(2, 0, 1))


class RuntimeFile(ABC):
    """An `Artifact` by its manifest's entry; a subclass computes."""

    def __init__(self, entry: ManifestEntry) -> None:
        self.entry = entry
        self.classes = entry.classes
        self.pixels = entry.pixels

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """See `Artifact`."""
        return prepare_image(image, self.pixels)

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """See `Artifact`. Raises `ValueError` for images of another shape or type."""
        shape = (self.pixels.channels, self.pixels.height, self.pixels.width)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"{self.entry.path.name} takes uint8 images of shape (batch,"
                f" {', '.join(map(str, shape))}), got {images.dtype} of shape {images.shape}."
                " picture() makes them from any image."
            )
        found = self.run(np.ascontiguousarray(images))
        if found.shape != (len(images), len(self.classes)):
            raise ValueError(
                f"{self.entry.path.name} answered {len(images)} images with an array of shape"
                f" {found.shape}, and its manifest names {len(self.classes)} classes. Export the"
                " run again."
            )
        return found.astype(np.float32, copy=False)

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of images of the right shape."""
