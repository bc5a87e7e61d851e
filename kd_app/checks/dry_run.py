"""Trains each model of a run for a few seconds with the run's own loader, step,
precision, validation and checkpoints, and measures that training.
"""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from kd_app.callbacks.resumable_checkpoint import LAST
from kd_app.checks.context import CheckContext
from kd_app.config import RequestError, RunError
from kd_app.config.memory import explain_memory_error
from kd_app.data.batch import Batch
from kd_app.deployment.predictions import predict
from kd_app.models.create import create
from kd_app.models.spec import LoadedModel
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import draft_role_job
from kd_app.training.diagnostics import TermFault, compute_gradient_norms, find_faults
from kd_app.training.fit import MODEL, build_trained_spec, fit
from kd_app.training.job import JobTeacher
from kd_app.training.module import CHECKED_STEPS, Distillation
from kd_app.training.timing import (
    EpochSteps,
    EpochTimer,
    count_images_per_batch,
    count_steps_per_epoch,
)

_MAX_STEPS = 40
_MAX_EPOCHS = 6
_VALIDATION_BATCHES = 8


class TermProbe(Callback):
    """Records the faults and gradient norms of each loss term in the first steps, and
    the loss of the first batch before and after the training.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], TermFault] = {}
        self.norms: list[dict[str, float]] = []
        self.before = self.after = math.nan
        self._first: Batch | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute every loss term once more.

        The training step itself stops at the first faulty term.
        """
        assert isinstance(pl_module, Distillation)
        if not pl_module.is_checked(trainer.global_step):
            return
        prepared = replace(pl_module.prepare_batch(batch), progress=pl_module.progress)
        with trainer.precision_plugin.train_step_context():
            total, values = pl_module.compute_losses(prepared)
        for fault in find_faults(pl_module.loss, values, pl_module.student, prepared):
            self.faults[fault.term, fault.kind] = fault
        self.norms.append(compute_gradient_norms(pl_module.loss, values, pl_module.student))
        if self._first is None:
            self._first, self.before = prepared, float(total.detach())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the loss of the first batch with the trained model."""
        assert isinstance(pl_module, Distillation)
        assert self._first is not None
        pl_module.student.train()
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            self.after = float(pl_module.compute_losses(self._first)[0])

    def compute_shares(self) -> dict[str, float]:
        """Each term's share of the sum of all gradient norms; empty if that is zero."""
        names = self.norms[0] if self.norms else {}
        sums = {name: sum(norms[name] for norms in self.norms) for name in names}
        total = sum(sums.values())
        return {name: value / total for name, value in sums.items()} if total > 0 else {}


