"""Golden embeddings: what a file returned for three drawn pictures where it was
written, compared when it is opened elsewhere.
"""

from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GOLDEN: Final = "golden"
"""Key of an entry of a manifest."""
PICTURES: Final = 3
LEAST_COSINE: Final = 0.98
"""Between the embeddings of a picture here and there. Kernels differ in rounding, which
costs an int8 file up to a percent; another resize, crop or channel order costs more.
"""
_DIGITS: Final = 6


class EmbeddingFile(Protocol):
    """What is read of an opened file."""

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert an image to the input of the file."""

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return embeddings ``[B, D]`` of length 1."""


def draw_picture(number: int) -> Image.Image:
    """Draw a colored picture with edges and gradients that no resize leaves alone, from
    integers alone.
    """
    y, x = np.mgrid[0 : 211 + 40 * number, 0 : 293 - 30 * number]
    red = (x * (2 + number) + y) % 256
    green = ((x // (7 + number) + y // 5) % 2) * (180 - 40 * number) + 30
    blue = (x * y // (23 + 9 * number)) % 256
    return Image.fromarray(np.stack((red, green, blue), axis=2).astype(np.uint8))


def compute_golden(file: EmbeddingFile) -> list[list[float]]:
    """Return the embedding of each picture."""
    pictures = [file.prepare_image(draw_picture(number)) for number in range(PICTURES)]
    return [
        [round(float(value), _DIGITS) for value in embedding]
        for embedding in file.infer_logits(np.stack(pictures))
    ]


def parse_golden(node: Any, width: int) -> NDArray[np.float64] | None:
    """Read the output of `compute_golden`; None if a manifest has none. Raises
    `ValueError` for anything else.
    """
    if node is None:
        return None
    vectors = np.asarray(node, dtype=np.float64)
    if vectors.shape != (PICTURES, width) or not np.isfinite(vectors).all():
        raise ValueError(f"{GOLDEN} of shape {vectors.shape}")
    return vectors


def check_golden(file: EmbeddingFile, expected: NDArray[np.float64], name: str) -> None:
    """Compare the file's embeddings of the pictures with those where it was written.

    Raises `ValueError` if a cosine is below `LEAST_COSINE`.
    """
    ours = np.asarray(compute_golden(file))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((ours * expected).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
    if not cosine >= LEAST_COSINE:
        raise ValueError(
            f"{name!r} gives other embeddings here than where it was written: the cosine is"
            f" {cosine:.3f} for one of {PICTURES} drawn pictures, expected {LEAST_COSINE:g} or"
            " more. Its neighbors would not be those that were measured. The version of the"
            " runtime or of Pillow is another one, or this processor rounds int8 differently:"
            " export the run again here, or use its float file."
        )
