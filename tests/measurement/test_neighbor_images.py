"""Which held-out images the page shows with their nearest images."""

import numpy as np

from kd_app.measurement.neighbor_images import select_queries


def test_half_are_those_of_the_largest_disagreement_and_half_are_typical() -> None:
    overlap = np.array([0.9, 0.1, 0.5, 0.0, 0.7, 0.3])
    chosen = select_queries(overlap, 4)
    assert chosen[:2] == [3, 1]
    assert len(set(chosen)) == 4
    assert chosen[-1] == 0


def test_few_queries_are_all_shown_once() -> None:
    assert sorted(select_queries(np.array([0.2, 0.1]), 6)) == [0, 1]
