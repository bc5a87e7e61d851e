"""Trainings with few steps are noted."""

from pathlib import Path

from kd_app.checks.training_length import check_few_steps
from tests.checks.planted import build_context, list_names


def test_few_training_steps_are_noted(tmp_path: Path) -> None:
    context = build_context(tmp_path, "teacher.name=resnet8")
    assert not list_names(check_few_steps(context))
    short = ("trainer.max_epochs=2", "teacher.max_epochs=2", "data.batch_size=256")
    words = ("teacher.name=resnet8", *short)
    (finding,) = check_few_steps(build_context(tmp_path, *words))
    assert (finding.name, finding.severity) == ("few-steps", "note")
    assert "the student 10, the teacher 10 (5 in an epoch)" in finding.text
