"""The estimated duration of a run."""

from dataclasses import replace

import pytest

from kd_app.run.forecast import forecast_run
from kd_app.run.workspace import Workspace
from kd_app.specs.model_specs import AssistantSpec
from kd_app.specs.schema import TeacherOutputs
from kd_app.training.timing import StepEstimate, count_steps_per_epoch


def test_the_forecast_counts_all_parts_of_a_run(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = StepEstimate(training=1.0, inference=0.1, prediction=0.25)
    monkeypatch.setattr("kd_app.run.forecast.estimate", lambda *_, **__: cost)
    forecast = forecast_run(digits, ready=True)
    assert forecast is not None
    spec = digits.spec
    steps = count_steps_per_epoch(digits.data, spec.trainer)
    epochs = 2 * spec.recipe.max_epochs  # of labels_only and the student
    least = epochs * (steps.training + 0.1 * steps.validation)
    least += spec.recipe.max_epochs * 0.1 * steps.training
    assert least < forecast.training < 1.2 * least
    # Teacher, labels_only and student, on one batch of validation and one of test.
    assert digits.limit == 1
    assert forecast.measuring == pytest.approx(3 * 2 * 0.25, rel=0.2)
    assert forecast.speed == 1.0
    assert forecast.outputs == 0


def test_cached_outputs_are_computed_once_and_assistants_are_trained(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = StepEstimate(training=1.0, inference=100.0, prediction=0.25)
    monkeypatch.setattr("kd_app.run.forecast.estimate", lambda *_, **__: cost)
    spec = digits.spec
    assistant = AssistantSpec(spec.student, 1)
    outputs = TeacherOutputs.read({"outputs": "cached", "cache": "int8"})
    changed = replace(spec, teacher_outputs=outputs, assistants=(assistant,), controls={})
    monkeypatch.setattr(digits, "spec", changed)
    data = digits.data
    monkeypatch.setattr(data, "views", 2)
    steps = count_steps_per_epoch(data, spec.trainer)
    forecast = forecast_run(digits, ready=True)
    assert forecast is not None
    # No teacher in the steps of the assistant and of the student.
    least = 2 * spec.recipe.max_epochs * (steps.training + 100 * steps.validation)
    assert least < forecast.training < 1.2 * least
    # for the assistant and the student, the views that their epochs show
    images = 2 * data.sizes["train"] * min(2, spec.recipe.max_epochs)
    assert forecast.caching == pytest.approx(0.25 * images / data.batch_size, rel=0.2)
    assert forecast.cache_bytes == images * 18
    assert forecast.outputs > forecast.caching


def test_a_control_that_labels_images_costs_a_training_and_predictions_more(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = StepEstimate(training=1.0, inference=0.0, prediction=0.25)
    monkeypatch.setattr("kd_app.run.forecast.estimate", lambda *_, **__: cost)
    plain = digits.spec.controls["labels_only"]
    labeling = replace(plain, pseudo_label_confidence=0.95)
    forecasts = []
    for controls in (
        {"labels_only": plain},
        {"pseudo_labels": labeling},
        {"labels_only": plain, "pseudo_labels": labeling},
    ):
        monkeypatch.setattr(digits, "spec", replace(digits.spec, controls=controls))
        forecast = forecast_run(digits, ready=True)
        assert forecast is not None
        forecasts.append(forecast)
    one, alone, both = forecasts
    # the labeling training is that of labels_only, once
    assert alone.training == pytest.approx(both.training, rel=0.1)
    assert alone.training > 1.4 * one.training
    assert one.outputs == 0
    assert alone.outputs == pytest.approx(both.outputs, rel=0.2)
    assert alone.outputs >= 0.25


def test_a_batch_larger_than_the_data_is_timed_with_the_images_of_an_epoch(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def record(
        model: object, spec: object, images: int, *args: object, train: bool
    ) -> StepEstimate:
        sizes.append(images)
        return StepEstimate(0.0, 0.0, 0.0)

    monkeypatch.setattr("kd_app.run.forecast.estimate", record)
    monkeypatch.setattr(digits.data, "batch_size", 10**6)
    forecast_run(digits, ready=True)
    assert set(sizes) == {digits.data.sizes["train"]}


def test_a_failed_estimate_does_not_end_the_run(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kd_app.run.forecast.estimate", fail)
    assert forecast_run(digits, ready=True) is None
