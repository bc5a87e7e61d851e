"""The input specification: the contract between data and models."""

from dataclasses import dataclass


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
