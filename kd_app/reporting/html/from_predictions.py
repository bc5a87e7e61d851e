"""What the answers to each image say about classes, confusions and calibration: from
``predictions.parquet``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int64

from kd_app.metrics.model_pair import find_pair
from kd_app.reporting.html.schema import Bin, ClassPart, Confused, Confusion, Reliability
from kd_app.reporting.results import Estimate, Measurement, PerClass

if TYPE_CHECKING:
    from pandas import DataFrame

SEEN = 50
"""Classes up to which a whole confusion matrix can be looked at."""
BINS = 15
"""Of equal width, as those that the ECE is summed over
(`kd_app.metrics.classification.BINS`).
"""
_STRONGEST = 20
_TOP1, _PROBABILITY = "_top1", "_top1_probability"


@dataclass(frozen=True)
class ModelAnswers:
    """What each model answered to every image: class numbers, and how probable it found
    them.
    """

    target: Int64[np.ndarray, " images"]
    top1: Mapping[str, Int64[np.ndarray, " images"]]
    probability: Mapping[str, Float[np.ndarray, " images"]]

    def mark_correct(self, role: str) -> Bool[np.ndarray, " images"]:
        """Which images the model has right."""
        right: Bool[np.ndarray, " images"] = self.top1[role] == self.target
        return right


def read_answers(table: "DataFrame") -> ModelAnswers:
    """The columns of ``predictions.parquet``, by model."""
    roles = [str(name).removesuffix(_TOP1) for name in table.columns if str(name).endswith(_TOP1)]
    top1 = {role: table[role + _TOP1].to_numpy(np.int64) for role in roles}
    probability = {
        role: table[role + _PROBABILITY].to_numpy(np.float64)
        for role in roles
        if role + _PROBABILITY in table.columns
    }
    return ModelAnswers(table["target"].to_numpy(np.int64), top1, probability)


def build_classes(per_class: PerClass, names: Sequence[str]) -> list[ClassPart]:
    """Accuracy, F1 and flips of each class that has images, the largest loss first."""
    paired = find_pair(per_class.accuracy).reference in per_class.accuracy
    rows = [
        ClassPart(
            name=name,
            support=per_class.support[number],
            accuracy={role: values[number] for role, values in per_class.accuracy.items()},
            f1={role: values[number] for role, values in per_class.f1.items()},
            change=_change(per_class.accuracy, number),
            negative_flips=per_class.negative_flips[number] if paired else None,
            positive_flips=per_class.positive_flips[number] if paired else None,
        )
        for number, name in enumerate(names)
        if per_class.support[number]
    ]
    return sorted(rows, key=_rank_loss)


def _change(accuracy: Mapping[str, Sequence[float | None]], number: int) -> float | None:
    candidate, reference = (
        accuracy[role][number] if role in accuracy else None for role in find_pair(accuracy)
    )
    return None if candidate is None or reference is None else candidate - reference


def _rank_loss(row: ClassPart) -> tuple[float, str]:
    change = (
        row.change
        if row.change is not None
        else row.accuracy.get(find_pair(row.accuracy).candidate)
    )
    return (0.0 if change is None else change), row.name


def build_confusion(found: ModelAnswers, names: Sequence[str]) -> Confusion:
    """The answers of the student, or of a cascade, by label, and its most frequent
    errors.
    """
    number, top1 = len(names), found.top1[find_pair(found.top1).candidate]
    pairs, counts = np.unique(found.target * number + top1, return_counts=True)
    support = np.bincount(found.target, minlength=number)
    wrong = pairs // number != pairs % number
    order = np.argsort(-counts[wrong], kind="stable")[:_STRONGEST]
    strongest = [
        Confused(
            label=names[pair // number],
            answer=names[pair % number],
            count=int(count),
            share=float(count / support[pair // number]),
        )
        for pair, count in zip(pairs[wrong][order], counts[wrong][order], strict=True)
    ]
    matrix = None
    if number <= SEEN:
        square = np.zeros(number * number, np.int64)
        square[pairs] = counts
        matrix = [[int(each) for each in row] for row in square.reshape(number, number)]
    return Confusion(classes=list(names), counts=matrix, strongest=strongest)


def build_reliability(found: ModelAnswers, split: Measurement | None) -> list[Reliability]:
    """Mean probability and share of right answers, of the images in each bin of the
    top-1 probability, for each model.
    """
    parts = []
    for role, probability in found.probability.items():
        place = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
        count = np.bincount(place, minlength=BINS)
        sums = [
            np.bincount(place, weights=each, minlength=BINS)
            for each in (probability, found.mark_correct(role))
        ]
        bins = [
            Bin(count=int(n), confidence=float(p / n), accuracy=float(hit / n))
            for n, p, hit in zip(count, *sums, strict=True)
            if n
        ]
        parts.append(Reliability(role=role, ece=read_estimate(split, role, "ece"), bins=bins))
    return parts


def read_estimate(split: Measurement | None, role: str, name: str) -> Estimate:
    """A model's figure with its interval, as results.json has it."""
    figures = getattr(split, role, None)
    return Estimate(
        **{
            part: getattr(figures, f"{name}{end}", None)
            for part, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        }
    )
