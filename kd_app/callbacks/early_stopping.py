"""Early stopping on a metric of the validation images."""

from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from pydantic import NonNegativeFloat, PositiveInt

from kd_app.callbacks.rules import build_patience_need, check_monitor, list_all_metrics
from kd_app.config import Typed
from kd_app.config.length import LengthNeed


class EarlyStopping(Typed, LightningEarlyStopping):
    """End the training when the metric `monitor` was not better by more than
    `min_delta` in `patience` epochs in a row. The weights of the best epoch are
    exported, as in a training that does not stop.
    """

    def __init__(self, *, monitor: str, patience: PositiveInt, min_delta: NonNegativeFloat) -> None:
        metrics = list_all_metrics()
        check_monitor("callbacks.early_stopping.monitor", monitor, metrics)
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience,
            mode="max" if metrics[monitor] == "higher" else "min",
        )

    def list_length_needs(self) -> Iterator[LengthNeed]:
        """The epochs after which the training can stop before its end."""
        yield build_patience_need(self.patience)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a training that was killed between its last epoch and its end is resumed
        if self.wait_count >= self.patience:
            trainer.should_stop = True
