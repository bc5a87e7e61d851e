"""A short training of the real thing: the same loader, step, precision, validation and
checkpoints for a few batches, watched.
"""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from kd_app.config import RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.deployment.measure import predict
from kd_app.models.create import Created, create
from kd_app.reporting.console import Console
from kd_app.training.callbacks import LAST
from kd_app.training.checks.subject import Subject
from kd_app.training.diagnostics import Fault, find_faults, gradient_norms
from kd_app.training.fit import MODEL, fit, trained
from kd_app.training.job import Teacher
from kd_app.training.module import CHECKED_STEPS, Distillation
from kd_app.training.plan import noise_seconds, steps_an_epoch
from kd_app.training.role_jobs import draft_job

_STEPS = 40
_EPOCHS = 6
_VALIDATION = 8


class Looking(Callback):
    """Looks at each term by itself in the first steps, and at the first batch again at
    the end.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], Fault] = {}
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
        self.norms.append(gradient_norms(pl_module.loss, values, pl_module.student))
        if self._first is None:
            self._first, self.before = ready, float(total.detach())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loss of the first batch, as the trained model has it."""
        assert isinstance(pl_module, Distillation)
        assert self._first is not None
        pl_module.student.train()
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            self.after = float(pl_module.compute_losses(self._first)[0])

    def shares(self) -> dict[str, float]:
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


class Stopwatch(Callback):
    """What an epoch costs: its steps, its validation, and the rest (checkpoint, start
    of the loader, its first step).
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []
        self.epochs: list[float] = []
        self._epoch = self._step = self._validation = 0.0
        self._counts = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first epochs, whose steps look at each term, do not count."""
        self._end_epoch()
        self._counts = trainer.global_step >= CHECKED_STEPS
        self._epoch = time.perf_counter()
        self._step = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From the beginning of a step to that of the next."""
        now = time.perf_counter()
        if self._counts and self._step:
            self.steps.append(now - self._step)
        self._step = now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._validation = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        if self._counts:
            self.validations.append(time.perf_counter() - self._validation)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last epoch ends here."""
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self._counts:
            self.epochs.append(time.perf_counter() - self._epoch)
        self._counts = False


@dataclass(frozen=True)
class Rehearsal:
    """What a short training showed. seconds_an_epoch, setup_seconds: of the real one;
    answer_seconds: of one image, when it is measured.

    model_bytes, checkpoint_bytes: on disk; error: why it ended early, if it did.
    """

    role: str
    epochs: int
    faults: tuple[Fault, ...] = ()
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
    created: Created | None = None

    @property
    def seconds(self) -> float:
        """Of the whole real training."""
        return self.setup_seconds + self.epochs * self.seconds_an_epoch


def rehearse(subject: Subject, role: str, teacher: Created | None) -> Rehearsal:
    """Train the teacher, a control or the student for a few seconds in a folder that is
    thrown away.
    """
    shop, trainer = subject.shop, subject.shop.parts.trainer
    job = draft_job(shop, role)
    batches, validation = steps_an_epoch(shop), _validation_batches(subject)
    steps, epochs = _length(subject, role, teacher, batches)
    measured = min(validation, _VALIDATION)
    folder = subject.scratch / role
    folder.mkdir(parents=True)
    short = replace(
        job,
        recipe=replace(job.recipe, max_epochs=epochs),
        teacher=_build_teacher(subject, teacher, measured) if teacher else None,
    )
    looking, watch = Looking(), Stopwatch()
    checkpoint = _Size()
    start, error = time.perf_counter(), ""
    try:
        fit(short, shop.data, trainer.short(train=steps, validation=measured), folder, console=Console(silent=True),
            callbacks=(looking, watch, checkpoint))  # fmt: skip
    except (RequestError, RunError) as reason:
        error = str(reason)
    took = time.perf_counter() - start
    seen = Rehearsal(role, job.recipe.max_epochs, tuple(looking.faults.values()), looking.shares(), looking.before, looking.after,
                     steps * epochs, error=error)  # fmt: skip
    if error:
        return seen
    step = float(np.median(watch.steps)) if watch.steps else 0.0
    evaluated = float(np.median(watch.validations)) / measured
    epoch = float(np.median(watch.epochs))
    rest = max(0.0, epoch - steps * step - measured * evaluated)
    again = trained(job.model, folder)
    return replace(
        seen,
        seconds_an_epoch=batches * step + validation * evaluated + rest,
        setup_seconds=max(0.0, took - epochs * epoch),
        answer_seconds=evaluated / shop.data.batch_size,
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


def _validation_batches(subject: Subject) -> int:
    shop, limit = subject.shop, subject.shop.parts.trainer.limits["limit_val_batches"]
    _, batches = shop.data.steps_per_epoch(shop.parts.trainer.world_size)
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * (limit or 1)))


def _length(subject: Subject, role: str, teacher: Created | None, batches: int) -> tuple[int, int]:
    """Steps of an epoch and epochs that take about the limits' seconds, and hold steps
    that look at the terms and more that do not.
    """
    shop = subject.shop
    step = noise_seconds(shop, shop.request(role), train=True)[0]
    if teacher is not None and shop.parts.teacher is not None:
        step += noise_seconds(shop, shop.parts.teacher, train=False)[1]
    steps = min(batches, _STEPS, max(CHECKED_STEPS + 1, int(subject.limits.seconds / 2 / step)))
    least = 1 + math.ceil(CHECKED_STEPS / steps)
    return steps, max(least, min(_EPOCHS, int(subject.limits.seconds / step / steps)))


def _build_teacher(subject: Subject, teacher: Created, batches: int) -> Teacher:
    """The teacher with its logits on the first batches of validation."""
    shop, folder = subject.shop, subject.scratch / "validation"
    assert shop.parts.teacher is not None
    source = Teacher(shop.parts.teacher, teacher)
    if shop.limit is not None:
        return source
    predictions = predict(
        teacher.model,
        shop.data.evaluation("validation", teacher.pixels),
        teacher.pixels,
        device=shop.parts.trainer.device,
        limit=batches,
    )
    folder.mkdir(exist_ok=True)
    predictions.save(folder)
    return replace(source, validation_logits=folder)
