"""The duration of an epoch: number of steps, and seconds of a few steps."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from pydantic import Field
from torch import nn
from typing_extensions import TypedDict

from kd_app.config import InputSpec, RequestError
from kd_app.config.memory import MemorySettings, describe_shortage, is_out_of_memory
from kd_app.data.base import RunData
from kd_app.digest import hash_value
from kd_app.reporting.console import Console
from kd_app.stages import write_atomically
from kd_app.training.cpu_convolutions import prepare_cpu
from kd_app.training.fit import fit
from kd_app.training.job import TrainingJob
from kd_app.training.module import CHECKED_STEPS
from kd_app.training.trainer import TrainerSettings

EPOCHS = "epochs.json"
_TURNS, _STEPS, _VALIDATION_BATCHES = 3, 6, 4
"""Turns of each training; timed steps and validation batches of a turn."""
_NOISE_STEPS = 3
_TRUE_DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
"""The dtype of the whole model in these precisions."""
_SLOW = 1.0
"""Seconds of a call that is timed only once."""


@dataclass(frozen=True)
class EpochSteps:
    """The training and validation batches of an epoch, for each process."""

    training: int
    validation: int


def count_steps_per_epoch(data: RunData, settings: TrainerSettings) -> EpochSteps:
    """Count the batches of an epoch, within the limits of `settings`."""
    training, validation = data.count_steps_per_epoch(settings.world_size)
    limits, overfit = settings.limits, settings.limits["overfit_batches"]
    return EpochSteps(
        _limit(training, overfit or limits["limit_train_batches"]),
        _limit(validation, overfit or limits["limit_val_batches"]),
    )


def _limit(batches: int, limit: float | None) -> int:
    if limit is None:
        return max(1, batches)
    if isinstance(limit, int):
        return max(1, min(batches, limit))
    return max(1, int(batches * limit))


def count_images_per_batch(data: RunData, split: str) -> int:
    """Count the images of a batch, which is smaller if the split has fewer images."""
    return min(data.batch_size, max(1, data.sizes[split]))


class EpochTimer(Callback):
    """Measure the seconds of each training batch with its loading, of a validation
    batch on average, and of each epoch. Excludes the first steps, which check the loss
    terms.
    """

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []
        self.epochs: list[float] = []
        self._batch_start = self._epoch_start = 0.0
        self._is_timed = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch()
        self._is_timed = trainer.global_step >= CHECKED_STEPS
        self._batch_start = self._epoch_start = _read_clock()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = _read_clock()
        if trainer.global_step > CHECKED_STEPS:
            self.training.append(now - self._batch_start)
        self._batch_start = now

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch_start = _read_clock()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the mean over the validation batches."""
        seconds = _read_clock() - self._batch_start
        self.validation.append(seconds / sum(trainer.num_val_batches))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self._is_timed:
            self.epochs.append(_read_clock() - self._epoch_start)
        self._is_timed = False

    def sum_seconds(self, steps: EpochSteps) -> float:
        """Estimate the seconds of all batches of an epoch."""
        return steps.training * median(self.training) + steps.validation * median(self.validation)

    def estimate_overhead(self, steps: EpochSteps) -> float:
        """Estimate the remaining seconds of a timed epoch of `steps`: checkpoints and
        the start of the loader.
        """
        return max(0.0, median(self.epochs) - self.sum_seconds(steps))


def _read_clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_steps(
    jobs: Mapping[str, TrainingJob], data: RunData, settings: TrainerSettings, folder: Path
) -> dict[str, float]:
    """Estimate the seconds of an epoch of each job from a few real steps in one
    process.

    The jobs take turns, so that other load on the machine affects all jobs alike.
    Temporary files in `folder` are removed.
    """
    steps = count_steps_per_epoch(data, settings)
    batches = (CHECKED_STEPS + _STEPS) * settings.accumulate_grad_batches
    epoch_batches = min(steps.training, batches)
    short_settings = settings.shorten(
        train=epoch_batches, validation=min(steps.validation, _VALIDATION_BATCHES)
    )
    max_epochs = math.ceil(batches / epoch_batches)
    timers = {name: EpochTimer() for name in jobs}
    turn = folder / "turn"
    for _ in range(_TURNS):
        for name, job in jobs.items():
            # `fit` would resume a turn that a killed attempt left
            shutil.rmtree(turn, ignore_errors=True)
            turn.mkdir()
            fit(
                replace(job, recipe=replace(job.recipe, max_epochs=max_epochs)),
                data,
                short_settings,
                turn,
                console=Console(silent=True),
                callbacks=[timers[name]],
            )
    shutil.rmtree(turn)
    return {name: timer.sum_seconds(steps) for name, timer in timers.items()}


