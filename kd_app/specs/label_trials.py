"""Trainings on a few labels that follow a run without labels: the student's backbone
beside the same network from other weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from kd_app.config import RequestError
from kd_app.config.paths import read_settings
from kd_app.specs.schema import LabelTrials
from kd_app.specs.spec import build_spec
from kd_app.specs.task_choice import name_task
from kd_app.tasks.classification import CLASSIFICATION

Config = dict[str, Any]
KEY: Final = "label_trials"
FOLDER: Final = "labels"
"""In the run's folder: a folder for each trial."""
STARTS: Final = {
    "label_free": "distilled without labels",
    "own": "its own weights",
    "random": "random weights",
}
"""Start -> how it is called in the table."""


class LabelTrial(NamedTuple):
    """start: a key of `STARTS`. config: of the training."""

    start: str
    fraction: float
    config: Config


def list_label_trials(config: Mapping[str, Any], out: Path) -> list[LabelTrial]:
    """Return the trainings that follow the run with this configuration in `out`.

    'own' is left out for a student that starts from random weights. Raises
    `RequestError` if the run has labels, or its data have no classes.
    """
    fractions = LabelTrials(**config[KEY]).fractions
    if name_task(config) == CLASSIFICATION.name:
        raise RequestError(
            f"{KEY} follows a run without labels, and task=classification trains on labels."
            " Expected: task=embedding, as in experiment=label_free_then_labels."
        )
    if config["data"].get("presets", {}).get("task") is not None:
        raise RequestError(
            f"{KEY} trains on labels, and data={config['data'].get('name')} has no classes to"
            " learn. Expected: a folder for each class (data=folder), or a table of labels"
            " (data=csv)."
        )
    student = config["student"]
    spec = build_spec(_drop_key(config))
    starts = {
        "label_free": {**student, "checkpoint": str(out)},
        "own": student,
        "random": {
            **student,
            "name": spec.student.origin.name.split(".")[0],
            "pretrained": False,
            "checkpoint": None,
        },
    }
    if not spec.student.origin.has_weights:
        del starts["own"]
    return [
        LabelTrial(
            start,
            fraction,
            _derive(config, start, model, fraction, out / FOLDER / f"{start}-{fraction:g}"),
        )
        for start, model in starts.items()
        for fraction in fractions
    ]


def check_label_trials(trials: list[LabelTrial]) -> None:
    """Raise `RequestError` for a training whose settings are wrong; those that start
    from the run's student can only be checked when it is there.
    """
    for trial in trials:
        if trial.start != "label_free":
            build_spec(trial.config)


def _drop_key(config: Mapping[str, Any]) -> Config:
    return {key: value for key, value in config.items() if key != KEY}


def _choose_rates(optimizer: Mapping[str, Any], start: str, lr: float | str) -> Config:
    """The optimizer's settings for a start. With ``lr=auto`` the rate of the distilled
    student is the geometric mean of that for pretrained weights, which have seen far
    more images, and that for random weights.
    """
    rates = {**optimizer, "lr": lr}
    if start == "label_free" and {"scratch_lr", "finetune_lr"} <= optimizer.keys():
        rates["finetune_lr"] = math.sqrt(optimizer["scratch_lr"] * optimizer["finetune_lr"])
    return rates


def _derive(
    config: Mapping[str, Any],
    start: str,
    student: Mapping[str, Any],
    fraction: float,
    folder: Path,
) -> Config:
    """The configuration of a training on a share of the labels, with the run's images,
    views and optimizer.
    """
    settings = LabelTrials(**config[KEY])
    return {
        **_drop_key(config),
        "task": CLASSIFICATION.name,
        "neighbors": {},
        "teacher": read_settings("teacher/none"),
        "loss": read_settings("loss/cross_entropy"),
        "controls": {},
        "student": {key: value for key, value in student.items() if key != "keep_projector"},
        "data": {
            **config["data"],
            "views": None,
            "label_fraction": None if fraction == 1 else fraction,
        },
        "optimizer": _choose_rates(config["optimizer"], start, settings.lr),
        "trainer": {**config["trainer"], "max_epochs": settings.max_epochs},
        "examples": 0,
        "out": str(folder),
    }
