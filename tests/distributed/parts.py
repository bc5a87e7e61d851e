"""Parts that rank processes import by name."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kd_app.config import Typed
from kd_app.data.batch import Batch
from kd_app.distributed.consistency import RankConsistency
from kd_app.losses.base import LossTerm
from kd_app.models.outputs import Outputs


class Likeness(LossTerm):
    """Compare the similarities between the images of a batch, with a trained adapter
    for the student.
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
        student_logits, teacher_logits = self.adapter(student.logits), teacher.logits
        same = (batch.target[:, None] == batch.target).float()
        distance: Tensor = (
            (
                (student_logits @ student_logits.T).softmax(dim=1)
                - (teacher_logits @ teacher_logits.T).softmax(dim=1)
                - same / same.sum(dim=1)
            )
            .square()
            .sum()
        )
        return distance


class Breaker(Typed, Callback):
    """Rank 1 fails in the second epoch while the file `flag` exists."""

    def __init__(self, *, flag: Path) -> None:
        self.flag = flag

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and self.flag.exists():
            raise ValueError("rank 1 has a fault of its own")


class OtherTraining(Typed, Callback):
    """Rank 1 reports another training than rank 0."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.global_rank == 1:
            consistency = next(
                callback
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(callback, RankConsistency)
            )
            consistency._training = "something else"


class Sleeper(Typed, Callback):
    """Rank 1 sleeps in the third step."""

    def __init__(self) -> None:
        pass

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            time.sleep(600)
