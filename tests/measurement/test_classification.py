"""The parts of the results about data and models."""

from dataclasses import replace
from pathlib import Path

import pytest

from kd_app.measurement.classification import (
    add_data,
    describe_model,
    find_license,
    measure_models,
    measure_size,
    measure_speed,
    name_data,
    start_results,
)
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.cost import count_params
from kd_app.models.create import create
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.specs.model_specs import open_artifact_teacher
from tests.builders import GRAY, quick_speed
from tests.deployment.graphs import write_linear
from tests.reporting.run_folders import build_results

RULE = VerdictRule(metric="top1", margin=0.01, confidence=0.95)

Models = dict[str, RunModel]


def test_the_data_are_named_and_their_split_is_written(digits: Workspace, out: Path) -> None:
    builder = start_results(digits, out, RULE)
    add_data(builder, digits)
    assert builder.data is not None
    assert builder.data.name == name_data(digits) == "digits"
    assert builder.data.fingerprint == digits.data.fingerprint
    assert (out / "split.csv").is_file()
    assert builder.license is not None


def test_data_in_a_folder_are_named_after_it(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"name": "folder", "root": "/data/flowers"}
    spec = replace(digits.spec, config={**digits.spec.config, "data": node})
    monkeypatch.setattr(digits, "spec", spec)
    assert name_data(digits) == "folder flowers"


def test_a_run_that_is_measured_again_keeps_its_license(digits: Workspace, out: Path) -> None:
    before = build_results()
    assert start_results(digits, out, RULE, before=before).license == before.license


def test_a_model_is_described_by_size_source_and_license(digits: Workspace, models: Models) -> None:
    teacher, student = models["teacher"], models["student"]
    part = describe_model(digits, student, "mit")
    assert (part.name, part.license) == ("resnet8", "mit")
    assert part.params == count_params(student.loaded.model)
    assert part.macs is not None
    assert part.size_bytes == measure_size(student) >= 4 * part.params
    path = teacher.spec.origin.path
    assert path is not None
    assert measure_size(teacher) == (path / "model.safetensors").stat().st_size


def test_a_model_that_learns_from_the_teacher_inherits_its_license(
    digits: Workspace, models: Models
) -> None:
    assert find_license(digits, models["teacher"]) == "cc-by-nc-4.0"
    assert find_license(digits, models["student"]) == "cc-by-nc-4.0"
    control = replace(models["student"], role="labels_only")
    assert find_license(digits, control) == "cc-by-4.0"


def test_speed_is_measured_once_for_each_architecture(
    digits: Workspace, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.measurement.classification.measure_throughput", quick_speed)
    control = replace(models["student"], role="labels_only")
    speed = measure_speed(digits, {**models, "labels_only": control})
    assert speed.student is not None
    assert speed.teacher is not None
    assert (speed.student.images_per_second or 0) > 0
    assert "labels_only" not in speed.model_dump(exclude_none=True)


def test_all_models_are_measured_on_a_split(
    digits: Workspace, models: Models, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.measurement.classification.measure_throughput", quick_speed)
    builder = start_results(digits, out, RULE)
    measure_models(builder, digits, models, {"validation": "validation"})
    results = builder.build("running")
    assert set(results.models) == {"teacher", "student"}
    assert results.validation is not None
    assert results.validation.student.top1 is not None
    assert results.verdict is not None
    assert results.verdict.split == "validation"
    assert results.knowledge is not None
    assert (out / "predictions.parquet").is_file()


def test_the_size_of_an_exported_file_is_that_of_the_file(tmp_path: Path) -> None:
    file = write_linear(tmp_path, GRAY, ("a", "b"))
    spec = open_artifact_teacher(file)
    spec.bind_classes(("a", "b"))
    teacher = RunModel("teacher", spec, create(spec, GRAY, 2, seed=0))
    assert measure_size(teacher) == file.stat().st_size
    program = file.rename(tmp_path / "model.pte")
    spec.origin = replace(spec.origin, path=program)
    assert measure_size(teacher) == program.stat().st_size
