"""The moving average of a student's weights."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kd_app.config import Typed
from kd_app.config.length import LengthNeed


def warm_up_decay(decay: float, updates: int) -> float:
    """``min(decay, (1 + updates) / (10 + updates))``: the average spans at most about a
    tenth of the steps so far, so that a short training is not averaged with its start.
    """
    return min(decay, (1 + updates) / (10 + updates))


class EMA(Typed, WeightAveraging):
    """Exponential moving average of the student: ``average = d * average + (1 - d) *
    weights`` after every step, where d is `warm_up_decay` of `decay`.

    The averaged weights are validated. The raw weights are validated, too, on the same
    batches: the better ones of all epochs are exported.
    """

    def __init__(self, *, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        self.decay = decay
        self.raw_metrics: dict[str, float] = {}
        """Metrics of the raw weights in the last validation, by which the best epoch is
        chosen.
        """
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        # `count` is a copy on the device of the weights, whose value is slow to read
        assert self._average_model is not None
        updates = int(self._average_model.n_averaged)
        update = get_ema_multi_avg_fn(warm_up_decay(self.decay, updates))
        pairs = zip(averages, weights, strict=True)
        update(averages, [weight.to(average.dtype) for average, weight in pairs], count)

    def list_length_needs(self) -> Iterator[LengthNeed]:
        """The steps after which the decay has its configured value."""
        yield LengthNeed(
            f"decay={self.decay:g}",
            math.ceil(max(0.0, (10 * self.decay - 1) / (1 - self.decay))),
            "steps",
            "the decay rises with the steps and stays below its value, so that the average"
            " forgets the first weights",
            "This does no harm; a smaller decay or more epochs have no such limit",
        )

    @property
    def other_student(self) -> nn.Module:
        """The student with the weights that the trained module does not hold: during a
        validation the raw weights, otherwise the average.
        """
        student: nn.Module = self._copy.student
        return student

    @property
    def _copy(self) -> Any:
        assert self._average_model is not None
        return self._average_model.module

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning copies the float32 model on the CPU before casting and moving the
        # model. The copy stays float32 for half precision, in which small updates would
        # round to zero.
        self._copy.to(pl_module.device)
        if pl_module.dtype == torch.float64:
            self._copy.double()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._copy.eval()
        self._copy.pair_metrics = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Validate the raw weights on the same batch."""
        with trainer.precision_plugin.val_step_context():
            self._copy.validation_step(batch, *args)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = self._copy.model_metrics.compute()
        self._copy.model_metrics.reset()
        self.raw_metrics = {name: float(metrics[name]) for name in self._copy.task.selection}
        super().on_validation_epoch_end(trainer, pl_module)
