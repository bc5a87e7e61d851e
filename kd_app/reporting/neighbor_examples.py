"""``neighbors.parquet``: held-out images with their nearest images by each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.files import replace_file


@dataclass(frozen=True)
class NeighborRow:
    """The nearest images of one query by one model, the nearest first.

    overlap: the share of the teacher's neighbors that the student finds for this query,
    in 0..1 · png: thumbnails; null if the data provide none.
    """

    query: int
    file: str
    overlap: float
    role: str
    png: bytes | None
    neighbor: list[int]
    neighbor_file: list[str]
    neighbor_png: list[bytes | None]


def write_neighbors(path: Path, rows: Sequence[NeighborRow]) -> None:
    """Write one row for each query and model."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([vars(row) for row in rows], _build_schema())
    with replace_file(path) as file:
        parquet.write_table(table, file)


def read_neighbors(path: Path) -> list[NeighborRow]:
    """Read the rows; raises `OSError` or `ValueError` for a damaged file."""
    from pyarrow import parquet

    table = parquet.read_table(path, schema=_build_schema())
    return [NeighborRow(**row) for row in table.to_pylist()]


def _build_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "query": pa.int64(),
            "file": pa.string(),
            "overlap": pa.float64(),
            "role": pa.string(),
            "png": pa.binary(),
            "neighbor": pa.list_(pa.int64()),
            "neighbor_file": pa.list_(pa.string()),
            "neighbor_png": pa.list_(pa.binary()),
        }
    )
