"""Metrics of each class."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int64

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

Target = Int64[np.ndarray, " images"]
Hits = Bool[np.ndarray, " images"]


def count_classes(
    target: Target, num_classes: int, among: Hits | None = None
) -> Int64[np.ndarray, " classes"]:
    """Number of images of each class, of all images or of those `among`."""
    selected = target if among is None else target[among]
    counts: np.ndarray = np.bincount(selected, minlength=num_classes)
    return counts


def compute_share_by_class(
    hits: Hits, target: Target, num_classes: int
) -> Float[np.ndarray, " classes"]:
    """Share of hits among the images of each class; NaN for a class without images.

    This is the accuracy of each class if a hit is a correct prediction.
    """
    images = count_classes(target, num_classes)
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = count_classes(target, num_classes, hits) / images
    return shares


def compute_f1_by_class(
    hits: Hits, predicted: Target, target: Target, num_classes: int
) -> Float[np.ndarray, " classes"]:
    """F1, ``2 hits / (images + predictions)``; NaN for a class without images."""
    images = count_classes(target, num_classes)
    predictions = count_classes(predicted, num_classes)
    with np.errstate(invalid="ignore"):
        f1 = 2 * count_classes(target, num_classes, hits) / (images + predictions)
    return np.where(images > 0, f1, np.nan)


def count_confusions(predicted: Target, target: Target, num_classes: int) -> "csc_matrix":
    """Confusion matrix: a row for each label, a column for each predicted class.

    Only pairs that occur are stored.
    """
    from scipy.sparse import csc_matrix

    ones = np.ones(len(target), dtype=np.int64)
    return csc_matrix((ones, (target, predicted)), shape=(num_classes, num_classes))
