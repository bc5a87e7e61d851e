"""The input of all checks: a run's parts and data before the run starts, the teacher,
and the teacher's predictions on a sample of images.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field, PositiveFloat, PositiveInt

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.data.batch import Batch
from kd_app.deployment.predictions import predict
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.create import create, resolve_input
from kd_app.models.spec import LoadedModel
from kd_app.run.forecast import Forecast, forecast_run
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_teacher_job
from kd_app.run.train import find_trained
from kd_app.run.workspace import Workspace

Share = Annotated[float, Field(gt=0, lt=1)]

PASSES = 12
"""Approximate number of passes over the sample: one with the configured input, and one
with each alternative (normalization, channel order, crop).
"""
_MIN_IMAGES = 64
_LEAST_SECONDS, _SHARE_OF_RUN = 60.0, 0.1
_TIMED_IMAGES = 16


class Limits(Typed, called="check"):
    """How much is checked, and the thresholds of the checks (``conf/check.yaml``)."""

    def __init__(
        self,
        *,
        minutes: PositiveFloat | None,
        seconds: PositiveFloat,
        images: PositiveInt,
        significance: Share,
        min_gain: Share,
        discordance: Share,
        max_gradient_share: Share,
        min_loss_drop: Share,
    ) -> None:
        self.minutes = minutes
        self.seconds = seconds
        self.images = images
        self.significance = significance
        self.min_gain = min_gain
        self.discordance = discordance
        self.max_gradient_share = max_gradient_share
        self.min_loss_drop = min_loss_drop

    def choose_seconds(self, forecast: Forecast | None) -> float:
        """Seconds of all checks: ``check.minutes``, or a share of the run's time."""
        if self.minutes is not None:
            return 60 * self.minutes
        return max(_LEAST_SECONDS, _SHARE_OF_RUN * forecast.seconds if forecast else 0.0)


