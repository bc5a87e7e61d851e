"""Early stopping: its direction, and a resumed training."""

from typing import Any

import lightning.pytorch as pl
import pytest

from kd_app.callbacks.early_stopping import EarlyStopping
from tests.training.small_parts import plain_trainer


@pytest.mark.parametrize(
    ("monitor", "mode"), [("validation/top1", "max"), ("validation/nll", "min")]
)
def test_early_stopping_knows_the_direction(monitor: str, mode: str) -> None:
    callback = EarlyStopping(monitor=monitor, patience=3, min_delta=0.0)
    assert callback.mode == mode


def test_a_finished_training_stays_stopped_when_it_is_resumed() -> None:
    trainer: Any = plain_trainer()
    callback = EarlyStopping(monitor="validation/top1", patience=3, min_delta=0.0)
    for waited, stops in ((2, False), (3, True)):
        callback.wait_count = waited
        callback.on_train_start(trainer, pl.LightningModule())
        assert trainer.should_stop is stops
