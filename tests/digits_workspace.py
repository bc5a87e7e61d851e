"""A workspace on digits, shared by the tests of the modules that read one."""

from pathlib import Path

import pytest

from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from tests.builders import build_workspace, teacher_folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A teacher in a folder, a student with random weights, and one control."""
    folder = tmp_path_factory.mktemp("digits")
    teacher = teacher_folder(folder / "teacher", "resnet14", license="cc-by-nc-4.0")
    return build_workspace(
        folder,
        f"teacher.checkpoint={teacher}",
        "student.name=resnet8",
        "controls=[labels_only]",
        "examples=4",
    )


@pytest.fixture(scope="session")
def models(digits: Workspace) -> dict[str, RunModel]:
    """The teacher and the untrained student."""
    teacher = digits.load_pretrained_teacher()
    assert teacher is not None
    return {"teacher": teacher, "student": digits.load_model(digits.spec.student, seed=0)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"
