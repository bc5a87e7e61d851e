"""Metrics of several models' embeddings of the same images: held-out queries against a
fixed gallery, with intervals over the queries.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int64

from kd_app.metrics.embedding_shape import (
    compute_debiased_cka,
    compute_effective_rank,
    compute_spread,
    compute_uniformity,
)
from kd_app.metrics.intervals import Interval, bootstrap, compute_percentile_interval
from kd_app.metrics.neighbors import (
    Neighbors,
    classify_by_neighbors,
    compute_overlap,
    compute_purity,
    find_neighbors,
    normalize_rows,
)
from kd_app.metrics.probe import measure_probe
from kd_app.metrics.record import Predictions

TEACHER, STUDENT, UNTOUCHED = "teacher", "student", "untouched"
GALLERY: Final = "train"
"""The split whose images are the neighbors."""
OF_QUERIES: Final = ("overlap", "knn_top1", "purity", "probe_top1")
"""Metrics that are means over queries; the last three need labels."""
COLLAPSED_RANK, COLLAPSED_SPREAD = 2.0, 1e-6
FEWEST_TO_SPREAD: Final = 32
"""Fewer images have a low rank themselves."""
_COMPARED: Final = 5_000
"""Queries for CKA, effective rank and uniformity."""

Images = Float[np.ndarray, "_ _"]
Labels = Int64[np.ndarray, " _"]
Column = Float[np.ndarray, " queries"]


@dataclass(frozen=True)
class ModelEmbeddings:
    """One model's embeddings of the training images (the gallery), of validation, and
    of the queries.
    """

    gallery: Images
    validation: Images
    queries: Images


@dataclass(frozen=True)
class JudgeLabels:
    """Labels of the same images, -1: none."""

    gallery: Labels
    validation: Labels
    queries: Labels
    num_classes: int

    @property
    def can_judge(self) -> bool:
        """Whether gallery and queries have labels of at least two classes."""
        return all(len(np.unique(each[each >= 0])) > 1 for each in (self.gallery, self.queries))


Load = Callable[[str], Predictions]
"""Returns the outputs of a model on a split."""


def load_embeddings(
    loads: Mapping[str, Load], split: str, num_classes: int, *, is_same: bool = False
) -> tuple[dict[str, ModelEmbeddings], JudgeLabels]:
    """Return the embeddings by role, with a split as the queries, and the labels, which
    are those beside the teacher's outputs. is_same: the split is the gallery, too.
    """
    parts = (split,) * 3 if is_same else (GALLERY, "validation", split)
    outputs = {role: {part: load(part) for part in {*parts}} for role, load in loads.items()}
    models = {
        role: ModelEmbeddings(*(np.asarray(each[part].logits) for part in parts))
        for role, each in outputs.items()
    }
    gallery, validation, queries = (outputs[TEACHER][part].target for part in parts)
    return models, JudgeLabels(gallery, validation, queries, num_classes)


@dataclass(frozen=True)
class EmbeddingScores:
    """Metrics of one model. columns: by name, the value of each query; NaN without a
    label. cka, uniformity, effective_rank: of at most 5,000 queries.
    """

    columns: Mapping[str, Column]
    cka: float
    uniformity: float
    effective_rank: float


@dataclass(frozen=True)
class EmbeddingComparison:
    """The embeddings of a run's models on one split, `TEACHER` and `STUDENT` among
    them, and what is computed from them. k: neighbors of a query. is_same: the queries
    are the gallery, so that none is its own neighbor; there is then no linear probe,
    which would need other images to learn from.
    """

    models: Mapping[str, ModelEmbeddings]
    labels: JudgeLabels
    k: int
    confidence: float
    seed: int = 0
    is_same: bool = False
    _neighbors: dict[str, Neighbors] = field(default_factory=dict, init=False, repr=False)

    def find_neighbors(self, role: str) -> Neighbors:
        """Return the nearest gallery images of each query for one model."""
        if role not in self._neighbors:
            model = self.models[role]
            self._neighbors[role] = find_neighbors(
                model.queries, model.gallery, self.k, is_same=self.is_same
            )
        return self._neighbors[role]

    @cached_property
    def scores(self) -> dict[str, EmbeddingScores]:
        """Metrics by role."""
        return {role: self._score(role) for role in self.models}

    def _score(self, role: str) -> EmbeddingScores:
        queries = self.models[role].queries[:_COMPARED]
        neighbors = self.find_neighbors(role)
        columns = {"overlap": compute_overlap(neighbors.rows, self.find_neighbors(TEACHER).rows)}
        if self.labels.can_judge:
            columns |= self._judge(role)
        return EmbeddingScores(
            columns,
            cka=compute_debiased_cka(queries, self.models[TEACHER].queries[:_COMPARED]),
            uniformity=compute_uniformity(queries),
            effective_rank=compute_effective_rank(queries),
        )

    @property
    def chance(self) -> float:
        """Share of the teacher's neighbors that an embedding finds by chance."""
        return self.k / max(1, len(self.models[TEACHER].gallery) - self.is_same)

    @property
    def purity_limit(self) -> float:
        """The purity of a perfect embedding: below 1 if a label has fewer than `k`
        images in the gallery.
        """
        queries, gallery = (each[each >= 0] for each in (self.labels.queries, self.labels.gallery))
        counts = np.bincount(gallery, minlength=self.labels.num_classes)[queries] - self.is_same
        k = min(self.k, len(gallery) - self.is_same)
        return float(np.minimum(counts, k).mean() / k)

    @cached_property
    def gallery_ranks(self) -> dict[str, float]:
        """The effective rank of the gallery for teacher and student."""
        return {
            role: compute_effective_rank(self.models[role].gallery[:_COMPARED])
            for role in (TEACHER, STUDENT)
        }

    @property
    def is_collapsed(self) -> bool:
        """Whether the student gives all images of the gallery nearly the same
        embedding, or places them on a line although the teacher does not.
        """
        gallery = self.models[STUDENT].gallery[:_COMPARED]
        if compute_spread(gallery) < COLLAPSED_SPREAD:
            return True
        limit = min(COLLAPSED_RANK, self.gallery_ranks[TEACHER] / 2)
        return len(gallery) >= FEWEST_TO_SPREAD and self.gallery_ranks[STUDENT] < limit

    def _judge(self, role: str) -> dict[str, Column]:
        """The metrics on labels, among the labeled images alone."""
        model, labels = self.models[role], self.labels
        parts = {
            name: (getattr(model, name)[known], target[known])
            for name, target in (
                ("gallery", labels.gallery),
                ("validation", labels.validation),
                ("queries", labels.queries),
            )
            for known in (target >= 0,)
        }
        gallery, queries = parts["gallery"], parts["queries"]
        k = min(self.k, len(gallery[0]) - self.is_same)
        rows = (
            self.find_neighbors(role).rows[labels.queries >= 0]
            if (labels.gallery >= 0).all() and k == self.k
            else find_neighbors(queries[0], gallery[0], k, is_same=self.is_same).rows
        )
        near = gallery[1][rows]
        values = {
            "knn_top1": classify_by_neighbors(near, labels.num_classes) == queries[1],
            "purity": compute_purity(near, queries[1]),
        }
        if not self.is_same:
            values["probe_top1"] = measure_probe(
                gallery, parts["validation"], queries, labels.num_classes
            )
        return {name: _spread(value, labels.queries >= 0) for name, value in values.items()}

    @cached_property
    def _draws(self) -> dict[str, np.ndarray]:
        """Resampled means, by 'role metric': the queries are drawn, not the gallery."""
        columns = {
            f"{role} {name}": column
            for role, scores in self.scores.items()
            for name, column in scores.columns.items()
        }
        values = np.stack([np.nan_to_num(each) for each in columns.values()], axis=1)
        known = np.stack([np.isfinite(each) for each in columns.values()], axis=1).astype(float)

        def draw(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
            with np.errstate(invalid="ignore", divide="ignore"):
                means = (weights @ values) / (weights @ known)
            return {"means": means}

        means = bootstrap(draw, len(values), seed=self.seed)["means"]
        return dict(zip(columns, means.T, strict=True))

    def estimate(self, role: str, metric: str) -> tuple[float, Interval]:
        """Return the mean of a metric over the queries, and its interval."""
        value = float(np.nanmean(self.scores[role].columns[metric]))
        draws = self._draws[f"{role} {metric}"]
        return value, compute_percentile_interval(value, draws, self.confidence)

    def estimate_difference(self, role: str, other: str, metric: str) -> tuple[float, Interval]:
        """Return a metric of one model minus that of another on the same queries."""
        first, second = (self.scores[each].columns[metric] for each in (role, other))
        draws = self._draws[f"{role} {metric}"] - self._draws[f"{other} {metric}"]
        value = float(np.nanmean(first - second))
        return value, compute_percentile_interval(value, draws, self.confidence)

    def estimate_gap_closed(self, metric: str, base: str = UNTOUCHED) -> tuple[float, Interval]:
        """Return ``(student - base) / (teacher - base)`` and its interval.

        NaN where the interval of the denominator holds 0.
        """
        gap, (low, high) = self.estimate_difference(TEACHER, base, metric)
        if not (low > 0 or high < 0):
            return math.nan, (math.nan, math.nan)
        gain, _ = self.estimate_difference(STUDENT, base, metric)
        own, teacher, student = (
            self._draws[f"{role} {metric}"] for role in (base, TEACHER, STUDENT)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (student - own) / (teacher - own)
        return gain / gap, compute_percentile_interval(gain / gap, draws, self.confidence)

    @property
    def num_labeled(self) -> int:
        """Number of queries with a label that judges."""
        return int((self.labels.queries >= 0).sum()) if self.labels.can_judge else 0


def _spread(values: np.ndarray, known: Bool[np.ndarray, " queries"]) -> Column:
    column = np.full(len(known), np.nan)
    column[known] = values
    return column


def fit_pca(gallery: Images, width: int) -> tuple[Images, Images]:
    """Return the mean ``[1, D]`` and the `width` main directions ``[D, width]`` of
    embeddings of length 1.
    """
    rows = normalize_rows(gallery).double()
    mean = rows.mean(dim=0, keepdim=True)
    centered = rows - mean
    _, vectors = np.linalg.eigh((centered.T @ centered).numpy())
    return mean.numpy(), vectors[:, ::-1][:, :width].copy()


def cut_width(model: ModelEmbeddings, width: int) -> ModelEmbeddings:
    """Return the embeddings in the `width` main directions of the gallery."""
    mean, directions = fit_pca(model.gallery, width)
    parts = (model.gallery, model.validation, model.queries)
    return ModelEmbeddings(
        *(((normalize_rows(each).numpy() - mean) @ directions).astype(np.float32) for each in parts)
    )
