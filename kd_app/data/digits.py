"""The 1,797 handwritten digits in scikit-learn: real images without a download."""

from functools import cache
from importlib.metadata import distribution

import numpy as np
from jaxtyping import Float64

from kd_app.data.arrays import Arrays, ArraySource


class Digits(ArraySource):
    """8x8 gray digits, 0..16 scaled to 0..255, ten classes, no predefined splits.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998; the test part.
    """

    size = 8
    name = "digits"
    license = "cc-by-4.0"  # https://archive.ics.uci.edu/dataset/80
    classes = tuple("0123456789")

    def __init__(self) -> None:
        """Create the source; it has no settings."""

    def load(self) -> Arrays:
        table = _read_table()
        pixels = (
            np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, self.size, self.size)
        )
        return pixels, table[:, -1].astype(np.int64), ("",) * len(table)


@cache
def _read_table() -> Float64[np.ndarray, "images columns"]:
    """Read the file once in a process, also for many trials.

    It is read directly: importing sklearn.datasets takes a second or two.
    """
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(path), delimiter=",", dtype=np.float64)
