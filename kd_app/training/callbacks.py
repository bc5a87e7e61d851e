"""Training callbacks: checkpoints, non-finite steps, progress."""

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from safetensors.torch import save
from torch import Tensor

from kd_app.config import RunError
from kd_app.digest import hash_file
from kd_app.files import replace_file
from kd_app.signals import STOP_SIGNALS, StopRequest
from kd_app.tasks.base import Selection
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.training.averaging import EMA

LAST = "last.ckpt"
BEST = "best.safetensors"
_BEFORE = f".{BEST}.before"
"""The best weights that `LAST` refers to, until `LAST` refers to `BEST`."""
_SECONDS_BETWEEN_EPOCH_LINES = 3.0
"""Shortest time between the lines of two epochs on a console without live lines."""
_STEPS_BETWEEN_VOTES, _SECONDS_BETWEEN_VOTES = 16, 1.0
"""Clocks and signals differ between ranks, so the ranks vote on whether to save or to
stop: every so many steps, or more often if a step is slow.
"""


class TrainingInterrupted(BaseException):
    """A signal stopped the training; the state of the training is saved."""


class ResumableCheckpoint(Checkpoint):
    """Save a resumable state every `minutes` (None: never within an epoch), after every
    `steps` optimizer steps, at the end of each epoch and on a signal; keep the
    student's best weights.

    The best epoch is that of the `selection`. With an
    `average`, both the averaged and the raw weights of an epoch are candidates. With
    `last`, in a training without validation, these weights of the last epoch are kept.

    A stop signal ends the training with `TrainingInterrupted` after the current step or
    the running validation; a second signal ends the training at once. SIGUSR1 and
    SIGUSR2 do so if a handler is installed (submitit requeues its job that way).
    Several ranks stop after the same step, within about a second.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: float | None,
        steps: int | None = None,
        average: EMA | None = None,
        last: Literal["raw", "average"] | None = None,
        selection: Selection = CLASSIFICATION.selection,
    ) -> None:
        super().__init__()
        self.folder = folder
        self._selection = selection
        self._last = last
        self.best: dict[str, Any] = {}
        self.sha256 = ""
        self.stop = StopRequest()
        self._minutes, self._steps = minutes, steps
        self._average = average
        self._saved_at = self._voted_at = time.monotonic()
        self._next_vote = self._voted_step = 0
        self._validated_weights: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers; the caller of ``fit`` restores the
        previous handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            is_user_signal = number in (signal.SIGUSR1, signal.SIGUSR2)
            if handler != signal.SIG_IGN and (callable(handler) or not is_user_signal):
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        is_first = self.stop.number is None
        if not self.stop.receive(number):
            return
        if not is_first:
            raise TrainingInterrupted
        with suppress(OSError):
            os.write(2, b"Stopping after the current step. Repeat the signal to stop at once.\n")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch if a save is due or a stop is requested."""
        # Between two optimizer steps a checkpoint would lose accumulated gradients. At
        # the last batch of an epoch a kill during validation would lose the validation.
        is_step_end = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not is_step_end or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        is_due, is_stopping = self._vote(trainer)
        if self._minutes is not None and (is_due or is_stopping):
            self._save(trainer)
        if is_stopping:
            raise TrainingInterrupted

    def _vote(self, trainer: pl.Trainer, *, at_epoch_end: bool = False) -> tuple[bool, bool]:
        """Whether a save is due, and whether a stop is requested; equal on all ranks.

        Several ranks decide at certain steps only, whose distance is about a second.
        """
        step, now = trainer.global_step, time.monotonic()
        is_due = self._minutes is not None and now - self._saved_at >= self._minutes * 60
        is_step_due = self._steps is not None and step % self._steps == 0
        is_stopping = self.stop.number is not None
        if trainer.world_size == 1:
            return is_due or is_step_due, is_stopping
        if step < self._next_vote and not at_epoch_end:
            return is_step_due, False
        seconds = (now - self._voted_at) / max(1, step - self._voted_step)
        vote = torch.tensor([is_due, is_stopping, seconds], dtype=torch.float32)
        vote = trainer.strategy.reduce(vote.to(trainer.strategy.root_device), reduce_op="max")
        self._voted_at, self._voted_step = now, step
        steps = _SECONDS_BETWEEN_VOTES / max(float(vote[2]), 1e-6)
        self._next_vote = step + min(max(1, int(steps)), _STEPS_BETWEEN_VOTES)
        return bool(vote[0]) or is_step_due, bool(vote[1])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights that are about to be validated."""
        student: torch.nn.Module = pl_module.student  # type: ignore[assignment]
        if self._average is None:
            self._validated_weights = {"raw": _copy_weights(student)}
        else:
            self._validated_weights = {
                "average": _copy_weights(student),
                "raw": _copy_weights(self._average.other_student),
            }

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the validated weights if they are the best so far."""
        metrics = {
            name: float(trainer.callback_metrics[f"validation/{name}"]) for name in self._selection
        }
        candidates = {"raw": metrics}
        if self._average is not None:
            candidates = {"average": metrics, "raw": self._average.raw_metrics}
        for kind, values in candidates.items():
            self._keep_best(trainer, kind, values)

    def _keep_best(self, trainer: pl.Trainer, kind: str, metrics: dict[str, float]) -> None:
        highest, lowest = self._selection
        score = (metrics[highest], -metrics[lowest])
        if self.best and score <= (self.best[highest], -self.best[lowest]):
            return
        self.best = {**metrics, "epoch": float(trainer.current_epoch)}
        if self._average is not None:
            self.best["weights"] = kind
        if trainer.is_global_zero:
            self.sha256 = _write_best(self.folder, self._validated_weights[kind])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._last is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            self._keep_last(trainer, pl_module)
        self._save(trainer)
        if self._vote(trainer, at_epoch_end=True)[1]:
            raise TrainingInterrupted

    def _keep_last(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        student: torch.nn.Module = pl_module.student  # type: ignore[assignment]
        if self._last == "average":
            assert self._average is not None
            # outside of a validation, the trained module holds the raw weights
            student = self._average.other_student
        self.best = {"epoch": float(trainer.current_epoch)}
        if trainer.is_global_zero:
            self.sha256 = _write_best(self.folder, _copy_weights(student))

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "sha256": self.sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict["best"])
        self.sha256 = state_dict["sha256"]

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        if trainer.is_global_zero:
            (self.folder / _BEFORE).unlink(missing_ok=True)
        self._saved_at = time.monotonic()


