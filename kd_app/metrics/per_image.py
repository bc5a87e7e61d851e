"""Logits in memory to a few numbers an image, a block at a time (50,000 x 1,000 logits
are 200 MB; nothing of that size is made anew).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from kd_app.metrics.scores import scores, squared_errors, widen

_VALUES = 2**23


@dataclass(frozen=True)
class PerImage:
    """hits: top-1 is right · nll: ``-log p(label)``, nats · confidence: the largest
    probability · brier: ``sum_k (p_k - [k is the label])^2`` · predicted: the top-1
    class. Each ``[N]``, in the order of the images.
    """

    hits: Bool[np.ndarray, " images"]
    nll: Float[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    brier: Float[np.ndarray, " images"]
    predicted: Int64[np.ndarray, " images"]

    def taken(self, rows: Int[np.ndarray, " taken"]) -> "PerImage":
        """These images, in this order."""
        return PerImage(**{name: column[rows] for name, column in vars(self).items()})


def blocks(*arrays: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """The rows of arrays of equal length as tensors, a few million values at a time;
    memory-mapped and read-only arrays are fine.
    """
    rows = max(1, _VALUES // max(1, arrays[0][0].size))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(torch.from_numpy(np.array(array[start : start + rows])) for array in arrays)


def per_image(
    logits: Float[np.ndarray, "images classes"], target: Int64[np.ndarray, " images"]
) -> PerImage:
    """What each image says about one model."""
    found, brier, predicted = [], [], []
    for block, label in blocks(logits, target):
        found.append(scores(block, label))
        brier.append(squared_errors(widen(block).softmax(dim=1), label))
        predicted.append(block.argmax(dim=1))
    return PerImage(
        torch.cat([part.rank == 0 for part in found]).numpy(),
        torch.cat([part.nll for part in found]).double().numpy(),
        torch.cat([part.confidence for part in found]).double().numpy(),
        torch.cat(brier).double().numpy(),
        torch.cat(predicted).numpy(),
    )
