"""Metrics of embeddings against plain float64 references, and their intervals."""

import numpy as np
import pytest

from kd_app.metrics.embedding_report import (
    EmbeddingComparison,
    JudgeLabels,
    ModelEmbeddings,
    cut_width,
)

RANDOM = np.random.default_rng(3)
GALLERY, QUERIES = 60, 40


def _place(labels: np.ndarray, noise: float, width: int = 8) -> np.ndarray:
    """Embeddings around one direction per label."""
    centers = np.eye(width)[labels]
    rows: np.ndarray = centers + noise * RANDOM.normal(size=(len(labels), width))
    return rows.astype(np.float32)


LABELS = [RANDOM.integers(0, 3, size=n) for n in (GALLERY, 20, QUERIES)]


def _model(noise: float, width: int = 8) -> ModelEmbeddings:
    return ModelEmbeddings(*(_place(each, noise, width) for each in LABELS))


TEACHER = _model(0.15)
SHAKEN = ModelEmbeddings(
    *(
        each + 0.1 * RANDOM.normal(size=each.shape).astype(np.float32)
        for each in (TEACHER.gallery, TEACHER.validation, TEACHER.queries)
    )
)
UNTOUCHED = _model(3.0)
MODELS = {"teacher": TEACHER, "untouched": UNTOUCHED, "student": SHAKEN}


def _compare(
    models: dict[str, ModelEmbeddings] = MODELS, labels: list[np.ndarray] = LABELS
) -> EmbeddingComparison:
    gallery, validation, queries = labels
    judges = JudgeLabels(gallery, validation, queries, num_classes=3)
    return EmbeddingComparison(models, judges, k=5, confidence=0.95)


def _rank(model: ModelEmbeddings) -> np.ndarray:
    """The five nearest gallery images of each query, in float64."""
    gallery, queries = (
        each.astype(np.float64) / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (model.gallery, model.queries)
    )
    return np.argsort(-(queries @ gallery.T), axis=1)[:, :5]


@pytest.mark.parametrize("role", ["teacher", "untouched", "student"])
def test_neighbors_purity_and_votes_are_those_of_float64(role: str) -> None:
    columns = _compare().scores[role].columns
    own, teachers = _rank(MODELS[role]), _rank(TEACHER)
    overlap = [len(set(a) & set(b)) / 5 for a, b in zip(own, teachers, strict=True)]
    near = LABELS[0][own]
    assert columns["overlap"].tolist() == overlap
    assert columns["purity"] == pytest.approx((near == LABELS[2][:, None]).mean(axis=1))
    most = [np.bincount(row, minlength=3).max() for row in near]
    won = [np.bincount(row, minlength=3)[label] for row, label in zip(near, LABELS[2], strict=True)]
    sure = [m > 5 - m or w == 0 for m, w in zip(most, won, strict=True)]
    expected = np.array([w == m for m, w in zip(most, won, strict=True)])
    assert (columns["knn_top1"].astype(bool) == expected)[sure].all()


def test_the_teacher_agrees_with_itself_and_the_gap_is_between_0_and_1() -> None:
    comparison = _compare()
    assert comparison.estimate("teacher", "overlap")[0] == 1.0
    value, (low, high) = comparison.estimate_gap_closed("overlap")
    means = [comparison.scores[role].columns["overlap"].mean() for role in ("untouched", "student")]
    assert value == pytest.approx((means[1] - means[0]) / (1 - means[0]))
    assert low < value < high


def test_a_gap_that_holds_0_is_undefined() -> None:
    models = {"teacher": TEACHER, "untouched": TEACHER, "student": SHAKEN}
    assert np.isnan(_compare(models).estimate_gap_closed("purity")[0])


def test_intervals_resample_queries_and_not_the_gallery() -> None:
    """A copy of a gallery image would be a neighbor of its own class, so that purity
    would rise: resampled means stay around the value.
    """
    value, (low, high) = _compare().estimate("untouched", "purity")
    column = _compare().scores["untouched"].columns["purity"]
    half = 1.96 * column.std() / np.sqrt(len(column))
    assert low == pytest.approx(value - half, abs=0.4 * half)
    assert high == pytest.approx(value + half, abs=0.4 * half)


def test_without_labels_only_agreement_is_measured() -> None:
    labels = [np.full(len(each), -1) for each in LABELS]
    comparison = _compare(labels=labels)
    assert list(comparison.scores["student"].columns) == ["overlap"]
    assert comparison.num_labeled == 0


def test_images_without_a_label_do_not_judge() -> None:
    labels = [each.copy() for each in LABELS]
    for each in labels:
        each[::2] = -1
    comparison = _compare(labels=labels)
    column = comparison.scores["student"].columns["purity"]
    assert np.isnan(column[::2]).all()
    assert np.isfinite(column[1::2]).all()
    assert comparison.num_labeled == QUERIES // 2
    value, (low, high) = comparison.estimate("untouched", "purity")
    assert low <= value <= high


@pytest.mark.parametrize("width", [1, 8])
def test_equal_and_collinear_embeddings_are_collapsed(width: int) -> None:
    flat = [np.ones((len(each), width), np.float32) for each in LABELS]
    models = {**MODELS, "student": ModelEmbeddings(*flat)}
    assert _compare(models).is_collapsed
    assert not _compare().is_collapsed


def _keep(model: ModelEmbeddings, images: int) -> ModelEmbeddings:
    return ModelEmbeddings(*(each[:images] for each in vars(model).values()))


def test_few_images_have_a_low_rank_without_a_collapse() -> None:
    models = {role: _keep(each, 6) for role, each in MODELS.items()}
    few = _compare(models, [each[:6] for each in LABELS])
    assert few.gallery_ranks["student"] < 6
    assert not few.is_collapsed


def test_a_student_as_flat_as_its_teacher_has_not_collapsed() -> None:
    angles = [RANDOM.uniform(size=(len(each), 1)) for each in LABELS]
    line = ModelEmbeddings(*(np.hstack([np.cos(each), np.sin(each)]) for each in angles))
    comparison = _compare(dict.fromkeys(MODELS, line))
    assert comparison.gallery_ranks["student"] < 2
    assert not comparison.is_collapsed
    assert _compare({**MODELS, "student": line}).is_collapsed


def test_labels_with_few_images_limit_the_purity_of_every_embedding() -> None:
    gallery = np.array([0] * 2 + [1] * 58)
    queries = np.array([0] * 20 + [1] * 20)
    comparison = _compare(labels=[gallery, LABELS[1], queries])
    assert comparison.purity_limit == pytest.approx((2 / 5 + 1) / 2)
    assert _compare().purity_limit == 1
    assert _compare().chance == 5 / GALLERY


def test_the_cut_keeps_the_main_directions() -> None:
    cut = cut_width(TEACHER, 3)
    assert cut.queries.shape == (QUERIES, 3)
    rows = TEACHER.gallery.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    assert cut.gallery.var(axis=0) == pytest.approx(values[:3], rel=1e-3)
