"""Soft labels: entropy by temperature, and the classes that a model finds similar."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd_app.metrics.per_image import iterate_blocks
from kd_app.metrics.scores import compute_share, to_float32

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
_PAIRS = 20
_LARGEST_MATRIX = 100
_DIGITS = 6
_CHUNK = 2**19
"""Values per chunk: small enough to stay in the CPU cache for all temperatures."""
_BLOCK = 2**22
"""Mean probabilities held in memory at a time: 16 MB."""


class Averages(NamedTuple):
    """Averages over images of ``p = softmax(logits / T)``, at each temperature; NaN
    without images.

    entropy: ``mean_b -sum_k p log p`` (nats) · beyond_top: ``mean_b 1 - max_k p``.
    """

    entropy: Float[Tensor, " temperatures"]
    beyond_top: Float[Tensor, " temperatures"]


def average_soft_labels(
    logits: Float[np.ndarray, "images classes"], *, temperatures: Sequence[float]
) -> Averages:
    """Average the entropy and softness of ``softmax(logits / T)`` for each T."""
    entropy, beyond_top = torch.zeros(len(temperatures)), torch.zeros(len(temperatures))
    rows = max(1, _CHUNK // logits.shape[1])
    for (block,) in iterate_blocks(logits):
        for chunk in to_float32(block).split(rows):
            shifted = chunk - chunk.amax(dim=1, keepdim=True)
            for number, temperature in enumerate(temperatures):
                p = (shifted / temperature).exp_()
                total = p.sum(dim=1)
                mean_logit = torch.linalg.vecdot(p, shifted) / (temperature * total)
                entropy[number] += (total.log() - mean_logit).sum()
                beyond_top[number] += (1 - 1 / total).sum()
    images = torch.tensor(len(logits))
    return Averages(compute_share(entropy, images), compute_share(beyond_top, images))


class LabelEntropy(TypedDict):
    """Entropy of soft labels at one temperature.

    mean_nats: mean entropy · of_uniform: mean entropy over ``log K``, 1 if all classes
    are equally likely · beyond_top: mean probability outside the top class.
    """

    temperature: float
    mean_nats: float
    of_uniform: float
    beyond_top: float


class ClassPair(TypedDict):
    """Two class numbers and the similarity of the classes.

    probability: mean of two probabilities: of `second` on images of `first`, and of
    `first` on images of `second`.
    """

    first: int
    second: int
    probability: float


class ClassSimilarity(TypedDict):
    """Similarity of classes at one temperature.

    similar: the strongest pairs, most similar first · matrix: row i holds the mean
    probabilities over the images of class i; None above 100 classes.
    """

    temperature: float
    similar: list[ClassPair]
    matrix: list[list[float]] | None


class SoftLabelMetrics(TypedDict):
    """Metrics of a model's soft labels.

    entropy: by temperature, ascending · alike: class similarity at temperature 1, then
    at the other training temperatures.
    """

    num_images: int
    entropy: list[LabelEntropy]
    alike: list[ClassSimilarity]


def measure_soft_labels(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    *,
    training_temperatures: Collection[float],
) -> SoftLabelMetrics:
    """Measure entropy and class similarity of a model's soft labels.

    training_temperatures: the temperatures at which a student learns from the labels.
    """
    classes = logits.shape[1]
    alike = (1.0, *sorted(set(training_temperatures) - {1.0}))
    temperatures = sorted({*TEMPERATURES, *training_temperatures})
    averages = average_soft_labels(logits, temperatures=temperatures)
    columns = zip(
        temperatures, averages.entropy.tolist(), averages.beyond_top.tolist(), strict=True
    )
    entropy = [
        LabelEntropy(
            temperature=temperature,
            mean_nats=nats,
            of_uniform=nats / math.log(classes),
            beyond_top=beyond_top,
        )
        for temperature, nats, beyond_top in columns
    ]
    order = np.argsort(target, kind="stable")
    similarities = [_measure_similarity(logits, target, order, each) for each in alike]
    return SoftLabelMetrics(num_images=len(target), entropy=entropy, alike=similarities)


def _measure_similarity(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    order: Int64[np.ndarray, " images"],
    temperature: float,
) -> ClassSimilarity:
    """Similarity of all pairs of classes, from blocks of rows and of columns of the
    matrix of mean probabilities: a matrix of 20,000 classes would take 3 GB.

    order: sorts the images by class.
    """
    classes = logits.shape[1]
    labels = _SoftLabels(logits, target, temperature)
    images = np.bincount(target, minlength=classes)
    present = np.flatnonzero(images)
    ends = np.cumsum(images[present])
    matrix = np.full((classes, classes), np.nan) if classes <= _LARGEST_MATRIX else None
    pairs: list[tuple[float, int, int]] = []
    for chosen in np.array_split(present, max(1, math.ceil(len(present) * classes / _BLOCK))):
        first, last = np.searchsorted(present, chosen[[0, -1]])
        start = int(ends[first - 1]) if first else 0
        rows = order[start : ends[last]]
        forward = labels.average_by_class(rows, np.arange(classes))
        backward = labels.average_by_class(order, chosen)
        if matrix is not None:
            matrix[chosen] = forward
        pairs = _merge_pairs(pairs, chosen, present, forward, backward)
    rounded = None if matrix is None else matrix.round(_DIGITS).tolist()
    similar = [
        ClassPair(first=first, second=second, probability=-negative)
        for negative, first, second in pairs
    ]
    return ClassSimilarity(temperature=temperature, similar=similar, matrix=rounded)


@dataclass(frozen=True)
class _SoftLabels:
    """Probabilities ``softmax(logits / T)``, computed where they are needed."""

    logits: Float[np.ndarray, "images classes"]
    target: Int64[np.ndarray, " images"]
    temperature: float

    @cached_property
    def log_sums(self) -> Float[np.ndarray, " images"]:
        """``log sum_k exp(logit_k / T)`` of each image."""
        parts = [
            (to_float32(block) / self.temperature).logsumexp(dim=1)
            for (block,) in iterate_blocks(self.logits)
        ]
        return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)

    def average_by_class(
        self, rows: Int64[np.ndarray, " rows"], columns: Int64[np.ndarray, " columns"]
    ) -> Float[np.ndarray, "present columns"]:
        """Mean probability of the classes in `columns` over the images of each class.

        rows: images, sorted by class.
        """
        labels, number = np.unique(self.target[rows], return_inverse=True)
        sums = np.zeros((len(labels), len(columns)), np.float32)
        step = max(1, _BLOCK // len(columns))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            values = self.logits[np.ix_(chunk, columns)].astype(np.float32)
            p = np.exp(values / self.temperature - self.log_sums[chunk, None])
            np.add.at(sums, number[start : start + step], p)
        average: np.ndarray = sums / np.bincount(number)[:, None]
        return average


def _merge_pairs(
    pairs: list[tuple[float, int, int]],
    chosen: Int64[np.ndarray, " chosen"],
    present: Int64[np.ndarray, " present"],
    forward: Float[np.ndarray, "chosen classes"],
    backward: Float[np.ndarray, "present chosen"],
) -> list[tuple[float, int, int]]:
    """The most similar pairs among `pairs` and those of the classes `chosen`, as
    ``(-probability, first, second)``.

    A pair is ranked by the mean of both directions, or by one direction if the other
    class has no images.
    """
    both = forward.copy()
    both[:, present] = (both[:, present] + backward.T) / 2
    # Each pair of two classes with images counts once, in the row of the smaller class.
    both[:, present] = np.where(present[None] > chosen[:, None], both[:, present], -np.inf)
    flat = both.reshape(-1)
    best = np.argpartition(-flat, _PAIRS)[:_PAIRS] if len(flat) > _PAIRS else np.arange(len(flat))
    new = [
        (-float(flat[place]), *sorted((int(chosen[place // len(both[0])]), place % len(both[0]))))
        for place in best.tolist()
        if flat[place] > 0
    ]
    return sorted([*pairs, *new])[:_PAIRS]
