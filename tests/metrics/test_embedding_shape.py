"""Debiased CKA, effective rank and uniformity against plain float64 references."""

import numpy as np
import pytest

from kd_app.metrics.cka import compute_cka
from kd_app.metrics.embedding_shape import (
    compute_debiased_cka,
    compute_effective_rank,
    compute_uniformity,
)

RANDOM = np.random.default_rng(1)


def _draw(images: int, width: int) -> np.ndarray:
    return RANDOM.normal(size=(images, width)).astype(np.float32)


def _compute_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate from n x n Gram matrices."""
    n = len(first)
    k, m = first @ first.T, second @ second.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((total - 2 * (one @ k @ m @ one) / (n - 2)) / (n * (n - 3)))


def test_debiased_cka_is_that_of_the_gram_matrices() -> None:
    first = _draw(30, 6)
    second = first[:, :4] @ RANDOM.normal(size=(4, 9)) + 0.5 * _draw(30, 9)
    x, y = first.astype(np.float64), second.astype(np.float64)
    expected = _compute_hsic(x, y) / np.sqrt(_compute_hsic(x, x) * _compute_hsic(y, y))
    assert compute_debiased_cka(first, second.astype(np.float32)) == pytest.approx(expected, 1e-5)


def test_debiased_cka_of_independent_wide_embeddings_is_near_0() -> None:
    first, second = _draw(500, 512), _draw(500, 1280)
    assert compute_cka(first, second) > 0.5
    assert abs(compute_debiased_cka(first, second)) < 0.05


def test_debiased_cka_is_1_up_to_rotation_scale_and_shift() -> None:
    first = _draw(50, 8)
    rotation, _ = np.linalg.qr(RANDOM.normal(size=(8, 8)))
    second = (3 * first @ rotation + 5).astype(np.float32)
    assert compute_debiased_cka(first, second) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("first", [_draw(3, 5), np.ones((20, 5), np.float32)])
def test_debiased_cka_is_undefined_for_few_or_equal_embeddings(first: np.ndarray) -> None:
    assert np.isnan(compute_debiased_cka(first, _draw(len(first), 4)))


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    embeddings = _draw(40, 6) * np.array([5, 3, 1, 1, 0.1, 0.01], np.float32)
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    share = values / values.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert compute_effective_rank(embeddings) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_fewer_images_than_features_is_at_most_their_number() -> None:
    assert 5 < compute_effective_rank(_draw(8, 100)) <= 7.001


def test_effective_rank_of_equal_embeddings_is_0() -> None:
    assert compute_effective_rank(np.ones((9, 4), np.float32)) == 0


def test_uniformity_is_the_mean_over_pairs() -> None:
    embeddings = _draw(25, 5)
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((rows[i] - rows[j]) ** 2).sum()) for i in range(25) for j in range(i)]
    assert compute_uniformity(embeddings) == pytest.approx(np.log(np.mean(pairs)), abs=1e-4)


def test_uniformity_of_equal_embeddings_is_0() -> None:
    assert compute_uniformity(np.ones((9, 4), np.float32)) == pytest.approx(0, abs=1e-5)