def _copy_weights(student: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in student.state_dict().items()
    }


def _write_best(folder: Path, weights: dict[str, Tensor]) -> str:
    """Write the best weights to disk, and keep the ones before them until a checkpoint
    refers to the new ones; the sha256 of the file.
    """
    content = save(weights)
    with replace_file(folder / BEST) as file:
        file.write(content)
        file.flush()
        is_referred = (folder / BEST).is_file() and (folder / LAST).is_file()
        if is_referred and not (folder / _BEFORE).is_file():
            os.replace(folder / BEST, folder / _BEFORE)
    return hashlib.sha256(content).hexdigest()


def restore_best(folder: Path, checkpoint: Mapping[str, Any]) -> bool:
    """Bring back the best weights that a checkpoint refers to; False if they are
    missing or damaged.
    """
    state = checkpoint["callbacks"][ResumableCheckpoint.__qualname__]
    if not state["best"]:
        return True
    if is_best_intact(folder, state["sha256"]):
        (folder / _BEFORE).unlink(missing_ok=True)
        return True
    if (folder / _BEFORE).is_file() and hash_file(folder / _BEFORE) == state["sha256"]:
        os.replace(folder / _BEFORE, folder / BEST)
        return True
    return False


def is_best_intact(folder: Path, sha256: str) -> bool:
    """Whether the file of the best weights has this sha256."""
    return (folder / BEST).is_file() and hash_file(folder / BEST) == sha256


def remove_state(folder: Path) -> None:
    """Remove the checkpoint and the best weights of a training."""
    for name in (LAST, BEST, _BEFORE):
        (folder / name).unlink(missing_ok=True)