class MatchedEpochs(TypedDict):
    """The content of ``epochs.json``."""

    max_epochs: Annotated[int, Field(ge=0, le=10**9)]
    seconds_an_epoch: dict[str, Annotated[float, Field(ge=0)]]


def match_wall_time(
    epochs: int,
    jobs: Mapping[str, TrainingJob],
    data: RunData,
    settings: TrainerSettings,
    folder: Path,
) -> None:
    """Write ``epochs.json`` into `folder`: the number of epochs in which the second job
    takes as long as the first job in `epochs`, and the seconds of an epoch of both.
    """
    seconds = time_steps(jobs, data, settings, folder)
    first, second = seconds.values()
    # The second job has no teacher, so fewer than `epochs` would be measurement noise.
    max_epochs = max(epochs, round(epochs * first / second))
    record = MatchedEpochs(max_epochs=max_epochs, seconds_an_epoch=seconds)
    write_atomically(folder / EPOCHS, json.dumps(record, indent=1))


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of one batch: of a training step and of inference, both in the precision
    of the training, and of a prediction in float32.
    """

    training: float
    inference: float
    prediction: float


_ESTIMATES: dict[str, StepEstimate] = {}
"""By network, input and settings: the trials of a sweep share the estimates."""


def estimate(
    model: nn.Module,
    input_spec: InputSpec,
    batch_size: int,
    settings: TrainerSettings,
    *,
    train: bool,
) -> StepEstimate:
    """Time `model` on noise, without data loading and loss, once in a process;
    `training` is 0 unless `train`.

    Raises `RequestError` if memory runs out: a training step takes more.
    """
    memory = (settings.device.type, settings.precision, settings.channels_last)
    key = hash_value([repr(model), vars(input_spec), batch_size, memory, train])
    if key in _ESTIMATES:
        return _ESTIMATES[key]
    with _refuse_shortage(batch_size, settings), prepare_cpu(settings, model):
        device, true_dtype = settings.device, _TRUE_DTYPES.get(settings.precision)
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        model = model.to(device, true_dtype).to(memory_format=memory_format)
        image = torch.rand(batch_size, input_spec.channels, input_spec.height, input_spec.width)
        image = image.to(device, true_dtype, memory_format=memory_format)
        dtype = torch.bfloat16 if "bf16" in settings.precision else torch.float16
        training = 0.0
        with torch.autocast(device.type, dtype=dtype, enabled="mixed" in settings.precision):
            if train:
                training = _time_call(lambda: model(image).float().square().mean().backward())
            with torch.no_grad():
                inference = _time_call(lambda: model(image))
        prediction = inference
        if "mixed" in settings.precision:
            with torch.no_grad():
                prediction = _time_call(lambda: model(image))
    return _ESTIMATES.setdefault(key, StepEstimate(training, inference, prediction))


@contextmanager
def _refuse_shortage(batch_size: int, settings: TrainerSettings) -> Iterator[None]:
    """Raise `RequestError` if the body runs out of memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        limits = MemorySettings(batch_size, settings.accumulate_grad_batches, settings.precision)
        step = f"a step of a batch of {batch_size} images, tried out before the training"
        raise RequestError(describe_shortage(step, error, limits)) from error


def _time_call(body: Callable[[], object]) -> float:
    """Median seconds of some calls after the first, which also prepares: other programs
    slow down single calls. A slow call is not repeated.
    """
    seconds: list[float] = []
    while not seconds or (len(seconds) <= _NOISE_STEPS and seconds[0] < _SLOW):
        start = _read_clock()
        body()
        seconds.append(_read_clock() - start)
    return median(seconds[1:] or seconds)
