"""RandAugment and random erasing, applied to each image after its view.

The random changes of an image depend on its key alone, so they can be replayed.
"""

import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from kd_app.data.views import Keys, Pictures, derive_keys, preserve_generators

_STREAM = 100
"""Stream of random bits for augmentation; mixing uses other streams."""
_SMALLEST, _LARGEST, _FLATTEST = 0.02, 1 / 3, 0.3
"""Bounds of the erased share of the area, and smallest aspect ratio, as published."""
_ATTEMPTS = 10


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Augment:
    """Settings of RandAugment and random erasing; callable on a batch of images.

    operations: number of operations per image, each drawn from RandAugment's 14
    (Cubuk et al., NeurIPS 2020, arXiv 1909.13719). magnitude: strength of the
    operations, 0 to 30. erasing: probability that a rectangle of 2 to 33 % of the area
    becomes noise (Zhong et al., AAAI 2020, arXiv 1708.04896).
    """

    SWITCHES: ClassVar[tuple[str, ...]] = ("operations", "erasing")
    """Settings that turn augmentation on; at least one of them must be set."""

    operations: NonNegativeInt
    magnitude: Annotated[int, Field(ge=0, le=30)]
    erasing: Annotated[float, Field(ge=0, le=1)]

    @property
    def active(self) -> bool:
        """Whether any image can be changed."""
        return self.operations > 0 or self.erasing > 0

    def describe(self) -> str:
        """Return a phrase for the plan of a run."""
        return f"RandAugment {self.operations} x {self.magnitude}, erasing {self.erasing:g}"

    def __call__(self, pictures: Pictures, keys: Keys) -> Pictures:
        """Return the images, each changed at random as a function of its key."""
        from torchvision.transforms import v2

        augment = v2.RandAugment(
            num_ops=self.operations, magnitude=self.magnitude, num_magnitude_bins=31
        )
        augmented = pictures.copy()
        with preserve_generators():
            for picture, key in zip(augmented, derive_keys(keys, _STREAM).tolist(), strict=True):
                torch.default_generator.manual_seed(key >> 1)
                if self.operations:
                    # With PIL, the operations take a third of their time with tensors.
                    gray_or_color = picture if picture.shape[2] == 3 else picture[:, :, 0]
                    changed = np.asarray(augment(Image.fromarray(gray_or_color)))
                    picture[:] = changed.reshape(picture.shape)
                if torch.rand(()).item() < self.erasing:
                    _erase(picture)
        return augmented


def _erase(picture: UInt8[np.ndarray, "height width channels"]) -> None:
    """Fill a random rectangle with noise, in place.

    The image stays unchanged if none of ten random rectangles fits into it.
    """
    height, width, channels = picture.shape
    for _ in range(_ATTEMPTS):
        share, shape, down, across = torch.rand(4).tolist()
        area = height * width * (_SMALLEST + (_LARGEST - _SMALLEST) * share)
        ratio = math.exp(math.log(_FLATTEST) * (1 - 2 * shape))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
            noise = torch.randint(0, 256, (tall, wide, channels), dtype=torch.uint8)
            picture[top : top + tall, left : left + wide] = noise.numpy()
            return
