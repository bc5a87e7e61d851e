"""Is what was lost within the margin that was stated before the run?"""

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
from kd_app.metrics.paired import compute_exact_interval, compute_mcnemar_p, compute_paired_bounds
from kd_app.metrics.record import Record

Outcome = Literal["kept", "lost", "not shown"]
Judged = Literal["top1", "balanced_accuracy", "worst_class"]
POWER = 0.8
_MOST: Final = 1e6
"""Times as many images are never needed: the difference is the margin."""


@dataclass(frozen=True)
class Judgment:
    """The verdict and what it rests on.

    difference: candidate minus reference, in 0..1; low, high: its bounds, each
    one-sided at `confidence`. n_needed: images at which a set like this one would settle it with
    probability 0.8; None when it is settled, or would never be. mcnemar_p: two-sided p
    of 'neither has more images right than the other' (exact McNemar test), whatever the
    metric.
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


@dataclass(frozen=True)
class VerdictTally:
    """Counts of each class: `n` images, of which the candidate has `candidate` right and
    the reference `reference`. Only the candidate has `better` right, only the reference
    `worse`.
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
        """Count; classes without an image are left out."""
        counts = [
            np.bincount(classes[which])
            for which in (
                slice(None),
                candidate,
                reference,
                candidate & ~reference,
                reference & ~candidate,
            )
        ]
        whole = np.stack([np.pad(count, (0, len(counts[0]) - len(count))) for count in counts])
        return cls(*whole[:, whole[0] > 0])

    def scale(self, factor: float) -> "VerdictTally":
        """As many images more, with the same rates."""
        return VerdictTally(*(factor * each for each in vars(self).values()))


def bound_accuracy(tally: VerdictTally, error: float, spare: float) -> Interval:
    """Tango's bounds of the difference in accuracy."""
    better, worse, n = (each.sum(keepdims=True) for each in (tally.better, tally.worse, tally.n))
    low, high = compute_paired_bounds(better, worse, n, _compute_z(error) + spare)
    return float(low[0]), float(high[0])


def bound_balanced_accuracy(tally: VerdictTally, error: float, spare: float) -> Interval:
    """Bounds of the mean over classes of the differences in recall, from each class's
    bounds by Tango.

    ``D - sqrt(sum_k w^2 (d_k - low_k)^2)`` and the like above, w one over the number of
    classes: the method of variance estimates recovery. G. Y. Zou and A. Donner,
    Statistics in Medicine 27:1693-1702, 2008.
    """
    d = (tally.better - tally.worse) / tally.n
    low, high = compute_paired_bounds(tally.better, tally.worse, tally.n, _compute_z(error) + spare)
    return float(d.mean() - np.linalg.norm(d - low) / len(d)), float(
        d.mean() + np.linalg.norm(high - d) / len(d)
    )


def bound_worst_class(tally: VerdictTally, error: float, spare: float) -> Interval:
    """Bounds of the difference of the smallest recalls, ``min_k C_k - min_j R_j = min_k
    max_j (C_k - R_j)``, whichever the worst classes are.

    All pairs of classes have bounds that hold together: both models on one class by
    Tango with half of the error, two classes, whose images are independent, by
    Newcombe's hybrid of Wilson's intervals (Statistics in Medicine 17:873-890, 1998)
    with the other half shared among them (Bonferroni). The recall of a class that came
    out worst is too low by chance; bounds for one class alone, or the bootstrap, do not
    know that.
    """
    own, other = (
        (error, error) if len(tally.n) == 1 else (error / 2, error / 2 / (len(tally.n) - 1))
    )
    c, r = tally.candidate / tally.n, tally.reference / tally.n
    (c_low, c_high), (r_low, r_high) = (
        compute_wilson_bounds(right, tally.n, _compute_z(other) + spare)
        for right in (tally.candidate, tally.reference)
    )
    d = c[:, None] - r[None, :]
    low, high = (
        d - np.hypot((c - c_low)[:, None], (r_high - r)[None, :]),
        d + np.hypot((c_high - c)[:, None], (r - r_low)[None, :]),
    )
    same = np.arange(len(d))
    low[same, same], high[same, same] = compute_paired_bounds(
        tally.better, tally.worse, tally.n, _compute_z(own) + spare
    )
    return float(low.max(axis=1).min()), float(high.min(axis=0).max())


