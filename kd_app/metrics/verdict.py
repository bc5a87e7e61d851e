"""Verdict: whether the accuracy loss is within a margin that was set before the run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Final, Literal

import numpy as np
from jaxtyping import Bool, Int64, Real
from pydantic import Field

from kd_app.config import Typed
from kd_app.metrics.intervals import Interval, compute_wilson_bounds
from kd_app.metrics.paired import (
    compute_mcnemar_p,
    compute_paired_bounds,
    compute_paired_interval,
    compute_tango_score,
)
from kd_app.metrics.record import Record

Outcome = Literal["kept", "lost", "not shown"]
VerdictMetric = Literal["top1", "balanced_accuracy", "worst_class"]
POWER = 0.8
_MOST: Final = 1e6
"""Upper limit of the factor by which the number of images may grow in the search. A
larger factor means that the true difference is about the margin.
"""


@dataclass(frozen=True)
class Judgment:
    """The verdict and the numbers behind it.

    difference: candidate minus reference, as a share of 1 · low, high: bounds of the
    difference, each one-sided at `confidence` · n_needed: number of images with which a
    similar set would be decisive with probability 0.8; None if this set is decisive, or
    no set would be · mcnemar_p: two-sided p-value of 'both models get equally many
    images right' (exact McNemar test), for every metric · smallest_margin: the smallest
    margin for which this set would give 'kept', if both models were equally good and
    differed on as many images as here.
    """

    outcome: Outcome
    metric: VerdictMetric
    margin: float
    confidence: float
    difference: float
    low: float
    high: float
    num_images: int
    n_needed: int | None
    mcnemar_p: float
    smallest_margin: float


@dataclass(frozen=True)
class VerdictTally:
    """Counts for each class.

    n: images · candidate, reference: images that the candidate (the reference) gets
    right · better: images that only the candidate gets right · worse: images that only
    the reference gets right.
    """

    n: Real[np.ndarray, " present"]
    candidate: Real[np.ndarray, " present"]
    reference: Real[np.ndarray, " present"]
    better: Real[np.ndarray, " present"]
    worse: Real[np.ndarray, " present"]

    @classmethod
    def count(
        cls,
        candidate: Bool[np.ndarray, " images"],
        reference: Bool[np.ndarray, " images"],
        classes: Int64[np.ndarray, " images"],
    ) -> "VerdictTally":
        """Count the hits of both models by class; skip classes without images."""
        better, worse = candidate & ~reference, reference & ~candidate
        counts = [
            np.bincount(classes[rows])
            for rows in (slice(None), candidate, reference, better, worse)
        ]
        table = np.stack([np.pad(count, (0, len(counts[0]) - len(count))) for count in counts])
        return cls(*table[:, table[0] > 0])

    def balance(self) -> "VerdictTally":
        """The counts of two equally good models that differ on as many images."""
        half = (self.better + self.worse) // 2
        mean = (self.candidate + self.reference) / 2
        return VerdictTally(self.n, mean, mean, half, half)

    def scale(self, factor: float) -> "VerdictTally":
        """Multiply the number of images by `factor`, at the same rates."""
        return VerdictTally(*(factor * each for each in vars(self).values()))


def bound_balanced_accuracy(tally: VerdictTally, error: float, spare: float) -> Interval:
    """Bound the mean over classes of the difference in recall.

    Tango's bounds of each class are combined by the method of variance estimates
    recovery: ``D - sqrt(sum_k w^2 (d_k - low_k)^2)``, where w is one over the number of
    classes; likewise for the upper bound. G. Y. Zou and A. Donner, Statistics in
    Medicine 27:1693-1702, 2008.
    """
    d = (tally.better - tally.worse) / tally.n
    low, high = compute_paired_bounds(tally.better, tally.worse, tally.n, _compute_z(error) + spare)
    below, above = np.linalg.norm(d - low) / len(d), np.linalg.norm(high - d) / len(d)
    return float(d.mean() - below), float(d.mean() + above)


def bound_worst_class(tally: VerdictTally, error: float, spare: float) -> Interval:
    """Bound the difference of the smallest recalls of any class.

    ``min_k C_k - min_j R_j = min_k max_j (C_k - R_j)`` holds whichever classes are the
    worst, so simultaneous bounds for all pairs (k, j) of classes bound the difference.
    If k is j, the bounds are Tango's, with half of the error. If not, the images are
    independent and the bounds are Newcombe's hybrid of Wilson's intervals (Statistics
    in Medicine 17:873-890, 1998); these pairs share the other half of the error
    (Bonferroni).

    The smallest observed recall is biased downwards by selection. Neither bounds for
    the worst class alone nor the bootstrap correct for that.
    """
    own, other = error, error
    if len(tally.n) > 1:
        own, other = error / 2, error / 2 / (len(tally.n) - 1)
    c, r = tally.candidate / tally.n, tally.reference / tally.n
    (c_low, c_high), (r_low, r_high) = (
        compute_wilson_bounds(right, tally.n, _compute_z(other) + spare)
        for right in (tally.candidate, tally.reference)
    )
    d = c[:, None] - r[None, :]
    low = d - np.hypot((c - c_low)[:, None], (r_high - r)[None, :])
    high = d + np.hypot((c_high - c)[:, None], (r - r_low)[None, :])
    same = np.arange(len(d))
    low[same, same], high[same, same] = compute_paired_bounds(
        tally.better, tally.worse, tally.n, _compute_z(own) + spare
    )
    return float(low.max(axis=1).min()), float(high.min(axis=0).max())


def _compute_z(error: float) -> float:
    return NormalDist().inv_cdf(1 - error)


Bounds = Callable[[VerdictTally, float, float], Interval]
"""From (tally, error, spare) to the lower and upper bound of candidate minus reference.

