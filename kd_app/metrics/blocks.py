"""Blocks of rows of arrays that may be too large for the memory; needs numpy only."""

from collections.abc import Iterator

import numpy as np

VALUES = 2**22
"""Values per block: 32 MB in float64."""


def slice_rows(array: np.ndarray, values: int | None = None) -> Iterator[slice]:
    """Yield slices of the rows of an array: at most `values` values each (None:
    `VALUES`), but at least one row.
    """
    step = max(1, (values or VALUES) // max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield slice(start, start + step)
