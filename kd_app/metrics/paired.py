"""Two models on the same images: how far apart their accuracies could be."""

import math
from statistics import NormalDist

from kd_app.metrics.intervals import Interval


def score(better: int, worse: int, n: int, difference: float) -> float:
    """Tango's score statistic, standard normal if the paired rates differ by `difference`; positive where the data lie above it.

    ``z = (better - worse - n d) / sqrt(n (2 q + d (1 - d)))``, q the rate of 'worse' that is most likely under d. It keeps its level where few
    pairs are discordant, zero included, where Wald's and McNemar's fail. T. Tango, Statistics in Medicine 17:891-908, 1998.
    """
    a, b, c = 2 * n, (2 * n - better + worse) * difference - better - worse, -worse * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    over, variance = better - worse - n * difference, n * (2 * q + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, over) if over else 0.0
    return over / math.sqrt(variance)


def paired_interval(better: int, worse: int, n: int, confidence: float) -> Interval:
    """All differences of paired rates that Tango's score test does not reject; each bound is one-sided at `confidence`."""
    z, point = NormalDist().inv_cdf(confidence), (better - worse) / n
    return -_root(worse, better, n, -point, z), _root(better, worse, n, point, z)


def _root(better: int, worse: int, n: int, point: float, z: float) -> float:
    """The difference above `point` whose score is -z, by bisection: the score falls as the difference grows."""
    low, high = point, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if score(better, worse, n, middle) < -z else (middle, high)
    return high


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test (Q. McNemar, Psychometrika 1947): are discordant pairs split evenly?"""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
