"""What the teacher says beyond the label: which classes it finds alike, and how much it
spreads over them, at each temperature.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd_app.metrics.per_image import iterate_blocks
from kd_app.metrics.scores import share, to_float32

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
_PAIRS = 20
_LARGEST_MATRIX = 100
_DIGITS = 6
_NEAR = 2**19
"""Values that are looked at together, at all temperatures, while they are in the
processor's cache.
"""


class Averages(NamedTuple):
    """Of each temperature: entropy ``mean_b -sum_k p log p`` (nats) and beyond_top
    ``mean_b 1 - max_k p``, NaN without images.

    similarity: of each temperature that it was asked for, the mean probability of class
    j over the images of class i; NaN for classes without images.
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
    """Averages over the images of ``p = softmax(logits / T)`` for each temperature T.

    temperatures: at which entropy is measured. alike: those among them at which p is
    summed by class too, ``len(alike) x K x K`` numbers.
    """
    classes = logits.shape[1]
    entropy, beyond_top = torch.zeros(len(temperatures)), torch.zeros(len(temperatures))
    probability = torch.zeros(len(alike), classes, classes)
    rows = max(1, _NEAR // classes)
    for block, label in iterate_blocks(logits, target):
        for some, labels in zip(to_float32(block).split(rows), label.split(rows), strict=True):
            below = some - some.amax(dim=1, keepdim=True)
            for number, temperature in enumerate(temperatures):
                p = (below / temperature).exp_()
                whole = p.sum(dim=1)
                entropy[number] += (
                    whole.log() - torch.linalg.vecdot(p, below) / (temperature * whole)
                ).sum()
                beyond_top[number] += (1 - 1 / whole).sum()
                if temperature in alike:
                    probability[alike.index(temperature)].index_add_(0, labels, p / whole[:, None])
    images = torch.bincount(torch.from_numpy(np.array(target)), minlength=classes)
    return Averages(
        share(entropy, images.sum()),
        share(beyond_top, images.sum()),
        share(probability, images[:, None]),
    )


class Softness(TypedDict):
    """mean_nats: mean entropy · of_uniform: that over ``log K``, 1 where all classes
    are equally likely · beyond_top: not on the top class.
    """

    temperature: float
    mean_nats: float
    of_uniform: float
    beyond_top: float


class Pair(TypedDict):
    """probability: mean of 'second' on images of 'first' and of 'first' on images of
    'second' (class numbers).
    """

    first: int
    second: int
    probability: float


class Alike(TypedDict):
    """similar: the strongest pairs, best first · matrix: row i holds the mean
    probabilities over the images of class i; None above 100 classes.
    """

    temperature: float
    similar: list[Pair]
    matrix: list[list[float]] | None


class SoftLabelFigures(TypedDict):
    """entropy: by temperature, ascending · alike: at temperature 1, then at the others
    that were asked for.
    """

    num_images: int
    entropy: list[Softness]
    alike: list[Alike]


def measure_soft_labels(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    *,
    taught: Collection[float],
) -> SoftLabelFigures:
    """What a model's answers hold beyond the top label; `taught`: the temperatures at
    which somebody learns from them.
    """
    classes = logits.shape[1]
    alike = (1.0, *sorted(set(taught) - {1.0}))
    temperatures = sorted({*TEMPERATURES, *taught})
    found = average_soft_labels(logits, target, temperatures=temperatures, alike=alike)
    entropy = [
        Softness(
            temperature=each, mean_nats=nats, of_uniform=nats / math.log(classes), beyond_top=beyond
        )
        for each, nats, beyond in zip(
            temperatures, found.entropy.tolist(), found.beyond_top.tolist(), strict=True
        )
    ]
    return SoftLabelFigures(
        num_images=len(target),
        entropy=entropy,
        alike=[
            _build_similarity(*each) for each in zip(alike, found.similarity.numpy(), strict=True)
        ],
    )


def _build_similarity(temperature: float, matrix: Float[np.ndarray, "classes classes"]) -> Alike:
    rows = matrix.round(_DIGITS).tolist() if len(matrix) <= _LARGEST_MATRIX else None
    return Alike(temperature=temperature, similar=select_strongest(matrix, _PAIRS), matrix=rows)


def select_strongest(matrix: Float[np.ndarray, "classes classes"], count: int) -> list[Pair]:
    """The `count` pairs of classes with the largest mean of both directions, or of the
    one that is known (not NaN); best first.
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
        Pair(first=first, second=second, probability=value)
        for first, second, value in pairs
        if value > 0
    ]
