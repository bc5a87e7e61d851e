"""What all checks look at: a run's parts and data before it begins, its teacher, and a
sample of images with the teacher's answers.
"""

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
from kd_app.models.create import LoadedModel, create, resolve_input
from kd_app.run.role_jobs import build_teacher_job
from kd_app.run.train import find_trained
from kd_app.run.workspace import RunModel, Workspace

Share = Annotated[float, Field(gt=0, lt=1)]

PASSES = 12
"""About so often the sample is answered: as given, and in every other way that it could
have been meant.
"""
_LEAST = 64
_FIRST = 16


class Limits(Typed, called="check"):
    """How much is looked at and what counts as a fault; see ``conf/check.yaml``."""

    def __init__(
        self,
        *,
        seconds: PositiveFloat,
        images: PositiveInt,
        max_compared: PositiveInt,
        significance: Share,
        min_gain: Share,
        near_duplicate: Share,
        discordance: Share,
        max_gradient_share: Share,
        min_loss_drop: Share,
    ) -> None:
        self.seconds = seconds
        self.images = images
        self.max_compared = max_compared
        self.significance = significance
        self.min_gain = min_gain
        self.near_duplicate = near_duplicate
        self.discordance = discordance
        self.max_gradient_share = max_gradient_share
        self.min_loss_drop = min_loss_drop


@dataclass
class CheckContext:
    """A run that is looked at before it begins; `scratch` is a folder that is thrown
    away.
    """

    shop: Workspace
    limits: Limits
    judge: VerdictRule
    scratch: Path

    @cached_property
    def _as_it_is(self) -> tuple[RunModel | None, str]:
        """The teacher where a run would not train it; and why it would answer with a
        random head, where it would.
        """
        try:
            return self.shop.load_pretrained_teacher(), ""
        except RequestError as error:
            return None, str(error)

    @property
    def random_head(self) -> str:
        """Why the teacher would answer with a random head; empty where it would not."""
        return self._as_it_is[1]

    @cached_property
    def teacher(self) -> RunModel | None:
        """The teacher as the student would hear it, if there is one by now that has
        figures: used as it is, or trained by an earlier run.
        """
        if self.shop.spec.teacher is None or self.random_head or self.unmeasured:
            return None
        return self._as_it_is[0] or find_trained(self.shop, build_teacher_job(self.shop))

    @property
    def unmeasured(self) -> bool:
        """The teacher is used as it is, and its answers have no figures."""
        found = self._as_it_is[0]
        return found is not None and found.no_metrics_reason != ""

    @cached_property
    def any_teacher(self) -> LoadedModel | None:
        """The teacher, or what it would be before its training; None where there is
        none.
        """
        request = self.shop.spec.teacher
        if request is None:
            return None
        return (
            self.teacher.loaded
            if self.teacher
            else create(
                request,
                resolve_input(request, self.shop.compute_image_stats()),
                len(self.shop.classes),
                seed=0,
            )
        )

    @cached_property
    def images(self) -> int:
        """How many images judge the teacher: as many as the limits allow, and as can be
        answered in all the ways in four times their seconds.
        """
        assert self.teacher is not None
        first = self.load_batches(self.teacher.loaded.pixels, _FIRST)
        self.predict(first, self.teacher.loaded.pixels)
        start = time.perf_counter()
        self.predict(first, self.teacher.loaded.pixels)
        each = (time.perf_counter() - start) / sum(len(batch) for batch in first)
        return min(self.limits.images, max(_LEAST, int(4 * self.limits.seconds / PASSES / each)))

    @cached_property
    def sample(self) -> list[Batch]:
        """Images to judge the teacher by, as it expects them."""
        assert self.teacher is not None
        return self.load_batches(self.teacher.loaded.pixels, self.images)

    def load_batches(self, pixels: InputSpec, images: int) -> list[Batch]:
        """So many images of validation, and of train where these are too few, for a
        model that expects `pixels`.
        """
        found = list(self.shop.data.sample("validation", pixels, images))
        missing = images - sum(len(batch) for batch in found)
        return found + (
            list(self.shop.data.sample("train", pixels, missing)) if missing > 0 else []
        )

    def predict(self, batches: list[Batch], pixels: InputSpec) -> Predictions:
        """What the teacher says of these images, normalized as `pixels` says."""
        assert self.teacher is not None
        return predict(
            self.teacher.loaded.model, batches, pixels, device=self.shop.spec.trainer.device
        )

    @cached_property
    def answers(self) -> Predictions:
        """What the teacher says of the sample, fed as it is to be."""
        assert self.teacher is not None
        return self.predict(self.sample, self.teacher.loaded.pixels)

    @cached_property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """Where it is right."""
        return self.answers.hits


def swap_channels(batch: Batch) -> Batch:
    """With the channels in the opposite order."""
    return replace(batch, image=torch.flip(batch.image, dims=[1]))
