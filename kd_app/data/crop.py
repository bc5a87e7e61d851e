"""From a picture of any size to the part that a model sees; needs Pillow alone."""

import math

from PIL import Image

from kd_app.config.errors import build_unknown_error
from kd_app.config.pixels import InputSpec

_STRIP = 4
"""From this ratio of the sides on an image is a strip."""
_RESAMPLING = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}


def resolve_resampling(name: str) -> Image.Resampling:
    """PIL's filter of that name. Raises `RequestError` for one that PIL has not."""
    if name not in _RESAMPLING:
        raise build_unknown_error("interpolation", name, _RESAMPLING)
    return _RESAMPLING[name]


def center(image: Image.Image, pixels: InputSpec) -> Image.Image:
    """The transform of every evaluation, as timm's: the shorter side becomes
    ``floor(side / crop)``, the center is cropped.

    An image that has the model's size already is left as it is. Of a long strip only
    what the crop keeps is computed, which may round otherwise by a level or so.
    """
    size = (pixels.width, pixels.height)
    if image.size == size:
        return image
    resized = _compute_resized_size(image.size, pixels)
    left, top = (round((whole - part) / 2) for whole, part in zip(resized, size, strict=True))
    box = (left, top, left + pixels.width, top + pixels.height)
    if max(image.size) <= _STRIP * min(image.size):
        return image.resize(resized, resolve_resampling(pixels.interpolation)).crop(box)
    across, down = (stored / whole for stored, whole in zip(image.size, resized, strict=True))
    return image.resize(
        size,
        resolve_resampling(pixels.interpolation),
        box=(box[0] * across, box[1] * down, box[2] * across, box[3] * down),
    )


def _compute_resized_size(size: tuple[int, int], pixels: InputSpec) -> tuple[int, int]:
    """(width, height) of the whole image at the scale of the crop, rounded as timm
    rounds.
    """
    width, height = size
    wanted = (math.floor(pixels.width / pixels.crop), math.floor(pixels.height / pixels.crop))
    if wanted[0] != wanted[1]:
        ratio = min(width / wanted[0], height / wanted[1])
        return round(width / ratio), round(height / ratio)
    side = wanted[0]
    return (
        (side, int(side * height / width))
        if width <= height
        else (int(side * width / height), side)
    )
