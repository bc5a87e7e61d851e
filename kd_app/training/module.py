"""The one LightningModule: teacher, control and student are all trained by it."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kd_app.config import Pixels, RunError
from kd_app.config.schedule import Schedule
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.metrics.classification import measures
from kd_app.metrics.pair import pair_measures
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.stages import write_atomically
from kd_app.training.dot import TwoMomenta
from kd_app.training.optimizer import Optimizer, Trained
from kd_app.training.stored import StoredAnswers
from kd_app.training.terms import WeightedTerms

NOT_FINITE = "not_finite.json"
CHECKED_STEPS = 3
"""So many first steps look at every term by itself: finite, not zero, with a gradient.
"""


@dataclass(frozen=True)
class Answers:
    """A teacher's stored answers: ``index [N]``, ascending, and ``logits [N, K]``."""

    index: Tensor
    logits: Tensor

    def of(self, index: Tensor) -> Tensor:
        """``[B, K]``: the answers for these images."""
        rows = torch.searchsorted(self.index, index.cpu())
        return self.logits[rows].to(index.device)


class Distillation(pl.LightningModule):
    """Train `student` on the weighted sum of `terms`, with what `teacher` says of the
    same view; without a teacher it is supervised training.

    pixels: what the student expects, where batches are uint8; None where they come
    normalized. answers: the teacher's on the validation images, for agreement and KL
    during training. from_random: nothing was learned before (sets the learning rate
    where that is 'auto'). skips: somebody leaves out the steps that are not finite, so
    they end nothing and are in no mean. stored: what a teacher says of every view, in
    its place. decay: `teacher` is a copy of the student, and moves with it. Works with
    a plain Trainer and any LightningDataModule whose batches are `Batch` or (image,
    target). Logs the means of the loss and of each term since the last time, every
    `log_every` steps, and the present weight of each term that has a schedule; every
    `gradient_share` steps, in the first batch of the step, what
    `WeightedTerms.gradients` says.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        terms: WeightedTerms,
        teacher: FrozenTeacher | None = None,
        pixels: Pixels | None = None,
        num_classes: int,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        from_random: bool = True,
        answers: Answers | None = None,
        channels_last: bool = True,
        log_every: int = 50,
        gradient_share: int | None = None,
        skips: bool = False,
        stored: StoredAnswers | None = None,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        self.student = student.train()
        self.terms = terms
        self.teacher = teacher
        self.pixels = pixels
        self.answers = answers
        self.measures = measures(num_classes)
        self.pair = pair_measures() if answers else None
        self._taps = Taps(student, terms.reads)
        self._make_optimizer, self._schedule = optimizer, schedule
        self._seed, self._from_random = seed, from_random
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._log_every = log_every
        self._gradient_share = gradient_share
        self._total_steps = 1
        self._skips = skips
        self._stored = stored
        self._decay = decay
        self._labels: Tensor | None = None
        self._window: list[Tensor] = []
        self._seen: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over the student and the adapters; the learning rate is set
        before every step.
        """
        if self.dtype in (torch.float16, torch.bfloat16):
            self.terms.float()  # a 'true' half precision is the models'; losses and their adapters stay in float32
        trained = Trained({"student": self.student, "terms": self.terms})
        clips = self.trainer.gradient_clip_val is not None and "mixed" in str(
            self.trainer.precision
        )  # Lightning clips no fused optimizer then
        return self._make_optimizer.make(trained, from_random=self._from_random, fused=not clips)

    def on_train_start(self) -> None:
        """Know how many optimizer steps there will be."""
        batches, epochs = self.trainer.num_training_batches, self.trainer.max_epochs
        if not epochs or epochs < 0 or math.isinf(batches):
            raise RunError(
                "The schedule needs a number of epochs and of batches in an epoch: set"
                " trainer.max_epochs and give the loader a length."
            )
        self._total_steps = max(
            1, math.ceil(batches / self.trainer.accumulate_grad_batches) * epochs
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and seed dropout and drop-path, both as functions of
        the position alone: nothing to save, nothing to lose.
        """
        for optimizer in self.trainer.optimizers:
            factor = self._schedule.factor(self.progress)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        step = self.trainer.current_epoch * 1_000_003 + batch_idx
        seed = (self._seed * 1_000_000_007 + step) * 1_009 + self.trainer.global_rank
        generator = (
            torch.default_generator
            if self.device.type == "cpu"
            else torch.cuda.default_generators[self.device.index or 0]
        )
        generator.manual_seed(seed % 2**63)

    @property
    def progress(self) -> float:
        """Share of the training that is done, in the middle of the present step."""
        return self._progress_at(self.trainer.global_step + 1)

    def _progress_at(self, step: int) -> float:
        """In the middle of optimizer step `step`, of which the first is 1."""
        return min((step - 0.5) / self._total_steps, 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch; in the first steps every distillation term must be
        finite, not zero, and teach (`RunError` otherwise).
        """
        ready = replace(self.prepared(batch), progress=self.progress)
        total, values = self.losses(ready)
        if self.is_checked(self.trainer.global_step):
            self.terms.check(values, self.student, ready)
        if (
            self._gradient_share
            and self.trainer.global_step % self._gradient_share == 0
            and batch_idx % self.trainer.accumulate_grad_batches == 0
        ):
            seen = self.terms.gradients(values, self.student, ready.progress)
            self._tell(
                {f"train/{name}": value for name, value in seen.items()},
                self.trainer.global_step + 1,
            )
        if isinstance(self.trainer.optimizers[0], TwoMomenta):
            self._labels = self.terms.from_labels(values, ready.progress)
        self._window.append(
            torch.stack([total.detach(), *(value.detach() for value in values.values())])
        )
        self._seen.append(ready.index)
        if len(self._window) >= self._log_every:
            self._flush(step=self.trainer.global_step + 1)
        return total

    def is_checked(self, step: int) -> bool:
        """Whether every term is looked at by itself in the step after `step` others. A
        teacher that is the student's average is the student at 0.
        """
        return (0 if self._decay is None else 1) <= step < CHECKED_STEPS

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the student, and of the teacher that is its average."""
        super().optimizer_step(*args, **kwargs)
        if self._decay is not None:
            self._follow(min(self._decay, 1 - 1 / (self.trainer.global_step + 2)))

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """``average = decay * average + (1 - decay) * state``; what counts is copied."""
        assert self.teacher is not None
        state = self.student.state_dict()
        for name, average in self.teacher.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(state[name].to(average.dtype), 1 - decay)
            else:
                average.copy_(state[name])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Through the loss; before that, for an optimizer that keeps it apart, through
        the part of it that reads no teacher.
        """
        optimizer, labels = self.trainer.optimizers[0], self._labels
        self._labels = None
        if isinstance(optimizer, TwoMomenta) and labels is not None:
            optimizer.keep_apart(labels / self.trainer.accumulate_grad_batches)
        super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient by its norm, what is kept apart of it with it."""
        apart = self.trainer.optimizers[0]
        if isinstance(apart, TwoMomenta) and gradient_clip_val is not None:
            apart.clip(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def losses(self, ready: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prepared batch, and each term of it."""
        total: Tensor
        total, values = self.terms(self._taps(ready.image), self._said(ready), ready)
        return total, values

    def _said(self, ready: Batch) -> Outputs:
        """What the teacher says of the batch; nothing where there is none."""
        if self._stored is not None:
            return Outputs(
                logits=self._stored.of(ready).to(
                    torch.float64 if self.dtype == torch.float64 else torch.float32
                )
            )
        if self.teacher is None:
            return Outputs()
        said: Outputs = self.teacher(ready.image if ready.other is None else ready.other)
        return said

    def _flush(self, step: int) -> None:
        """Log the window's means as of optimizer step `step`; a loss that is not finite
        ends the run by name.
        """
        if not self._window:
            return
        window, seen = torch.stack(self._window), list(self._seen)
        self._window.clear()
        self._seen.clear()
        finite = window.isfinite().all(dim=1)
        if not finite.all():
            if not self._skips:
                raise self._blame(window, seen, step)
            window = window[finite]
            if not len(window):
                return
        names, means = ["loss", *self.terms.weights], window.mean(dim=0).tolist()
        values = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        progress = self._progress_at(step)
        values.update(
            {
                f"train/{name}_weight": self.terms.weight(name, progress)
                for name in self.terms.schedules
            }
        )
        self._tell({**values, "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]}, step)

    def _blame(self, window: Tensor, seen: list[Tensor], step: int) -> RunError:
        """The error for the term that broke first: what comes after it is broken too.
        All images of that batch are in ``not_finite.json``.
        """
        batch, term = next(iter((~window[:, 1:].isfinite()).nonzero().tolist()), (0, 0))
        step -= (len(window) - 1 - batch) // self.trainer.accumulate_grad_batches
        name, images = (
            list(self.terms.weights)[term],
            [index for index in seen[batch].tolist() if index >= 0],
        )
        folder = Path(self.trainer.default_root_dir)
        write_atomically(
            folder / NOT_FINITE,
            json.dumps(
                {"term": name, "step": step, "epoch": self.trainer.current_epoch, "images": images}
            ),
        )
        listed = (
            f" (images {', '.join(map(str, images[:5]))} ...; all {len(images)} in"
            f" {folder / NOT_FINITE})"
            if images
            else ""
        )
        return RunError(
            f"The loss term {name} is not finite at step {step}{listed}. The last good state is"
            " kept. Lower optimizer.lr or set trainer.gradient_clip to train anew, or leave such"
            " steps out with trainer.on_nan=skip, which goes on from the last good state."
        )

    def _tell(self, values: dict[str, float], step: int) -> None:
        """One point of the curves. Not by Lightning, which numbers the steps of a
        validation otherwise than those of the training.
        """
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": float(self.trainer.current_epoch)}, step=step)

    def on_train_epoch_end(self) -> None:
        """Log what is left of the window."""
        self._flush(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was not logged yet; a loss that is not finite ends the run instead,
        and leaves the last good state alone.
        """
        if not self._skips and not all(bool(row.isfinite().all()) for row in self._window):
            self._flush(self.trainer.global_step)
        if self._decay is not None and self.teacher is not None:
            checkpoint["average"] = self.teacher.model.state_dict()
        checkpoint["window"], checkpoint["seen"] = list(self._window), list(self._seen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with what was not logged yet, and with the average."""
        if self._decay is not None and self.teacher is not None:
            self.teacher.model.load_state_dict(checkpoint["average"])
        self._window = [row.to(self.device) for row in checkpoint["window"]]
        self._seen = list(checkpoint["seen"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the student, and how it agrees with the teacher, on one batch."""
        batch = self.prepared(batch)
        if not len(batch):
            return
        logits = self.student(batch.image).float()
        self.measures.update(logits, batch.hard_target())
        if self.pair is not None and self.answers is not None:
            self.pair.update(logits, self.answers.of(batch.index), batch.hard_target())

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
            self._tell(
                {name: float(value) for name, value in values.items()}, self.trainer.global_step
            )

    def prepared(self, given: Any) -> Batch:
        """A batch of any data module as a `Batch` of normalized float pixels in the
        right memory format.
        """
        batch: Batch = (
            given
            if isinstance(given, Batch)
            else Batch(given[0], given[1], torch.full((len(given[0]),), -1, device=given[0].device))
        )
        return replace(
            batch,
            image=self._normalized(batch.image),
            other=None if batch.other is None else self._normalized(batch.other),
        )

    def _normalized(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            assert self.pixels is not None, "uint8 images need the student's pixels"
            return normalize(image, self.pixels, self._memory_format).to(self.dtype)
        return image.to(self.dtype, memory_format=self._memory_format)
