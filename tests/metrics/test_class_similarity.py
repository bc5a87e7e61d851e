"""Soft-label metrics compared with scipy and plain loops."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from kd_app.metrics.class_similarity import (
    TEMPERATURES,
    average_soft_labels,
    measure_soft_labels,
    select_strongest,
)


def make_logits(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(num_classes, size=num_images)
    logits = rng.standard_normal((num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), target] += 3
    return logits, target


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_entropy_equals_scipys_in_nats_and_relative_to_uniform(
    num_classes: int,
) -> None:
    logits, target = make_logits(200, num_classes)
    result = measure_soft_labels(logits, target, training_temperatures=[3.0])
    assert [each["temperature"] for each in result["entropy"]] == [1, 2, 3, 4, 8, 16]
    for each in result["entropy"]:
        p = softmax(logits.astype(np.float64) / each["temperature"], axis=1)
        assert each["mean_nats"] == pytest.approx(entropy(p, axis=1).mean(), rel=1e-5)
        assert each["of_uniform"] == pytest.approx(
            entropy(p, base=num_classes, axis=1).mean(), rel=1e-5
        )
        assert each["beyond_top"] == pytest.approx(1 - p.max(axis=1).mean(), rel=1e-4)


def test_a_row_of_the_matrix_is_the_mean_probability_over_its_class() -> None:
    logits, target = make_logits(200, 5)
    result = measure_soft_labels(logits, target, training_temperatures=[4.0, 1.0])
    assert [each["temperature"] for each in result["alike"]] == [1, 4]
    for each in result["alike"]:
        p = softmax(logits.astype(np.float64) / each["temperature"], axis=1)
        assert each["matrix"] is not None
        for label, row in enumerate(each["matrix"]):
            assert row == pytest.approx(p[target == label].mean(axis=0), abs=1e-5)


def test_the_strongest_pairs_average_both_directions() -> None:
    matrix = np.array([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1], [0.0, 0.4, 0.6]])
    assert [(pair["first"], pair["second"]) for pair in select_strongest(matrix, 3)] == [
        (1, 2),
        (0, 1),
        (0, 2),
    ]
    assert [pair["probability"] for pair in select_strongest(matrix, 2)] == pytest.approx(
        [0.25, 0.2]
    )


def test_a_class_without_images_uses_one_direction() -> None:
    matrix = np.array([[0.5, 0.4, 0.1], [np.nan] * 3, [0.2, 0.1, 0.7]])
    result = select_strongest(matrix, 3)
    assert [(pair["first"], pair["second"]) for pair in result] == [(0, 1), (0, 2), (1, 2)]
    assert [pair["probability"] for pair in result] == pytest.approx([0.4, 0.15, 0.1])


def test_many_classes_have_pairs_but_no_matrix() -> None:
    (plain,) = measure_soft_labels(*make_logits(500, 101), training_temperatures=[])["alike"]
    assert plain["matrix"] is None
    assert len(plain["similar"]) == 20


def test_blocks_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = make_logits(60, 7)
    whole = average_soft_labels(logits, target, temperatures=TEMPERATURES, alike=(1.0, 4.0))
    monkeypatch.setattr("kd_app.metrics.per_image._VALUES", 70)
    monkeypatch.setattr("kd_app.metrics.class_similarity._CHUNK", 21)
    parts = average_soft_labels(logits, target, temperatures=TEMPERATURES, alike=(1.0, 4.0))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_averages_without_images_are_nan() -> None:
    none = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    result = average_soft_labels(*none, temperatures=(1.0,), alike=(1.0,))
    assert all(bool(value.isnan().all()) for value in result)
