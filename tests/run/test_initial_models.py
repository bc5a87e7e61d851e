"""The models of a run before its trainings."""

from pathlib import Path
from typing import Any

from kd_app.run.initial_models import build_initial_models
from tests.builders import build_workspace, teacher_folder


def test_a_teacher_that_is_not_trained_is_not_built_again(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    workspace = build_workspace(tmp_path, f"teacher.checkpoint={folder}")
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    assert build_initial_models(workspace, teacher).teacher is teacher.loaded


def test_a_teacher_that_is_trained_first_has_a_width_for_the_classes(tmp_path: Path) -> None:
    workspace = build_workspace(tmp_path, "teacher.name=resnet8")
    models = build_initial_models(workspace, None)
    assert models.teacher is not None
    for loaded in (models.student, models.teacher):
        head: Any = loaded.model.get_submodule("fc")
        assert head.out_features == len(workspace.classes)


def test_without_a_teacher_there_is_a_student_alone(tmp_path: Path) -> None:
    workspace = build_workspace(tmp_path, "teacher=none", "loss=[cross_entropy]", "controls=[]")
    assert build_initial_models(workspace, None).teacher is None
