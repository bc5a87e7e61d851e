"""The metrics that compare a model with its teacher and its control.

They are in the order of results.json.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from kd_app.metrics.measure import (
    Column,
    DifferenceRatio,
    Draws,
    Measure,
    PairedDifference,
    PairedRatio,
    Plain,
    Rate,
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
class ModelComparison:
    """Records of up to three models on the same images.

    control: the same network as the candidate, trained on labels only.
    """

    candidate: Predictions
    reference: Predictions | None = None
    control: Predictions | None = None

    @property
    def teacher(self) -> Predictions:
        """The reference, for metrics that need one."""
        assert self.reference is not None
        return self.reference

    @cached_property
    def soft_labels(self) -> SoftLabelScores:
        """Comparison of the two models' probabilities on each image."""
        # Importing torch takes seconds.
        from kd_app.metrics.per_image import compare_soft_labels

        return compare_soft_labels(self.candidate, self.teacher)


def measure_retention(pair: ModelComparison) -> Measure:
    """``top1(student) / top1(teacher)``."""
    return PairedRatio(pair.candidate.hits, pair.teacher.hits)


def measure_gain(pair: ModelComparison) -> Measure:
    """``top1(student) - top1(control)``."""
    assert pair.control is not None
    return measure_difference(pair.candidate, pair.control)


def measure_gap_closed(pair: ModelComparison) -> Measure:
    """``(top1(student) - top1(control)) / (top1(teacher) - top1(control))``."""
    assert pair.control is not None
    return DifferenceRatio(
        part=measure_difference(pair.candidate, pair.control),
        whole=measure_difference(pair.teacher, pair.control),
        rest=measure_difference(pair.teacher, pair.candidate),
        order=sort_by_class(pair.candidate),
    )


def measure_difference(first: Record, second: Record) -> PairedDifference:
    """Difference of two models' accuracies on the same images."""
    return PairedDifference(first.hits, second.hits)


def measure_agreement(pair: ModelComparison) -> Measure:
    """Share of images on which the two top-1 predictions match, right or wrong."""
    return Rate(pair.candidate.scores.predicted == pair.teacher.scores.predicted)


def measure_negative_flips(pair: ModelComparison) -> Measure:
    """Share of images that the teacher gets right and the student wrong.

    Yan et al., CVPR 2021, arXiv:2011.09161.
    """
    return Rate(find_flips(pair.candidate, pair.teacher)[0])


def measure_positive_flips(pair: ModelComparison) -> Measure:
    """Share of images that the teacher gets wrong and the student right."""
    return Rate(find_flips(pair.candidate, pair.teacher)[1])


def measure_kl_to_teacher(pair: ModelComparison) -> Measure:
    """``mean_b KL(p_teacher || p_student)`` at temperature 1, nats."""
    return _measure_defined(pair.soft_labels.kl, pair.soft_labels.kl_to_teacher)


def measure_reverse_kl(pair: ModelComparison) -> Measure:
    """``mean_b KL(p_student || p_teacher)`` at temperature 1, nats."""
    column = pair.soft_labels.reverse_kl
    return _measure_defined(float(column.mean()), column)


def measure_rank_correlation(pair: ModelComparison) -> Measure:
    """Mean over the images of Spearman's rho between the two models' class scores.

    Rho is undefined on images for which a model gives all classes the same score; the
    mean excludes them.
    """
    column = pair.soft_labels.rank_correlation
    defined = column[np.isfinite(column)]
    return _measure_defined(float(defined.mean()) if len(defined) else math.nan, column)


def measure_cka(pair: ModelComparison) -> Measure:
    """CKA of the two models' embeddings (see `compute_cka`); without an interval."""
    from kd_app.metrics.cka import compute_cka

    embeddings = match_embeddings(pair.candidate, pair.teacher)
    return Plain(compute_cka(*embeddings) if embeddings is not None else math.nan)


def find_flips(
    candidate: Record, reference: Record
) -> tuple[Bool[np.ndarray, " images"], Bool[np.ndarray, " images"]]:
    """Find the negative and the positive flips.

    Only the reference is right on a negative flip, only the candidate on a positive
    one.
    """
    return reference.hits & ~candidate.hits, candidate.hits & ~reference.hits


def _measure_defined(value: float, column: Float[np.ndarray, " images"]) -> Measure:
    """The mean over the images on which `column` is finite."""

    def reduce(sums: Draws) -> Column:
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = sums[:, 1] / sums[:, 0]
        return mean

    known = np.nan_to_num(column, nan=0.0, posinf=0.0)
    return Sums(value, np.column_stack([np.isfinite(column), known]), reduce)


PAIR_METRICS: Final[tuple[MetricSpec[ModelComparison], ...]] = (
    MetricSpec(
        "retention",
        "retention",
        "higher",
        "percent",
        measure_retention,
        places=EVERYWHERE,
        meaning="student / teacher accuracy",
        needs=("teacher",),
        undefined="the teacher is right on none of these images",
    ),
    MetricSpec(
        "gain",
        "gain",
        "higher",
        "points",
        measure_gain,
        places=EVERYWHERE,
        meaning="points above labels only",
        needs=("labels_only",),
    ),
    MetricSpec(
        "gap_closed",
        "gap closed",
        "higher",
        "percent",
        measure_gap_closed,
        places=EVERYWHERE,
        meaning="gain / (teacher - labels only)",
        needs=("teacher", "labels_only"),
        undefined=(
            "the teacher is not measurably better than the labels-only student on these images"
        ),
    ),
    MetricSpec(
        "agreement",
        "agreement",
        "higher",
        "percent",
        measure_agreement,
        places=EVERYWHERE,
        meaning="same top-1 class as teacher",
        needs=("teacher",),
    ),
    MetricSpec(
        "negative_flips",
        "negative flips",
        "lower",
        "percent",
        measure_negative_flips,
        places=EVERYWHERE,
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
        meaning="similarity of the embeddings (linear centered kernel alignment), 1: the same",
        needs=("teacher",),
        has_interval=False,
    ),
)
