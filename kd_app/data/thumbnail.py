"""Small PNG thumbnails of images."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIDE = 96


def encode_thumbnail(picture: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode an image (1 or 3 channels) as a PNG of at most 96 pixels on each side.

    Smaller images keep their size.
    """
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
