"""How long an epoch takes: its number of steps, and the seconds of a few of them."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from kd_app.config import InputSpec
from kd_app.data.base import RunData
from kd_app.reporting.console import Console
from kd_app.stages import write_atomically
from kd_app.training.fit import fit
from kd_app.training.job import TrainingJob
from kd_app.training.module import CHECKED_STEPS
from kd_app.training.trainer import TrainerSettings

EPOCHS = "epochs.json"
_TURNS, _STEPS, _VALIDATION_BATCHES = 3, 6, 4
"""Turns of each training; timed steps and validation batches in a turn."""
_NOISE_STEPS = 3


@dataclass(frozen=True)
class EpochSteps:
    """Batches to train on and to validate on in an epoch, in each process."""

    training: int
    validation: int


def count_steps_per_epoch(data: RunData, settings: TrainerSettings) -> EpochSteps:
    """The batches of an epoch within the limits of `settings`."""
    training, validation = data.count_steps_per_epoch(settings.world_size)
    limits, both = settings.limits, settings.limits["overfit_batches"]
    return EpochSteps(
        _limit(training, both or limits["limit_train_batches"]),
        _limit(validation, both or limits["limit_val_batches"]),
    )


def _limit(batches: int, limit: float | None) -> int:
    if limit is None:
        return max(1, batches)
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))


class EpochTimer(Callback):
    """Seconds of each training batch, fetching it included; of a validation batch; and of
    each whole epoch. The first steps, which check every loss term, do not count.
    """

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []
        self.epochs: list[float] = []
        self._since = self._epoch = 0.0
        self._counts = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start an epoch."""
        self._end_epoch()
        self._counts = trainer.global_step >= CHECKED_STEPS
        self._since = self._epoch = _read_clock()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note a batch."""
        now = _read_clock()
        if trainer.global_step > CHECKED_STEPS:
            self.training.append(now - self._since)
        self._since = now

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the validation."""
        self._since = _read_clock()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the mean of its batches."""
        self.validation.append((_read_clock() - self._since) / sum(trainer.num_val_batches))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last epoch."""
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self._counts:
            self.epochs.append(_read_clock() - self._epoch)
        self._counts = False

    def sum_seconds(self, steps: EpochSteps) -> float:
        """The seconds of all batches of an epoch."""
        return steps.training * median(self.training) + steps.validation * median(self.validation)

    def estimate_overhead(self, steps: EpochSteps) -> float:
        """The rest of an epoch of `steps`, which were timed: checkpoint, start of the
        loader.
        """
        return max(0.0, median(self.epochs) - self.sum_seconds(steps))


def _read_clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_steps(
    jobs: Mapping[str, TrainingJob], data: RunData, settings: TrainerSettings, folder: Path
) -> dict[str, float]:
    """Seconds of an epoch of each job, from a few of its real steps in one process.

    The jobs take turns, so that what slows the machine slows all of them. `folder`
    is left as it was.
    """
    steps = count_steps_per_epoch(data, settings)
    wanted = (CHECKED_STEPS + _STEPS) * settings.accumulate_grad_batches
    timed = min(steps.training, wanted)
    brief = settings.shorten(train=timed, validation=min(steps.validation, _VALIDATION_BATCHES))
    timers = {name: EpochTimer() for name in jobs}
    turn = folder / "turn"
    for _ in range(_TURNS):
        for name, job in jobs.items():
            # a killed attempt may have left a turn, which would be resumed
            shutil.rmtree(turn, ignore_errors=True)
            turn.mkdir()
            recipe = replace(job.recipe, max_epochs=math.ceil(wanted / timed))
            fit(
                replace(job, recipe=recipe),
                data,
                brief,
                turn,
                console=Console(silent=True),
                callbacks=[timers[name]],
            )
    shutil.rmtree(turn)
    return {name: timer.sum_seconds(steps) for name, timer in timers.items()}


def match_wall_time(
    epochs: int,
    jobs: Mapping[str, TrainingJob],
    data: RunData,
    settings: TrainerSettings,
    folder: Path,
) -> None:
    """Write ``epochs.json`` into `folder`: the epochs of the second training that take as
    long as `epochs` of the first, and the seconds that decide it.
    """
    seconds = time_steps(jobs, data, settings, folder)
    first, second = seconds.values()
    # at least `epochs`: a training without a teacher is not slower, a measurement can be
    matched = {
        "max_epochs": max(epochs, round(epochs * first / second)),
        "seconds_an_epoch": seconds,
    }
    write_atomically(folder / EPOCHS, json.dumps(matched, indent=1))


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of a training step of a model, and of its outputs for a batch."""

    training: float
    inference: float


def estimate(
    model: nn.Module, pixels: InputSpec, batch_size: int, settings: TrainerSettings, *, train: bool
) -> StepEstimate:
    """Time a model on noise, without data and loss; not `train`: 0 for a training step."""
    device = settings.device
    model = model.to(device).to(memory_format=torch.channels_last)
    image = torch.rand(batch_size, pixels.channels, pixels.height, pixels.width).to(
        device, memory_format=torch.channels_last
    )
    dtype = torch.bfloat16 if "bf16" in settings.precision else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled="mixed" in settings.precision):
        training = (
            _time_mean(lambda: model(image).float().square().mean().backward()) if train else 0.0
        )
        with torch.no_grad():
            return StepEstimate(training, _time_mean(lambda: model(image)))


def _time_mean(body: Callable[[], object]) -> float:
    body()
    start = _read_clock()
    for _ in range(_NOISE_STEPS):
        body()
    return (_read_clock() - start) / _NOISE_STEPS
