"""Estimators of metrics: a value and its interval, on one set of images."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64

from kd_app.metrics.intervals import (
    Interval,
    bootstrap,
    compute_percentile_interval,
    compute_share_interval,
    reflect_interval,
)
from kd_app.metrics.paired import compute_paired_interval, is_shown_above

Weights = Float[np.ndarray, "resamples images"]
"""How often each resample includes each image; the images are sorted by class."""
Column = Float[np.ndarray, " resamples"]
Draws = Float[np.ndarray, "resamples columns"]
Statistic = Callable[[Weights], Column]
Estimate = tuple[float, Interval]
Hits = Bool[np.ndarray, " images"]
UNKNOWN: Interval = (math.nan, math.nan)
MIN_DISCORDANT = 10
"""Discordant images that a bootstrap of a difference needs."""


@runtime_checkable
class Measure(Protocol):
    """Estimates a value and its interval; each class below uses another interval."""

    @property
    def statistics(self) -> Sequence[Statistic]:
        """Functions of the resamples; each fills one column of the draws."""

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """Return the value (NaN if undefined) and its bounds."""


@dataclass(frozen=True)
class Plain:
    """A value without an interval."""

    value: float
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        return self.value, UNKNOWN


@dataclass(frozen=True)
class Rate:
    """The share of images that are hits, in 0..1, with its exact interval."""

    hits: Hits
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        return estimate_rate(self.hits, confidence)


@dataclass(frozen=True)
class Sums:
    """A function of sums over the images, with a bootstrap interval.

    columns: the terms that each image adds, in the order of the record · reduce: from
    the sums of each resample to the value · reflect: use `reflect_interval`, for a
    metric such as ECE that is 0 at best and that resampling biases upwards.
    """

    value: float
    columns: Float[np.ndarray, "images columns"]
    reduce: Callable[[Draws], Column]
    reflect: bool = False
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """Return the value between percentiles of the draws, or reflected ones."""
        if not math.isfinite(self.value):
            return math.nan, UNKNOWN
        resampled = self.reduce(draws)
        if not self.reflect:
            return self.value, compute_percentile_interval(self.value, resampled, confidence)
        without = self.reduce(draws - self.columns.sum(axis=0))
        return self.value, reflect_interval(self.value, resampled, without, confidence)


@dataclass(frozen=True)
class Resampled:
    """A function of the resamples, with a bootstrap interval."""

    value: float
    statistic: Statistic

    @property
    def statistics(self) -> Sequence[Statistic]:
        return (self.statistic,)

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """Return the value between percentiles of the draws."""
        return self.value, compute_percentile_interval(self.value, draws[:, 0], confidence)


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one model minus that of another on the same images, with the interval
    of the exact paired test.
    """

    first: Hits
    second: Hits
    statistics: Sequence[Statistic] = ()

    @property
    def value(self) -> float:
        return (self._better - self._worse) / len(self.first)

    @property
    def num_discordant(self) -> int:
        """Number of images that exactly one of the models gets right."""
        return self._better + self._worse

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        return self.value, self.bound(confidence)

    def bound(self, confidence: float) -> Interval:
        """The two-sided interval of the difference."""
        return compute_paired_interval(
            self._better, self._worse, len(self.first), 0.5 + confidence / 2
        )

    def is_positive(self, confidence: float) -> bool:
        """Whether the two-sided interval lies above 0."""
        n, level = len(self.first), 0.5 + confidence / 2
        return is_shown_above(self._better, self._worse, n, 0.0, level)

    @property
    def _better(self) -> int:
        return int((self.first & ~self.second).sum())

    @property
    def _worse(self) -> int:
        return int((self.second & ~self.first).sum())


