"""Soft labels: entropy by temperature, and the classes that a model finds similar."""

import math
from collections.abc import Collection, Sequence
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


class Averages(NamedTuple):
    """Averages over images of ``p = softmax(logits / T)``; NaN without images.

    entropy: ``mean_b -sum_k p log p`` (nats) at each temperature · beyond_top: ``mean_b
    1 - max_k p`` at each temperature · similarity: element (i, j) is the mean
    probability of class j over the images of class i, at each of the `alike`
    temperatures; NaN for classes without images.
    """

    entropy: Float[Tensor, " temperatures"]
    beyond_top: Float[Tensor, " temperatures"]
    similarity: Float[Tensor, "alike classes classes"]


def average_soft_labels(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    *,
    temperatures: Sequence[float],
    alike: Sequence[float],
) -> Averages:
    """Average ``p = softmax(logits / T)`` over the images for each temperature T.

    temperatures: for entropy and beyond_top · alike: the subset of them for which p is
    also averaged by class (``len(alike) x K x K`` numbers).
    """
    classes = logits.shape[1]
    entropy, beyond_top = torch.zeros(len(temperatures)), torch.zeros(len(temperatures))
    probability = torch.zeros(len(alike), classes, classes)
    rows = max(1, _CHUNK // classes)
    for block, label in iterate_blocks(logits, target):
        for chunk, labels in zip(to_float32(block).split(rows), label.split(rows), strict=True):
            shifted = chunk - chunk.amax(dim=1, keepdim=True)
            for number, temperature in enumerate(temperatures):
                p = (shifted / temperature).exp_()
                total = p.sum(dim=1)
                mean_logit = torch.linalg.vecdot(p, shifted) / (temperature * total)
                entropy[number] += (total.log() - mean_logit).sum()
                beyond_top[number] += (1 - 1 / total).sum()
                if temperature in alike:
                    probability[alike.index(temperature)].index_add_(0, labels, p / total[:, None])
    images = torch.bincount(torch.from_numpy(np.array(target)), minlength=classes)
    return Averages(
        compute_share(entropy, images.sum()),
        compute_share(beyond_top, images.sum()),
        compute_share(probability, images[:, None]),
    )


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
    averages = average_soft_labels(logits, target, temperatures=temperatures, alike=alike)
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
    similarities = zip(alike, averages.similarity.numpy(), strict=True)
    return SoftLabelMetrics(
        num_images=len(target),
        entropy=entropy,
        alike=[_build_similarity(temperature, matrix) for temperature, matrix in similarities],
    )


def _build_similarity(
    temperature: float, matrix: Float[np.ndarray, "classes classes"]
) -> ClassSimilarity:
    rows = matrix.round(_DIGITS).tolist() if len(matrix) <= _LARGEST_MATRIX else None
    pairs = select_strongest(matrix, _PAIRS)
    return ClassSimilarity(temperature=temperature, similar=pairs, matrix=rows)


def select_strongest(matrix: Float[np.ndarray, "classes classes"], count: int) -> list[ClassPair]:
    """Select the `count` most similar pairs of classes, most similar first.

    A pair is ranked by the mean of both directions, or by one direction if the other is
    NaN (a class without images).
    """
    known = ~np.isnan(matrix)
    sums = np.where(known, matrix, 0)
    both = np.triu((sums + sums.T) / np.maximum(known.astype(np.int8) + known.T, 1), 1).reshape(-1)
    best = np.argpartition(-both, count)[:count] if count < len(both) else np.arange(len(both))
    ordered = best[np.lexsort((best, -both[best]))]
    pairs = (
        (int(place) // len(matrix), int(place) % len(matrix), float(both[place]))
        for place in ordered
    )
    return [
        ClassPair(first=first, second=second, probability=value)
        for first, second, value in pairs
        if value > 0
    ]
