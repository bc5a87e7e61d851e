"""Is what was lost within the margin that was stated before the run?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field

from kd_app.config import Typed
from kd_app.metrics.intervals import bootstrap, class_starts, percentile, recalls
from kd_app.metrics.paired import mcnemar, paired_interval, score
from kd_app.metrics.per_image import per_image

Outcome = Literal["kept", "lost", "not shown"]
Judged = Literal["top1", "balanced_accuracy", "worst_class"]
POWER = 0.8


@dataclass(frozen=True)
class Judgment:
    """The verdict and what it rests on.

    difference: student minus teacher, in 0..1; low, high: its bounds, each one-sided at `confidence`.
    n_needed: images at which a set like this one would settle it with probability 0.8; None when it is settled, or would never be.
    mcnemar_p: two-sided p of 'neither has more images right than the other' (exact McNemar test), whatever the metric.
    """

    outcome: Outcome
    metric: Judged
    margin: float
    confidence: float
    difference: float
    low: float
    high: float
    num_images: int
    n_needed: int | None
    mcnemar_p: float


class Verdict(Typed):
    """The rule, stated before the run: the student is 'kept' when its `metric` is shown to be no more than `margin` below the teacher's.

    A paired non-inferiority test on the same images, one-sided at `confidence`: 'kept' if the lower bound of student minus teacher is above
    -margin, 'lost' if the upper bound is below it, else 'not shown'. top1: Tango's score test. balanced_accuracy and worst_class (the smallest
    recall of any class): paired bootstrap over the images, and nothing is settled while a class has fewer images than it takes to see such a
    loss in it once, with `confidence`.
    """

    def __init__(self, *, metric: Judged, margin: Annotated[float, Field(gt=0, lt=1)], confidence: Annotated[float, Field(gt=0.5, lt=1)]) -> None:
        self.metric: Judged = metric
        self.margin = margin
        self.confidence = confidence

    def judge(self, logits: Mapping[str, Float[np.ndarray, "images classes"]], target: Int64[np.ndarray, " images"], *, seed: int) -> Judgment:
        """Compare ``logits['student']`` with ``logits['teacher']``; `seed` is the bootstrap's."""
        student, teacher = (per_image(logits[name], target).hits for name in ("student", "teacher"))
        better, worse, n = int((student & ~teacher).sum()), int((teacher & ~student).sum()), len(target)
        found = self._over_images(better, worse, n) if self.metric == "top1" else self._over_classes(student, teacher, target, seed)
        outcome = self._outcome(found, n)
        needed = self._needed(found, n) if outcome == "not shown" else None
        return Judgment(
            outcome, self.metric, self.margin, self.confidence, found.difference, found.low, found.high, n, needed, mcnemar(better, worse)
        )

    def _over_images(self, better: int, worse: int, n: int) -> "_Evidence":
        low, high = paired_interval(better, worse, n, self.confidence)
        return _Evidence((better - worse) / n, low, high, score(better, worse, n, -self.margin), least=0)

    def _over_classes(
        self, student: Bool[np.ndarray, " images"], teacher: Bool[np.ndarray, " images"], target: Int64[np.ndarray, " images"], seed: int
    ) -> "_Evidence":
        order = np.argsort(target, kind="stable")
        student, teacher, starts = student[order], teacher[order], class_starts(target[order])
        summary = np.nanmean if self.metric == "balanced_accuracy" else np.nanmin

        def difference(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
            return {"difference": summary(recalls(weights, student, starts), axis=1) - summary(recalls(weights, teacher, starts), axis=1)}

        point = float(difference(np.ones((1, len(target))))["difference"][0])
        resampled = bootstrap(difference, len(target), seed=seed)["difference"]
        low, high = percentile(point, resampled, 2 * self.confidence - 1)
        spread = float(resampled.std())
        z = (point + self.margin) / spread if spread else math.inf
        return _Evidence(point, low, high, z, least=self._least(starts, len(target)))

    def _least(self, starts: Int[np.ndarray, " present"], n: int) -> int:
        """Images of a set like this one whose smallest class shows a loss of the margin, were it all in there, with the confidence."""
        hidden = min(0.99, self.margin * len(starts)) if self.metric == "balanced_accuracy" else self.margin
        in_class = math.log(1 - self.confidence) / math.log1p(-hidden)
        return math.ceil(n * in_class / int(np.diff(starts, append=n).min()))

    def _outcome(self, found: "_Evidence", n: int) -> Outcome:
        if n < found.least or found.low <= -self.margin <= found.high:
            return "not shown"
        return "kept" if found.low > -self.margin else "lost"

    def _needed(self, found: "_Evidence", n: int) -> int | None:
        """The score grows with the root of the number of images."""
        if found.z == 0:
            return None
        wanted = NormalDist().inv_cdf(self.confidence) + NormalDist().inv_cdf(POWER)
        return max(n + 1, found.least, math.ceil(n * (wanted / found.z) ** 2))


@dataclass(frozen=True)
class _Evidence:
    """z: score of the difference against -margin; least: images below which nothing is shown whatever they say."""

    difference: float
    low: float
    high: float
    z: float
    least: int
