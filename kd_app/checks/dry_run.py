"""A short training of the real thing: the same loader, step, precision, validation and
checkpoints for a few batches, watched.
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

from kd_app.checks.context import CheckContext
from kd_app.config import RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.deployment.predictions import predict
from kd_app.models.create import LoadedModel, create, resolve_input
from kd_app.models.spec import ModelSpec
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import draft_role_job
from kd_app.training.callbacks import LAST
from kd_app.training.diagnostics import TermFault, compute_gradient_norms, find_faults
from kd_app.training.fit import MODEL, build_trained_spec, fit
from kd_app.training.job import JobTeacher
from kd_app.training.module import CHECKED_STEPS, Distillation
from kd_app.training.timing import (
    EpochSteps,
    EpochTimer,
    StepEstimate,
    count_steps_per_epoch,
    estimate,
)

_STEPS = 40
_EPOCHS = 6
_VALIDATION = 8


class TermProbe(Callback):
    """Looks at each term by itself in the first steps, and at the first batch again at
    the end.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], TermFault] = {}
        self.norms: list[dict[str, float]] = []
        self.before = self.after = math.nan
        self._first: Batch | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Each term's value and gradient, computed once more, before the step itself
        ends at the first that is wrong.
        """
        assert isinstance(pl_module, Distillation)
        if not pl_module.is_checked(trainer.global_step):
            return
        ready = replace(pl_module.prepare_batch(batch), progress=pl_module.progress)
        with trainer.precision_plugin.train_step_context():
            total, values = pl_module.compute_losses(ready)
        self.faults.update(
            {
                (fault.term, fault.kind): fault
                for fault in find_faults(pl_module.loss, values, pl_module.student, ready)
            }
        )
        self.norms.append(compute_gradient_norms(pl_module.loss, values, pl_module.student))
        if self._first is None:
            self._first, self.before = ready, float(total.detach())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loss of the first batch, as the trained model has it."""
        assert isinstance(pl_module, Distillation)
        assert self._first is not None
        pl_module.student.train()
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            self.after = float(pl_module.compute_losses(self._first)[0])

    def compute_shares(self) -> dict[str, float]:
        """Each term's mean share of the length of all gradients."""
        sums = {
            name: sum(norms[name] for norms in self.norms)
            for name in (self.norms[0] if self.norms else {})
        }
        return (
            {name: value / sum(sums.values()) for name, value in sums.items()}
            if sum(sums.values()) > 0
            else {}
        )


@dataclass(frozen=True)
class DryRun:
    """What a short training showed. seconds_an_epoch, setup_seconds: of the real one;
    answer_seconds: of one image, when it is measured.

    model_bytes, checkpoint_bytes: on disk; error: why it ended early, if it did.
    """

    role: str
    epochs: int
    faults: tuple[TermFault, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    before: float = math.nan
    after: float = math.nan
    steps: int = 0
    seconds_an_epoch: float = math.nan
    setup_seconds: float = 0.0
    answer_seconds: float = 0.0
    model_bytes: int = 0
    checkpoint_bytes: int = 0
    error: str = ""
    created: LoadedModel | None = None

    @property
    def seconds(self) -> float:
        """Of the whole real training."""
        return self.setup_seconds + self.epochs * self.seconds_an_epoch


def dry_run(subject: CheckContext, role: str, teacher: LoadedModel | None) -> DryRun:
    """Train the teacher, a control or the student for a few seconds in a folder that is
    thrown away.
    """
    shop, trainer = subject.shop, subject.shop.spec.trainer
    job = draft_role_job(shop, role)
    whole = count_steps_per_epoch(shop.data, trainer)
    steps, epochs = _choose_length(subject, role, teacher, whole.training)
    timed = EpochSteps(steps, min(whole.validation, _VALIDATION))
    folder = subject.scratch / role
    folder.mkdir(parents=True)
    short = replace(
        job,
        recipe=replace(job.recipe, max_epochs=epochs),
        teacher=_build_teacher(subject, teacher, timed.validation) if teacher else None,
    )
    looking, timer = TermProbe(), EpochTimer()
    checkpoint = _Size()
    start, error = time.perf_counter(), ""
    try:
        fit(short, shop.data, trainer.shorten(train=steps, validation=timed.validation), folder, console=Console(silent=True),
            callbacks=(looking, timer, checkpoint))  # fmt: skip
    except (RequestError, RunError) as reason:
        error = str(reason)
    took = time.perf_counter() - start
    seen = DryRun(role, job.recipe.max_epochs, tuple(looking.faults.values()), looking.compute_shares(), looking.before, looking.after,
                     steps * epochs, error=error)  # fmt: skip
    if error:
        return seen
    again = build_trained_spec(job.model, folder)
    return replace(
        seen,
        seconds_an_epoch=timer.sum_seconds(whole) + timer.estimate_overhead(timed),
        setup_seconds=max(0.0, took - epochs * median(timer.epochs)),
        answer_seconds=median(timer.validation) / shop.data.batch_size,
        model_bytes=sum(path.stat().st_size for path in (folder / MODEL).iterdir()),
        checkpoint_bytes=checkpoint.size,
        created=create(again, job.input, len(shop.classes), seed=0),
    )


class _Size(Callback):
    """How large a checkpoint is: at the training's end it is gone."""

    size = 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look."""
        path = Path(trainer.default_root_dir) / LAST
        self.size = path.stat().st_size if path.is_file() else 0


def _choose_length(
    subject: CheckContext, role: str, teacher: LoadedModel | None, batches: int
) -> tuple[int, int]:
    """Batches of an epoch and epochs that take about the limits' seconds, and hold steps
    that look at the terms and more that do not.
    """
    shop, accumulate = subject.shop, subject.shop.spec.trainer.accumulate_grad_batches
    step = _estimate(subject, shop.resolve_spec(role), train=True).training
    if teacher is not None and shop.spec.teacher is not None:
        step += _estimate(subject, shop.spec.teacher, train=False).inference
    least = (CHECKED_STEPS + 1) * accumulate
    steps = min(batches, max(least, min(_STEPS, int(subject.limits.seconds / 2 / step))))
    least_epochs = 1 + math.ceil(CHECKED_STEPS / math.ceil(steps / accumulate))
    return steps, max(least_epochs, min(_EPOCHS, int(subject.limits.seconds / step / steps)))


def _estimate(subject: CheckContext, request: ModelSpec, *, train: bool) -> StepEstimate:
    shop = subject.shop
    pixels = resolve_input(request, shop.compute_image_stats())
    model = create(request, pixels, len(shop.classes), seed=0).model
    return estimate(model, pixels, shop.data.batch_size, shop.spec.trainer, train=train)


def _build_teacher(subject: CheckContext, teacher: LoadedModel, batches: int) -> JobTeacher:
    """The teacher with its logits on the first batches of validation."""
    shop, folder = subject.shop, subject.scratch / "validation"
    assert shop.spec.teacher is not None
    source = JobTeacher(shop.spec.teacher, teacher)
    if shop.limit is not None:
        return source
    predictions = predict(
        teacher.model,
        shop.data.build_evaluation_loader("validation", teacher.pixels),
        teacher.pixels,
        device=shop.spec.trainer.device,
        limit=batches,
    )
    folder.mkdir(exist_ok=True)
    predictions.save(folder)
    return replace(source, validation_logits=folder)
