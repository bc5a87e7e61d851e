"""Which held-out images are on the map of embeddings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kd_app.measurement.embedding_map import MOST, write_embedding_map
from kd_app.reporting.embedding_map import read_map


def _write(path: Path, images: int, **data: Any) -> None:
    embeddings = SimpleNamespace(queries=np.random.default_rng(0).normal(size=(images, 4)))
    comparison: Any = SimpleNamespace(
        models=dict.fromkeys(("teacher", "pca", "untouched", "student"), embeddings),
        labels=SimpleNamespace(queries=np.arange(images) % 3 - 1),
    )
    rows = np.arange(images) + 5
    files = [f"{number}.png" for number in range(images + 5)]
    own = {"list_rows": lambda split: rows, "files": files, **data}
    workspace: Any = SimpleNamespace(
        data=SimpleNamespace(**own), limit=None, classes=("cat", "dog")
    )
    write_embedding_map(path, workspace, comparison, "test")


def test_images_have_their_file_and_label_in_every_model(tmp_path: Path) -> None:
    _write(tmp_path / "map.parquet", 4)
    rows = read_map(tmp_path / "map.parquet")
    assert [row.role for row in rows[::4]] == ["teacher", "untouched", "student"]
    assert [row.file for row in rows[:4]] == ["5.png", "6.png", "7.png", "8.png"]
    assert [row.label for row in rows[:4]] == [None, "cat", "dog", None]


def test_a_map_of_many_images_shows_some_of_them(tmp_path: Path) -> None:
    _write(tmp_path / "map.parquet", MOST + 9)
    assert len(read_map(tmp_path / "map.parquet")) == 3 * MOST


def test_images_without_numbers_have_no_map(tmp_path: Path) -> None:
    _write(tmp_path / "map.parquet", 4, list_rows=lambda split: None)
    assert not (tmp_path / "map.parquet").exists()
