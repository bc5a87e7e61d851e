"""Pseudo-labels: a model's predictions in place of the labels of images without one."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64

from kd_app.data.stage_array import read_classes
from kd_app.digest import hash_file

Labels = Int64[np.ndarray, " images"]

_NO_LABEL = -1
_FILE = "pseudo_labels.npy"


def assign_pseudo_labels(
    logits: Float[np.ndarray, "rows classes"],
    images: Int64[np.ndarray, " rows"],
    *,
    confidence: float,
    num_images: int,
) -> Labels:
    """Return, by image number, the class with the largest probability; -1 for an image
    that is not among `images`, or whose largest probability is below `confidence`.

    Hard labels (Lee, ICML workshop 2013) with the threshold of FixMatch (Sohn et al.,
    NeurIPS 2020, arXiv 2001.07685).
    """
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    largest = 1 / np.exp(scores).sum(axis=1)
    labels = np.full(num_images, _NO_LABEL, dtype=np.int64)
    labels[images] = np.where(largest >= confidence, scores.argmax(axis=1), _NO_LABEL)
    return labels


def add_pseudo_labels(
    target: Labels, labeled: Bool[np.ndarray, " images"], pseudo_labels: Labels
) -> tuple[Labels, Bool[np.ndarray, " images"]]:
    """Return the labels of all images and whether each is used, by image number: a
    label that is used stays as it is.
    """
    is_added = (pseudo_labels != _NO_LABEL) & ~labeled
    return np.where(is_added, pseudo_labels, target), labeled | is_added


def count_pseudo_labels(pseudo_labels: Labels) -> int:
    """Return the number of images with a pseudo-label."""
    return int((pseudo_labels != _NO_LABEL).sum())


def write_pseudo_labels(folder: Path, pseudo_labels: Labels) -> None:
    """Write the labels into `folder`."""
    np.save(folder / _FILE, pseudo_labels)


def read_pseudo_labels(folder: Path, images: int, classes: int) -> Labels:
    """Read what `write_pseudo_labels` wrote for so many images and classes.

    Raises `RequestError` for another file.
    """
    return read_classes(folder / _FILE, images=images, least=_NO_LABEL, classes=classes)


def hash_pseudo_labels(folder: Path) -> str:
    """The sha256 of what `write_pseudo_labels` wrote."""
    return hash_file(folder / _FILE)
