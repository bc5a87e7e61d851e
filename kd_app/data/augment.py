"""What is done to each image after its view, the same whenever its key is the same:
RandAugment and random erasing.
"""

import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kd_app.data.views import Keys, Pictures, own_generators, remix_keys

_STREAM = 100
"""Of the keys: another one than those that mixing draws from."""
_SMALLEST, _LARGEST, _FLATTEST = 0.02, 1 / 3, 0.3
"""Share of the area that is erased, and its ratio of the sides, as published."""
_ATTEMPTS = 10


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Augment:
    """operations: so many of RandAugment's 14, each drawn at random, at `magnitude` of
    0 to 30 (Cubuk et al., NeurIPS 2020, arXiv 1909.13719).

    erasing: the probability that a rectangle of 2 to 33 % of the area becomes noise
    (Zhong et al., AAAI 2020, arXiv 1708.04896).
    """

    SWITCHES: ClassVar[tuple[str, ...]] = ("operations", "erasing")
    """The settings of which one has to be set for anything to be changed."""

    operations: NonNegativeInt
    magnitude: Annotated[int, Field(ge=0, le=30)]
    erasing: Annotated[float, Field(ge=0, le=1)]

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return self.operations > 0 or self.erasing > 0

    def describe(self) -> str:
        """A phrase for the plan of a run."""
        return f"RandAugment {self.operations} x {self.magnitude}, erasing {self.erasing:g}"

    def __call__(self, pictures: Pictures, keys: Keys) -> Pictures:
        """The images, each changed as its key says."""
        from torchvision.transforms import v2

        randomly = v2.RandAugment(
            num_ops=self.operations, magnitude=self.magnitude, num_magnitude_bins=31
        )
        made = np.empty_like(pictures)
        with own_generators():
            for row, key in enumerate(remix_keys(keys, _STREAM).tolist()):
                torch.default_generator.manual_seed(key >> 1)
                image = torch.from_numpy(pictures[row]).permute(2, 0, 1).clone()
                image = randomly(image) if self.operations else image
                if torch.rand(()).item() < self.erasing:
                    _erase(image)
                made[row] = image.permute(1, 2, 0).numpy()
        return made


def _erase(image: UInt8[Tensor, "channels height width"]) -> None:
    """Put noise into a rectangle; nothing happens where ten tries find none that fits."""
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
