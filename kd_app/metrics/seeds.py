"""Statistics over seeds.

Intervals over seeds are statements about methods; intervals over the images of one test
set are statements about models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

CORRECTION: Final = "Holm"
"""Correction for multiple comparisons, valid under any dependence between them.

S. Holm, Scandinavian Journal of Statistics 6:65-70, 1979.
"""
_SPREAD = 1e-9
"""Values that differ by less count as equal; such differences are rounding errors."""


@dataclass(frozen=True)
class SeedSummary:
    """An accuracy of one method over seeds, in 0..1.

    values: by seed · mean: mean of the values · deviation: their standard deviation,
    with n - 1; None for one seed · low, high: interval of the mean at `confidence`;
    None for one seed or equal values, which contain no information about the spread.

    The interval is Student's on the logit scale, ``logit(mean) -+ t(n - 1) deviation /
    (sqrt(n) mean (1 - mean))`` (delta method): it stays within 0..1, and covers the
    mean more often than Student's own for skewed accuracies near 1.
    """

    values: dict[int, float]
    confidence: float
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SeedDifference(SeedSummary):
    """A difference of two methods, paired by seed, with Student's t-interval.

    p: two-sided p-value of 'the mean difference is 0' by the paired t-test; None
    without an interval · corrected: p after Holm's correction for `compared`
    differences.
    """

    p: float | None
    corrected: float | None = None
    compared: int = 1


def summarize_seeds(values: Mapping[int, float], confidence: float) -> SeedSummary:
    """Mean and interval of an accuracy by seed; needs at least one seed."""
    mean = float(np.mean(list(values.values())))
    low, high, _ = _compute_t_interval(values, confidence)
    if low is not None and high is not None:
        half = (high - low) / 2 / (mean * (1 - mean))
        low, high = (_shift_logit(mean, shift) for shift in (-half, half))
    return SeedSummary(
        dict(values),
        confidence,
        mean,
        _compute_deviation(values),
        low,
        high,
    )


def compare_by_seed(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float
) -> SeedDifference | None:
    """`first` minus `second`, both in 0..1, over their common seeds; None if there are
    none.
    """
    values = {seed: first[seed] - second[seed] for seed in first if seed in second}
    if not values:
        return None
    low, high, p = _compute_t_interval(values, confidence)
    if low is not None and high is not None:
        low, high = max(-1.0, low), min(1.0, high)
    return SeedDifference(
        values,
        confidence,
        float(np.mean(list(values.values()))),
        _compute_deviation(values),
        low,
        high,
        p,
        p,
    )


def correct_for_multiplicity(differences: Sequence[SeedDifference]) -> list[SeedDifference]:
    """Apply Holm's correction to the differences.

    A difference without a p-value counts as one with p = 1.
    """
    if len(differences) < 2:
        return list(differences)
    p_values = np.array([1.0 if each.p is None else each.p for each in differences])
    order, factors = np.argsort(p_values, kind="stable"), np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return [
        replace(
            each,
            corrected=None if each.p is None else float(p),
            compared=len(differences),
        )
        for each, p in zip(differences, corrected, strict=True)
    ]


def _shift_logit(share: float, shift: float) -> float:
    """The share whose logit is that of `share` plus `shift`."""
    from scipy.special import expit, logit

    return float(expit(logit(share) + shift))


def _compute_deviation(values: Mapping[int, float]) -> float | None:
    return float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None


def _compute_t_interval(
    values: Mapping[int, float], confidence: float
) -> tuple[float | None, float | None, float | None]:
    numbers = np.array(list(values.values()))
    if len(numbers) < 2 or np.ptp(numbers) < _SPREAD:
        return None, None, None
    from scipy.stats import ttest_1samp

    test = ttest_1samp(numbers, 0.0)
    low, high = test.confidence_interval(confidence)
    return float(low), float(high), float(test.pvalue)
