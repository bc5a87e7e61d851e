"""Records: one model's outputs for each image of a split.

Metrics, intervals, verdicts, cascades and examples are computed from records.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from kd_app.config.errors import take_first_line
from kd_app.config.records import parse_with

# The name is part of the stage format: a new name would invalidate finished stages.
_FILE = "answers.safetensors"


@runtime_checkable
class Record(Protocol):
    """One model's outputs for each image of a split, for any task.

    Code that compares two models image by image (bootstrap, McNemar's test, verdict,
    gain, cascade) needs the images and the hits only. The metrics of a task read the
    other columns of that task's record: `Predictions` holds logits. A record of
    embeddings could count an image as a hit if the nearest neighbors are of the same
    class; `take` would then keep the gallery.
    """

    @property
    def index(self) -> Int64[np.ndarray, " images"]:
        """Number of each image in the data."""

    @property
    def target(self) -> Int64[np.ndarray, " images"]:
        """Label of each image."""

    @property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """Whether the model is right on each image."""

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Record":
        """Return the record of these rows, in this order."""

    def sort_by_index(self) -> "Record":
        """Return the record in the order of `index`."""


@dataclass(frozen=True)
class ImageScores:
    """Values of one model for each image, ``[N]`` each, in the order of the images.

    rank: number of classes ranked before the label (0: top-1 is right) · nll: ``-log
    p(label)``, nats · confidence: the largest probability · brier: ``sum_k (p_k - [k is
    the label])^2`` · predicted: the top-1 class.
    """

    rank: Int64[np.ndarray, " images"]
    nll: Float[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    brier: Float[np.ndarray, " images"]
    predicted: Int64[np.ndarray, " images"]


@dataclass(frozen=True)
class Totals:
    """Metrics over all images.

    Sums are in float32, a block at a time, exactly as during training.
    """

    balanced_accuracy: float
    f1: float
    nll: float
    brier: float
    ece: float
    classwise_ece: float


@dataclass(frozen=True)
class SoftLabelScores:
    """Comparison of two models' probabilities on the same images.

    kl: mean of ``KL(p_teacher || p_student)``, as logged during training ·
    kl_to_teacher: that divergence for each image, nats · reverse_kl: ``KL(p_student ||
    p_teacher)`` for each image, nats · rank_correlation: Spearman's rho of the class
    scores for each image; NaN if undefined.
    """

    kl: float
    kl_to_teacher: Float[np.ndarray, " images"]
    reverse_kl: Float[np.ndarray, " images"]
    rank_correlation: Float[np.ndarray, " images"]


@dataclass(frozen=True)
class Predictions:
    """A `Record` of a classifier: ``index [N]``, ``target [N]``, ``logits [N, K]``.

    embedding: ``[M, D]`` float32, the inputs of the final linear layer · kept: ``[M]``,
    the rows that the embeddings belong to: all rows, or evenly spread ones if all would
    take more than 128 MB. Both are None if embeddings were not requested, or if the
    model has no linear layer that maps one vector to the logits.
    """

    index: Int64[np.ndarray, " images"]
    target: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "images classes"]
    embedding: Float[np.ndarray, "kept width"] | None = None
    kept: Int64[np.ndarray, " kept"] | None = None

    def save(self, folder: Path) -> None:
        """Write the record into `folder`, without a copy in memory."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        present = {name: column for name, column in columns.items() if column is not None}
        header, start = {}, 0
        for name, column in present.items():
            header[name] = {
                "dtype": f"{column.dtype.kind.upper()}{8 * column.dtype.itemsize}",
                "shape": column.shape,
                "data_offsets": (start, start + column.nbytes),
            }
            start += column.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / _FILE).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for column in present.values():
                np.ascontiguousarray(column).tofile(file)

    @staticmethod
    def load(folder: Path) -> "Predictions":
        """Read a record that `save` wrote; its logits stay on disk until they are used.

        The logits are mapped copy-on-write: torch accepts them, and the file never
        changes.
        """
        path = folder / _FILE
        expected = "Remove that stage to compute the outputs again."
        return parse_with(path, lambda: _load(path), expected=expected)

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Predictions":
        """Return these rows, in this order, with the embeddings that exist for them."""
        columns = self.index[rows], self.target[rows], self.logits[rows]
        if self.embedding is None or self.kept is None:
            return Predictions(*columns)
        place = np.full(len(self.index), -1)
        place[self.kept] = np.arange(len(self.kept))
        kept = np.flatnonzero(place[rows] >= 0)
        return Predictions(*columns, self.embedding[place[rows][kept]], kept)

    def sort_by_index(self) -> "Predictions":
        """Return the predictions in the order of `index`."""
        if (np.diff(self.index) > 0).all():
            return self  # without a copy of the logits
        return self.take(self.index.argsort())

    @property
    def num_classes(self) -> int:
        """Number of logits per image."""
        return int(self.logits.shape[1])

    @cached_property
    def scores(self) -> ImageScores:
        """The terms that each image adds to the metrics."""
        # Importing torch takes seconds.
        from kd_app.metrics.per_image import score_images

        return score_images(self.logits, self.target)

    @cached_property
    def totals(self) -> Totals:
        """Metrics over all images."""
        from kd_app.metrics.per_image import compute_totals

        return compute_totals(self.logits, self.target, self.scores)

    @property
    def hits(self) -> Bool[np.ndarray, " images"]:
        """Whether the label has the largest logit; False for NaN logits."""
        right: np.ndarray = self.scores.rank == 0
        return right


def _load(path: Path) -> Predictions:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys()) - {"logits"}
            columns = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(take_first_line(error)) from None
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(size))["logits"]
    dtype, start = entry["dtype"].lower(), 8 + size + entry["data_offsets"][0]
    width, shape = np.dtype(f"{dtype[0]}{int(dtype[1:]) // 8}"), tuple(entry["shape"])
    # an empty file part can't be mapped
    logits = np.empty(shape, width) if 0 in shape else np.memmap(path, width, "c", start, shape)
    predictions = Predictions(logits=logits, **columns)
    _check_columns(predictions)
    return predictions


def _check_columns(record: Predictions) -> None:
    """Raise `ValueError` for columns of other shapes, and labels that are no class."""
    images, classes = record.logits.shape
    kept = 0 if record.kept is None else len(record.kept)
    if record.index.shape != (images,) or record.target.shape != (images,):
        raise ValueError(f"it has {len(record.index)} images and {images} rows of logits")
    if images and not -1 <= record.target.min() <= record.target.max() < classes:
        raise ValueError(f"a label is not one of {classes} classes")
    if (record.embedding is None) != (record.kept is None) or (
        record.embedding is not None and len(record.embedding) != kept
    ):
        raise ValueError(f"it has no embedding for each of {kept} images")


def sort_by_class(record: Record) -> Int64[np.ndarray, " images"]:
    """Rows of the images, sorted by class."""
    return np.argsort(record.target, kind="stable")


def match_embeddings(
    first: Predictions, second: Predictions
) -> tuple[np.ndarray, np.ndarray] | None:
    """Embeddings ``[M, D1]`` and ``[M, D2]`` of the images that both records have.

    None if a record has no embeddings.
    """
    if first.embedding is None or first.kept is None:
        return None
    if second.embedding is None or second.kept is None:
        return None
    _, rows, other_rows = np.intersect1d(
        first.kept, second.kept, assume_unique=True, return_indices=True
    )
    return first.embedding[rows], second.embedding[other_rows]
