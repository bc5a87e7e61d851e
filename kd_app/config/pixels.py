"""The input specification: the contract between data and models."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MIN_DECODED_SIDE: Final = 320
"""The smallest bound (pixels) on the shorter side of decoded images."""


@dataclass(frozen=True)
class InputSpec:
    """The input of a model: ``(x / 255 - mean) / std`` of images of `channels` x
    `height` x `width`.

    `crop` is the center crop's share of the resized image's shorter side (timm's
    ``crop_pct``). `interpolation` is a name of timm: 'bilinear', 'bicubic' ... `mean`
    and `std` have `channels` entries, in 0..1.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Decoding:
    """How a run decodes image files, before they are resized to an `InputSpec`.

    Files become upright pixels (EXIF) of 8 bits on white ground, with `channels` = 1
    (gray) or 3 (color). Images whose shorter side has more pixels than `shorter_side`
    are reduced.
    """

    channels: int
    shorter_side: int


def bound_side(sides: Iterable[int]) -> int:
    """Return `Decoding.shorter_side` for models with these input sides (pixels)."""
    return max(MIN_DECODED_SIDE, math.ceil(1.15 * max(sides)))


def choose_decoding(input_spec: InputSpec) -> Decoding:
    """Return the decoding for a model from elsewhere, whose training is unknown."""
    return Decoding(input_spec.channels, bound_side([input_spec.height, input_spec.width]))
