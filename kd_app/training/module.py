"""The one LightningModule: it trains teachers, controls and students."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kd_app.config import InputSpec, RunError
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.metrics.classification import build_model_metrics
from kd_app.metrics.pair import build_pair_metrics
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.schedules import Schedule
from kd_app.stages import write_atomically
from kd_app.training.diagnostics import check_terms, compute_gradient_shares
from kd_app.training.loss import DistillationLoss
from kd_app.training.loss_window import LossWindow, NonFinite
from kd_app.training.optimizer import Optimizer, SplitsGradients, Trained
from kd_app.training.teacher_cache import TeacherLogits
from kd_app.training.teacher_source import TeacherSource

NOT_FINITE = "not_finite.json"
CHECKED_STEPS = 3
"""In the first steps every distillation term must be finite, non-zero and give the student
a gradient.
"""


@dataclass(frozen=True)
class StepOptions:
    """How `Distillation` makes and logs a step.

    log_every: steps between two logged means. gradient_share: steps between two looks at
    each term's share of the gradient; None for none. skip_nonfinite: a callback drops
    non-finite steps, so they neither raise nor enter the logged means.
    """

    seed: int = 0
    channels_last: bool = True
    log_every: int = 50
    gradient_share: int | None = None
    skip_nonfinite: bool = False


class Distillation(pl.LightningModule):
    """Train `student` on `loss` with the outputs of `teacher` for the same view; without
    a teacher it is supervised training.

    pixels: the student's input, for uint8 batches; None if batches come normalized.
    from_random: the student starts from random weights (decides ``optimizer.lr=auto``).
    validation_logits: the teacher's, to measure agreement and KL during training.

    Works with a plain Trainer and any LightningDataModule whose batches are `Batch` or
    (image, target). Logs the means of the loss and of each term, the weight of each term
    that has a schedule, and on request `compute_gradient_shares` of a step's first batch.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        teacher: TeacherSource | None = None,
        pixels: InputSpec | None = None,
        num_classes: int,
        optimizer: Optimizer,
        schedule: Schedule,
        from_random: bool = True,
        validation_logits: TeacherLogits | None = None,
        options: StepOptions | None = None,
    ) -> None:
        super().__init__()
        self.student = student.train()
        self.loss = loss
        self.teacher = teacher
        self.pixels = pixels
        self.validation_logits = validation_logits
        self.measures = build_model_metrics(num_classes)
        self.pair = build_pair_metrics() if validation_logits else None
        self.options = options or StepOptions()
        self._memory_format = (
            torch.channels_last if self.options.channels_last else torch.contiguous_format
        )
        self._taps = Taps(student, loss.reads)
        self._make_optimizer, self._schedule = optimizer, schedule
        self._from_random = from_random
        self._splitter: SplitsGradients | None = None
        self._label_loss: Tensor | None = None
        self._total_steps = 1
        self._window = LossWindow(list(loss.weights))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over the student and the adapters; the learning rate is set
        before every step.
        """
        if self.dtype in (torch.float16, torch.bfloat16):
            # a 'true' half precision is for the models; losses and adapters stay in float32
            self.loss.float()
        trained = Trained({"student": self.student, "terms": self.loss})
        # Lightning refuses to clip the gradients of a fused optimizer in mixed precision
        clips = self.trainer.gradient_clip_val is not None and "mixed" in str(
            self.trainer.precision
        )
        return self._make_optimizer.make(trained, from_random=self._from_random, fused=not clips)

    def on_train_start(self) -> None:
        """Compute the number of optimizer steps; find out what the optimizer needs."""
        batches, epochs = self.trainer.num_training_batches, self.trainer.max_epochs
        if not epochs or epochs < 0 or math.isinf(batches):
            raise RunError(
                "The schedule needs a number of epochs and of batches in an epoch: set"
                " trainer.max_epochs and give the loader a length."
            )
        self._total_steps = max(
            1, math.ceil(batches / self.trainer.accumulate_grad_batches) * epochs
        )
        optimizer = self.trainer.optimizers[0]
        self._splitter = optimizer if isinstance(optimizer, SplitsGradients) else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and seed dropout and drop-path, both as functions of
        the position alone, so that a resumed training needs no saved state.
        """
        for optimizer in self.trainer.optimizers:
            factor = self._schedule.compute_factor(self.progress)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        step = self.trainer.current_epoch * 1_000_003 + batch_idx
        seed = (self.options.seed * 1_000_000_007 + step) * 1_009 + self.trainer.global_rank
        generator = (
            torch.default_generator
            if self.device.type == "cpu"
            else torch.cuda.default_generators[self.device.index or 0]
        )
        generator.manual_seed(seed % 2**63)

    @property
    def progress(self) -> float:
        """The share of the training that is done in the middle of the present step."""
        return self._compute_progress(self.trainer.global_step + 1)

    def _compute_progress(self, step: int) -> float:
        """The same for optimizer step `step`, of which the first is 1."""
        return min((step - 0.5) / self._total_steps, 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch; `check_terms` looks at the first steps."""
        batch = replace(self.prepare_batch(batch), progress=self.progress)
        total, values = self.compute_losses(batch)
        if self.is_checked(self.trainer.global_step):
            check_terms(self.loss, values, self.student, batch)
        if self._is_share_step(batch_idx):
            shares = compute_gradient_shares(self.loss, values, self.student, batch.progress)
            self._log(
                {f"train/{name}": value for name, value in shares.items()},
                self.trainer.global_step + 1,
            )
        if self._splitter is not None:
            self._label_loss = self.loss.label_loss(values, batch.progress)
        self._window.append(total, values, batch.index)
        if len(self._window) >= self.options.log_every:
            self._flush(step=self.trainer.global_step + 1)
        return total

    def is_checked(self, step: int) -> bool:
        """Whether the terms are checked in the step that follows `step` others."""
        starts_equal = self.teacher is not None and self.teacher.starts_as_student
        return int(starts_equal) <= step < CHECKED_STEPS

    def _is_share_step(self, batch_idx: int) -> bool:
        """Whether the gradient shares of this batch are logged."""
        every = self.options.gradient_share
        return (
            every is not None
            and self.trainer.global_step % every == 0
            and batch_idx % self.trainer.accumulate_grad_batches == 0
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the student, then of a teacher that moves with it."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            self.teacher.update_after_step(self.student, self.trainer.global_step + 1)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward through the loss; before it through the part that reads no teacher,
        for an optimizer that splits gradients.
        """
        label_loss, self._label_loss = self._label_loss, None
        if self._splitter is not None and label_loss is not None:
            self._splitter.split_gradients(label_loss / self.trainer.accumulate_grad_batches)
        super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient by its norm; an optimizer that splits it clips both parts."""
        if self._splitter is not None and gradient_clip_val is not None:
            self._splitter.clip_gradients(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def compute_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prepared batch, and each of its terms without weight."""
        total: Tensor
        total, values = self.loss(self._taps(batch.image), self._run_teacher(batch), batch)
        return total, values

    def _run_teacher(self, batch: Batch) -> Outputs:
        return Outputs() if self.teacher is None else self.teacher.compute_outputs(batch)

    def _flush(self, step: int) -> None:
        """Log the means of the window as of optimizer step `step`; a loss that is not
        finite raises.
        """
        if not self._window:
            return
        if not self.options.skip_nonfinite and not self._window.is_finite():
            raise self._build_nonfinite_error(self._window.find_first_nonfinite(), step)
        means = self._window.compute_finite_means()
        self._window.clear()
        if not means:
            return
        values = {f"train/{name}": mean for name, mean in means.items()}
        progress = self._compute_progress(step)
        for name in self.loss.schedules:
            values[f"train/{name}_weight"] = self.loss.weight(name, progress)
        self._log({**values, "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]}, step)

    def _build_nonfinite_error(self, broken: NonFinite, step: int) -> RunError:
        """The error for a broken term; writes all images of its batch to
        ``not_finite.json``.
        """
        step -= broken.batches_after // self.trainer.accumulate_grad_batches
        images, path = broken.images, Path(self.trainer.default_root_dir) / NOT_FINITE
        record = {"term": broken.term, "step": step, "epoch": self.trainer.current_epoch}
        write_atomically(path, json.dumps({**record, "images": images}))
        listed = (
            f" (images {', '.join(map(str, images[:5]))} ...; all {len(images)} in {path})"
            if images
            else ""
        )
        return RunError(
            f"The loss term {broken.term} is not finite at step {step}{listed}. The last good"
            " state is kept. Lower optimizer.lr or set trainer.gradient_clip_val to train anew, or"
            " leave such steps out with trainer.on_nan=skip, which goes on from the last good"
            " state."
        )

    def _log(self, values: dict[str, float], step: int) -> None:
        """Write one point of the curves."""
        # not by self.log: Lightning numbers the steps of a validation in another way
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": float(self.trainer.current_epoch)}, step=step)

    def on_train_epoch_end(self) -> None:
        """Log the rest of the window."""
        self._flush(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the values that are not logged yet, and the state of the teacher. A loss
        that is not finite raises instead, so that the last good state stays.
        """
        if not self.options.skip_nonfinite and not self._window.is_finite():
            self._flush(self.trainer.global_step)
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.read_training_state()
        checkpoint["window"] = self._window.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        if self.teacher is not None:
            self.teacher.load_training_state(checkpoint["teacher"])
        self._window.load_state_dict(checkpoint["window"], self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the student, and its agreement with the teacher, on one batch."""
        batch = self.prepare_batch(batch)
        if not len(batch):
            return
        logits = self.student(batch.image).float()
        self.measures.update(logits, batch.to_hard_target())
        if self.pair is not None and self.validation_logits is not None:
            self.pair.update(
                logits, self.validation_logits.select(batch.index), batch.to_hard_target()
            )

    def on_validation_epoch_end(self) -> None:
        """Log every measure over the whole validation set, exact under any number of
        ranks.
        """
        values = {f"validation/{name}": value for name, value in self.measures.compute().items()}
        self.measures.reset()
        if self.pair is not None:
            values.update(
                {f"validation/{name}": value for name, value in self.pair.compute().items()}
            )
            self.pair.reset()
        self.log_dict(values, logger=False)
        if not self.trainer.sanity_checking:
            self._log(
                {name: float(value) for name, value in values.items()}, self.trainer.global_step
            )

    def prepare_batch(self, raw: Any) -> Batch:
        """A batch of any data module as a `Batch` of normalized float pixels in the
        right memory format.
        """
        batch = raw if isinstance(raw, Batch) else _number_no_images(raw[0], raw[1])
        return replace(
            batch,
            image=self._normalize(batch.image),
            other=None if batch.other is None else self._normalize(batch.other),
        )

    def _normalize(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            assert self.pixels is not None, "uint8 images need the student's pixels"
            return normalize(image, self.pixels, self._memory_format).to(self.dtype)
        return image.to(self.dtype, memory_format=self._memory_format)


def _number_no_images(image: Tensor, target: Tensor) -> Batch:
    return Batch(image, target, torch.full((len(image),), -1, device=image.device))
