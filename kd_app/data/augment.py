"""RandAugment and random erasing, applied to each image after its view.

The random changes of an image depend on its key alone, so they can be replayed.
"""

import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor

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
        augmented = np.empty_like(pictures)
        with preserve_generators():
            for row, key in enumerate(derive_keys(keys, _STREAM).tolist()):
                torch.default_generator.manual_seed(key >> 1)
                image = torch.from_numpy(pictures[row]).permute(2, 0, 1).clone()
                image = augment(image) if self.operations else image
                if torch.rand(()).item() < self.erasing:
                    _erase(image)
                augmented[row] = image.permute(1, 2, 0).numpy()
        return augmented


def _erase(image: UInt8[Tensor, "channels height width"]) -> None:
    """Fill a random rectangle with noise, in place.

    The image stays unchanged if none of ten random rectangles fits into it.
    """
    channels, height, width = image.shape
    for _ in range(_ATTEMPTS):
        share, shape, down, across = torch.rand(4).tolist()
        area = height * width * (_SMALLEST + (_LARGEST - _SMALLEST) * share)
        ratio = math.exp(math.log(_FLATTEST) * (1 - 2 * shape))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
            image[:, top : top + tall, left : left + wide] = torch.randint(
                0, 256, (channels, tall, wide), dtype=torch.uint8
            )
            return
