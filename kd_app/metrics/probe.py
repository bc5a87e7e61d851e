"""A linear classifier on frozen embeddings, in closed form."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kd_app.metrics.neighbors import normalize_rows

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of the ridge, as shares of the mean variance of a feature."""

Images = Float[np.ndarray, "_ _"]
Labels = Int64[np.ndarray, " _"]


class LinearProbe:
    """Ridge regression of one-hot labels on embeddings of length 1.

    ``W = (X'X / n + r I)^-1 X'Y / n`` with centered X and Y, and r = `strength` x the
    mean diagonal of ``X'X / n``. One eigendecomposition serves all strengths.
    """

    def __init__(self, embeddings: Images, labels: Labels, num_classes: int) -> None:
        rows = normalize_rows(embeddings).double()
        target = torch.nn.functional.one_hot(torch.from_numpy(labels), num_classes).double()
        self._mean, self._prior = rows.mean(dim=0), target.mean(dim=0)
        centered = rows - self._mean
        self._values, self._vectors = torch.linalg.eigh(centered.T @ centered / len(rows))
        self._cross = self._vectors.T @ (centered.T @ (target - self._prior) / len(rows))
        self._scale = float(self._values.clamp(min=0).mean())

    def predict(self, embeddings: Images, strength: float) -> Labels:
        """Return the class with the largest score for each image."""
        weights = self._solve(strength)
        scores = (normalize_rows(embeddings).double() - self._mean) @ weights + self._prior
        label: np.ndarray = scores.argmax(dim=1).numpy()
        return label

    def _solve(self, strength: float) -> Tensor:
        ridge = strength * self._scale + torch.finfo(torch.float64).tiny
        weights: Tensor = self._vectors @ (
            self._cross / (self._values.clamp(min=0) + ridge)[:, None]
        )
        return weights


def measure_probe(
    train: tuple[Images, Labels],
    validation: tuple[Images, Labels],
    queries: tuple[Images, Labels],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Bool[np.ndarray, " queries"]:
    """Return whether the probe is right on each query. The strength is the one with the
    best accuracy on validation; the strongest of equal ones.
    """
    probe = LinearProbe(*train, num_classes)
    images, labels = validation
    accuracies = {
        each: (probe.predict(images, each) == labels).mean() if len(labels) else 0.0
        for each in sorted(strengths)
    }
    best = max(accuracies, key=lambda each: (accuracies[each], each))
    hits: np.ndarray = probe.predict(queries[0], best) == queries[1]
    return hits
