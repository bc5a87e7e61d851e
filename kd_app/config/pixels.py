"""What a model expects to be fed: the contract between data, which makes pixels, and
models, which read them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """Input of one model: ``(x / 255 - mean) / std`` on images of `channels` x `height`
    x `width`.

    `crop` is the share of the resized image's shorter side that the centre crop keeps
    (timm's ``crop_pct``); `interpolation` is 'bilinear', 'bicubic' ... as timm names
    it. `mean` and `std` have `channels` entries, in 0..1.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bilinear"
