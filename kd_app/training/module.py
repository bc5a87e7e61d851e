"""The LightningModule that trains teachers, controls and students."""

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
from kd_app.data.targets import normalize_target
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.optimizers.optimizer import GradientSplitter, Optimizer, TrainedModules
from kd_app.schedules import Schedule
from kd_app.stages import write_atomically
from kd_app.tasks.base import Task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.teacher_outputs.cache import TeacherLogits
from kd_app.teacher_outputs.source import TeacherSource
from kd_app.training.diagnostics import check_terms, compute_gradient_shares
from kd_app.training.freeze import fix_frozen_modes
from kd_app.training.loss_window import LossWindow, NonFinite

NOT_FINITE = "not_finite.json"
CHECKED_STEPS = 3
"""The number of first steps in which `check_terms` checks the loss terms."""


@dataclass(frozen=True)
class StepOptions:
    """How `Distillation` runs and logs a step.

    log_every: batches between two logged means. gradient_share: optimizer steps between
    two logged gradient shares; None: no gradient shares. skip_nonfinite: a callback
    skips non-finite steps, so such steps neither raise nor enter the logged means.
    """

    seed: int = 0
    channels_last: bool = True
    log_every: int = 50
    gradient_share: int | None = None
    skip_nonfinite: bool = False


