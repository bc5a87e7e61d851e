"""``teacher/reference.json``: the origin of a run's teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter

from kd_app.config.records import read_record
from kd_app.reporting.constraints import PathText
from kd_app.run_files import REFERENCE

RecordedPath = Annotated[Path, BeforeValidator(TypeAdapter(PathText).validate_python)]


@dataclass(frozen=True)
class TeacherReference:
    """A teacher outside of the run's folder.

    stage: the stage that trained the teacher, None for a pretrained teacher · path: the
    folder or file of the weights, None for a teacher from a hub or from Python.
    """

    name: str
    source: str
    sha256: str
    stage: RecordedPath | None
    path: RecordedPath | None

    @property
    def folder(self) -> Path | None:
        """The folder or file that holds the model."""
        return self.stage / "model" if self.stage else self.path


def read_teacher_reference(folder: Path) -> TeacherReference:
    """Read the reference in a run's folder ``teacher``.

    Raises `RequestError` if the reference is missing or corrupt.
    """
    return read_record(
        folder / REFERENCE,
        TeacherReference,
        expected="It does not record where the teacher is. Expected the folder of a complete run.",
    )
