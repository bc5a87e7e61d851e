"""Nearest neighbors of embeddings, exact and in bounded memory, and what follows from
them for each query.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK_VALUES: Final = 2**25
"""Similarities in memory at a time: 128 MB in float32."""

Embeddings = Float[np.ndarray, "_ _"]
Rows = Int64[np.ndarray, "queries k"]


class Neighbors(NamedTuple):
    """rows: of the nearest gallery images, the nearest first. similarity: their
    cosine.
    """

    rows: Rows
    similarity: Float[np.ndarray, "queries k"]


def normalize_rows(embeddings: Embeddings) -> Tensor:
    """Return float32 rows of length 1; a row of zeros stays."""
    return F.normalize(torch.from_numpy(np.ascontiguousarray(embeddings)).float(), dim=1)


def find_neighbors(
    queries: Embeddings, gallery: Embeddings, k: int, *, is_same: bool = False
) -> Neighbors:
    """Find the `k` gallery images with the largest cosine similarity to each query.

    is_same: queries and gallery are the same images, and none is its own neighbor. At
    most `_BLOCK_VALUES` similarities are in memory at a time. Raises `ValueError` if
    the gallery has fewer than `k` other images.
    """
    others = len(gallery) - is_same
    if not 0 < k <= others:
        raise ValueError(f"{k} neighbors of {others} images")
    first, second = normalize_rows(queries), normalize_rows(gallery)
    rows, values = _rank(first, second, k, is_same=is_same)
    return Neighbors(rows.numpy(), values.numpy())


def _rank(first: Tensor, second: Tensor, k: int, *, is_same: bool) -> tuple[Tensor, Tensor]:
    size = max(1, _BLOCK_VALUES // len(second))
    rows, values = [], []
    for start in range(0, len(first), size):
        similarity = first[start : start + size] @ second.T
        if is_same:
            own = torch.arange(len(similarity))
            similarity[own, start + own] = -torch.inf
        best = similarity.topk(k, dim=1)
        rows.append(best.indices)
        values.append(best.values)
    return torch.cat(rows), torch.cat(values)


def compute_overlap(first: Rows, second: Rows) -> Float[np.ndarray, " queries"]:
    """Return the share of each query's neighbors that both models have, in 0..1."""
    common: np.ndarray = (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)
    return common


def compute_purity(
    neighbors: Int64[np.ndarray, "queries k"], target: Int64[np.ndarray, " queries"]
) -> Float[np.ndarray, " queries"]:
    """Return the share of each query's neighbors that have its label.

    neighbors: the labels of the neighbors.
    """
    share: np.ndarray = (neighbors == target[:, None]).mean(axis=1)
    return share


def classify_by_neighbors(
    neighbors: Int64[np.ndarray, "queries k"], num_classes: int
) -> Int64[np.ndarray, " queries"]:
    """Return the most frequent label of each query's neighbors; of equally frequent
    ones, that of the nearest neighbor.

    neighbors: the labels of the neighbors, the nearest first.
    """
    queries, k = neighbors.shape
    votes, nearest = (np.zeros((queries, num_classes)) for _ in range(2))
    rows = np.arange(queries)
    for place in reversed(range(k)):
        votes[rows, neighbors[:, place]] += 1
        # less than a vote; the nearest place of a class is written last
        nearest[rows, neighbors[:, place]] = (k - place) / (k + 1)
    label: np.ndarray = (votes + nearest).argmax(axis=1)
    return label
