"""Embeddings of drawn pictures, compared when a file is opened elsewhere."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kd_app.deployment.golden import (
    PICTURES,
    check_golden,
    compute_golden,
    draw_picture,
    parse_golden,
)

SUMS = [22537630, 22528174, 21549086]


class File:
    """Returns four pixels; resizes as `method` says."""

    def __init__(self, method: Image.Resampling = Image.Resampling.BICUBIC) -> None:
        self.method = method

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.resize((24, 24), self.method)).transpose(2, 0, 1)

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        flat = images.reshape(len(images), -1).astype(np.float32) - 128
        rows: NDArray[np.float32] = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        return rows


def test_the_same_file_gives_the_same_embeddings() -> None:
    vectors = parse_golden(compute_golden(File()), 3 * 24 * 24)
    assert vectors is not None
    check_golden(File(), vectors, "model.onnx")


def test_another_resize_is_refused() -> None:
    vectors = parse_golden(compute_golden(File()), 3 * 24 * 24)
    assert vectors is not None
    with pytest.raises(ValueError, match=r"'model.onnx' gives other embeddings here"):
        check_golden(File(Image.Resampling.NEAREST), vectors, "model.onnx")


def test_the_pictures_are_fixed() -> None:
    sums = [int(np.asarray(draw_picture(number)).sum()) for number in range(PICTURES)]
    assert sums == SUMS


@pytest.mark.parametrize("node", [[[1.0]], [[np.nan] * 2] * PICTURES, "text", [[1.0, 2.0]] * 2])
def test_anything_else_is_refused(node: object) -> None:
    with pytest.raises(ValueError, match=r"golden|could not convert"):
        parse_golden(node, 2)


def test_a_manifest_may_have_none() -> None:
    assert parse_golden(None, 2) is None
