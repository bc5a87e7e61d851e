"""Soft-label metrics compared with scipy and plain loops."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from kd_app.metrics.class_similarity import (
    TEMPERATURES,
    average_soft_labels,
    measure_soft_labels,
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


def list_pairs(logits: np.ndarray, target: np.ndarray) -> list[tuple[int, int, float]]:
    """The pairs in order, from the whole matrix."""
    p = softmax(logits.astype(np.float64), axis=1)
    matrix = np.array([p[target == k].mean(axis=0) for k in range(p.shape[1])])
    pairs = [
        (first, second, float(np.nanmean([matrix[first, second], matrix[second, first]])))
        for first in range(len(matrix))
        for second in range(first + 1, len(matrix))
        if not np.isnan([matrix[first, second], matrix[second, first]]).all()
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("num_images", "num_classes"), [(40, 3), (90, 12), (60, 70), (25, 150)])
@pytest.mark.parametrize("block", [2**22, 200])
def test_the_strongest_pairs_average_the_directions_that_have_images(
    num_images: int, num_classes: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.metrics.class_similarity._BLOCK", block)
    logits, target = make_logits(num_images, num_classes)
    target[target == 1] = 0  # a class without images
    (plain,) = measure_soft_labels(logits, target, training_temperatures=[])["alike"]
    expected = list_pairs(logits, target)[:20]
    similar = plain["similar"]
    assert [(pair["first"], pair["second"]) for pair in similar] == [pair[:2] for pair in expected]
    assert [pair["probability"] for pair in similar] == pytest.approx(
        [pair[2] for pair in expected], rel=1e-4
    )


def test_twenty_thousand_classes_need_no_matrix_of_pairs() -> None:
    tracemalloc.start()
    measure_soft_labels(*make_logits(16, 20_000), training_temperatures=[4.0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # the matrix alone would take 1.6 GB


def test_many_classes_have_pairs_but_no_matrix() -> None:
    (plain,) = measure_soft_labels(*make_logits(500, 101), training_temperatures=[])["alike"]
    assert plain["matrix"] is None
    assert len(plain["similar"]) == 20


def test_blocks_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _ = make_logits(60, 7)
    whole = average_soft_labels(logits, temperatures=TEMPERATURES)
    monkeypatch.setattr("kd_app.metrics.per_image._VALUES", 70)
    monkeypatch.setattr("kd_app.metrics.class_similarity._CHUNK", 21)
    parts = average_soft_labels(logits, temperatures=TEMPERATURES)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_averages_without_images_are_nan() -> None:
    result = average_soft_labels(np.zeros((0, 3), np.float32), temperatures=(1.0,))
    assert all(bool(value.isnan().all()) for value in result)
