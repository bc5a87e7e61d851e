"""The lists of metrics."""

import dataclasses

import numpy as np
import pytest

from kd_app.metrics.measure import Measure, Rate
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.spec import MetricSpec
from tests.metrics.records import to_records
from tests.metrics.test_report_metrics import THREE, make_logits


@pytest.mark.parametrize("specs", [MODEL_METRICS, PAIR_METRICS])
def test_names_and_labels_are_unique(specs: tuple[MetricSpec[object], ...]) -> None:
    for field in ("name", "label"):
        values = [getattr(spec, field) for spec in specs]
        assert len(set(values)) == len(values)


def test_pair_metrics_have_a_meaning_and_needs() -> None:
    assert all(spec.meaning and spec.needs for spec in PAIR_METRICS)


def test_nan_logits_are_not_among_the_best_of_few_classes() -> None:
    record = to_records({"student": np.full((3, 2), np.nan, np.float32)}, np.zeros(3, np.int64))
    (top5,) = (spec for spec in MODEL_METRICS if spec.name == "top5")
    value, _ = top5.compute(record["student"]).estimate(np.empty((0, 0)), 0.95)
    assert value == 0


def measure_sure(record: Predictions) -> Measure:
    return Rate(record.scores.confidence > 0.9)


def test_a_new_metric_is_measured_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = MetricSpec("sure", "sure of its answer", "higher", "percent", measure_sure)
    monkeypatch.setattr("kd_app.metrics.report_metrics.MODEL_METRICS", (*MODEL_METRICS, sure))
    result = measure_split(to_records(*make_logits(THREE)), seed=0, confidence=0.95)
    for name in THREE:
        assert (
            0 <= result[name]["sure_low"] <= result[name]["sure"] <= result[name]["sure_high"] <= 1
        )


def test_a_spec_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODEL_METRICS[0].label = "accuracy"  # type: ignore[misc]
