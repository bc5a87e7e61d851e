"""Parts that rank processes find by name."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kd_app.config import Typed
from kd_app.data.batch import Batch
from kd_app.losses.base import LossTerm
from kd_app.models.outputs import Outputs
from kd_app.training.distributed.consistency import RankConsistency


class Likeness(LossTerm):
    """Which images of the batch answer alike, for the student through a trained map: it
    compares images with each other.
    """

    level = "output"
    needs_global_batch = True

    def __init__(self) -> None:
        super().__init__()

    def build(self, student: Outputs, teacher: Outputs) -> None:
        assert student.logits is not None
        self.adapter = nn.Linear(student.logits.shape[1], student.logits.shape[1])
        nn.init.eye_(self.adapter.weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        assert teacher.logits is not None
        assert len(batch.target) == len(student.logits)
        ours, theirs = self.adapter(student.logits), teacher.logits
        same = (batch.target[:, None] == batch.target).float()
        distance: Tensor = (
            (
                (ours @ ours.T).softmax(dim=1)
                - (theirs @ theirs.T).softmax(dim=1)
                - same / same.sum(dim=1)
            )
            .square()
            .sum()
        )
        return distance


class Breaker(Typed, Callback):
    """While the file `flag` is there, rank 1 fails in the second epoch."""

    def __init__(self, *, flag: Path) -> None:
        self.flag = flag

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and self.flag.exists():
            raise ValueError("rank 1 has a fault of its own")


class ToldOtherwise(Typed, Callback):
    """Rank 1 believes that it is asked for another training than rank 0."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.global_rank == 1:
            agreement = next(
                callback
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(callback, RankConsistency)
            )
            agreement._training = "something else"


class Sleeper(Typed, Callback):
    """Rank 1 falls asleep in its third step."""

    def __init__(self) -> None:
        pass

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            time.sleep(600)
