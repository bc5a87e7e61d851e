"""The file of the map of embeddings."""

from pathlib import Path

import pytest

from kd_app.reporting.embedding_map import MapRow, read_map, write_map

ROWS = [
    MapRow("teacher", 3, "a/b.png", "cat", 0.5, -0.25, 0.75),
    MapRow("student", 3, "a/b.png", None, 0.0, 1.0, 0.5),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_map(tmp_path / "map.parquet", ROWS)
    assert read_map(tmp_path / "map.parquet") == ROWS


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "map.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises((OSError, ValueError)):
        read_map(tmp_path / "map.parquet")
