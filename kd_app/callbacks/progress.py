"""The progress of a training on a console."""

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from kd_app.tasks.classification import CLASSIFICATION

_SECONDS_BETWEEN_EPOCH_LINES = 3.0
"""Shortest time between the lines of two epochs on a console without live lines."""


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
