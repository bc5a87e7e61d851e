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
    compute_wilson_interval,
    reflect_interval,
)

Weights = Float[np.ndarray, "resamples images"]
"""How often each resample includes each image; the images are sorted by class."""
Column = Float[np.ndarray, " resamples"]
Draws = Float[np.ndarray, "resamples columns"]
Statistic = Callable[[Weights], Column]
Estimate = tuple[float, Interval]
UNKNOWN: Interval = (math.nan, math.nan)


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
    """The share of images that are hits, in 0..1, with Wilson's interval."""

    hits: Bool[np.ndarray, " images"]
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
class ResampledRatio:
    """`part` over `whole`, with a bootstrap interval.

    Undefined unless the interval of `whole` is above 0.
    """

    part: Resampled
    whole: Resampled

    @property
    def statistics(self) -> Sequence[Statistic]:
        return (self.part.statistic, self.whole.statistic)

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """Return the ratio between percentiles of the drawn ratios."""
        _, (low, _) = self.whole.estimate(draws[:, 1:], confidence)
        if low <= 0:
            return math.nan, UNKNOWN
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.part.value, self.whole.value))
            return value, compute_percentile_interval(value, draws[:, 0] / draws[:, 1], confidence)


def estimate_rate(hits: Bool[np.ndarray, " images"], confidence: float) -> Estimate:
    """The share of hits with Wilson's interval; NaN and (0, 1) without images."""
    count, n = int(hits.sum()), len(hits)
    return count / n if n else math.nan, compute_wilson_interval(count, n, confidence)


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
