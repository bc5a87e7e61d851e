"""Parts that rank processes find by name."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from kd_app.config import Typed


class Breaker(Typed, Callback):
    """While the file `flag` is there, rank 1 fails in the second epoch."""

    def __init__(self, *, flag: Path) -> None:
        self.flag = flag

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and self.flag.exists():
            raise ValueError("rank 1 has a fault of its own")
