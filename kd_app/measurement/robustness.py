"""Robustness of the models to image corruptions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from kd_app.data.corruptions import SETTINGS, Corruption
from kd_app.data.stage_array import read_classes
from kd_app.files import replace_file
from kd_app.metrics.blocks import slice_rows
from kd_app.reporting.metrics import CorruptionMetrics
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace

UNDECIDED = -1
"""The predicted class if a model returns NaN."""


def measure_robustness(
    workspace: Workspace,
    models: Mapping[str, RunModel],
    split: str,
    target: Int64[np.ndarray, " images"],
) -> list[CorruptionMetrics]:
    """Top-1 accuracy of each model, and the student's agreement with the teacher, under
    each corruption and severity of the run's configuration.

    target: the labels of the images of `split`.
    """
    corruptions = workspace.spec.robustness.chosen
    if not corruptions:
        return []
    predicted = {
        role: _predict_corrupted(workspace, model, split, corruptions, images=len(target))
        for role, model in models.items()
    }
    return [
        _compare(
            corruption, {role: classes[corruption] for role, classes in predicted.items()}, target
        )
        for corruption in corruptions
    ]


def _compare(
    corruption: Corruption,
    top1: Mapping[str, Int64[np.ndarray, " images"]],
    target: Int64[np.ndarray, " images"],
) -> CorruptionMetrics:
    agreement = None
    if "teacher" in top1:
        student = top1["student"]
        agreement = float(((student == top1["teacher"]) & (student != UNDECIDED)).mean())
    return CorruptionMetrics(
        corruption=corruption.kind,
        severity=corruption.severity,
        num_images=len(target),
        accuracy={role: float((classes == target).mean()) for role, classes in top1.items()},
        agreement=agreement,
    )


def _predict_corrupted(
    workspace: Workspace,
    model: RunModel,
    split: str,
    corruptions: tuple[Corruption, ...],
    *,
    images: int,
) -> dict[Corruption, Int64[np.ndarray, " images"]]:
    """The top-1 classes of one model under each corruption, cached.

    An attempt after a kill computes only the missing corruptions.
    """

    def build(folder: Path) -> None:
        for number, corruption in enumerate(corruptions, start=1):
            path = folder / _name_file(corruption)
            if path.is_file():
                continue
            workspace.console.print_transient(
                f"  {model.role}: corrupted {split} images, {number} of {len(corruptions)} ..."
            )
            predictions = workspace.predict(model, split, corruption=corruption, spool=folder)
            _save(path, find_top1(predictions.logits))

    settings = {_name_file(each): SETTINGS[each.kind][each.severity - 1] for each in corruptions}
    stage = workspace.cache_outputs(model, split, "corrupted", {"corruptions": settings}, build)
    return {
        each: read_classes(stage.path / _name_file(each), images=images, least=UNDECIDED)
        for each in corruptions
    }


def find_top1(logits: Float[np.ndarray, "images classes"]) -> Int64[np.ndarray, " images"]:
    """Return the top-1 class of each image, `UNDECIDED` for NaN; a block at a time."""
    top1 = np.full(len(logits), UNDECIDED)
    for rows in slice_rows(logits):
        block = logits[rows]
        top1[rows] = np.where(np.isnan(block).any(axis=1), UNDECIDED, block.argmax(axis=1))
    return top1


def _name_file(corruption: Corruption) -> str:
    return f"{corruption.kind}-{corruption.severity}.npy"


def _save(path: Path, classes: Int64[np.ndarray, " images"]) -> None:
    with replace_file(path) as file:
        np.save(file, classes)
