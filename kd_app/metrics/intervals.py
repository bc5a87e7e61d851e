"""Confidence intervals of metrics over the images of a split."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Real

Interval = tuple[float, float]
_BLOCK = 2**22
"""Weights held in memory at a time: 32 MB in float64."""
_ROUNDING = 1e-12
"""Relative differences of resampled values up to this size are rounding errors."""


def compute_wilson_bounds(
    successes: Real[np.ndarray, " rates"], n: Real[np.ndarray, " rates"], z: float
) -> tuple[Float[np.ndarray, " rates"], Float[np.ndarray, " rates"]]:
    """Wilson's bounds of many rates at the normal quantile `z`; n must be above 0.

    All p with ``|successes / n - p| <= z sqrt(p (1 - p) / n)``. E. B. Wilson, 'Probable
    inference, the law of succession, and statistical inference', JASA 1927.
    """
    rate, shrinkage = successes / n, 1 / (1 + z * z / n)
    center = shrinkage * (rate + z * z / (2 * n))
    half = shrinkage * z * np.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    # Rounding can push a bound past the rate, or past 0 or 1.
    low, high = np.clip(center - half, 0.0, rate), np.clip(center + half, rate, 1.0)
    return low, high


def compute_share_interval(successes: int, n: int, confidence: float) -> Interval:
    """Clopper and Pearson's interval of a rate; (0, 1) if n is 0.

    All p under which counts of `successes` or more, and of `successes` or fewer, both
    have a probability of at least ``(1 - confidence) / 2``. It covers the true rate
    with at least the probability `confidence`, for every n and rate. C. J. Clopper and
    E. S. Pearson, Biometrika 26:404-413, 1934.
    """
    from scipy.special import betaincinv

    error = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, error)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - error)) if successes < n else 1.0
    return low, high


def bootstrap(
    statistics: Callable[[Float[np.ndarray, "resamples images"]], Mapping[str, np.ndarray]],
    num_images: int,
    *,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Float[np.ndarray, "resamples ..."]]:
    """Compute `statistics` on `resamples` bootstrap samples of `num_images` images.

    `statistics` receives the number of times that each image was drawn, a block of
    resamples at a time, and returns named arrays with one row per resample. All
    statistics, hence all models, use the same draws, so differences and ratios are
    paired. Equal seeds give equal draws. B. Efron, Annals of Statistics 1979.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // num_images)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        indices = rng.integers(num_images, size=(rows, num_images))
        indices += np.arange(rows)[:, None] * num_images
        counts = np.bincount(indices.ravel(), minlength=rows * num_images)
        weights = counts.reshape(rows, num_images).astype(np.float64)
        for name, column in statistics(weights).items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def compute_percentile_interval(
    point: float, resampled: Float[np.ndarray, " resamples"], confidence: float
) -> Interval:
    """The central `confidence` share of the resampled values, widened to the point.

    (NaN, NaN) if all resampled values are equal: such a bootstrap contains no
    information about the spread, and an interval without width would claim certainty.
    """
    if not _has_spread(resampled):
        return math.nan, math.nan
    low, high = _compute_central_range(resampled, confidence)
    return min(point, low), max(point, high)


def reflect_interval(
    point: float,
    resampled: Float[np.ndarray, " resamples"],
    nothing: Float[np.ndarray, " resamples"],
    confidence: float,
) -> Interval:
    """``[2 point - upper, 2 point - lower]``, for metrics that sampling biases upwards.

    Such a metric is 0 at best (ECE, for instance): sampling images biases the estimate
    upwards, and resampling biases the resampled values upwards again. `nothing` holds
    the resampled values under a true value of 0; if the point is no larger than these,
    the interval begins at 0. The interval always includes the point.

    This is the 'basic' interval of Davison and Hinkley, 'Bootstrap Methods and their
    Application', 1997, section 5.2, which alone misses true values near 0. (NaN, NaN)
    if all resampled values are equal.
    """
    if not _has_spread(resampled):
        return math.nan, math.nan
    low, high = _compute_central_range(resampled, confidence)
    low, high = max(0.0, 2 * point - high), max(point, 2 * point - low)
    if point <= _compute_central_range(nothing, confidence)[1]:
        return 0.0, high
    return min(point, low), high


def _has_spread(resampled: Float[np.ndarray, " resamples"]) -> bool:
    """Whether the resampled values differ by more than rounding errors."""
    defined = resampled[np.isfinite(resampled)]
    return len(defined) > 0 and bool(np.ptp(defined) > _ROUNDING * np.abs(defined).max())


def _compute_central_range(
    resampled: Float[np.ndarray, " resamples"], confidence: float
) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def compute_f1s(
    weights: Float[np.ndarray, "resamples images"],
    hits: Bool[np.ndarray, " images"],
    predicted: Int[np.ndarray, " images"],
    target: Int[np.ndarray, " images"],
) -> Float[np.ndarray, "resamples present"]:
    """F1 of each class that has images, for images sorted by class.

    NaN for a class of which a resample includes no image.
    """
    starts, order = find_class_starts(target), np.argsort(predicted, kind="stable")
    present, named = target[starts], np.unique(predicted)
    images = np.add.reduceat(weights, starts, axis=1)
    per_named = np.add.reduceat(weights[:, order], find_class_starts(predicted[order]), axis=1)
    is_present = np.isin(named, present)
    predictions = np.zeros_like(images)
    predictions[:, np.searchsorted(present, named[is_present])] = per_named[:, is_present]
    hit_counts = np.add.reduceat(weights * hits, starts, axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(images > 0, 2 * hit_counts / (images + predictions), np.nan)


def find_class_starts(target: Int[np.ndarray, " images"]) -> Int[np.ndarray, " present"]:
    """Index of the first image of each class, for images sorted by class."""
    assert (np.diff(target) >= 0).all(), "images must be sorted by class"
    return np.flatnonzero(np.diff(target, prepend=-1))


def compute_recalls(
    weights: Float[np.ndarray, "resamples images"],
    hits: Bool[np.ndarray, " images"],
    starts: Int[np.ndarray, " present"],
) -> Float[np.ndarray, "resamples present"]:
    """Recall of each class, for images sorted by class.

    NaN for a class of which a resample includes no image.
    """
    images = np.add.reduceat(weights, starts, axis=1)
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(weights * hits, starts, axis=1) / images
