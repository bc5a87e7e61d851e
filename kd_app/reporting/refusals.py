"""Records of the trials that a sweep refused: ``refused/<number>.json`` beside the
trials. A refused trial has no folder, so its reason would be lost with the console.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kd_app.config import RequestError
from kd_app.config.records import read_record
from kd_app.run_files import CONFIG
from kd_app.stages import write_atomically

FOLDER: Final = "refused"


class TrialRefusedError(RequestError):
    """The trial was refused at its start and has no results."""


@dataclass(frozen=True)
class Refusal:
    """A refused trial: its number, the overrides that only it has, and the reason."""

    number: int
    overrides: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Record:
    overrides: tuple[str, ...]
    reason: str


def write_refusal(trial: Path, overrides: Sequence[str], reason: str) -> None:
    """Record that `trial`, a folder ``<sweep>/<number>``, was refused.

    A folder that is there holds a run: its results were kept and still count.
    """
    if (trial / CONFIG).is_file():
        return
    path = _build_path(trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"overrides": list(overrides), "reason": reason}
    write_atomically(path, json.dumps(content, indent=1))


def remove_refusal(trial: Path) -> None:
    """Remove the record of a trial that was not refused this time."""
    path = _build_path(trial)
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is missing, or holds other records
        path.parent.rmdir()


def remove_refusals(sweep: Path) -> None:
    """Remove the records of a sweep of which no trial is left."""
    shutil.rmtree(sweep / FOLDER, ignore_errors=True)


def list_refusals(sweep: Path) -> list[Refusal]:
    """The refused trials of a sweep, by number."""
    names = [path.stem for path in (sweep / FOLDER).glob("*.json") if path.stem.isdecimal()]
    refusals = [read_refusal(sweep / name) for name in sorted(names, key=int)]
    return [refusal for refusal in refusals if refusal is not None]


def read_refusal(trial: Path) -> Refusal | None:
    """The record of the trial in this folder; None if it was not refused."""
    path = _build_path(trial)
    if (trial / CONFIG).is_file() or not path.is_file():
        return None
    try:
        record = read_record(path, _Record, expected="")
    except RequestError:
        record = _Record((), f"The reason in {str(path)!r} can't be read.")
    return Refusal(int(trial.name), record.overrides, record.reason)


def _build_path(trial: Path) -> Path:
    return trial.parent / FOLDER / f"{trial.name}.json"
