"""Embeddings on the plane of their main directions."""

import numpy as np
import pytest

from kd_app.metrics.plane import project_embeddings

_RANDOM = np.random.default_rng(0)


def _place(points: np.ndarray) -> np.ndarray:
    """Embeddings of length 1 whose main plane holds nearly `points`."""
    width = np.concatenate((0.01 * points, np.ones((len(points), 1))), axis=1)
    rotation, _ = np.linalg.qr(_RANDOM.normal(size=(5, 5)))
    embedding: np.ndarray = (np.pad(width, ((0, 0), (0, 2))) @ rotation).astype(np.float32)
    return embedding


def test_a_plane_is_found_again_and_turned_onto_the_first() -> None:
    points = _RANDOM.normal(size=(40, 2))
    planes = project_embeddings({"teacher": _place(points), "student": _place(points)})
    teacher, student = planes["teacher"], planes["student"]
    np.testing.assert_allclose(student.points, teacher.points, atol=1e-4)
    assert teacher.share == pytest.approx(1, abs=1e-3)
    distances = np.linalg.norm(teacher.points[:1] - teacher.points, axis=1)
    expected = 0.01 * np.linalg.norm(points[:1] - points, axis=1)
    np.testing.assert_allclose(distances, expected, rtol=0.02, atol=1e-4)


def test_the_share_is_that_of_the_two_largest_variances() -> None:
    embedding = _RANDOM.normal(size=(500, 8)).astype(np.float32)
    rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    variances = np.sort(np.linalg.eigvalsh(np.cov(rows, rowvar=False)))
    share = project_embeddings({"net": embedding})["net"].share
    assert share == pytest.approx(variances[-2:].sum() / variances.sum(), rel=1e-4)


def test_a_collapsed_or_one_dimensional_embedding_has_a_plane() -> None:
    planes = project_embeddings({"same": np.ones((6, 3)), "line": np.ones((6, 1))})
    assert planes["same"].share == 0
    assert (planes["line"].points == 0).all()
