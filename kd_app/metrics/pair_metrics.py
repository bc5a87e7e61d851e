"""The metrics that compare a model with its teacher and its control, as results.json
lists them.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from kd_app.metrics.measure import (
    Column,
    Draws,
    Measure,
    Plain,
    Rate,
    Ratio,
    Resampled,
    Sums,
)
from kd_app.metrics.record import (
    Predictions,
    Record,
    SoftLabelScores,
    match_embeddings,
    sort_by_class,
)
from kd_app.metrics.spec import EVERYWHERE, MetricSpec


@dataclass(frozen=True)
class Comparison:
    """Records of the same images: of the model that is judged, of the one that it is
    compared with, and of the same net trained on labels alone, where there are any.
    """

    candidate: Predictions
    reference: Predictions | None = None
    control: Predictions | None = None

    @property
    def teacher(self) -> Predictions:
        """The reference, of a metric that needs one."""
        assert self.reference is not None
        return self.reference

    @cached_property
    def soft_labels(self) -> SoftLabelScores:
        """How the two models' probabilities compare."""
        from kd_app.metrics.per_image import compare_soft_labels  # torch loads in seconds

        return compare_soft_labels(self.candidate, self.teacher)


def measure_retention(pair: Comparison) -> Measure:
    """``top1(student) / top1(teacher)``."""
    return Ratio(_resample_accuracy(pair.candidate), _resample_accuracy(pair.teacher))


def measure_gain(pair: Comparison) -> Measure:
    """``top1(student) - top1(control)``."""
    assert pair.control is not None
    return measure_difference(pair.candidate, pair.control)


def measure_gap_closed(pair: Comparison) -> Measure:
    """``(top1(student) - top1(control)) / (top1(teacher) - top1(control))``."""
    assert pair.control is not None
    return Ratio(
        measure_difference(pair.candidate, pair.control),
        measure_difference(pair.teacher, pair.control),
    )


def measure_difference(first: Record, second: Record) -> Resampled:
    """Difference of two models' accuracies on the same images."""
    one, other = _resample_accuracy(first), _resample_accuracy(second)
    return Resampled(
        one.value - other.value, lambda weights: one.statistic(weights) - other.statistic(weights)
    )


def measure_agreement(pair: Comparison) -> Measure:
    """Share of images on which the two top-1 predictions match, right or wrong."""
    return Rate(pair.candidate.scores.predicted == pair.teacher.scores.predicted)


def measure_negative_flips(pair: Comparison) -> Measure:
    """Share of images that the teacher has right and the student wrong (Yan et al.,
    CVPR 2021, arXiv:2011.09161).
    """
    return Rate(find_flips(pair.candidate, pair.teacher)[0])


def measure_positive_flips(pair: Comparison) -> Measure:
    """Share of images that the teacher has wrong and the student right."""
    return Rate(find_flips(pair.candidate, pair.teacher)[1])


def measure_kl_to_teacher(pair: Comparison) -> Measure:
    """``mean_b KL(p_teacher || p_student)`` at temperature 1, nats."""
    return _measure_defined(pair.soft_labels.kl, pair.soft_labels.kl_to_teacher)


def measure_reverse_kl(pair: Comparison) -> Measure:
    """``mean_b KL(p_student || p_teacher)`` at temperature 1, nats."""
    column = pair.soft_labels.reverse_kl
    return _measure_defined(float(column.mean()), column)


def measure_rank_correlation(pair: Comparison) -> Measure:
    """Mean over the images of Spearman's rho between the two models' class scores;
    images on which one model scores all classes alike have none and are left out.
    """
    column = pair.soft_labels.rank_correlation
    defined = column[np.isfinite(column)]
    return _measure_defined(float(defined.mean()) if len(defined) else math.nan, column)


def measure_cka(pair: Comparison) -> Measure:
    """`compute_cka` of the two models' embeddings; without an interval."""
    from kd_app.metrics.cka import compute_cka

    embeddings = match_embeddings(pair.candidate, pair.teacher)
    return Plain(compute_cka(*embeddings) if embeddings is not None else math.nan)


def find_flips(
    candidate: Record, reference: Record
) -> tuple[Bool[np.ndarray, " images"], Bool[np.ndarray, " images"]]:
    """Negative flips, images that only the reference has right, and positive ones."""
    return reference.hits & ~candidate.hits, candidate.hits & ~reference.hits


def _resample_accuracy(record: Record) -> Resampled:
    hits, n = record.hits[sort_by_class(record)].astype(np.float64), len(record.target)
    return Resampled(float(record.hits.mean()), lambda weights: weights @ hits / n)


def _measure_defined(value: float, column: Float[np.ndarray, " images"]) -> Measure:
    """The mean over the images of which `column` is finite."""

    def reduce(sums: Draws) -> Column:
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = sums[:, 1] / sums[:, 0]
        return mean

    known = np.nan_to_num(column, nan=0.0, posinf=0.0)
    return Sums(value, np.column_stack([np.isfinite(column), known]), reduce)


PAIR_METRICS: Final[tuple[MetricSpec[Comparison], ...]] = (
    MetricSpec(
        "retention",
        "retention",
        "higher",
        "percent",
        measure_retention,
        shown=EVERYWHERE,
        meaning="student / teacher accuracy",
        needs=("teacher",),
        undefined="the teacher is not measurably right on any of these images",
    ),
    MetricSpec(
        "gain",
        "gain",
        "higher",
        "points",
        measure_gain,
        shown=EVERYWHERE,
        meaning="points above labels only",
        needs=("labels_only",),
    ),
    MetricSpec(
        "gap_closed",
        "gap closed",
        "higher",
        "percent",
        measure_gap_closed,
        shown=EVERYWHERE,
        meaning="gain / (teacher - labels only)",
        needs=("teacher", "labels_only"),
        undefined="the teacher is not measurably better than the labels-only student on these"
        " images",
    ),
    MetricSpec(
        "agreement",
        "agreement",
        "higher",
        "percent",
        measure_agreement,
        shown=EVERYWHERE,
        meaning="same top-1 class as teacher",
        needs=("teacher",),
    ),
    MetricSpec(
        "negative_flips",
        "negative flips",
        "lower",
        "percent",
        measure_negative_flips,
        shown=EVERYWHERE,
        meaning="teacher right, student wrong",
        needs=("teacher",),
    ),
    MetricSpec(
        "positive_flips",
        "positive flips",
        "higher",
        "percent",
        measure_positive_flips,
        meaning="teacher wrong, student right",
        needs=("teacher",),
    ),
    MetricSpec(
        "kl_to_teacher",
        "KL divergence",
        "lower",
        "plain",
        measure_kl_to_teacher,
        meaning="KL(teacher || student), nats, mean over the images",
        needs=("teacher",),
    ),
    MetricSpec(
        "reverse_kl",
        "reverse KL",
        "lower",
        "plain",
        measure_reverse_kl,
        meaning="KL(student || teacher), nats, mean over the images",
        needs=("teacher",),
    ),
    MetricSpec(
        "rank_correlation",
        "rank correlation",
        "higher",
        "plain",
        measure_rank_correlation,
        meaning="of the two models' class probabilities, mean over the images",
        needs=("teacher",),
    ),
    MetricSpec(
        "cka",
        "CKA",
        "higher",
        "plain",
        measure_cka,
        meaning="likeness of the embeddings (linear centered kernel alignment), 1 is the same",
        needs=("teacher",),
    ),
)
