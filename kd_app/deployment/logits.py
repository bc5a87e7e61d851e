"""Logits that a model returns: checks, and a buffer on disk; needs numpy only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_app.config.errors import RequestError, quote_some
from kd_app.metrics.blocks import slice_rows

_MAX_NAMES = 3


class NonFiniteLogitsError(RequestError):
    """A model returned NaN or infinity.

    source: the model or its file · images: the numbers of the images, in the batch or
    in the data · total: number of images that the model was given.
    """

    def __init__(
        self, source: str, images: Sequence[int], total: int, *, names: Sequence[str] = ()
    ) -> None:
        which = f" ({quote_some(names, _MAX_NAMES)})" if names else ""
        super().__init__(
            f"{source} returned NaN or infinite logits for {len(images):,} of {total:,}"
            f" images{which}, which say nothing about them. Expected finite numbers. The"
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
    finite = [np.isfinite(logits[rows]).all(axis=-1) for rows in slice_rows(logits)]
    wrong = np.flatnonzero(~np.concatenate(finite)).tolist() if finite else []
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


class LogitsBuffer:
    """Logits of many batches, in memory or in a temporary file in `folder`."""

    def __init__(self, folder: Path | None) -> None:
        self._blocks: list[np.ndarray] = []
        self._path = None if folder is None else folder / ".logits.partial"
        if self._path is not None:
            self._path.unlink(missing_ok=True)  # of an interrupted attempt

    def append(self, logits: np.ndarray) -> None:
        """Add the logits of a batch."""
        if self._path is None:
            self._blocks.append(logits)
            return
        with self._path.open("ab") as file:
            np.ascontiguousarray(logits).tofile(file)
        self._blocks = [logits[:0]]  # for dtype and number of classes

    def read(self) -> np.ndarray:
        """Return all logits ``[N, K]``; those in a file stay there until the array is
        deleted.
        """
        if self._path is None or not self._path.is_file() or not self._path.stat().st_size:
            return np.concatenate(self._blocks)
        (empty,) = self._blocks
        logits = np.memmap(self._path, empty.dtype, "c").reshape(-1, *empty.shape[1:])
        self._path.unlink()
        return logits