@dataclass(frozen=True)
class PairedRatio:
    """Accuracy of one model over that of another on the same images.

    ``first / second = 1 + (first - second) / second``, on the images that at least one
    model gets right, as the others change nothing. The interval combines the exact
    intervals of the difference and of the second accuracy on these images, which miss
    with at most 80 % and 20 % of the error (Bonferroni). Undefined if the second
    accuracy is 0.
    """

    first: Hits
    second: Hits
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        rows, error = self.first | self.second, 1 - confidence
        hits, n = int(self.second.sum()), int(rows.sum())
        if hits == 0:
            return math.nan, UNKNOWN
        low, high = PairedDifference(self.first[rows], self.second[rows]).bound(1 - 0.8 * error)
        least, most = compute_share_interval(hits, n, 1 - 0.2 * error)
        bounds = (
            max(0.0, 1 + low / (least if low < 0 else most)),
            1 + high / (least if high > 0 else most),
        )
        return int(self.first.sum()) / hits, bounds


@dataclass(frozen=True)
class DifferenceRatio:
    """`part` over `whole`, two differences of accuracies, with a bootstrap interval.

    Undefined unless the interval of `whole` is above 0. A bootstrap of a few discordant
    images is too narrow: if `part`, or `rest` (whole minus part), has fewer than
    `MIN_DISCORDANT` of them, the ratio has no interval.

    order: sorts the images by class, as those of the resamples are.
    """

    part: PairedDifference
    whole: PairedDifference
    rest: PairedDifference
    order: Int64[np.ndarray, " images"]

    @property
    def statistics(self) -> Sequence[Statistic]:
        def average(difference: PairedDifference) -> Statistic:
            values = difference.first[self.order].astype(np.float64)
            values -= difference.second[self.order]
            return lambda weights: weights @ values / len(values)

        return average(self.part), average(self.whole)

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """Return the ratio between percentiles of the drawn ratios."""
        if not self.whole.is_positive(confidence):
            return math.nan, UNKNOWN
        value = self.part.value / self.whole.value
        if min(self.part.num_discordant, self.rest.num_discordant) < MIN_DISCORDANT:
            return value, UNKNOWN
        with np.errstate(divide="ignore", invalid="ignore"):
            return value, compute_percentile_interval(value, draws[:, 0] / draws[:, 1], confidence)


def estimate_rate(hits: Hits, confidence: float) -> Estimate:
    """The share of hits with its exact interval; NaN and (0, 1) without images."""
    count, n = int(hits.sum()), len(hits)
    return count / n if n else math.nan, compute_share_interval(count, n, confidence)


def resample(
    groups: Iterable[Mapping[str, Measure]], order: Int64[np.ndarray, " images"], *, seed: int
) -> list[dict[str, Draws]]:
    """Compute the draws of each group's measures on the same 1,000 resamples of images.

    `order` sorts the images by class.
    """
    groups = list(groups)
    # One product per group: one per measure would read all weights again each time.
    stacks = [_stack(group, order) for group in groups]

    def compute(weights: Weights) -> dict[str, Draws]:
        draws: dict[str, Draws] = {}
        for number, (group, stack) in enumerate(zip(groups, stacks, strict=True)):
            sums = weights @ stack
            start = 0
            for name, measure in group.items():
                if isinstance(measure, Sums):
                    end = start + measure.columns.shape[1]
                    draws[f"{number}.{name}"] = sums[:, start:end]
                    start = end
                else:
                    columns = [statistic(weights) for statistic in measure.statistics]
                    draws[f"{number}.{name}"] = (
                        np.stack(columns, axis=1) if columns else np.empty((len(weights), 0))
                    )
        return draws

    draws = bootstrap(compute, len(order), seed=seed)
    return [
        {name: draws[f"{number}.{name}"] for name in group} for number, group in enumerate(groups)
    ]


def _stack(
    group: Mapping[str, Measure], order: Int64[np.ndarray, " images"]
) -> Float[np.ndarray, "images columns"]:
    columns = [measure.columns for measure in group.values() if isinstance(measure, Sums)]
    stack: np.ndarray = np.concatenate([np.empty((len(order), 0)), *columns], axis=1)
    ordered: np.ndarray = stack[order]
    return ordered
