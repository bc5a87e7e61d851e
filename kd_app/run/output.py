"""The files in a run's folder other than results.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_app.callbacks.curve_log import FILE, read_curves
from kd_app.deployment.manifest import describe_decoding
from kd_app.digest import hash_file
from kd_app.files import make_folder, replace_folder
from kd_app.metrics.record import Predictions
from kd_app.models.embedding_ensemble import EmbeddingEnsemble
from kd_app.models.save import INT8, WEIGHTS, copy_labeled
from kd_app.reporting.html import PAGE
from kd_app.reporting.predictions import write_predictions as write_table
from kd_app.reporting.results import FileRecord
from kd_app.reporting.runs import write_curves
from kd_app.run.model import RunModel, describe_reference
from kd_app.run.workspace import Workspace
from kd_app.run_files import (
    CONFIG,
    CURVES,
    EMBEDDING_MAP,
    EXAMPLES,
    INPUTS,
    MOMENTS,
    NEIGHBORS,
    PREDICTIONS,
    REFERENCE,
    RESULTS,
    SPLIT,
    STUDENT,
    TEACHER,
)
from kd_app.stages import write_atomically
from kd_app.training.fit import MODEL

FILES = (
    *(CONFIG, PREDICTIONS, EXAMPLES, NEIGHBORS, EMBEDDING_MAP, CURVES, SPLIT, INPUTS),
    f"{TEACHER}/{REFERENCE}",
    f"{TEACHER}/{MOMENTS}",
)
"""Files that a run writes next to results.json and the student's folder."""
UPLOADED = (RESULTS, PAGE, STUDENT, TEACHER, *FILES)
"""Files and folders of a run that are uploaded to trackers."""


def list_files(out: Path) -> list[FileRecord]:
    """The files in a run's folder other than results.json, with their hashes."""
    paths = [*(out / name for name in FILES), *(out / STUDENT).glob("*")]
    return [
        FileRecord(name=path.relative_to(out).as_posix(), sha256=hash_file(path))
        for path in sorted(paths)
        if path.is_file()
    ]


def list_uploads(out: Path) -> list[Path]:
    """The files and folders of a run that are uploaded to trackers."""
    return [path for path in sorted(out.iterdir()) if path.name in UPLOADED]


def list_groups(workspace: Workspace, predictions: Predictions) -> list[str] | None:
    """The group of each image; None if the data have no groups."""
    groups = workspace.data.groups
    return [groups[number] for number in predictions.index.tolist()] if groups else None


def write_predictions(
    out: Path,
    workspace: Workspace,
    predictions: Mapping[str, Predictions],
    stage: np.ndarray | None = None,
) -> None:
    """Write predictions.parquet. stage: for a cascade, the number of the stage whose
    logits were used, by image.
    """
    first, files = next(iter(predictions.values())), workspace.data.files
    write_table(
        out / PREDICTIONS,
        index=first.index,
        file=[files[int(number)] for number in first.index],
        target=first.target,
        group=list_groups(workspace, first),
        logits={name: record.logits for name, record in predictions.items()},
        stage=stage,
    )


def write_models(
    out: Path,
    workspace: Workspace,
    models: Mapping[str, RunModel],
    *,
    selected: Mapping[str, RunModel] | None = None,
) -> int:
    """Write the curves of every training, the student, and a reference to the teacher;
    the size of the student's weights in bytes.

    selected: the models of the trainings with validation, whose curves are written, if
    `models` were trained again on all images.
    """
    curves = {
        role: list(read_curves(model.folder / FILE))
        for role, model in (selected or models).items()
        if model.folder
    }
    write_curves(out / CURVES, curves)
    size = write_student(out / STUDENT, workspace, models["student"])
    if "teacher" in models:
        make_folder(out / TEACHER)
        reference = json.dumps(describe_reference(models["teacher"]), indent=1)
        write_atomically(out / TEACHER / REFERENCE, reference)
    teacher = workspace.spec.teacher
    if isinstance(teacher, EmbeddingEnsemble) and teacher.moments is not None:
        write_atomically(out / TEACHER / MOMENTS, teacher.moments.read_text(encoding="utf-8"))
    return size


def write_student(target: Path, workspace: Workspace, student: RunModel) -> int:
    """Write the student with its license into the folder `target`, atomically; the size
    of the weights in bytes.
    """
    source = student.folder / MODEL if student.folder else student.spec.origin.path
    assert source is not None
    teacher = workspace.spec.teacher
    with replace_folder(target) as partial:
        copy_labeled(
            source if source.is_dir() else source.parent,
            partial,
            license=workspace.spec.licenses.ships,
            teacher=teacher.name if teacher is not None else None,
            decoding=describe_decoding(workspace.decoding),
        )
    file = target / INT8
    return (file if file.is_file() else target / WEIGHTS).stat().st_size
