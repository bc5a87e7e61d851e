"""Blocks of rows: complete, and of bounded size."""

import numpy as np
import pytest

from kd_app.metrics.blocks import slice_rows


@pytest.mark.parametrize(
    ("shape", "rows"), [((7, 10), [3, 3, 1]), ((3, 100), [1, 1, 1]), ((0, 5), [])]
)
def test_blocks_hold_all_rows_and_at_most_so_many_values(
    shape: tuple[int, int], rows: list[int]
) -> None:
    array = np.arange(shape[0] * shape[1]).reshape(shape)
    blocks = [array[part] for part in slice_rows(array, 30)]
    assert [len(block) for block in blocks] == rows
    assert [*map(int, np.concatenate([*blocks, array[:0]]).ravel())] == [*range(array.size)]
