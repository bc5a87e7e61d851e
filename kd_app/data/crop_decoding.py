"""Decode only what a crop of an image needs: faster than `kd_app.data.images`, with
slightly different pixels.

For training views only. Evaluation, predictions and exported models use the pixels of
`kd_app.data.images`.
"""

from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch.nn.functional import interpolate

from kd_app.config.regular_file import open_regular
from kd_app.data.bit_depth import load_image
from kd_app.data.crop import Crop
from kd_app.data.images import (
    SWAPPING,
    build_bad_image_error,
    convert_mode,
    decode_with,
    find_turn,
)

IDENTITY: Final = "crop-1"
"""Name of these pixels in the identity of training batches; changes with the pixels."""

_SCALES = (8, 4, 2)
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
"""Filters that torch implements for 8-bit images, about three times as fast as PIL."""


def open_crop(path: Path, channels: int, crop: Crop) -> Image.Image:
    """Return a crop of the upright image in `path`; see `decode_crop`."""
    try:
        with open_regular(path) as file:
            return decode_crop(file, str(path), channels, crop)
    except OSError as error:
        raise build_bad_image_error(str(path), error) from error


def decode_crop(file: BinaryIO, name: str, channels: int, crop: Crop) -> Image.Image:
    """Return a crop of the upright image in an open file, in mode 'L' or 'RGB'.

    A JPEG file is decoded at 1/8, 1/4 or 1/2 of its size, if the crop still has at
    least the pixels of ``crop.size``; other formats are decoded whole. Raises
    `BadImageError`, with `name` in the message.
    """
    return decode_with(file, name, lambda image: _convert_crop(image, channels, crop))


def _convert_crop(image: Image.Image, channels: int, crop: Crop) -> Image.Image:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        # The orientation may follow the pixels.
        image = load_image(image)
    if min(image.size) < 1:
        raise ValueError("it has no pixels")
    turn, size = find_turn(image), image.size
    upright = size[::-1] if turn in SWAPPING else size
    left, top, width, height = crop.choose_box(*upright)
    scale = _draft(image, "L" if channels == 1 else "RGB", (width, height), crop.size)
    plain = convert_mode(image, channels)
    if turn is not None:
        plain = plain.transpose(turn)
    # A corner moves by at most half a decoded pixel, so by half a pixel of the result.
    box = (
        min(round(left / scale), plain.width - 1),
        min(round(top / scale), plain.height - 1),
        min(round((left + width) / scale), plain.width),
        min(round((top + height) / scale), plain.height),
    )
    return _resize(plain.crop(box), crop)


def _draft(image: Image.Image, mode: str, stored: tuple[int, int], needed: tuple[int, int]) -> int:
    """Select the scale at which a JPEG file is decoded; returns its reciprocal.

    stored, needed: the size of the crop in the file, and of the result.
    """
    for scale in _SCALES:
        if all(side >= scale * least for side, least in zip(stored, needed, strict=True)):
            width, height = image.size
            return scale if image.draft(mode, (width // scale, height // scale)) else 1
    return 1


def _resize(image: Image.Image, crop: Crop) -> Image.Image:
    mode = _MODES.get(crop.resampling)
    if mode is None:
        return image.resize(crop.size, crop.resampling)
    if image.size == crop.size:
        return image
    pixels = torch.from_numpy(np.array(image))
    batch = pixels.reshape(1, *pixels.shape[:2], -1).permute(0, 3, 1, 2)
    width, height = crop.size
    resized = interpolate(batch, (height, width), mode=mode, antialias=True)
    array = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
