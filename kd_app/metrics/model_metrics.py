"""The metrics of one model against the labels, in the order of results.json."""

from typing import Final

import numpy as np
from jaxtyping import Float

from kd_app.metrics.intervals import compute_f1s, compute_recalls, find_class_starts
from kd_app.metrics.measure import Column, Draws, Measure, Plain, Rate, Resampled, Sums, Weights
from kd_app.metrics.record import Predictions, sort_by_class
from kd_app.metrics.spec import EVERYWHERE, MetricSpec

NEAR: Final = 5
"""Number of top classes that top5 considers; all of them if there are fewer."""


def measure_top1(record: Predictions) -> Measure:
    """Share of images whose label has the largest logit."""
    return Rate(record.hits)


def measure_top5(record: Predictions) -> Measure:
    """Share of images whose label is among the ``min(5, K)`` largest logits."""
    return Rate(record.scores.rank < min(NEAR, record.num_classes))


def measure_balanced_accuracy(record: Predictions) -> Measure:
    """Mean recall over the classes that have images."""
    order = sort_by_class(record)
    hits, starts = record.hits[order], find_class_starts(record.target[order])

    def compute(weights: Weights) -> Column:
        mean: np.ndarray = np.nanmean(compute_recalls(weights, hits, starts), axis=1)
        return mean

    return Resampled(record.totals.balanced_accuracy, compute)


def measure_nll(record: Predictions) -> Measure:
    """``mean_b -log p(label)``, nats."""
    return _measure_mean(record.totals.nll, record.scores.nll)


def measure_ece(record: Predictions) -> Measure:
    """``sum_b |sum_{i in bin b} (confidence_i - hit_i)| / N``, 15 equally wide bins."""
    # Code that prints results imports MODEL_METRICS and must not wait for torch.
    import torch

    from kd_app.metrics.classification import BINS, assign_calibration_bins

    n, confidence = len(record.target), record.scores.confidence
    excess = np.zeros((n, BINS))
    bins = assign_calibration_bins(torch.from_numpy(confidence)).numpy()
    excess[np.arange(n), bins] = confidence - record.hits

    def reduce(sums: Draws) -> Column:
        error: np.ndarray = np.abs(sums / n).sum(axis=1)
        return error

    return Sums(record.totals.ece, excess, reduce, reflect=True)


def measure_brier(record: Predictions) -> Measure:
    """``mean_b sum_k (p_k - [k is the label])^2``: 0 at best, 2 at worst.

    G. W. Brier, Monthly Weather Review 1950.
    """
    return _measure_mean(record.totals.brier, record.scores.brier)


def measure_classwise_ece(record: Predictions) -> Measure:
    """``mean_k sum_b |sum_{i in bin b of class k} (p_ik - [k is i's label])| / N``.

    The mean over all K classes, with 15 bins of equal width. The metric has no
    interval, because for few images the bias is larger than the spread.

    Kull, Perello-Nieto, Kangsepp, Silva Filho, Song, Flach, 'Beyond temperature
    scaling', NeurIPS 2019, arXiv:1910.12656.
    """
    return Plain(record.totals.classwise_ece)


def measure_f1(record: Predictions) -> Measure:
    """Mean of ``2 hits / (images + predictions)`` over the classes that have images."""
    order = sort_by_class(record)
    columns = record.hits[order], record.scores.predicted[order], record.target[order]

    def compute(weights: Weights) -> Column:
        mean: np.ndarray = np.nanmean(compute_f1s(weights, *columns), axis=1)
        return mean

    return Resampled(record.totals.f1, compute)


def _measure_mean(value: float, column: Float[np.ndarray, " images"]) -> Measure:
    n = len(column)
    return Sums(value, column[:, None], lambda sums: sums[:, 0] / n)


MODEL_METRICS: Final[tuple[MetricSpec[Predictions], ...]] = (
    MetricSpec(
        "top1",
        "top-1 accuracy",
        "higher",
        "percent",
        measure_top1,
        places=EVERYWHERE,
        hub="accuracy",
        required=True,
    ),
    MetricSpec(
        "top5",
        "top-5 accuracy",
        "higher",
        "percent",
        measure_top5,
        places=frozenset({"card", "page"}),
        hub="top_5_accuracy",
        required=True,
    ),
    MetricSpec(
        "balanced_accuracy",
        "balanced accuracy",
        "higher",
        "percent",
        measure_balanced_accuracy,
        places=frozenset({"card", "page"}),
        required=True,
    ),
    MetricSpec(
        "nll",
        "negative log-likelihood, nats",
        "lower",
        "plain",
        measure_nll,
        places=frozenset({"card", "page"}),
        hub="nll",
        required=True,
    ),
    MetricSpec(
        "ece",
        "calibration error (ECE)",
        "lower",
        "percent",
        measure_ece,
        places=frozenset({"card", "page"}),
        hub="ece",
        required=True,
    ),
    MetricSpec("brier", "Brier score", "lower", "plain", measure_brier),
    MetricSpec(
        "classwise_ece",
        "classwise ECE",
        "lower",
        "percent",
        measure_classwise_ece,
        has_interval=False,
    ),
    MetricSpec("f1", "F1, mean over classes", "higher", "percent", measure_f1),
)