Each bound misses the true value with probability `error`. `spare` is added to every
quantile.
"""
BOUNDS: Final[Mapping[VerdictMetric, Bounds]] = {
    "balanced_accuracy": bound_balanced_accuracy,
    "worst_class": bound_worst_class,
}
POINTS: Final[Mapping[VerdictMetric, Callable[[VerdictTally], float]]] = {
    "top1": lambda tally: float((tally.better - tally.worse).sum() / tally.n.sum()),
    "balanced_accuracy": lambda tally: float(((tally.better - tally.worse) / tally.n).mean()),
    "worst_class": lambda tally: float(
        (tally.candidate / tally.n).min() - (tally.reference / tally.n).min()
    ),
}


class VerdictRule(Typed):
    """Paired non-inferiority test of a candidate (the student) against a reference.

    The rule is set before the run and one-sided at `confidence`. The outcome is 'kept'
    if the lower bound of candidate minus reference is above -margin, 'lost' if the
    upper bound is below -margin, and 'not shown' otherwise.

    metric: 'top1' uses an exact test on Tango's score, whose error rate never exceeds
    the claimed one; 'balanced_accuracy' and 'worst_class' (the smallest recall of any
    class) combine the bounds of all classes. docs/verdict.md has the measured error
    rates for a true difference equal to the margin.
    """

    def __init__(
        self,
        *,
        metric: VerdictMetric,
        margin: Annotated[float, Field(gt=0, lt=1)],
        confidence: Annotated[float, Field(gt=0.5, lt=1)],
    ) -> None:
        self.metric: VerdictMetric = metric
        self.margin = margin
        self.confidence = confidence

    def judge(self, candidate: Record, reference: Record) -> Judgment:
        """Judge two models by their records of the same images."""
        tally = VerdictTally.count(candidate.hits, reference.hits, candidate.target)
        return self.judge_tally(tally)

    def judge_tally(self, tally: VerdictTally) -> Judgment:
        """Judge two models by their counts."""
        better, worse, n = (int(each.sum()) for each in (tally.better, tally.worse, tally.n))
        low, high = self._bound(tally)
        outcome: Outcome = "not shown"
        if low >= -self.margin:
            outcome = "kept"
        elif high <= -self.margin:
            outcome = "lost"
        needed = self._search_images_needed(tally, n) if outcome == "not shown" else None
        return Judgment(
            outcome=outcome,
            metric=self.metric,
            margin=self.margin,
            confidence=self.confidence,
            difference=POINTS[self.metric](tally),
            low=low,
            high=high,
            num_images=n,
            n_needed=needed,
            mcnemar_p=compute_mcnemar_p(better, worse),
            smallest_margin=-self._bound(tally.balance())[0],
        )

    def estimate_images_needed(
        self, target: Int64[np.ndarray, " images"], *, discordance: float
    ) -> int | None:
        """Number of images for a 'kept' with probability 0.8 if both models are equal.

        None for more than a million. `target` sets the proportions of the classes.
        `discordance` is the share of images that exactly one of the two models gets
        right, split evenly between them; it is also the error rate of each model.
        """
        share = np.bincount(target) / len(target)
        share = share[share > 0]
        right, half = share * (1 - discordance), share * discordance / 2
        return self._search_images_needed(VerdictTally(share, right, right, half, half), 1)

    def _bound(self, tally: VerdictTally) -> Interval:
        """The interval of the verdict."""
        if self.metric != "top1":
            return BOUNDS[self.metric](tally, 1 - self.confidence, 0.0)
        better, worse, n = (int(each.sum()) for each in (tally.better, tally.worse, tally.n))
        return compute_paired_interval(better, worse, n, self.confidence, at=-self.margin)

    def _search_images_needed(self, tally: VerdictTally, n: int) -> int | None:
        """Find the number of images that is decisive with probability 0.8.

        The quantile of the confidence is widened by that of this probability.
        """
        few, many = 1.0, _MOST
        if not self._is_decisive(tally.scale(many)):
            return None
        while many / few > 1.001:
            middle = math.sqrt(few * many)
            few, many = (few, middle) if self._is_decisive(tally.scale(middle)) else (middle, many)
        return max(n + 1, math.ceil(n * many))

    def _is_decisive(self, tally: VerdictTally) -> bool:
        """Whether another draw of these rates decides with probability 0.8, about. For
        'top1', Tango's score takes the place of the exact test.
        """
        spare = NormalDist().inv_cdf(POWER)
        if self.metric == "top1":
            better, worse, n = (each.sum() for each in (tally.better, tally.worse, tally.n))
            score = compute_tango_score(better, worse, n, -self.margin)
            return bool(abs(score) >= _compute_z(1 - self.confidence) + spare)
        low, high = BOUNDS[self.metric](tally, 1 - self.confidence, spare)
        return low >= -self.margin or high <= -self.margin
