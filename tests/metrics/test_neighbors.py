"""Nearest neighbors against plain float64 loops."""

from collections import Counter

import numpy as np
import pytest

from kd_app.metrics import neighbors
from kd_app.metrics.neighbors import (
    classify_by_neighbors,
    compute_overlap,
    compute_purity,
    find_neighbors,
)

RANDOM = np.random.default_rng(0)
QUERIES, GALLERY = (RANDOM.normal(size=(n, 7)).astype(np.float32) for n in (9, 23))


def _rank(query: np.ndarray, gallery: np.ndarray) -> list[int]:
    """Numbers of the gallery, by falling cosine in float64."""
    cosines = [
        float(query @ each / np.sqrt((query @ query) * (each @ each)))
        for each in gallery.astype(np.float64)
    ]
    return sorted(range(len(gallery)), key=lambda number: -cosines[number])


@pytest.mark.parametrize("block", [1, 50, 2**25])
def test_neighbors_are_those_of_the_cosine_in_any_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK_VALUES", block)
    rows = find_neighbors(QUERIES, GALLERY, 5).rows
    expected = [_rank(each.astype(np.float64), GALLERY)[:5] for each in QUERIES]
    assert rows.tolist() == expected


def test_no_image_is_its_own_neighbor_among_the_same_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK_VALUES", 60)
    rows = find_neighbors(GALLERY, GALLERY, 4, is_same=True).rows
    expected = [_rank(each.astype(np.float64), GALLERY)[1:5] for each in GALLERY]
    assert rows.tolist() == expected


def test_length_does_not_matter() -> None:
    scaled = GALLERY * RANDOM.uniform(0.1, 9, size=(len(GALLERY), 1)).astype(np.float32)
    first, second = (find_neighbors(QUERIES, each, 5).rows for each in (GALLERY, scaled))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("k", "is_same"), [(0, False), (24, False), (23, True)])
def test_more_neighbors_than_images_are_refused(k: int, is_same: bool) -> None:
    with pytest.raises(ValueError, match="neighbors of"):
        find_neighbors(GALLERY, GALLERY, k, is_same=is_same)


def test_overlap_is_the_share_of_common_neighbors() -> None:
    first = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    second = np.array([[3, 2, 9, 8], [7, 6, 5, 4]])
    assert compute_overlap(first, second).tolist() == [0.5, 1.0]


def test_purity_is_the_share_of_neighbors_with_the_label() -> None:
    near = np.array([[1, 1, 0, 2], [2, 2, 2, 2]])
    assert compute_purity(near, np.array([1, 0])).tolist() == [0.5, 0.0]


def test_the_vote_is_that_of_a_plain_count_and_ties_go_to_the_nearest() -> None:
    near = RANDOM.integers(0, 4, size=(200, 6))
    expected = []
    for row in near.tolist():
        counts = Counter(row)
        most = max(counts.values())
        expected.append(next(label for label in row if counts[label] == most))
    assert classify_by_neighbors(near, 4).tolist() == expected
