"""Skipping of optimizer steps with a non-finite gradient."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kd_app.config import RunError


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
