"""Per-class metrics, confusions and calibration, computed from
``predictions.parquet``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int64

from kd_app.metrics.model_pair import find_pair
from kd_app.reporting.html.schema import Bin, ClassPart, ConfusedPair, Confusion, Reliability
from kd_app.reporting.metrics import Estimate, Measurement, PerClass

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_MATRIX_CLASSES = 50
"""A matrix of more classes is too large to show."""
BINS = 15
"""Number of equal-width bins, as in the ECE (`kd_app.metrics.classification.BINS`)."""
_MAX_CONFUSIONS = 20
_TOP1, _PROBABILITY = "_top1", "_top1_probability"


@dataclass(frozen=True)
class ModelPredictions:
    """Predicted class of each image by each model, with the class probability."""

    target: Int64[np.ndarray, " images"]
    top1: Mapping[str, Int64[np.ndarray, " images"]]
    probability: Mapping[str, Float[np.ndarray, " images"]]

    def mark_correct(self, role: str) -> Bool[np.ndarray, " images"]:
        """Return a mask of the images that the model classifies correctly."""
        correct: Bool[np.ndarray, " images"] = self.top1[role] == self.target
        return correct


def read_model_predictions(table: "DataFrame") -> ModelPredictions:
    """Read the columns of ``predictions.parquet`` by model."""
    roles = [str(name).removesuffix(_TOP1) for name in table.columns if str(name).endswith(_TOP1)]
    top1 = {role: table[role + _TOP1].to_numpy(np.int64) for role in roles}
    probability = {
        role: table[role + _PROBABILITY].to_numpy(np.float64)
        for role in roles
        if role + _PROBABILITY in table.columns
    }
    return ModelPredictions(table["target"].to_numpy(np.int64), top1, probability)


def build_classes(per_class: PerClass, names: Sequence[str]) -> list[ClassPart]:
    """Build accuracy, F1 and flips of each class with images, largest drop first."""
    negative, positive = per_class.negative_flips, per_class.positive_flips
    rows = [
        ClassPart(
            name=name,
            support=per_class.support[number],
            accuracy={role: values[number] for role, values in per_class.accuracy.items()},
            f1={role: values[number] for role, values in per_class.f1.items()},
            change=_compute_change(per_class.accuracy, number),
            negative_flips=negative[number] if negative else None,
            positive_flips=positive[number] if positive else None,
        )
        for number, name in enumerate(names)
        if per_class.support[number]
    ]
    return sorted(rows, key=_rank_drop)


def _compute_change(accuracy: Mapping[str, Sequence[float | None]], number: int) -> float | None:
    candidate, reference = (
        accuracy[role][number] if role in accuracy else None for role in find_pair(accuracy)
    )
    return None if candidate is None or reference is None else candidate - reference


def _rank_drop(row: ClassPart) -> tuple[float, str]:
    change = row.change
    if change is None:
        change = row.accuracy.get(find_pair(row.accuracy).candidate)
    return (0.0 if change is None else change), row.name


def build_confusion(predictions: ModelPredictions, names: Sequence[str]) -> Confusion:
    """Count the predictions of the student, or of a cascade, by label, and list the
    most frequent errors.
    """
    num_classes = len(names)
    target, top1 = predictions.target, predictions.top1[find_pair(predictions.top1).candidate]
    pairs, counts = np.unique(target * num_classes + top1, return_counts=True)
    support = np.bincount(target, minlength=num_classes)
    wrong = pairs // num_classes != pairs % num_classes
    order = np.argsort(-counts[wrong], kind="stable")[:_MAX_CONFUSIONS]
    strongest = [
        ConfusedPair(
            label=names[pair // num_classes],
            predicted=names[pair % num_classes],
            count=int(count),
            share=float(count / support[pair // num_classes]),
        )
        for pair, count in zip(pairs[wrong][order], counts[wrong][order], strict=True)
    ]
    matrix = None
    if num_classes <= MAX_MATRIX_CLASSES:
        square = np.zeros(num_classes * num_classes, np.int64)
        square[pairs] = counts
        rows = square.reshape(num_classes, num_classes)
        matrix = [[int(count) for count in row] for row in rows]
    return Confusion(classes=list(names), counts=matrix, strongest=strongest)


def build_reliability(
    predictions: ModelPredictions, split: Measurement | None
) -> list[Reliability]:
    """Compute mean top-1 probability and accuracy of the images in each bin of the
    top-1 probability, for each model.
    """
    parts = []
    for role, probability in predictions.probability.items():
        bin_index = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
        count = np.bincount(bin_index, minlength=BINS)
        sums = [
            np.bincount(bin_index, weights=weights, minlength=BINS)
            for weights in (probability, predictions.mark_correct(role))
        ]
        bins = [
            Bin(count=int(n), confidence=float(confidence / n), accuracy=float(hits / n))
            for n, confidence, hits in zip(count, *sums, strict=True)
            if n
        ]
        parts.append(Reliability(role=role, ece=read_estimate(split, role, "ece"), bins=bins))
    return parts


def read_estimate(split: Measurement | None, role: str, name: str) -> Estimate:
    """Read a metric of a model, with its interval, as in ``results.json``."""
    metrics = getattr(split, role, None)
    return Estimate(
        value=getattr(metrics, name, None),
        low=getattr(metrics, f"{name}_low", None),
        high=getattr(metrics, f"{name}_high", None),
    )