@dataclass(frozen=True)
class DryRun:
    """Result of a short training of one role.

    before, after: loss of the first batch before and after `steps` batches.
    from_random: whether the model has random weights before. seconds_per_epoch,
    setup_seconds: estimates for the full training. inference_seconds: per image.
    model_bytes, checkpoint_bytes: on disk. error: why the training failed, or empty.
    loaded: the trained model.
    """

    role: str
    epochs: int
    faults: tuple[TermFault, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    before: float = math.nan
    after: float = math.nan
    steps: int = 0
    from_random: bool = True
    seconds_per_epoch: float = math.nan
    setup_seconds: float = 0.0
    inference_seconds: float = 0.0
    model_bytes: int = 0
    checkpoint_bytes: int = 0
    error: str = ""
    loaded: LoadedModel | None = None

    @property
    def seconds(self) -> float:
        """Estimated seconds of the full training."""
        return self.setup_seconds + self.epochs * self.seconds_per_epoch


def train_briefly(
    context: CheckContext, role: str, teacher: LoadedModel | None, *, share: float = 1.0
) -> DryRun:
    """Train the teacher, a control or the student for about ``check.seconds`` in the
    scratch folder.

    share: of the time that is left, which may be used.
    """
    workspace, trainer = context.workspace, context.workspace.spec.trainer
    job = draft_role_job(workspace, role)
    full = count_steps_per_epoch(workspace.data, trainer)
    seconds_left = share * context.seconds_left
    num_steps, num_epochs = _choose_length(context, role, teacher, full.training, seconds_left)
    short = EpochSteps(num_steps, min(full.validation, _VALIDATION_BATCHES))
    folder = context.scratch / role
    folder.mkdir(parents=True)
    short_job = replace(
        job,
        recipe=replace(job.recipe, max_epochs=num_epochs),
        teacher=_build_teacher(context, teacher, short.validation) if teacher else None,
    )
    probe, timer, checkpoint = TermProbe(), EpochTimer(), _CheckpointSize()
    start, error = time.perf_counter(), ""
    try:
        with explain_memory_error(f"a short training of the {role}", workspace.spec.config):
            fit(
                short_job,
                workspace.data,
                trainer.shorten(train=short.training, validation=short.validation),
                folder,
                console=Console(silent=True),
                callbacks=(probe, timer, checkpoint),
            )
    except (RequestError, RunError) as reason:
        error = str(reason)
    seconds = time.perf_counter() - start
    result = DryRun(
        role,
        job.recipe.max_epochs,
        tuple(probe.faults.values()),
        probe.compute_shares(),
        probe.before,
        probe.after,
        num_steps * num_epochs,
        not job.model.origin.has_weights,
        error=error,
    )
    if error:
        return result
    trained = build_trained_spec(job.model, folder)
    return replace(
        result,
        seconds_per_epoch=timer.sum_seconds(full) + timer.estimate_overhead(short),
        setup_seconds=max(0.0, seconds - num_epochs * median(timer.epochs)),
        inference_seconds=(
            median(timer.validation) / count_images_per_batch(workspace.data, "validation")
        ),
        model_bytes=sum(path.stat().st_size for path in (folder / MODEL).iterdir()),
        checkpoint_bytes=checkpoint.size,
        loaded=create(trained, job.input, job.count_outputs(workspace.data), seed=0),
    )


class _CheckpointSize(Callback):
    """Records the size of a checkpoint, which the training deletes when done."""

    size = 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = Path(trainer.default_root_dir) / LAST
        self.size = path.stat().st_size if path.is_file() else 0


def _choose_length(
    context: CheckContext,
    role: str,
    teacher: LoadedModel | None,
    batches: int,
    seconds_left: float,
) -> tuple[int, int]:
    """Batches per epoch and epochs for about ``check.seconds`` of training.

    There are always steps that check the loss terms, and more that do not.
    """
    workspace = context.workspace
    accumulate = workspace.spec.trainer.accumulate_grad_batches
    known = context.forecast.steps if context.forecast else {}
    # Without an estimate the training has the fewest steps.
    step_seconds = known[role].training if role in known else math.inf
    if teacher is not None and "teacher" in known:
        step_seconds += known["teacher"].inference
    seconds = min(context.limits.seconds, seconds_left)
    min_steps = (CHECKED_STEPS + 1) * accumulate
    steps = min(batches, max(min_steps, min(_MAX_STEPS, int(seconds / 2 / step_seconds))))
    min_epochs = 1 + math.ceil(CHECKED_STEPS / math.ceil(steps / accumulate))
    return steps, max(min_epochs, min(_MAX_EPOCHS, int(seconds / step_seconds / steps)))


def _build_teacher(context: CheckContext, teacher: LoadedModel, batches: int) -> JobTeacher:
    """The teacher with its logits on the first batches of validation."""
    workspace, folder = context.workspace, context.scratch / "validation"
    assert workspace.spec.teacher is not None
    source = JobTeacher(workspace.spec.teacher, teacher)
    if workspace.limit is not None and workspace.task.reads_labels:
        return source
    predictions = predict(
        teacher.model,
        workspace.data.build_evaluation_loader("validation", teacher.pixels),
        teacher.pixels,
        device=workspace.spec.trainer.device,
        limit=batches,
    )
    folder.mkdir(exist_ok=True)
    predictions.save(folder)
    return replace(source, validation_logits=folder)
