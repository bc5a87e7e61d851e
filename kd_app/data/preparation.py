"""From an opened image to the pixels of a model's input, as in the evaluation.

The evaluation decodes (`convert_image`), caches, crops (`center`) and matches the
channels (`match_channels`) in this order, batch by batch; `prepare_image` does the same
for one image. This module needs numpy and Pillow only.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from kd_app.config.pixels import Decoding, InputSpec
from kd_app.data.crop import center, match_channels
from kd_app.data.images import convert_image


def prepare_image(
    image: Image.Image, input_spec: InputSpec, decoding: Decoding
) -> NDArray[np.uint8]:
    """Turn upright, put on white, convert to 8 bits, reduce, resize and crop: uint8
    ``[C, H, W]``.
    """
    decoded = convert_image(_open_again(image), decoding.channels, decoding.shorter_side)
    cropped = np.asarray(center(decoded, input_spec))
    cropped = cropped.reshape(input_spec.height, input_spec.width, decoding.channels)
    pixels = match_channels(cropped, input_spec.channels)
    # A copy, because arrays of an image are read-only.
    return np.array(pixels.transpose(2, 0, 1), order="C")


def _open_again(image: Image.Image) -> Image.Image:
    """Open a JPEG file that is not decoded yet a second time, from memory.

    A JPEG file is reduced while it is decoded, which would shrink the caller's image.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not image.tile or image.tell():
        return image
    file = image.fp
    if file is None or file.closed:
        return image  # Pillow explains that the image is closed
    file.seek(0)
    content = file.read()
    if image.format == "JPEG" and image.filename:
        # The caller's image stays undecoded, and nothing else would close its file.
        image.fp = io.BytesIO(content)
        file.close()
    return Image.open(io.BytesIO(content))
