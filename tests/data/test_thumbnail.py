"""Tests of PNG thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image

from kd_app.data.thumbnail import encode_thumbnail


def open_image(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_keeps_every_pixel(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 13, channels), dtype=np.uint8)
    np.testing.assert_array_equal(
        np.asarray(open_image(encode_thumbnail(picture))).reshape(picture.shape), picture
    )


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(320, 480, (96, 64)), (97, 97, (96, 96)), (4000, 3, (1, 96)), (96, 96, (96, 96))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_reduced_to_96_pixels_and_keeps_its_shape(
    height: int, width: int, expected: tuple[int, int], channels: int
) -> None:
    image = open_image(encode_thumbnail(np.full((height, width, channels), 200, np.uint8)))
    assert image.size == expected
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert np.asarray(image).min() == np.asarray(image).max() == 200
