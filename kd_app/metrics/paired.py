"""Tests and intervals for the accuracy difference of two models on the same images.

`better` counts the images that only the first model gets right, `worse` those that only
the second model gets right: the discordant pairs.
"""

from functools import lru_cache
from math import sqrt
from typing import Final

import numpy as np
from jaxtyping import Float, Real

from kd_app.metrics.intervals import Interval, compute_share_interval

Numbers = Real[np.ndarray, "..."] | int | float
_WIDTH: Final = 4e-6
"""How exact a bound is."""
_NUISANCE: Final = 24
"""Number of rates of 'worse' in the exact test, a quarter of a standard error apart."""
_NUISANCE_SHARE: Final = 0.02
"""Share of the error that the exact test spends on the unknown rate of 'worse'."""
_TAIL: Final = 1e-9


def compute_tango_score(
    better: Numbers, worse: Numbers, n: Numbers, difference: Numbers
) -> Float[np.ndarray, "..."]:
    """Tango's score statistic; positive if the observed difference is larger.

    ``z = (better - worse - n d) / sqrt(n (2 q + d (1 - d)))``, where q is the most
    likely rate of 'worse' under d. The statistic is standard normal if the paired rates
    differ by d. The test keeps its level with few or no discordant pairs, where Wald's
    and McNemar's tests fail. T. Tango, Statistics in Medicine 17:891-908, 1998.
    """
    better, worse, n, difference = (
        np.asarray(each, dtype=np.float64) for each in (better, worse, n, difference)
    )
    # q solves a q^2 + b q + c = 0.
    a = 2 * n
    b = (2 * n - better + worse) * difference - better - worse
    c = -worse * difference * (1 - difference)
    q = (np.sqrt(np.maximum(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    excess = better - worse - n * difference
    variance = n * (2 * q + difference * (1 - difference))
    limit = np.where(np.abs(excess) > _TAIL, np.copysign(np.inf, excess), 0.0)
    return np.where(variance > 0, excess / np.sqrt(np.where(variance > 0, variance, 1.0)), limit)


def compute_paired_bounds(
    better: Real[np.ndarray, " pairs"],
    worse: Real[np.ndarray, " pairs"],
    n: Real[np.ndarray, " pairs"],
    z: float,
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Lower and upper bounds: the differences at which Tango's score is `z` and ``-z``.

    Vectorized over many pairs of rates.
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
    """Find the difference above `point` whose score is -z.

    Bisection works because the score falls as the difference grows.
    """
    low, high = point, np.ones_like(point)
    for _ in range(45):
        middle = (low + high) / 2
        beyond = compute_tango_score(better, worse, n, middle) < -z
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high


def is_shown_above(better: int, worse: int, n: int, difference: float, confidence: float) -> bool:
    """Whether the paired rates are shown to differ by more than `difference`.

    The result is wrongly True with a probability of at most ``1 - confidence``,
    whatever the true rates are.
    """
    error = 1 - confidence
    p = compute_exact_p(better, worse, n, difference, nuisance_error=_NUISANCE_SHARE * error)
    return p <= error


def compute_exact_p(
    better: int, worse: int, n: int, difference: float, *, nuisance_error: float
) -> float:
    """p-value of 'the paired rates differ by at most `difference`'.

    The p-value is valid for every n and every rate of discordant pairs. It is the
    probability of a Tango score at least as high as the observed one, maximized over
    the rates of 'worse' in their exact interval at ``1 - nuisance_error``, plus
    `nuisance_error`. R. L. Berger and D. D. Boos, JASA 89:1012-1016, 1994. Tango's
    statistic orders the tables as Barnard's criterion requires: K. Sidik, Journal of
    Biopharmaceutical Statistics 13:741-754, 2003.
    """
    if better - worse <= n * difference:
        return 1.0
    from scipy.special import bdtrc, bdtrik, betaln, xlog1py, xlogy

    least, most = max(0.0, -difference), (1 - difference) / 2
    ends = compute_share_interval(worse, n, 1 - nuisance_error)
    low, high = np.sqrt(np.clip(ends, least, most))
    q = np.clip(np.linspace(low, high, _NUISANCE) ** 2, least, most)[:, None]
    first, last = bdtrik(_TAIL, n, q[0, 0]), bdtrik(1 - _TAIL, n, q[-1, 0])
    tables = np.arange(int(np.nan_to_num(first)), min(n, int(np.nan_to_num(last)) + 1) + 1)
    z = float(compute_tango_score(better, worse, n, difference)) - _TAIL
    fewest = _find_fewest(tables, n, difference, z)
    of_rest = np.clip((q + difference) / np.maximum(1 - q, _TAIL), 0, 1)
    beyond = np.where(fewest > 0, bdtrc(np.maximum(fewest, 1) - 1, n - tables, of_rest), 1.0)
    log_choices = -np.log(n + 1) - betaln(tables + 1, n - tables + 1)
    share = np.exp(log_choices + xlogy(tables, q) + xlog1py(n - tables, -q))
    return float((share * beyond).sum(axis=1).max()) + nuisance_error


def _find_fewest(
    worse: Real[np.ndarray, " tables"], n: int, difference: float, z: float
) -> Real[np.ndarray, " tables"]:
    """Find the least 'better' with a score of at least z, for each number of 'worse'.

    If no number reaches z, the result is one more than the largest possible number.
    """
    low, high = np.full(len(worse), -1), n - worse + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = compute_tango_score(np.maximum(middle, 0), worse, n, difference) >= z
        open_ = high - low > 1
        low, high = np.where(open_ & ~enough, middle, low), np.where(open_ & enough, middle, high)
    return high


@lru_cache(4096)
def compute_paired_interval(
    better: int, worse: int, n: int, confidence: float, *, at: float = 0.0
) -> Interval:
    """The differences of paired rates that the exact test does not reject.

    Each bound is one-sided at `confidence`: an interval that misses the difference with
    a probability of at most 5 % has a confidence of 0.975. A bound lies beyond the
    difference `at` if and only if the test rejects `at`.
    """
    low = _find_exact_low(better, worse, n, confidence, at)
    high = -_find_exact_low(worse, better, n, confidence, -at)
    return low, high


def _find_exact_low(better: int, worse: int, n: int, confidence: float, at: float) -> float:
    """Find where the test stops to reject, between -1 or `at` and the observed
    difference.

    The normal quantile of p is nearly linear in the difference, so Brent's method needs
    half of the tests that halving takes.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    error = 1 - confidence
    nuisance_error = _NUISANCE_SHARE * error
    quantile = float(ndtri(error - nuisance_error))

    def score(difference: float) -> float:
        p = compute_exact_p(better, worse, n, difference, nuisance_error=nuisance_error)
        return quantile - float(ndtri(np.clip(p - nuisance_error, _TAIL, 1 - _TAIL)))

    point = (better - worse) / n
    low, high = -1.0, min(at, point)
    if is_shown_above(better, worse, n, at, confidence):
        low, high = at, point
    # twice as far as a normal distribution would have it
    near = point + 2 * quantile * sqrt(max(1.0, better + worse - n * point**2)) / n
    if low < near < high and score(near) > 0:
        low = near
    elif score(low) <= 0 or score(high) >= 0:
        return low
    # on the side where the test rejects
    return max(low, float(brentq(score, low, high, xtol=_WIDTH)) - _WIDTH)


def compute_mcnemar_p(better: int, worse: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    The null hypothesis is that discordant pairs split evenly. Q. McNemar, Psychometrika
    1947.
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
