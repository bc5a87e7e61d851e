"""Tests of predictions as the labels of images without one."""

import math
from pathlib import Path

import numpy as np
import pytest

from kd_app.data.pseudo_labels import (
    add_pseudo_labels,
    assign_pseudo_labels,
    count_pseudo_labels,
    hash_pseudo_labels,
    read_pseudo_labels,
    write_pseudo_labels,
)


def assign_slowly(
    logits: list[list[float]], images: list[int], confidence: float, num_images: int
) -> list[int]:
    """The definition, one image at a time."""
    labels = [-1] * num_images
    for row, image in zip(logits, images, strict=True):
        total = sum(math.exp(value) for value in row)
        probabilities = [math.exp(value) / total for value in row]
        if max(probabilities) >= confidence:
            labels[image] = probabilities.index(max(probabilities))
    return labels


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.8, 0.95])
def test_the_labels_are_those_of_the_definition(confidence: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(scale=3, size=(50, 4)).astype(np.float32)
    images = random.permutation(80)[:50]
    labels = assign_pseudo_labels(logits, images, confidence=confidence, num_images=80)
    assert labels.tolist() == assign_slowly(logits.tolist(), images.tolist(), confidence, 80)
    assert count_pseudo_labels(labels) == sum(label >= 0 for label in labels.tolist())
    assert (count_pseudo_labels(labels) == 50) == (confidence == 0)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e4, 0.0], [-3e4, 0.0]], dtype=np.float32)
    labels = assign_pseudo_labels(logits, np.array([1, 0]), confidence=0.999, num_images=2)
    assert labels.tolist() == [1, 0]


def test_a_label_that_is_used_stays() -> None:
    target, labeled = np.array([0, 1, 2, 0]), np.array([True, False, False, False])
    new, is_labeled = add_pseudo_labels(target, labeled, np.array([2, 2, -1, 1]))
    assert new[is_labeled].tolist() == [0, 2, 1]
    assert is_labeled.tolist() == [True, True, False, True]


def test_the_hash_is_that_of_the_labels(tmp_path: Path) -> None:
    hashes = []
    for number, label in enumerate((1, 2, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        labels = np.array([-1, label])
        write_pseudo_labels(folder, labels)
        assert read_pseudo_labels(folder, len(labels), 9).tolist() == labels.tolist()
        hashes.append(hash_pseudo_labels(folder))
    assert hashes[0] == hashes[2] != hashes[1]
