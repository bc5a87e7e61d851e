"""Checks that all ranks train the same job and end with the same parameters."""

import hashlib
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from kd_app.config import RunError
from kd_app.data.batch import Batch
from kd_app.digest import hash_value


class RankConsistency(Callback):
    """Compare `training` (plain data) between ranks before the first step, and the
    parameters after the last step.

    After the training, `ranks` has a record for each rank: rank, training (sha256),
    parameters (sha256), images (number of images that this attempt trained on). Raises
    `RunError` if the ranks differ.
    """

    def __init__(self, training: Any) -> None:
        self.ranks: list[dict[str, Any]] = []
        self._training = hash_value(training)
        self._images = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        record = {"rank": trainer.global_rank, "training": self._training}
        check_equal(_gather_records(trainer, record), "training")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += len(batch if isinstance(batch, Batch) else batch[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
        record = {
            "rank": trainer.global_rank,
            "training": self._training,
            "parameters": digest.hexdigest(),
            "images": self._images,
        }
        self.ranks = _gather_records(trainer, record)
        check_equal(self.ranks, "parameters")


_DIFFERENCES = {
    "training": "received different trainings",
    "parameters": "ended with different parameters",
}


def check_equal(ranks: Sequence[dict[str, Any]], key: str) -> None:
    """Raise `RunError` if the records of the ranks differ in `key`."""
    others = [str(record["rank"]) for record in ranks if record[key] != ranks[0][key]]
    if others:
        raise RunError(
            f"The processes {_DIFFERENCES[key]}: {', '.join(others)} (of {len(ranks)}) differ from"
            " process 0. Start the same command on all of them."
        )


def _gather_records(trainer: pl.Trainer, record: dict[str, Any]) -> list[dict[str, Any]]:
    records: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(records, record)
    return records
