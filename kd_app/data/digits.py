"""The 1,797 handwritten digits that scikit-learn carries: real images that need no
download.
"""

from importlib.metadata import distribution

import numpy as np

from kd_app.data.arrays import Arrays, ArraySource


class Digits(ArraySource):
    """8x8 gray digits, 0..16 scaled to 0..255, ten classes, no ready splits.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998; its test part.
    """

    size = 8
    name = "digits"
    license = "cc-by-4.0"  # https://archive.ics.uci.edu/dataset/80
    classes = tuple("0123456789")

    def __init__(self) -> None:
        """Takes no settings."""

    def load(self) -> Arrays:
        """The table in scikit-learn's package, read without the second or two that
        importing ``sklearn.datasets`` takes.
        """
        path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        table = np.loadtxt(str(path), delimiter=",", dtype=np.float64)
        pixels = (
            np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, self.size, self.size)
        )
        return pixels, table[:, -1].astype(np.int64), ("",) * len(table)
