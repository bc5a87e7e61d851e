"""How long an epoch takes: a few real steps of several trainings, in turn, so that what
slows the machine slows all of them.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from kd_app.data.base import RunData
from kd_app.reporting.console import Console
from kd_app.stages import write_atomically
from kd_app.training.fit import fit
from kd_app.training.job import TrainingJob
from kd_app.training.module import CHECKED_STEPS
from kd_app.training.trainer import TrainerSettings

FILE = "epochs.json"
_ROUNDS, _STEPS, _BATCHES = 3, 6, 4
"""Turns of each training; in a turn, steps that count, and batches to validate on."""


class _Clock(Callback):
    """Seconds of each batch to train on, without those of the first steps, which look
    at every term by itself, and of a batch to validate on.
    """

    def __init__(self) -> None:
        self.train: list[float] = []
        self.validation: list[float] = []
        self._since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start; from here on fetching a batch counts, too."""
        self._since = _now()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """One batch."""
        now = _now()
        if trainer.global_step > CHECKED_STEPS:
            self.train.append(now - self._since)
        self._since = now

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._since = _now()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All batches."""
        self.validation.append((_now() - self._since) / sum(trainer.num_val_batches))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_an_epoch(
    trainings: Mapping[str, TrainingJob], data: RunData, settings: TrainerSettings, folder: Path
) -> dict[str, float]:
    """Of each training: the batches of an epoch x the median of their seconds, those to
    train on and those to validate on, in one process.

    The steps are those of the training itself (`fit`): data, both forward passes, loss,
    backward, optimizer. `folder` is left as it was.
    """
    steps, batches = batches_an_epoch(data, settings)
    wanted = (CHECKED_STEPS + _STEPS) * settings.accumulate
    brief = copy(settings)
    brief.devices = brief.num_nodes = 1
    brief.limits = {
        "limit_train_batches": min(steps, wanted),
        "limit_val_batches": min(batches, _BATCHES),
        "overfit_batches": None,
    }
    epochs = math.ceil(wanted / min(steps, wanted))
    clocks = {name: _Clock() for name in trainings}
    place = folder / "turn"
    for _ in range(_ROUNDS):
        for name, job in trainings.items():
            shutil.rmtree(
                place, ignore_errors=True
            )  # also what a kill left: it would be gone on with
            place.mkdir()
            shortened = replace(job, recipe=replace(job.recipe, max_epochs=epochs))
            fit(
                shortened,
                data,
                brief,
                place,
                console=Console(silent=True),
                callbacks=[clocks[name]],
            )
    shutil.rmtree(place)
    return {
        name: steps * median(clock.train) + batches * median(clock.validation)
        for name, clock in clocks.items()
    }


def batches_an_epoch(data: RunData, settings: TrainerSettings) -> tuple[int, int]:
    """Batches to train on and to validate on in an epoch, of each process, within the
    limits of the settings.
    """
    both = settings.limits["overfit_batches"]
    train, validation = data.steps_per_epoch(settings.world_size)
    return _limited(train, both or settings.limits["limit_train_batches"]), _limited(
        validation, both or settings.limits["limit_val_batches"]
    )


def _limited(batches: int, limit: float | None) -> int:
    if limit is None:
        return max(1, batches)
    return max(1, min(batches, limit if isinstance(limit, int) else int(batches * limit)))


def as_long(
    epochs: int,
    trainings: Mapping[str, TrainingJob],
    data: RunData,
    settings: TrainerSettings,
    folder: Path,
) -> None:
    """Write ``epochs.json`` into `folder`: as many epochs of the second training as
    last as long as `epochs` of the first, and what was measured.

    No fewer than `epochs`: what the second saves, a teacher, is never negative; a
    measurement can be.
    """
    seconds = seconds_an_epoch(trainings, data, settings, folder)
    first, second = seconds.values()
    found = {"max_epochs": max(epochs, round(epochs * first / second)), "seconds_an_epoch": seconds}
    write_atomically(folder / FILE, json.dumps(found, indent=1))
