"""A hundred classes from ten: two articles of Fashion-MNIST side by side."""

from functools import cached_property

import numpy as np

from kd_app.data.arrays import Arrays, ArraySource
from kd_app.data.fashion_mnist import FashionMNIST

TEST_IMAGES = 20_000


class PairedClothes(ArraySource):
    """28x28 gray images of two articles, each with every second column; the class is
    the ordered pair of their classes.

    `images` pairs without a split from the training images, each with a random right
    one, and 20,000 test pairs from the 10,000 test images.
    """

    size = 28
    name = "paired_clothes"
    license = "mit"

    def __init__(self, *, images: int) -> None:
        self.images = images

    @cached_property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """``<left> + <right>``."""
        names = FashionMNIST.classes
        return tuple(f"{left} + {right}" for left in names for right in names)

    def load(self) -> Arrays:
        """Pair the images, always in the same way."""
        pixels, target, split = FashionMNIST(root=None).load()
        is_test = np.array(split) == "test"
        random = np.random.default_rng(0)
        images, labels = list[np.ndarray](), list[np.ndarray]()
        for rows, count in (
            (np.flatnonzero(~is_test), self.images),
            (np.flatnonzero(is_test), TEST_IMAGES),
        ):
            times = -(-count // len(rows))
            left, right = (
                np.concatenate([random.permutation(rows) for _ in range(times)])[:count]
                for _ in range(2)
            )
            images.append(np.concatenate((pixels[left, :, ::2], pixels[right, :, ::2]), axis=2))
            labels.append(10 * target[left] + target[right])
        splits = ("",) * len(labels[0]) + ("test",) * len(labels[1])
        return np.concatenate(images), np.concatenate(labels), splits
