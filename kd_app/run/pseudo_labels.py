"""The pseudo-labels of a control: predictions of the student's network, trained on the
labels alone, for the images without a label.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from kd_app.config import RequestError
from kd_app.data.pseudo_labels import (
    assign_pseudo_labels,
    count_pseudo_labels,
    read_pseudo_labels,
    write_pseudo_labels,
)
from kd_app.data.unlabeled import UNLABELED
from kd_app.digest import hash_value
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.training.job import TrainingJob

LABELER: Final = "labels_only"
"""The name of the training that labels images: the control of this name shares it."""


def check_images_to_label(workspace: Workspace) -> None:
    """Raise `RequestError` if a control labels images and each image has a label, such
    as with ``data.label_fraction=0.99`` of few images.
    """
    for name, control in workspace.spec.controls.items():
        if control.labels_images and workspace.data.num_labeled is None:
            raise RequestError(
                f"The control {name} labels images without a label, but each of the"
                f" {workspace.data.sizes['train']:,} training images has one. Set a smaller"
                " data.label_fraction, or leave that control out of 'controls=[...]'."
            )


def cache_pseudo_labels(workspace: Workspace, job: TrainingJob, confidence: float) -> Path:
    """The folder with pseudo-labels for `job`, computed once.

    job: the control's training without pseudo-labels, which is run first. confidence:
    the smallest probability of a prediction that becomes a label.
    """
    data = workspace.data
    labeler = train(workspace, replace(job, name=LABELER))
    splits = [split for split in ("train", UNLABELED) if data.sizes.get(split)]
    predictions = [workspace.load_predictions(labeler, split) for split in splits]
    unlabeled = data.list_unlabeled_rows()
    assert unlabeled is not None, "check_data_use requires the capability"

    def assign(folder: Path) -> None:
        images = np.concatenate([record.index for record in predictions])
        logits = np.concatenate([record.logits for record in predictions])
        is_unlabeled = np.isin(images, unlabeled)
        pseudo_labels = assign_pseudo_labels(
            logits[is_unlabeled],
            images[is_unlabeled],
            confidence=confidence,
            num_images=len(data.files),
        )
        write_pseudo_labels(folder, pseudo_labels)

    stage = workspace.find_or_build(
        f"labels-{job.name}",
        {"confidence": confidence, "limit": workspace.limit},
        {
            "data": data.fingerprint,
            "labeled": hash_value(unlabeled.tolist()),
            "weights": labeler.loaded.weights.sha256,
        },
        assign,
    )
    workspace.resolved.setdefault(job.name, {}).update(
        pseudo_labels=count_pseudo_labels(
            read_pseudo_labels(stage.path, len(data.files), len(workspace.classes))
        ),
        unlabeled=len(unlabeled),
        confidence=confidence,
    )
    return stage.path
