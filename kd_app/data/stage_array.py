"""Arrays of class numbers in the folder of a stage, which may be somebody else's."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.records import WRONG


def read_classes(
    path: Path, *, images: int | None = None, least: int, classes: int | None = None
) -> Int64[np.ndarray, " images"]:
    """Read a ``.npy`` file with one class number an image.

    images: the number of images; None: any. Numbers lie in ``least`` .. ``classes - 1``
    (None: no limit). Raises `RequestError` for anything else, and for a pickle.
    """
    try:
        numbers = np.load(path, allow_pickle=False)
        reason = _find_reason(numbers, images, least, classes)
    except (*WRONG, MemoryError) as error:
        reason = take_first_line(error)
    if reason:
        raise RequestError(
            f"{str(path)!r} can't be read: {reason}. Expected the class of each image, as kd_app"
            " wrote it. Remove the folder of this stage to compute the classes again."
        )
    return np.asarray(numbers, dtype=np.int64)


def _find_reason(numbers: object, images: int | None, least: int, classes: int | None) -> str:
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype != np.int64:
        return "it is no list of whole numbers"
    if images is not None and len(numbers) != images:
        return f"it has {len(numbers):,} numbers for {images:,} images"
    if len(numbers) and (
        numbers.min() < least or (classes is not None and numbers.max() >= classes)
    ):
        return f"it holds numbers from {numbers.min()} to {numbers.max()}"
    return ""
