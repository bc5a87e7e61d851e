"""What an average hides: metrics of each class."""

import numpy as np
from jaxtyping import Bool, Float, Int64

Target = Int64[np.ndarray, " images"]
Hits = Bool[np.ndarray, " images"]


def count_classes(
    target: Target, num_classes: int, among: Hits | None = None
) -> Int64[np.ndarray, " classes"]:
    """Images of each class, of all or `among` these."""
    counts: np.ndarray = np.bincount(
        target if among is None else target[among], minlength=num_classes
    )
    return counts


def share_by_class(hits: Hits, target: Target, num_classes: int) -> Float[np.ndarray, " classes"]:
    """Share of each class's images that are hits: its accuracy where a hit is a right
    answer. NaN for a class without images.
    """
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = count_classes(target, num_classes, hits) / count_classes(
            target, num_classes
        )
    return shares


def compute_f1_by_class(
    hits: Hits, predicted: Target, target: Target, num_classes: int
) -> Float[np.ndarray, " classes"]:
    """``2 hits / (images + predictions)`` of each class; NaN for a class without
    images.
    """
    images = count_classes(target, num_classes)
    answers = images + count_classes(predicted, num_classes)
    with np.errstate(invalid="ignore"):
        f1 = 2 * count_classes(target, num_classes, hits) / answers
    return np.where(images > 0, f1, np.nan)


def count_confusions(
    predicted: Target, target: Target, num_classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """How often images of each class (row) were taken for each class (column)."""
    pairs = np.bincount(num_classes * target + predicted, minlength=num_classes**2)
    counts: np.ndarray = pairs.reshape(num_classes, num_classes)
    return counts
