"""Checks of the logits that a model returns; needs numpy only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from kd_app.config.errors import RequestError

_MAX_NAMES = 3


class NonFiniteLogitsError(RequestError):
    """A model returned NaN or infinity.

    source: the model or its file · images: the numbers of the images, in the batch or
    in the data · total: number of images that the model was given.
    """

    def __init__(
        self, source: str, images: Sequence[int], total: int, *, names: Sequence[str] = ()
    ) -> None:
        more = ", ..." if len(names) > _MAX_NAMES else ""
        which = f" ({', '.join(map(repr, names[:_MAX_NAMES]))}{more})" if names else ""
        super().__init__(
            f"{source} returned NaN or infinite logits for {len(images):,} of {total:,}"
            f" images{which}, which say nothing about the class. Expected finite numbers. The"
            " training diverged, the weights are damaged, or a value overflows in this format:"
            " train or export the model again."
        )
        self.source, self.images, self.total = source, list(images), total


def check_finite(
    logits: NDArray[np.floating], source: str, images: Sequence[int] | None = None
) -> None:
    """Raise `NonFiniteLogitsError` unless all ``logits[B, K]`` are finite.

    images: numbers of the images; None: 0, 1, 2 ...
    """
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=-1)).tolist()
    if wrong:
        numbers = wrong if images is None else [images[row] for row in wrong]
        raise NonFiniteLogitsError(source, numbers, len(logits))


@contextmanager
def number_images(images: Sequence[int] | NDArray[np.integer]) -> Iterator[None]:
    """Replace positions in the batch by the numbers `images` in an error."""
    try:
        yield
    except NonFiniteLogitsError as error:
        numbers = [int(images[row]) for row in error.images]
        raise NonFiniteLogitsError(error.source, numbers, error.total) from None


@contextmanager
def name_images(names: Sequence[str]) -> Iterator[None]:
    """Add the `names` of the images, by number, to an error."""
    try:
        yield
    except NonFiniteLogitsError as error:
        some = [names[number] for number in error.images]
        raise NonFiniteLogitsError(error.source, error.images, error.total, names=some) from None
