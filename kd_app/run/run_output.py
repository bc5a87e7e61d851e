"""The files of a run's folder beside results.json."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_app.metrics.record import Predictions
from kd_app.models.save import INT8, WEIGHTS, copy_labeled
from kd_app.reporting.examples import EXAMPLES
from kd_app.reporting.html import PAGE
from kd_app.reporting.predictions import write_predictions as write_table
from kd_app.reporting.results import FileRecord
from kd_app.reporting.runs import write_curves
from kd_app.run.workspace import RunModel, Workspace, describe_reference
from kd_app.run_files import CONFIG, CURVES, PREDICTIONS, REFERENCE, RESULTS, STUDENT, TEACHER
from kd_app.stages import hash_file, write_atomically
from kd_app.training.curve_log import FILE, read_curves
from kd_app.training.fit import MODEL

SPLIT = "split.csv"
FILES = (PREDICTIONS, EXAMPLES, CURVES, SPLIT, f"{TEACHER}/{REFERENCE}")
"""What a run writes beside results.json and the folder of the student."""
UPLOADED = (CONFIG, RESULTS, PAGE, STUDENT, TEACHER, *FILES)
"""What the trackers get of a run's folder."""


def list_files(out: Path) -> list[FileRecord]:
    """The files in a run's folder beside results.json, with their hashes."""
    paths = [*(out / name for name in FILES), *(out / STUDENT).glob("*")]
    return [
        FileRecord(name=path.relative_to(out).as_posix(), sha256=hash_file(path))
        for path in sorted(paths)
        if path.is_file()
    ]


def list_uploads(out: Path) -> list[Path]:
    """The files and folders in a run's folder that the trackers get."""
    return [path for path in sorted(out.iterdir()) if path.name in UPLOADED]


def list_groups(shop: Workspace, predictions: Predictions) -> list[str] | None:
    """The group of each image; None where the data have no groups."""
    groups = shop.data.groups
    return [groups[number] for number in predictions.index.tolist()] if groups else None


def write_predictions(
    out: Path,
    shop: Workspace,
    predictions: Mapping[str, Predictions],
    stage: np.ndarray | None = None,
) -> None:
    """Write predictions.parquet; for a cascade with the `stage` that answered each
    image.
    """
    first, files = next(iter(predictions.values())), shop.data.files
    write_table(
        out / PREDICTIONS,
        index=first.index,
        file=[files[int(number)] for number in first.index],
        target=first.target,
        group=list_groups(shop, first),
        logits={name: each.logits for name, each in predictions.items()},
        stage=stage,
    )


def write_models(out: Path, shop: Workspace, members: Mapping[str, RunModel]) -> int:
    """Write the curves of every training, the student, and where its teacher is; the
    bytes of the student's weights.
    """
    curves = {role: list(read_curves(m.folder / FILE)) for role, m in members.items() if m.folder}
    write_curves(out / CURVES, curves)
    size = write_student(out / STUDENT, shop, members["student"])
    if "teacher" in members:
        (out / TEACHER).mkdir(exist_ok=True)
        reference = json.dumps(describe_reference(members["teacher"]), indent=1)
        write_atomically(out / TEACHER / REFERENCE, reference)
    return size


def write_student(target: Path, shop: Workspace, student: RunModel) -> int:
    """Write the student that ships, with its license, into the folder `target`, whole
    or not at all; the bytes of its weights.
    """
    source = student.folder / MODEL if student.folder else student.spec.origin.path
    assert source is not None
    teacher = shop.spec.teacher
    partial = target.with_name(f".{target.name}.partial")
    for old in (partial, target):
        shutil.rmtree(old, ignore_errors=True)
    copy_labeled(
        source if source.is_dir() else source.parent,
        partial,
        license=shop.spec.licenses.ships,
        teacher=teacher.name if teacher is not None else None,
    )
    partial.replace(target)
    file = target / INT8
    return (file if file.is_file() else target / WEIGHTS).stat().st_size
