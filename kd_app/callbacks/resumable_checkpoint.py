"""Checkpoints that a training resumes from, and the best weights."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import save
from torch import Tensor

from kd_app.callbacks.averaging import EMA
from kd_app.digest import hash_file
from kd_app.files import replace_file
from kd_app.signals import STOP_SIGNALS, StopRequest
from kd_app.tasks.base import Selection
from kd_app.tasks.classification import CLASSIFICATION

LAST = "last.ckpt"
BEST = "best.safetensors"
_BEFORE = f".{BEST}.before"
"""The best weights that `LAST` refers to, until `LAST` refers to `BEST`."""
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
