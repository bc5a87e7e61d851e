"""Tables of embeddings and of the nearest images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kd_app.config import RequestError
from kd_app.reporting.embedding_file import build_embedding_table, check_neighbors, write_arrays

FILES = ["a.png", "b.png", "c.png"]
EMBEDDINGS = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)


def test_the_nearest_other_images_are_listed_with_their_cosine() -> None:
    table = build_embedding_table(FILES, EMBEDDINGS, 2)
    assert table["neighbor_1"].tolist() == ["b.png", "a.png", "b.png"]
    assert table["neighbor_2"].tolist() == ["c.png", "c.png", "a.png"]
    assert table["similarity_1"].tolist() == pytest.approx([0.8, 0.8, 0.6])


@pytest.mark.parametrize(("images", "fix"), [(1, "remove neighbors"), (4, "at most neighbors=3")])
def test_too_few_images_have_no_neighbors(images: int, fix: str) -> None:
    with pytest.raises(RequestError, match=f"neighbors=4, and there are {images} .*{fix}"):
        check_neighbors(4, images)
    check_neighbors(4, 5)
    check_neighbors(None, 0)


def test_without_neighbors_only_embeddings_are_written(tmp_path: Path) -> None:
    table = build_embedding_table(FILES, EMBEDDINGS, None)
    assert list(table.columns) == ["file", "embedding"]
    table.to_parquet(tmp_path / "embeddings.parquet")
    again = pd.read_parquet(tmp_path / "embeddings.parquet")
    assert np.array_equal(np.stack(again["embedding"].to_list()), EMBEDDINGS)


def test_arrays_hold_files_embeddings_and_neighbors(tmp_path: Path) -> None:
    with (tmp_path / "embeddings.npz").open("wb") as file:
        write_arrays(build_embedding_table(FILES, EMBEDDINGS, 1), file)
    with np.load(tmp_path / "embeddings.npz") as arrays:
        assert arrays["files"].tolist() == FILES
        assert np.array_equal(arrays["embeddings"], EMBEDDINGS)
        assert arrays["neighbors"][:, 0].tolist() == ["b.png", "a.png", "b.png"]
        assert arrays["similarities"].shape == (3, 1)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(RequestError, match="at most neighbors=2"):
        build_embedding_table(FILES, EMBEDDINGS, 3)
