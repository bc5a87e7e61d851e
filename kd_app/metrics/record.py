"""What one model said of each image of a split: the unit on which metrics, intervals,
verdicts, cascades and examples work.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

_FILE = "answers.safetensors"


@runtime_checkable
class Record(Protocol):
    """One model's output for each image of a split, whatever the task.

    Whoever compares two models image by image (bootstrap, McNemar's test, verdict,
    gain, cascade) needs only this: which images there are, and on which of them the
    model is right. Only the metrics of a task look into a record of that task:
    `Predictions` holds logits; a record of embeddings would count an image as right
    when its nearest neighbors are of its class, and keep its gallery in `take`.
    """

    @property
    def index(self) -> Int64[np.ndarray, " images"]:
        """The number of each image in the data."""

    @property
    def target(self) -> Int64[np.ndarray, " images"]:
        """The class of each image."""

    @property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """The images on which the model is right."""

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Record":
        """The record of the images in these places, in this order."""

    def sorted(self) -> "Record":
        """The same record in the order of `index`."""


@dataclass(frozen=True)
class Scores:
    """Each ``[N]``, in the order of the images.

    rank: number of classes that come before the label (0: top-1 is right) · nll:
    ``-log p(label)``, nats · confidence: the largest probability · brier: ``sum_k (p_k
    - [k is the label])^2`` · predicted: the top-1 class.
    """

    rank: Int64[np.ndarray, " images"]
    nll: Float[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    brier: Float[np.ndarray, " images"]
    predicted: Int64[np.ndarray, " images"]


@dataclass(frozen=True)
class Totals:
    """Metrics of all images that are summed up in float32, a block at a time, exactly
    as a training logs them.
    """

    balanced_accuracy: float
    f1: float
    nll: float
    brier: float
    ece: float
    classwise_ece: float


@dataclass(frozen=True)
class SoftLabelScores:
    """How two models' probabilities of the same images compare.

    kl: ``KL(p_teacher || p_student)``, the mean as a training logs it · of each image,
    ``[N]``: that divergence, the one of the other direction, both in nats, and
    Spearman's rho of the class scores, NaN where it is undefined.
    """

    kl: float
    kl_to_teacher: Float[np.ndarray, " images"]
    reverse_kl: Float[np.ndarray, " images"]
    rank_correlation: Float[np.ndarray, " images"]


@dataclass(frozen=True)
class Predictions:
    """A `Record` of a classifier: ``index [N]``, ``target [N]``, ``logits [N, K]``.

    embedding: ``[M, D]`` float32, the input of the classifier, of the images in the
    places ``kept [M]``: all, or evenly spread ones where all would take more than 128
    MB. None where embeddings were not asked for, or where the model has none (no linear
    classifier that turns one vector into the logits).
    """

    index: Int64[np.ndarray, " images"]
    target: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "images classes"]
    embedding: Float[np.ndarray, "kept width"] | None = None
    kept: Int64[np.ndarray, " kept"] | None = None

    def save(self, folder: Path) -> None:
        """Write the record into `folder`."""
        from safetensors.numpy import save_file

        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        save_file(
            {name: column for name, column in columns.items() if column is not None},
            folder / _FILE,
        )

    @staticmethod
    def load(folder: Path) -> "Predictions":
        """Read the record that was saved in `folder`."""
        from safetensors.numpy import load_file

        return Predictions(**load_file(folder / _FILE))

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Predictions":
        """The images in these places, in this order, with the embeddings among them."""
        chosen = self.index[rows], self.target[rows], self.logits[rows]
        if self.embedding is None or self.kept is None:
            return Predictions(*chosen)
        place = np.full(len(self.index), -1)
        place[self.kept] = np.arange(len(self.kept))
        kept = np.flatnonzero(place[rows] >= 0)
        return Predictions(*chosen, self.embedding[place[rows][kept]], kept)

    def sorted(self) -> "Predictions":
        """The same predictions in the order of `index`."""
        return self.take(self.index.argsort())

    @property
    def num_classes(self) -> int:
        """Number of logits of an image."""
        return int(self.logits.shape[1])

    @cached_property
    def scores(self) -> Scores:
        """What each image contributes to the metrics."""
        from kd_app.metrics.per_image import score_images  # torch loads in seconds

        return score_images(self.logits, self.target)

    @cached_property
    def totals(self) -> Totals:
        """Metrics of all images together."""
        from kd_app.metrics.per_image import sum_up

        return sum_up(self.logits, self.target, self.scores)

    @property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """The images whose label has the largest logit; never one with NaN logits."""
        right: np.ndarray = self.scores.rank == 0
        return right


def sort_by_class(record: Record) -> Int64[np.ndarray, " images"]:
    """Places of the images, sorted by class."""
    return np.argsort(record.target, kind="stable")


def match_embeddings(
    first: Predictions, second: Predictions
) -> tuple[np.ndarray, np.ndarray] | None:
    """The embeddings ``[M, D1]`` and ``[M, D2]`` of the images of which both models'
    are kept; None where one has none.
    """
    if (
        first.embedding is None
        or second.embedding is None
        or first.kept is None
        or second.kept is None
    ):
        return None
    _, ours, theirs = np.intersect1d(
        first.kept, second.kept, assume_unique=True, return_indices=True
    )
    return first.embedding[ours], second.embedding[theirs]