class Distillation(pl.LightningModule):
    """Train `student` on `loss` with the outputs of `teacher` for the same view;
    without a teacher, train `student` on labels alone.

    input_spec: the student's input, to normalize uint8 batches; None if batches are
    normalized. from_random: the student starts from random weights (decides
    ``optimizer.lr=auto``). validation_logits: the teacher's logits on the validation
    images, to measure agreement and KL during training. num_classes: the width of the
    student's output. task: what the student learns and how it is measured.

    Works with a plain Trainer and any LightningDataModule whose batches are `Batch` or
    (image, target). Logs the means of the loss and of each term, the weight of each
    term with a schedule, and, if configured, `compute_gradient_shares` of a step's
    first batch.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        teacher: TeacherSource | None = None,
        input_spec: InputSpec | None = None,
        num_classes: int,
        task: Task = CLASSIFICATION,
        optimizer: Optimizer,
        schedule: Schedule,
        from_random: bool = True,
        validation_logits: TeacherLogits | None = None,
        options: StepOptions | None = None,
    ) -> None:
        super().__init__()
        self.student = student.train()
        fix_frozen_modes(self.student)
        self.loss = loss
        self.teacher = teacher
        self.input_spec = input_spec
        self.num_classes = num_classes
        self.task = task
        self.validation_logits = validation_logits
        self.model_metrics = task.build_metrics(num_classes)
        self.pair_metrics = task.build_pair_metrics() if validation_logits else None
        self.options = options or StepOptions()
        self._memory_format = (
            torch.channels_last if self.options.channels_last else torch.contiguous_format
        )
        self._taps = Taps(student, task.map_reads(loss.reads))
        self._optimizer_settings, self._schedule = optimizer, schedule
        self._from_random = from_random
        self._splitter: GradientSplitter | None = None
        self._label_loss: Tensor | None = None
        self._total_steps = 1
        self._window = LossWindow(list(loss.weights))
        self._diverged = torch.zeros((), dtype=torch.bool)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build one optimizer over the student and the adapters."""
        if self.dtype in (torch.float16, torch.bfloat16):
            # '16-true' and 'bf16-true' apply to the models, not to losses and adapters
            self.loss.float()
        modules = TrainedModules({"student": self.student, "terms": self.loss})
        # Lightning does not clip gradients of a fused optimizer in mixed precision
        is_mixed = "mixed" in str(self.trainer.precision)
        is_clipped = self.trainer.gradient_clip_val is not None
        return self._optimizer_settings.make(
            modules, from_random=self._from_random, fused=not (is_clipped and is_mixed)
        )

    def on_train_start(self) -> None:
        """Count the optimizer steps; detect an optimizer that splits gradients."""
        batches, epochs = self.trainer.num_training_batches, self.trainer.max_epochs
        if not epochs or epochs < 0 or math.isinf(batches):
            raise RunError(
                "The schedule needs the number of epochs and the number of batches in an epoch. Set"
                " trainer.max_epochs, and use a data loader with a length."
            )
        self._total_steps = max(
            1, math.ceil(batches / self.trainer.accumulate_grad_batches) * epochs
        )
        optimizer = self.trainer.optimizers[0]
        self._splitter = optimizer if isinstance(optimizer, GradientSplitter) else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and seed dropout and drop-path."""
        # both depend on the position alone, so a resumed training needs no saved state
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
        """The completed share (0..1) of the training in the middle of the step."""
        return self._compute_progress(self.trainer.global_step + 1)

    def _compute_progress(self, step: int) -> float:
        """The progress in the middle of optimizer step `step` (the first is 1)."""
        return min((step - 0.5) / self._total_steps, 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of one batch; check the loss terms in the first steps."""
        batch = replace(self.prepare_batch(batch), progress=self.progress)
        is_checked = self.is_checked(self.trainer.global_step)
        if is_checked:
            self.task.check_batch(batch, self.num_classes)
        total, values = self.compute_losses(batch)
        if is_checked:
            check_terms(self.loss, values, self.student, batch)
        if self._is_share_step(batch_idx):
            shares = compute_gradient_shares(self.loss, values, self.student, batch.progress)
            self._log(
                {f"train/{name}": value for name, value in shares.items()},
                self.trainer.global_step + 1,
            )
        if self._splitter is not None:
            self._label_loss = self.loss.compute_label_loss(values, batch.progress)
        self._window.append(total, values, batch.index)
        if len(self._window) >= self.options.log_every:
            self._flush(step=self.trainer.global_step + 1)
        return total

    def is_checked(self, step: int) -> bool:
        """Whether the terms are checked in the step after `step` optimizer steps."""
        # a teacher that equals the student makes distillation terms zero in the first
        # step
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
        """Update the student, then a teacher that follows the student."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            self.teacher.update_after_step(self.student, self.trainer.global_step + 1)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate; first through the label loss if the optimizer splits
        gradients.
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
        """Clip the norm of the gradient; an optimizer that splits gradients clips both
        parts.
        """
        if self._splitter is not None and gradient_clip_val is not None:
            self._splitter.clip_gradients(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def compute_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prepared batch, and the unweighted value of each term."""
        total: Tensor
        student = self._taps(batch.image)
        teacher = Outputs() if self.teacher is None else self.teacher.compute_outputs(batch)
        ours, theirs = self.task.map_outputs(student), self.task.map_outputs(teacher)
        total, values = self.loss(ours, theirs, batch)
        return total, values

    def _flush(self, step: int) -> None:
        """Log the means of the window at optimizer step `step`; raise `RunError` for a
        non-finite loss.
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
            values[f"train/{name}_weight"] = self.loss.compute_weight(name, progress)
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self._log({**values, "train/lr": rate}, step)

    def _build_nonfinite_error(self, fault: NonFinite, step: int) -> RunError:
        """Write the images of the batch to ``not_finite.json`` and build the error."""
        step -= fault.batches_after // self.trainer.accumulate_grad_batches
        images, path = fault.images, Path(self.trainer.default_root_dir) / NOT_FINITE
        record = {"term": fault.term, "step": step, "epoch": self.trainer.current_epoch}
        write_atomically(path, json.dumps({**record, "images": images}))
        hint = ""
        if images:
            first = ", ".join(map(str, images[:5]))
            hint = f" (images {first} ...; {path} lists all {len(images)})"
        return RunError(
            f"The loss term {fault.term} is not finite at step {step}{hint}. The last finite state"
            " is saved. To train again from the start, lower optimizer.lr or set"
            " trainer.gradient_clip_val. To resume from the saved state and skip such steps, set"
            " trainer.on_nan=skip."
        )

    def _log(self, values: dict[str, float], step: int) -> None:
        # not self.log, which numbers the steps of a validation differently
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": float(self.trainer.current_epoch)}, step=step)

    def on_train_epoch_end(self) -> None:
        self._flush(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the unlogged values and the state of the teacher."""
        # raises for a non-finite loss, so that the last finite checkpoint is not
        # replaced
        if not self.options.skip_nonfinite and not self._window.is_finite():
            self._flush(self.trainer.global_step)
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.read_training_state()
        checkpoint["window"] = self._window.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.teacher is not None:
            self.teacher.load_training_state(checkpoint["teacher"])
        self._window.load_state_dict(checkpoint["window"], self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the student's metrics and the metrics of student and teacher."""
        batch = self.prepare_batch(batch)
        if not len(batch):
            return
        logits = self.student(batch.image).float()
        self._diverged = self._diverged | ~logits.isfinite().all()
        self.task.update_metrics(
            self.model_metrics, self.pair_metrics, logits, batch, self.validation_logits
        )

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set, over all ranks.

        Raises `RunError` for NaN or infinite logits, which have no class.
        """
        self._check_diverged()
        metrics = dict(self.model_metrics.compute())
        self.model_metrics.reset()
        if self.pair_metrics is not None:
            metrics.update(self.pair_metrics.compute())
            self.pair_metrics.reset()
        values = {f"validation/{name}": value for name, value in metrics.items()}
        self.log_dict(values, logger=False)
        if not self.trainer.sanity_checking:
            self._log(
                {name: float(value) for name, value in values.items()}, self.trainer.global_step
            )

    def _check_diverged(self) -> None:
        # all ranks decide alike
        if not self.trainer.strategy.reduce(self._diverged.float(), reduce_op="max"):
            return
        # a loss that is not finite explains more
        self._flush(self.trainer.global_step)
        raise RunError(
            f"The model returned NaN or infinite logits for validation images after step"
            f" {self.trainer.global_step}: the training diverged. Lower optimizer.lr, set"
            " trainer.gradient_clip_val, or use trainer.precision=32-true, and train again."
        )

    def prepare_batch(self, raw: Any) -> Batch:
        """Convert a batch of any data module to a `Batch` with normalized images in the
        student's dtype and memory format.
        """
        batch = raw if isinstance(raw, Batch) else _build_unnumbered_batch(raw[0], raw[1])
        return replace(
            batch,
            target=normalize_target(batch.target),
            image=self._normalize(batch.image),
            other=None if batch.other is None else self._normalize(batch.other),
        )

    def _normalize(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            assert self.input_spec is not None, "uint8 images need the student's input_spec"
            return normalize(image, self.input_spec, self._memory_format).to(self.dtype)
        return image.to(self.dtype, memory_format=self._memory_format)


def _build_unnumbered_batch(image: Tensor, target: Tensor) -> Batch:
    return Batch(image, target, torch.full((len(image),), -1, device=image.device))
