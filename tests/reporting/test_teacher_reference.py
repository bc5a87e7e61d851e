"""The reference to a run's teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.reporting.teacher_reference import TeacherReference, read_teacher_reference

RECORD = {"name": "resnet8", "source": "timm", "sha256": "ab", "stage": None, "path": None}


def read_record(folder: Path, **changes: Any) -> TeacherReference:
    (folder / "reference.json").write_text(json.dumps({**RECORD, **changes}), encoding="utf-8")
    return read_teacher_reference(folder)


@pytest.mark.parametrize(
    ("stage", "path", "folder"),
    [
        (None, None, None),
        (None, "nets/teacher", Path("nets/teacher")),
        ("stages/teacher-12", "stages/teacher-12/model", Path("stages/teacher-12/model")),
    ],
)
def test_the_folder_is_that_of_the_stage_or_the_path(
    stage: str | None, path: str | None, folder: Path | None, tmp_path: Path
) -> None:
    assert read_record(tmp_path, stage=stage, path=path).folder == folder


@pytest.mark.parametrize("changes", [{"stage": [1]}, {"path": 3}, {"path": {"a": 1}}])
def test_a_path_that_is_not_a_string_is_rejected(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not record where the teacher is"):
        read_record(tmp_path, **changes)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_corrupt_record_is_rejected(content: str, tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match="does not record where the teacher is"):
        read_teacher_reference(tmp_path)


def test_a_missing_record_is_rejected_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is no .*reference\.json"):
        read_teacher_reference(tmp_path)
