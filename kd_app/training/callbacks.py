"""What happens around a training: it is saved so that it can go on, its best weights
are kept, and it says where it is.
"""

import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from kd_app.config import RunError, Typed

_BETWEEN_EPOCHS = 3.0
"""Seconds between the lines of two epochs where lines can't be replaced."""
LAST = "last.ckpt"
BEST = "best.safetensors"


_AGREE = 16
"""Ranks, whose clocks differ, agree every so many steps on whether it is time to save.
"""


class TrainingInterrupted(BaseException):
    """Somebody stopped the training by a signal; where it was is saved."""


class ResumableCheckpoint(Checkpoint):
    """Write a state to go on from every `minutes` (None: never in mid-epoch), after
    every `steps` optimizer steps, at each epoch's end and when the training is stopped;
    keep the student's best weights.

    The best epoch is the one with the highest validation top1, of equals the one with
    the lowest nll; the weights are those that were validated, which is the average
    where weights are averaged. Nothing is written at an epoch's last batch: a kill
    during validation would lose that validation; nor between two optimizer steps:
    gradients that were accumulated would be lost. Ctrl-C and SIGTERM end the training
    after its present step, or after the validation that is under way, with `TrainingInterrupted`; a
    second one at once. So do SIGUSR1 and SIGUSR2 where somebody listens to them
    (submitit, which sends its job again then). Of several ranks each ends at once.
    """

    def __init__(self, folder: Path, *, minutes: float | None, steps: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.best: dict[str, float] = {}
        self.stopped_by: int | None = None
        self._minutes, self._steps = minutes, steps
        self._saved = time.monotonic()
        self._validated: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning; whoever calls ``fit`` puts back what
        was there before.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(
                    number, self._request_stop if trainer.world_size == 1 else signal.SIG_DFL
                )
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)) and trainer.world_size == 1:
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None:
            raise TrainingInterrupted
        self.stopped_by = number
        os.write(2, b"Stopping as soon as nothing is lost; once more to stop at once.\n")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save in mid-epoch when it is time, or when somebody asks to stop."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if self._minutes is not None and (self.stopped_by is not None or self._is_time(trainer)):
            self._save(trainer)
        self._stop_if_asked()

    def _is_time(self, trainer: pl.Trainer) -> bool:
        assert self._minutes is not None
        if self._steps is not None and trainer.global_step % self._steps == 0:
            return True
        late = time.monotonic() - self._saved >= self._minutes * 60
        if trainer.world_size == 1:
            return late
        return trainer.global_step % _AGREE == 0 and bool(
            trainer.strategy.reduce_boolean_decision(late, all=False)
        )

    def _stop_if_asked(self) -> None:
        if self.stopped_by is not None:
            raise TrainingInterrupted

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights that are about to be validated."""
        student: torch.nn.Module = pl_module.student  # type: ignore[assignment]
        self._validated = {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in student.state_dict().items()
        }

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """ResumableCheckpoint the validated weights when they are the best so far."""
        found = {
            name: float(trainer.callback_metrics[f"validation/{name}"]) for name in ("top1", "nll")
        }
        if self.best and (found["top1"], -found["nll"]) <= (self.best["top1"], -self.best["nll"]):
            return
        self.best = {**found, "epoch": float(trainer.current_epoch)}
        if trainer.is_global_zero:
            partial = self.folder / f".{BEST}.partial"
            save_file(self._validated, partial)
            partial.replace(self.folder / BEST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of every epoch."""
        self._save(trainer)
        self._stop_if_asked()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score so far."""
        self.best = dict(state_dict["best"])

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()


class EMA(Typed, WeightAveraging):
    """Exponential moving average of the student: ``average = decay * average + (1 -
    decay) * weights`` after every step.

    The average is what is validated and what ships.
    """

    def __init__(self, *, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        move = get_ema_multi_avg_fn(decay)

        def average(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
            move(
                averages,
                [
                    weight.to(average.dtype)
                    for average, weight in zip(averages, weights, strict=True)
                ],
                count,
            )

        super().__init__(multi_avg_fn=average)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The average was made before the model got its precision; one of less than
        float32 would stand still.
        """
        if pl_module.dtype == torch.float64:
            assert self._average_model is not None
            self._average_model.double()


