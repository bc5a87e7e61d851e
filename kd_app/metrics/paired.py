"""Two models on the same images: how far apart their accuracies could be.

`better` and `worse` count the images that only the first, or only the second, model has
right: the discordant pairs.
"""

from statistics import NormalDist
from typing import Final

import numpy as np
from jaxtyping import Float, Real

from kd_app.metrics.intervals import Interval

Numbers = Real[np.ndarray, "..."] | int | float
_STEPS: Final = 24
_NUISANCE: Final = 24
"""Rates of 'worse' at which the exact test looks: a quarter of a standard error apart.
"""
_FORGONE: Final = 0.02
"""Share of the error that the exact test spends on not knowing that rate."""
_TAIL: Final = 1e-9


def score(
    better: Numbers, worse: Numbers, n: Numbers, difference: Numbers
) -> Float[np.ndarray, "..."]:
    """Tango's score statistic, standard normal if the paired rates differ by
    `difference`; positive where the data lie above it.

    ``z = (better - worse - n d) / sqrt(n (2 q + d (1 - d)))``, q the rate of 'worse'
    that is most likely under d. It keeps its level where few pairs are discordant, zero
    included, where Wald's and McNemar's fail. T. Tango, Statistics in Medicine
    17:891-908, 1998.
    """
    better, worse, n, difference = (
        np.asarray(each, dtype=np.float64) for each in (better, worse, n, difference)
    )
    a, b, c = (
        2 * n,
        (2 * n - better + worse) * difference - better - worse,
        -worse * difference * (1 - difference),
    )
    q = (np.sqrt(np.maximum(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    over, variance = better - worse - n * difference, n * (2 * q + difference * (1 - difference))
    without = np.where(np.abs(over) > _TAIL, np.copysign(np.inf, over), 0.0)
    return np.where(variance > 0, over / np.sqrt(np.where(variance > 0, variance, 1.0)), without)


def compute_paired_bounds(
    better: Real[np.ndarray, " pairs"],
    worse: Real[np.ndarray, " pairs"],
    n: Real[np.ndarray, " pairs"],
    z: float,
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """The differences at which Tango's score is `z` and ``-z``: lower and upper bounds,
    of many pairs of rates at a time.
    """
    point = (better - worse) / n
    return -_find_root(worse, better, n, -point, z), _find_root(better, worse, n, point, z)


def _find_root(
    better: Real[np.ndarray, " pairs"],
    worse: Real[np.ndarray, " pairs"],
    n: Real[np.ndarray, " pairs"],
    point: Real[np.ndarray, " pairs"],
    z: float,
) -> Float[np.ndarray, " pairs"]:
    """The difference above `point` whose score is -z, by bisection: the score falls as
    the difference grows.
    """
    low, high = point, np.ones_like(point)
    for _ in range(45):
        middle = (low + high) / 2
        beyond = score(better, worse, n, middle) < -z
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high


def compute_paired_interval(better: int, worse: int, n: int, confidence: float) -> Interval:
    """All differences of paired rates that Tango's score test does not reject; each
    bound is one-sided at `confidence`.
    """
    low, high = compute_paired_bounds(
        np.array([better]), np.array([worse]), np.array([n]), NormalDist().inv_cdf(confidence)
    )
    return float(low[0]), float(high[0])


def is_shown_above(better: int, worse: int, n: int, difference: float, confidence: float) -> bool:
    """The paired rates differ by more than `difference`: said wrongly with a
    probability of at most ``1 - confidence``, whatever the truth.
    """
    return (
        compute_exact_p(better, worse, n, difference, forgone=_FORGONE * (1 - confidence))
        <= 1 - confidence
    )


def compute_exact_p(better: int, worse: int, n: int, difference: float, *, forgone: float) -> float:
    """p of 'the paired rates differ by at most `difference`', which is right at every n
    and every rate of discordant pairs.

    The probability of a Tango score at least as high as this one, the largest over the
    rates of 'worse' within their exact interval at ``1 - forgone``, plus `forgone`. R.
    L. Berger and D. D. Boos, JASA 89:1012-1016, 1994; Tango's statistic orders the
    tables as Barnard asks for: K. Sidik, Journal of Biopharmaceutical Statistics
    13:741-754, 2003.
    """
    if better - worse <= n * difference:
        return 1.0
    from scipy.stats import beta, binom

    least, most = max(0.0, -difference), (1 - difference) / 2
    ends = [
        beta.ppf(forgone / 2, worse, n - worse + 1) if worse else 0.0,
        beta.ppf(1 - forgone / 2, worse + 1, n - worse) if worse < n else 1.0,
    ]
    low, high = np.sqrt(np.clip(ends, least, most))
    q = np.clip(np.linspace(low, high, _NUISANCE) ** 2, least, most)
    tables = np.arange(int(binom.ppf(_TAIL, n, q[0])), int(binom.ppf(1 - _TAIL, n, q[-1])) + 1)
    fewest = _find_fewest(tables, n, difference, float(score(better, worse, n, difference)) - _TAIL)
    of_rest = np.clip((q + difference) / np.maximum(1 - q, _TAIL), 0, 1)
    beyond = binom.sf(fewest - 1, n - tables, of_rest[:, None])
    return float((binom.pmf(tables, n, q[:, None]) * beyond).sum(axis=1).max()) + forgone


def _find_fewest(
    worse: Real[np.ndarray, " tables"], n: int, difference: float, z: float
) -> Real[np.ndarray, " tables"]:
    """For each number of 'worse' the smallest number of 'better' whose score is at
    least z; one more than there can be where none is.
    """
    low, high = np.full(len(worse), -1), n - worse + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = score(np.maximum(middle, 0), worse, n, difference) >= z
        open_ = high - low > 1
        low, high = np.where(open_ & ~enough, middle, low), np.where(open_ & enough, middle, high)
    return high


def compute_exact_interval(
    better: int, worse: int, n: int, confidence: float, *, at: float
) -> Interval:
    """The differences that the exact test does not reject, each bound one-sided at
    `confidence`.

    `at` is the difference that matters: a bound lies beyond it if, and only if, the
    test rejects that very difference.
    """
    return _find_exact_low(better, worse, n, confidence, at), -_find_exact_low(
        worse, better, n, confidence, -at
    )


def _find_exact_low(better: int, worse: int, n: int, confidence: float, at: float) -> float:
    point = (better - worse) / n
    low, high = (
        (at, point) if is_shown_above(better, worse, n, at, confidence) else (-1.0, min(at, point))
    )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if is_shown_above(better, worse, n, middle, confidence)
            else (low, middle)
        )
    return low


def compute_mcnemar_p(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test (Q. McNemar, Psychometrika 1947): are
    discordant pairs split evenly?
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
