"""How far a figure could be from the truth, given the images it was measured on."""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, Real

Interval = tuple[float, float]
_AT_ONCE = 2**22
"""Weights held in memory at a time: 32 MB in float64."""


def compute_wilson_interval(successes: int, n: int, confidence: float) -> Interval:
    """Score interval of a rate: all p with ``|successes / n - p| <= z sqrt(p (1 - p) /
    n)``; (0, 1) when n is 0.

    E. B. Wilson, 'Probable inference, the law of succession, and statistical
    inference', JASA 1927.
    """
    if n == 0:
        return 0.0, 1.0
    low, high = compute_wilson_bounds(
        np.array([successes]), np.array([n]), NormalDist().inv_cdf(0.5 + confidence / 2)
    )
    return float(low[0]), float(high[0])


def compute_wilson_bounds(
    successes: Real[np.ndarray, " rates"], n: Real[np.ndarray, " rates"], z: float
) -> tuple[Float[np.ndarray, " rates"], Float[np.ndarray, " rates"]]:
    """Wilson's bounds of many rates at a time, at the normal quantile `z`; n above 0."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, 2 * NormalDist().cdf(-z), method="wilson")
    rate = successes / n
    return np.minimum(low, rate), np.maximum(high, rate)  # which they hold but for rounding


def bootstrap(
    statistics: Callable[[Float[np.ndarray, "resamples images"]], Mapping[str, np.ndarray]],
    num_images: int,
    *,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Float[np.ndarray, "resamples ..."]]:
    """`statistics` of `resamples` sets of `num_images` images, drawn with replacement
    (B. Efron, Annals of Statistics 1979).

    `statistics` is given how often each image was drawn, a block of resamples at a
    time, and returns named arrays, a row a resample. All of them, hence all
    models, see the same draws: differences and ratios are paired. Equal seeds give
    equal draws.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // num_images)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(num_images, size=(rows, num_images))
        drawn += np.arange(rows)[:, None] * num_images
        weights = (
            np.bincount(drawn.ravel(), minlength=rows * num_images)
            .reshape(rows, num_images)
            .astype(np.float64)
        )
        for name, column in statistics(weights).items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def compute_percentile_interval(
    point: float, resampled: Float[np.ndarray, " resamples"], confidence: float
) -> Interval:
    """The middle `confidence` of the resampled figures, widened to hold the point where
    it does not.
    """
    low, high = _take_middle(resampled, confidence)
    return min(point, low), max(point, high)


def reflect_interval(
    point: float,
    resampled: Float[np.ndarray, " resamples"],
    nothing: Float[np.ndarray, " resamples"],
    confidence: float,
) -> Interval:
    """``[2 point - upper, 2 point - lower]``, for a figure like ECE that is 0 at best
    and that drawing images pushes up, in a resample once more.

    `nothing` is what resamples would show if the truth were 0; where the point is no
    larger than that, the interval begins at 0. It holds the point. The 'basic' interval
    of Davison and Hinkley, 'Bootstrap Methods and their Application', 1997, section
    5.2, which alone misses a truth near 0.
    """
    low, high = _take_middle(resampled, confidence)
    low, high = max(0.0, 2 * point - high), max(point, 2 * point - low)
    return (0.0 if point <= _take_middle(nothing, confidence)[1] else min(point, low)), high


def _take_middle(resampled: Float[np.ndarray, " resamples"], confidence: float) -> Interval:
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(known, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def compute_f1s(
    weights: Float[np.ndarray, "resamples images"],
    hits: Bool[np.ndarray, " images"],
    predicted: Int[np.ndarray, " images"],
    target: Int[np.ndarray, " images"],
) -> Float[np.ndarray, "resamples present"]:
    """F1 of each class that is there, for images sorted by class; NaN where a resample
    drew none of a class.
    """
    starts, order = find_class_starts(target), np.argsort(predicted, kind="stable")
    present, named = target[starts], np.unique(predicted)
    images = np.add.reduceat(weights, starts, axis=1)
    as_named = np.add.reduceat(weights[:, order], find_class_starts(predicted[order]), axis=1)
    wanted = np.isin(named, present)
    answers = np.zeros_like(images)
    answers[:, np.searchsorted(present, named[wanted])] = as_named[:, wanted]
    with np.errstate(invalid="ignore"):
        return np.where(
            images > 0,
            2 * np.add.reduceat(weights * hits, starts, axis=1) / (images + answers),
            np.nan,
        )


def find_class_starts(target: Int[np.ndarray, " images"]) -> Int[np.ndarray, " present"]:
    """Where each class begins among images sorted by class."""
    assert (np.diff(target) >= 0).all(), "images must be sorted by class"
    return np.flatnonzero(np.diff(target, prepend=-1))


def compute_recalls(
    weights: Float[np.ndarray, "resamples images"],
    hits: Bool[np.ndarray, " images"],
    starts: Int[np.ndarray, " present"],
) -> Float[np.ndarray, "resamples present"]:
    """Share of each class that is right, for images sorted by class; NaN where a
    resample drew none of a class.
    """
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(weights * hits, starts, axis=1) / np.add.reduceat(
            weights, starts, axis=1
        )