class SkipNonFiniteSteps(Callback):
    """Leave out the optimizer steps whose gradient is not finite, and count them; more
    than half of an epoch's steps end the run (`RunError`).
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._here = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count anew."""
        self._here = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the running statistics, which a forward pass that is not finite
        would spoil.
        """
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.student.buffers()]  # type: ignore[union-attr]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Without a gradient no parameter moves. All ranks hold the same gradient here,
        so all decide alike.
        """
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
        self._here += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the count into the curves."""
        steps = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
        if self._here > steps / 2:
            raise RunError(
                f"{self._here} of {steps} steps of epoch {trainer.current_epoch + 1} had a gradient"
                " that is not finite: nothing is learned so. Lower optimizer.lr, set"
                " trainer.gradient_clip_val, or use trainer.precision=32-true."
            )
        for logger in trainer.loggers if self._here else ():
            logger.log_metrics(
                {"train/skipped": float(self.skipped), "epoch": float(trainer.current_epoch)},
                step=trainer.global_step,
            )

    def state_dict(self) -> dict[str, Any]:
        """The count so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = int(state_dict["skipped"])


class Progress(Callback):
    """Say where the training is: on a terminal in one live line, else in a line every
    few seconds; the last epoch's line stays.
    """

    def __init__(self, name: str, console: Any, *, quiet: float = 15.0) -> None:
        self.name = name
        self.console = console
        self.images_per_second = 0.0
        self._quiet = 0.5 if console.live else quiet
        self._told = self._since = self._start = 0.0
        self._done = self._first = self._timed = 0
        self._seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a training that was resumed starts where it is, which may be
        in mid-epoch.
        """
        self._start = self._told = self._since = time.monotonic()
        self._first = self._position(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._since, self._timed = time.monotonic(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and tell now and then."""
        self._timed += 1
        now = time.monotonic()
        if now - self._told >= self._quiet:
            self._told = now
            self.console.print_transient(self._format_line(trainer, batch_idx + 1))
        if batch_idx + 1 == trainer.num_training_batches:
            size = len(batch) if hasattr(batch, "image") else len(batch[0])
            self._done += self._timed * size * trainer.world_size
            self._seconds += now - self._since
            self.images_per_second = self._done / max(self._seconds, 1e-9)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line an epoch, with what was measured."""
        metrics = {
            k.removeprefix("validation/"): float(v)
            for k, v in trainer.callback_metrics.items()
            if k.startswith("validation/")
        }
        shown = "  ".join(
            f"{key} {metrics[key]:.4f}" for key in ("top1", "nll", "agreement") if key in metrics
        )
        line = (
            f"{self._format_line(trainer, int(trainer.num_training_batches))}  validation: {shown}"
        )
        now, last = time.monotonic(), trainer.current_epoch + 1 == trainer.max_epochs
        if last:
            self.console.print(line)
        elif self.console.live or now - self._told >= _BETWEEN_EPOCHS:
            self._told = now
            self.console.print_transient(line)

    def _format_line(self, trainer: pl.Trainer, batch: int) -> str:
        epochs, batches = trainer.max_epochs or 1, int(trainer.num_training_batches)
        position, total = trainer.current_epoch * batches + batch, epochs * batches
        elapsed = time.monotonic() - self._start
        left = elapsed / max(position - self._first, 1) * (total - position)
        speed = f"  {self.images_per_second:,.0f} images/s" if self.images_per_second else ""
        return (
            f"  {self.name}: epoch {trainer.current_epoch + 1}/{epochs},"
            f" {100 * batch // max(batches, 1):3d} %{speed}, {_format_clock(left)} left"
        )

    @staticmethod
    def _position(trainer: pl.Trainer) -> int:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return trainer.current_epoch * int(trainer.num_training_batches) + progress


def _format_clock(seconds: float) -> str:
    """'2:05', or '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
