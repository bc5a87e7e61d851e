"""``teacher/reference.json``: the origin of a run's teacher."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.run_files import REFERENCE


@dataclass(frozen=True)
class TeacherReference:
    """A teacher outside of the run's folder.

    stage: the stage that trained the teacher, None for a pretrained teacher · path: the
    folder or file of the weights, None for a teacher from a hub or from Python.
    """

    name: str
    source: str
    sha256: str
    stage: Path | None
    path: Path | None

    @property
    def folder(self) -> Path | None:
        """The folder or file that holds the model."""
        return self.stage / "model" if self.stage else self.path


def read_teacher_reference(folder: Path) -> TeacherReference:
    """Read the reference in a run's folder ``teacher``.

    Raises `RequestError` if the reference is missing or corrupt.
    """
    file = folder / REFERENCE
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return TeacherReference(
            name=str(record["name"]),
            source=str(record["source"]),
            sha256=str(record["sha256"]),
            stage=Path(record["stage"]) if record["stage"] else None,
            path=Path(record["path"]) if record["path"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{str(file)!r} does not record where the teacher is ({type(error).__name__}:"
            f" {take_first_line(error)}). Expected the folder of a complete run."
        ) from None
