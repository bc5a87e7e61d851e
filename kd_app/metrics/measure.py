"""What a metric is for one set of images: its value, and what its interval rests on."""

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
"""How often each resample holds each image, the images sorted by class."""
Column = Float[np.ndarray, " resamples"]
Draws = Float[np.ndarray, "resamples columns"]
Statistic = Callable[[Weights], Column]
Estimate = tuple[float, Interval]
UNKNOWN: Interval = (math.nan, math.nan)


@runtime_checkable
class Measure(Protocol):
    """Estimates a value and its interval; each class below has another interval."""

    @property
    def statistics(self) -> Sequence[Statistic]:
        """What is computed on each resample, a column of draws each."""

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """The value, NaN where it is undefined, and its bounds."""


@dataclass(frozen=True)
class Plain:
    """A value without an interval."""

    value: float
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """The value alone."""
        return self.value, UNKNOWN


@dataclass(frozen=True)
class Rate:
    """The share of the images that are hits, with Wilson's interval."""

    hits: Bool[np.ndarray, " images"]
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """In 0..1."""
        return estimate_rate(self.hits, confidence)


@dataclass(frozen=True)
class Sums:
    """A function of sums over the images, with the bootstrap's interval.

    columns: what each image adds, in the order of the record · reduce: from the sums of
    each resample to its value · reflect: the metric is 0 at best and resampling pushes
    it up, as an ECE, so that its interval is `reflect_interval`.
    """

    value: float
    columns: Float[np.ndarray, "images columns"]
    reduce: Callable[[Draws], Column]
    reflect: bool = False
    statistics: Sequence[Statistic] = ()

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """The value between percentiles of the draws, or reflected ones."""
        if not math.isfinite(self.value):
            return math.nan, UNKNOWN
        resampled = self.reduce(draws)
        if not self.reflect:
            return self.value, compute_percentile_interval(self.value, resampled, confidence)
        without = self.reduce(draws - self.columns.sum(axis=0))
        return self.value, reflect_interval(self.value, resampled, without, confidence)


@dataclass(frozen=True)
class Resampled:
    """Any function of the resamples, with the bootstrap's interval."""

    value: float
    statistic: Statistic

    @property
    def statistics(self) -> Sequence[Statistic]:
        """The function."""
        return (self.statistic,)

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """The value between percentiles of the draws."""
        return self.value, compute_percentile_interval(self.value, draws[:, 0], confidence)


@dataclass(frozen=True)
class Ratio:
    """`part` over `whole`, two values and their statistics; undefined where the
    interval of `whole` is not above 0.
    """

    part: Resampled
    whole: Resampled

    @property
    def statistics(self) -> Sequence[Statistic]:
        """Of both."""
        return (self.part.statistic, self.whole.statistic)

    def estimate(self, draws: Draws, confidence: float) -> Estimate:
        """The ratio between percentiles of its draws."""
        _, (low, _) = self.whole.estimate(draws[:, 1:], confidence)
        if low <= 0:
            return math.nan, UNKNOWN
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.part.value, self.whole.value))
            return value, compute_percentile_interval(value, draws[:, 0] / draws[:, 1], confidence)


def estimate_rate(hits: Bool[np.ndarray, " images"], confidence: float) -> Estimate:
    """The share of hits with Wilson's interval; NaN within (0, 1) without images."""
    count, n = int(hits.sum()), len(hits)
    return count / n if n else math.nan, compute_wilson_interval(count, n, confidence)


def resample(
    groups: Iterable[Mapping[str, Measure]], order: Int64[np.ndarray, " images"], *, seed: int
) -> list[dict[str, Draws]]:
    """The draws of the measures of each group, from the same 1,000 resamples of images;
    `order` sorts the images by class.
    """
    groups = list(groups)
    # One product a group: a product a measure would read the weights again each time.
    stacks = [_stack(group, order) for group in groups]

    def compute(weights: Weights) -> dict[str, Draws]:
        found: dict[str, Draws] = {}
        for number, (group, stack) in enumerate(zip(groups, stacks, strict=True)):
            sums = weights @ stack
            start = 0
            for name, measure in group.items():
                if isinstance(measure, Sums):
                    end = start + measure.columns.shape[1]
                    found[f"{number}.{name}"] = sums[:, start:end]
                    start = end
                else:
                    columns = [statistic(weights) for statistic in measure.statistics]
                    found[f"{number}.{name}"] = (
                        np.stack(columns, axis=1) if columns else np.empty((len(weights), 0))
                    )
        return found

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