class SkipNonFiniteSteps(Callback):
    """Skip and count optimizer steps with a non-finite gradient.

    Raises `RunError` if more than half of the steps of an epoch are skipped.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._skipped_in_epoch = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._skipped_in_epoch = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the running statistics, which a non-finite step would corrupt."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            student: torch.nn.Module = pl_module.student  # type: ignore[assignment]
            self._buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop a non-finite gradient: a parameter without gradient does not move."""
        # DDP has averaged the gradients before this hook, so all ranks decide alike
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            return
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.skipped += 1
        self._skipped_in_epoch += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the count of skipped steps."""
        steps = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
        if self._skipped_in_epoch > steps / 2:
            raise RunError(
                f"{self._skipped_in_epoch} of {steps} steps in epoch {trainer.current_epoch + 1}"
                " had a non-finite gradient, so the model does not learn. Lower optimizer.lr, set"
                " trainer.gradient_clip_val, or use trainer.precision=32-true."
            )
        for logger in trainer.loggers if self._skipped_in_epoch else ():
            logger.log_metrics(
                {"train/skipped": float(self.skipped), "epoch": float(trainer.current_epoch)},
                step=trainer.global_step,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])


class Progress(Callback):
    """Print the progress of a training: one live line on a terminal, else a line every
    `interval` seconds. The line of the last epoch is permanent. metrics: of validation,
    to print.
    """

    def __init__(
        self,
        name: str,
        console: Any,
        *,
        interval: float = 15.0,
        metrics: Sequence[str] = CLASSIFICATION.progress,
    ) -> None:
        self.name = name
        self._metrics = metrics
        self.console = console
        self.images_per_second = 0.0
        self._interval = 0.5 if console.live else interval
        self._start = self._epoch_start = self._printed_at = 0.0
        self._first_batch = self._epoch_batches = 0
        self._images, self._seconds = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._printed_at = self._epoch_start = time.monotonic()
        # not 0 for a resumed training, which may start within an epoch
        position = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._first_batch = trainer.current_epoch * int(trainer.num_training_batches) + position

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_start, self._epoch_batches = time.monotonic(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch; print a line if the last one is `interval` seconds old."""
        self._epoch_batches += 1
        now = time.monotonic()
        if now - self._printed_at >= self._interval:
            self._printed_at = now
            self.console.print_transient(self._format_line(trainer, batch_idx + 1))
        if batch_idx + 1 == trainer.num_training_batches:
            size = len(batch) if hasattr(batch, "image") else len(batch[0])
            self._images += self._epoch_batches * size * trainer.world_size
            self._seconds += now - self._epoch_start
            self.images_per_second = self._images / max(self._seconds, 1e-9)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line with the validation metrics of the epoch."""
        prefix = "validation/"
        metrics = {
            name: float(trainer.callback_metrics[prefix + name])
            for name in self._metrics
            if prefix + name in trainer.callback_metrics
        }
        text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        position = self._format_line(trainer, int(trainer.num_training_batches))
        line = f"{position}  validation: {text}"
        now = time.monotonic()
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.console.print(line)
        elif self.console.live or now - self._printed_at >= _SECONDS_BETWEEN_EPOCH_LINES:
            self._printed_at = now
            self.console.print_transient(line)

    def _format_line(self, trainer: pl.Trainer, batch: int) -> str:
        epochs, batches = trainer.max_epochs or 1, int(trainer.num_training_batches)
        position, total = trainer.current_epoch * batches + batch, epochs * batches
        elapsed = time.monotonic() - self._start
        left = elapsed / max(position - self._first_batch, 1) * (total - position)
        speed = f"  {self.images_per_second:,.0f} images/s" if self.images_per_second else ""
        return (
            f"  {self.name}: epoch {trainer.current_epoch + 1}/{epochs},"
            f" {100 * batch // max(batches, 1):3d} %{speed}, {_format_clock(left)} left"
        )


def _format_clock(seconds: float) -> str:
    """'2:05', or '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
