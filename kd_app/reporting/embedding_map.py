"""``embedding_map.parquet``: held-out images on a plane, by each model's embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.files import replace_file


@dataclass(frozen=True)
class MapRow:
    """The place of one image by one model.

    index: number of the image · label: name of its class; null without a label · share:
    of the variance of the images' embeddings that the model's plane shows, in 0..1.
    """

    role: str
    index: int
    file: str
    label: str | None
    x: float
    y: float
    share: float


def write_map(path: Path, rows: Sequence[MapRow]) -> None:
    """Write one row for each model and image."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([vars(row) for row in rows], _build_schema())
    with replace_file(path) as file:
        parquet.write_table(table, file)


def read_map(path: Path) -> list[MapRow]:
    """Read the rows; raises `OSError` or `ValueError` for a damaged file."""
    from pyarrow import parquet

    return [MapRow(**row) for row in parquet.read_table(path, schema=_build_schema()).to_pylist()]


def _build_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "role": pa.string(),
            "index": pa.int64(),
            "file": pa.string(),
            "label": pa.string(),
            "x": pa.float64(),
            "y": pa.float64(),
            "share": pa.float64(),
        }
    )
