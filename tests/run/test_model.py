"""A model of a run, ready for inference."""

from dataclasses import replace
from pathlib import Path

import pytest

from kd_app.run.model import RunModel, describe_reference, mark_unmeasured

Models = dict[str, RunModel]


def test_a_model_is_referred_to_by_name_and_hash(models: Models) -> None:
    reference = describe_reference(models["teacher"])
    assert reference["name"] == "resnet14"
    assert reference["sha256"] == models["teacher"].loaded.weights.sha256
    assert reference["stage"] is None


def test_an_int8_program_runs_in_place_of_the_module(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.run.model.Lowered", lambda path: path)
    quantized = replace(models["student"], program=Path("int8.pt2"))
    assert quantized.load_runner() == Path("int8.pt2")  # type: ignore[comparison-overlap]


def test_an_unmeasured_teacher_has_a_reason(models: Models) -> None:
    teacher = mark_unmeasured(models["teacher"])
    assert models["teacher"].loaded.weights.source in teacher.no_metrics_reason
    assert teacher.no_metrics_reason.endswith("has other classes than the data")
