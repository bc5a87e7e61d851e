"""The plan of a run."""

from pathlib import Path

import pytest

from kd_app.run.forecast import Forecast, forecast_run
from kd_app.run.plan import describe_models, format_seconds, write_plan
from kd_app.run.workspace import Workspace
from kd_app.training.timing import StepEstimate, count_steps_per_epoch
from tests.builders import build_workspace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (12, "12 s"), (89, "89 s"), (2100, "35 min"), (11520, "3.2 h")],
)
def test_seconds_are_rounded(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_each_model_has_a_line(digits: Workspace) -> None:
    data, teacher, control, student = describe_models(digits, ready=True)
    assert data.startswith("Data: 10 classes; images: ")
    assert teacher.startswith("Teacher: resnet14 as it is, the weights in ")
    assert control.startswith("Control labels_only: resnet8 trained for ")
    assert "on cross_entropy, from random weights, 8x8" in control
    assert student.startswith("Student: resnet8 trained for ")
    assert "cross_entropy + soft_target" in student


def test_assistants_are_between_teacher_and_student(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path, "teacher.chain=[resnet14]", "controls=[]", "student.name=resnet8"
    )
    lines = describe_models(workspace, ready=False)
    assert [line.split(":")[0] for line in lines] == ["Data", "Teacher", "Assistant 1", "Student"]
    assert "trained for" in lines[1]


def test_the_plan_estimates_the_duration(digits: Workspace) -> None:
    forecast = Forecast(training=600, outputs=5, measuring=60, speed=55)
    *_, training = write_plan(digits, ready=True, forecast=forecast).splitlines()
    assert training == (
        "Training: 32-true on 1 x cpu, about 12 min for everything that is not cached (10 min of"
        " them to train)"
    )
    *_, training = write_plan(digits, ready=True, forecast=None).splitlines()
    assert training == "Training: 32-true on 1 x cpu, an unknown duration"


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
    assert forecast.speed == 1.5
    assert forecast.outputs == 0


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


def test_a_student_larger_than_the_teacher_is_noted(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path, "teacher.name=resnet8", "student.name=resnet14", "controls=[]"
    )
    assert "the student is larger than its teacher" in write_plan(
        workspace, ready=False, forecast=None
    )
