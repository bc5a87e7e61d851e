"""The accuracy of an exported file against the teacher and the model in torch."""

import numpy as np
import pytest

from kd_app.measurement.exported_benchmark import measure_accuracy
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule

RULE = VerdictRule(metric="top1", margin=0.01, confidence=0.95)
TARGET = np.arange(100) % 4


def predictions(*wrong: int) -> Predictions:
    """Right but for the images with these numbers."""
    predicted = TARGET.copy()
    predicted[list(wrong)] = (TARGET[list(wrong)] + 1) % 4
    return Predictions(np.arange(100), TARGET, 5 * np.eye(4, dtype=np.float32)[predicted])


def test_a_file_alone_has_the_metrics_of_one_model() -> None:
    metrics = measure_accuracy(predictions(1, 2, 3), None, None, RULE)
    assert (metrics["num_images"], metrics["confidence"]) == (100, 0.95)
    assert metrics["top1"] == 0.97
    assert not {"verdict", "beside_torch", "retention"} & set(metrics)


def test_a_teacher_adds_the_pair_and_the_verdict() -> None:
    metrics = measure_accuracy(predictions(1, 2, 3), predictions(), None, RULE)
    assert metrics["retention"] == pytest.approx(0.97)
    assert metrics["verdict"]["split"] == "the same images"
    assert metrics["verdict"]["difference"] == pytest.approx(-0.03)


def test_the_model_in_torch_adds_the_change_by_the_export() -> None:
    change = measure_accuracy(predictions(1, 2, 3), None, predictions(3, 4), RULE)["beside_torch"]
    assert change["lost"] == pytest.approx(0.01)
    assert change["lost_low"] <= change["lost"] <= change["lost_high"]
    assert change["agreement"] == 0.97
    assert change["negative_flips"] == 0.02
    assert change["positive_flips"] == 0.01
    assert change["margin"] == 0.01
