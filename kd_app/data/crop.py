"""Resize, crop and convert images to a model's input; needs only numpy and Pillow."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_app.config.errors import build_unknown_error
from kd_app.config.pixels import InputSpec

_STRIP = 4
"""Aspect ratio above which an image is treated as a strip."""
_RESAMPLING = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}


def resolve_resampling(name: str) -> Image.Resampling:
    """Return PIL's filter of that name. Raises `RequestError` for an unknown name."""
    if name not in _RESAMPLING:
        raise build_unknown_error("interpolation", name, _RESAMPLING)
    return _RESAMPLING[name]


class Crop(NamedTuple):
    """A part of an image, resized.

    choose_box: ``choose_box(width, height)`` returns (left, top, width, height) of the
    part in pixels. size: (width, height) of the result.
    """

    choose_box: Callable[[int, int], tuple[int, int, int, int]]
    size: tuple[int, int]
    resampling: Image.Resampling

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the crop of a decoded image."""
        left, top, width, height = self.choose_box(*image.size)
        box = (left, top, left + width, top + height)
        return image.resize(self.size, self.resampling, box=box)


def center(image: Image.Image, input_spec: InputSpec) -> Image.Image:
    """Apply the evaluation transform, which is timm's: resize, then crop the center.

    The shorter side becomes ``floor(side / crop)``. An image of the model's size is
    returned unchanged. For a long strip only the cropped part is computed; its values
    may differ by about one level due to rounding.
    """
    size = (input_spec.width, input_spec.height)
    if image.size == size:
        return image
    resized = _compute_resized_size(image.size, input_spec)
    left, top = (round((whole - part) / 2) for whole, part in zip(resized, size, strict=True))
    box = (left, top, left + input_spec.width, top + input_spec.height)
    if max(image.size) <= _STRIP * min(image.size):
        return image.resize(resized, resolve_resampling(input_spec.interpolation)).crop(box)
    across, down = (stored / whole for stored, whole in zip(image.size, resized, strict=True))
    return image.resize(
        size,
        resolve_resampling(input_spec.interpolation),
        box=(box[0] * across, box[1] * down, box[2] * across, box[3] * down),
    )


def match_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert ``[..., stored channels]`` to ``[..., channels]``.

    Gray is repeated as color; color becomes luma (ITU-R 601, rounded as in PIL).
    """
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 1:
        luma = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
        return ((luma + 2**15) >> 16).astype(np.uint8)[..., None]
    return np.repeat(pixels, channels, axis=-1)


def _compute_resized_size(size: tuple[int, int], input_spec: InputSpec) -> tuple[int, int]:
    """Return (width, height) of the whole image before the crop, rounded as in timm."""
    width, height = size
    target = (
        math.floor(input_spec.width / input_spec.crop),
        math.floor(input_spec.height / input_spec.crop),
    )
    if target[0] != target[1]:
        ratio = min(width / target[0], height / target[1])
        return round(width / ratio), round(height / ratio)
    side = target[0]
    return (
        (side, int(side * height / width))
        if width <= height
        else (int(side * width / height), side)
    )
