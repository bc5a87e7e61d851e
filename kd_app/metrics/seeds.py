"""What seeds do to a figure: statements about methods, where those over the images of
one test set are about models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

CORRECTION: Final = "Holm"
"""Against many comparisons: S. Holm, Scandinavian Journal of Statistics 6:65-70, 1979.
It holds whatever the dependence between them.
"""
_SPREAD = 1e-9
"""Values that differ by less are equal: the rest is rounding."""


@dataclass(frozen=True)
class SeedSummary:
    """A figure of one method.

    values: by seed · mean: of them · deviation: their standard deviation, with n - 1;
    None for one seed · low, high: Student's t-interval of the mean at `confidence`,
    ``mean -+ t(n - 1) deviation / sqrt(n)``; None for one seed, and where all values
    are equal: nothing is known of the spread.
    """

    values: dict[int, float]
    confidence: float
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SeedDifference(SeedSummary):
    """The same of a difference, paired by seed.

    p: two-sided, of 'the mean difference is 0' by the paired t-test; None where there
    is no interval · corrected: p after Holm's correction for the `compared` differences
    that were looked at together.
    """

    p: float | None
    corrected: float | None = None
    compared: int = 1


def summarize_seeds(values: Mapping[int, float], confidence: float) -> SeedSummary:
    """Mean and t-interval of a figure, by seed; at least one."""
    low, high, _ = _compute_t_interval(values, confidence)
    return SeedSummary(
        dict(values),
        confidence,
        float(np.mean(list(values.values()))),
        _compute_deviation(values),
        low,
        high,
    )


def compare_by_seed(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float
) -> SeedDifference | None:
    """`first` minus `second` over the seeds that both have; None where they have none
    in common.
    """
    values = {seed: first[seed] - second[seed] for seed in first if seed in second}
    if not values:
        return None
    low, high, p = _compute_t_interval(values, confidence)
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
    """The same differences, looked at together. One without a p counts among them as
    one that shows nothing.
    """
    if len(differences) < 2:
        return list(differences)
    from statsmodels.stats.multitest import multipletests

    together = multipletests(
        [1.0 if each.p is None else each.p for each in differences], method="holm"
    )[1]
    known = [
        None if each.p is None else float(p) for each, p in zip(differences, together, strict=True)
    ]
    return [
        replace(each, corrected=p, compared=len(differences))
        for each, p in zip(differences, known, strict=True)
    ]


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
