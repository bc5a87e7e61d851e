"""Noise images in memory: the cost of a training does not depend on the content of the
images.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd_app.data.source import Listing, Source


class Noise(Source):
    """`images` gray noise images of `side` x `side` pixels in ten classes."""

    channels = 1

    def __init__(self, *, images: int, side: int) -> None:
        self.size = side
        self._images = images
        self._pixels = torch.randint(
            0,
            256,
            (images, 1, side, side),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )

    def list_images(self) -> Listing:
        files = tuple(f"noise/{number:06d}" for number in range(self._images))
        empty = ("",) * self._images
        return Listing(
            tuple("0123456789"),
            files,
            np.arange(self._images, dtype=np.int64) % 10,
            empty,
            empty,
            f"noise-{self._images}-{self.size}",
        )

    def store(self) -> Tensor:
        return self._pixels

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        return Image.fromarray(self._pixels[index, 0].numpy())
