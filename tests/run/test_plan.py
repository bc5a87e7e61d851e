"""The plan of a run."""

from pathlib import Path

import pytest

from kd_app.run.forecast import Forecast
from kd_app.run.initial_models import build_initial_models
from kd_app.run.plan import describe_models, format_seconds, write_plan
from kd_app.run.workspace import Workspace
from tests.builders import build_workspace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (12, "12 s"), (89, "89 s"), (2100, "35 min"), (11520, "3.2 h")],
)
def test_seconds_are_rounded(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_each_model_has_a_line(digits: Workspace) -> None:
    data, teacher, control, student, loss = describe_models(digits, ready=True)
    assert data.startswith("Data: 10 classes; images: ")
    assert teacher.startswith("Teacher: resnet14 as it is, the weights in ")
    assert control.startswith("Control labels_only: resnet8 trained for ")
    assert "on cross_entropy, from random weights, 8x8" in control
    assert student.startswith("Student: resnet8 trained for ")
    assert "cross_entropy + soft_target" in student
    assert loss == (
        "Loss: cross_entropy + soft_target (temperature 4), chosen by loss=auto because teacher and"
        " student are CNNs"
    )


def test_assistants_are_between_teacher_and_student(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path, "teacher.chain=[resnet14]", "controls=[]", "student.name=resnet8"
    )
    lines = describe_models(workspace, ready=False)
    assert [line.split(":")[0] for line in lines] == [
        "Data",
        "Teacher",
        "Assistant 1",
        "Student",
        "Loss",
    ]
    assert "trained for" in lines[1]


def test_the_plan_estimates_the_duration(digits: Workspace) -> None:
    forecast = Forecast(training=600, outputs=5, measuring=60, speed=55)
    models = build_initial_models(digits, None)
    *_, training = write_plan(digits, models, ready=True, forecast=forecast).splitlines()
    assert training == (
        "Training: 32-true on 1 x cpu, about 12 min for everything that is not cached (10 min of"
        " them to train)"
    )
    *_, training = write_plan(digits, models, ready=True, forecast=None).splitlines()
    assert training == "Training: 32-true on 1 x cpu, an unknown duration"


def test_a_student_larger_than_the_teacher_is_noted(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path, "teacher.name=resnet8", "student.name=resnet14", "controls=[]"
    )
    plan = write_plan(workspace, build_initial_models(workspace, None), ready=False, forecast=None)
    assert "the student is larger than its teacher" in plan


def test_the_images_that_a_control_labels_are_stated(tmp_path: Path) -> None:
    overrides = ("data.label_fraction=0.1", "controls=[pseudo_labels]", "student.name=resnet8")
    control = describe_models(build_workspace(tmp_path, *overrides), ready=False)[2]
    assert "other images labeled by the same network trained without them" in control
    assert "(predictions of probability 0.95 or more)" in control
    assert "images with a label and those that it labels in as many steps" in control