@dataclass
class CheckContext:
    """A run before it starts.

    scratch: a temporary folder that the caller deletes. deadline: when the checks
    should end, as of `time.monotonic`. is_quick: whether a training follows, so that
    only checks that take seconds are run, and the teacher is `known_teacher`.
    """

    workspace: Workspace
    limits: Limits
    verdict_rule: VerdictRule
    scratch: Path
    deadline: float = math.inf
    is_quick: bool = False
    known_teacher: RunModel | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; not negative."""
        return max(self.deadline - time.monotonic(), 0.0)

    @cached_property
    def _pretrained_teacher(self) -> tuple[RunModel | None, str]:
        """The teacher if the run would not train it, and why its head is random, if it
        is.
        """
        if self.is_quick:
            return self.known_teacher, ""
        try:
            return self.workspace.load_pretrained_teacher(), ""
        except RequestError as error:
            return None, str(error)

    @property
    def is_ready(self) -> bool:
        """Whether the teacher is used without training."""
        return self._pretrained_teacher[0] is not None

    @property
    def trains_teacher(self) -> bool:
        """Whether the run trains the teacher, now or in an earlier attempt."""
        return self.workspace.spec.teacher is not None and not self.is_ready

    @property
    def random_head(self) -> str:
        """Why the teacher would predict with a random head; empty if it would not."""
        return self._pretrained_teacher[1]

    @cached_property
    def forecast(self) -> Forecast | None:
        """The estimated duration of the run, with that of a step of each model; None if
        the estimate fails.
        """
        return forecast_run(self.workspace, ready=self.is_ready)

    @cached_property
    def teacher(self) -> RunModel | None:
        """The teacher that the student would learn from: a pretrained one, or one that
        an earlier run trained. None if there is none yet, or if it can't be measured.
        """
        has_teacher = self.workspace.spec.teacher is not None
        if not has_teacher or self.random_head or self.is_unmeasured:
            return None
        return self._pretrained_teacher[0] or find_trained(
            self.workspace, build_teacher_job(self.workspace)
        )

    @property
    def is_unmeasured(self) -> bool:
        """Whether the teacher is pretrained and its outputs have no metrics."""
        teacher = self._pretrained_teacher[0]
        return teacher is not None and teacher.no_metrics_reason != ""

    @property
    def must_train_teacher(self) -> bool:
        """Whether the run itself would train the teacher first."""
        return (
            self.workspace.spec.teacher is not None
            and self.teacher is None
            and not self.random_head
            and not self.is_unmeasured
        )

    @cached_property
    def any_teacher(self) -> LoadedModel | None:
        """The teacher, as it is before its training if it is not trained yet. None if
        the run has no teacher.
        """
        spec = self.workspace.spec.teacher
        if spec is None:
            return None
        if self.teacher:
            return self.teacher.loaded
        input_spec = resolve_input(spec, self.workspace.compute_image_stats())
        return create(spec, input_spec, self.workspace.count_outputs(spec), seed=0)

    @cached_property
    def num_images(self) -> int:
        """Size of the sample on which the teacher is judged: at most ``check.images``,
        and small enough for `PASSES` passes in four times ``check.seconds`` and in half
        of the time that is left.
        """
        assert self.teacher is not None
        batches = self.load_batches(self.teacher.loaded.pixels, _TIMED_IMAGES)
        self.predict(batches, self.teacher.loaded.pixels)  # warm up
        start = time.perf_counter()
        self.predict(batches, self.teacher.loaded.pixels)
        per_image = (time.perf_counter() - start) / sum(len(batch) for batch in batches)
        seconds = min(4 * self.limits.seconds, self.seconds_left / 2)
        affordable = int(seconds / PASSES / per_image)
        return min(self.limits.images, max(_MIN_IMAGES, affordable))

    @cached_property
    def sample(self) -> list[Batch]:
        """The images on which the teacher is judged, with the teacher's own input."""
        assert self.teacher is not None
        return self.load_batches(self.teacher.loaded.pixels, self.num_images)

    def load_batches(self, input_spec: InputSpec, num_images: int) -> list[Batch]:
        """`num_images` images of validation, filled up with images of train, for a
        model with this input.
        """
        data = self.workspace.data
        batches = list(data.sample("validation", input_spec, num_images))
        missing = num_images - sum(len(batch) for batch in batches)
        if missing > 0:
            batches += data.sample("train", input_spec, missing)
        return batches

    def predict(self, batches: list[Batch], input_spec: InputSpec) -> Predictions:
        """The teacher's predictions on these images, normalized as `input_spec`."""
        assert self.teacher is not None
        device = self.workspace.spec.trainer.device
        return predict(self.teacher.loaded.model, batches, input_spec, device=device)

    @cached_property
    def predictions(self) -> Predictions:
        """The teacher's predictions on the sample, with the teacher's own input."""
        assert self.teacher is not None
        return self.predict(self.sample, self.teacher.loaded.pixels)

    @cached_property
    def judged(self) -> Predictions:
        """The predictions by which accuracy and class order are judged: on the sample,
        or, before a training, on all validation images: the training needs them, too.
        """
        if not self.is_quick or self.teacher is None:
            return self.predictions
        return self.workspace.load_predictions(self.teacher, "validation")

    @property
    def teacher_must_fit(self) -> bool:
        """Whether the student learns from the classes of a teacher that is ready."""
        spec = self.workspace.spec
        losses = [each.build_loss() for each in (spec.recipe, *spec.controls.values())]
        reads = frozenset[str]().union(*(loss.teacher_reads for loss in losses))
        is_ready = self.teacher is not None and self.teacher.folder is None
        return is_ready and bool(reads & {"logits", "classifier"})

    @cached_property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """Whether the teacher is right, for each image of the sample."""
        return self.predictions.hits


def swap_channels(batch: Batch) -> Batch:
    """Reverse the order of the image channels."""
    return replace(batch, image=torch.flip(batch.image, dims=[1]))
