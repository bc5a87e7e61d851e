"""Ranks that train together agree on what they train, and on what came of it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from kd_app.config import RunError
from kd_app.data.batch import Batch
from kd_app.stages import hash_value


class RankConsistency(Callback):
    """Compare by a collective what every rank was told, before the first step, and the
    parameters it ended with, after the last.

    `ranks` is then the record of each: rank, told (sha256 of `told`), parameters
    (sha256), images (how many it trained on, in this attempt). Raises `RunError` where
    they differ.
    """

    def __init__(self, told: Any) -> None:
        self.ranks: list[dict[str, Any]] = []
        self._told = hash_value(told)
        self._images = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before anything is trained."""
        self._check_equal(
            _gather_records(trainer, {"rank": trainer.global_rank, "told": self._told}),
            "told",
            "were told different trainings",
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count."""
        self._images += len(batch if isinstance(batch, Batch) else batch[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """When all is trained."""
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
        mine = {
            "rank": trainer.global_rank,
            "told": self._told,
            "parameters": digest.hexdigest(),
            "images": self._images,
        }
        self.ranks = _gather_records(trainer, mine)
        self._check_equal(self.ranks, "parameters", "ended with different parameters")

    def _check_equal(self, ranks: Sequence[dict[str, Any]], key: str, what: str) -> None:
        first = ranks[0][key]
        others = [str(each["rank"]) for each in ranks if each[key] != first]
        if others:
            raise RunError(
                f"The processes {what}: {', '.join(others)} another than 0 (of {len(ranks)}). Start"
                " the same command on all of them."
            )


def _gather_records(trainer: pl.Trainer, mine: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    return found
