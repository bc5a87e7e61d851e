"""The file of nearest images."""

from pathlib import Path

import pytest

from kd_app.reporting.neighbor_examples import NeighborRow, read_neighbors, write_neighbors

ROW = NeighborRow(3, "a/b.png", 0.25, "teacher", b"png", [1, 2], ["c.png", "d.png"], [b"x", None])


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_neighbors(tmp_path / "neighbors.parquet", [ROW, ROW])
    assert read_neighbors(tmp_path / "neighbors.parquet") == [ROW, ROW]


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "neighbors.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises((OSError, ValueError)):
        read_neighbors(tmp_path / "neighbors.parquet")
