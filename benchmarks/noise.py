"""Noise images in memory: the cost of a training does not depend on the content of the
images.
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd_app.data.source import Listing, Source


class Noise(Source):
    """`images` noise images of `side` x `side` pixels in ten classes, gray or color."""

    def __init__(self, *, images: int, side: int, channels: Literal[1, 3] = 1) -> None:
        self.channels = channels
        self.size = side
        self._images = images
        self._pixels = torch.randint(
            0,
            256,
            (images, channels, side, side),
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
        picture = self._pixels[index].permute(1, 2, 0).numpy()
        return Image.fromarray(picture if self.channels == 3 else picture[:, :, 0])