def _compute_z(error: float) -> float:
    return NormalDist().inv_cdf(1 - error)


Bounds = Callable[[VerdictTally, float, float], Interval]
"""Lower and upper bound of candidate minus reference, each missing the truth with the
probability `error`; `spare` is added to every quantile.
"""
BOUNDS: Final[Mapping[Judged, Bounds]] = {
    "top1": bound_accuracy,
    "balanced_accuracy": bound_balanced_accuracy,
    "worst_class": bound_worst_class,
}
POINTS: Final[Mapping[Judged, Callable[[VerdictTally], float]]] = {
    "top1": lambda tally: float((tally.better - tally.worse).sum() / tally.n.sum()),
    "balanced_accuracy": lambda tally: float(((tally.better - tally.worse) / tally.n).mean()),
    "worst_class": lambda tally: float(
        (tally.candidate / tally.n).min() - (tally.reference / tally.n).min()
    ),
}


class VerdictRule(Typed):
    """The rule, stated before the run: a candidate (the student) is 'kept' when its
    `metric` is shown to be no more than `margin` below that of a reference (the
    teacher).

    A paired non-inferiority test on the same images, one-sided at `confidence`: 'kept'
    if the lower bound of candidate minus reference is above -margin, 'lost' if the upper
    bound is below it, else 'not shown'. top1: an exact test on Tango's score, which is
    wrong at most as often as it says; balanced_accuracy and worst_class (the smallest
    recall of any class): bounds made from those of every class. How often each is wrong
    when the truth is the margin is measured in docs/verdict.md.
    """

    def __init__(
        self,
        *,
        metric: Judged,
        margin: Annotated[float, Field(gt=0, lt=1)],
        confidence: Annotated[float, Field(gt=0.5, lt=1)],
    ) -> None:
        self.metric: Judged = metric
        self.margin = margin
        self.confidence = confidence

    def judge(self, candidate: Record, reference: Record) -> Judgment:
        """Compare the records of two models on the same images."""
        return self.judge_tally(
            VerdictTally.count(candidate.hits, reference.hits, candidate.target)
        )

    def judge_tally(self, tally: VerdictTally) -> Judgment:
        """The verdict on what was counted."""
        better, worse, n = (int(each.sum()) for each in (tally.better, tally.worse, tally.n))
        exact = self.metric == "top1"
        low, high = (
            compute_exact_interval(better, worse, n, self.confidence, at=-self.margin)
            if exact
            else self._compute_bounds(tally, 0.0)
        )
        outcome: Outcome = (
            "kept" if low >= -self.margin else "lost" if high <= -self.margin else "not shown"
        )
        needed = self._search_images_needed(tally, n) if outcome == "not shown" else None
        p = compute_mcnemar_p(better, worse)
        return Judgment(
            outcome,
            self.metric,
            self.margin,
            self.confidence,
            POINTS[self.metric](tally),
            low,
            high,
            n,
            needed,
            p,
        )

    def estimate_images_needed(
        self, target: Int64[np.ndarray, " images"], *, discordance: float
    ) -> int | None:
        """Images in these classes' proportions on which a candidate as good as its
        reference is 'kept' with probability 0.8; None: more than a million.

        `discordance`: share of the images that one of both has right and the other
        wrong, half of them either way; so many does each have wrong.
        """
        share = np.bincount(target) / len(target)
        share = share[share > 0]
        right, half = share * (1 - discordance), share * discordance / 2
        return self._search_images_needed(VerdictTally(share, right, right, half, half), 1)

    def _compute_bounds(self, tally: VerdictTally, spare: float) -> Interval:
        return BOUNDS[self.metric](tally, 1 - self.confidence, spare)

    def _search_images_needed(self, tally: VerdictTally, n: int) -> int | None:
        """Of how many images with these rates bounds that are wider by what chance
        takes from four of five sets would settle it.
        """
        spare = NormalDist().inv_cdf(POWER)

        def settled(factor: float) -> bool:
            low, high = self._compute_bounds(tally.scale(factor), spare)
            return low >= -self.margin or high <= -self.margin

        few, many = 1.0, _MOST
        if not settled(many):
            return None
        while many / few > 1.001:
            middle = math.sqrt(few * many)
            few, many = (few, middle) if settled(middle) else (middle, many)
        return max(n + 1, math.ceil(n * many))
