"""Embeddings on a plane, to look at."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kd_app.metrics.neighbors import normalize_rows

Points = Float[np.ndarray, "images 2"]


class Plane(NamedTuple):
    """points: the place of each image · share: of the variance that the plane shows, in
    0..1.
    """

    points: Points
    share: float


def project_embeddings(embeddings: Mapping[str, Float[np.ndarray, "images _"]]) -> dict[str, Plane]:
    """Return the images on the plane of the two main directions (PCA) of each model's
    embeddings, at length 1.

    A plane has no orientation of its own, so that all are rotated or mirrored onto that
    of the first model, with the least squared distance at equal size (orthogonal
    Procrustes).
    """
    planes = {name: _project(each) for name, each in embeddings.items()}
    first = next(iter(planes.values())).points
    for name, plane in planes.items():
        left, _, right = np.linalg.svd(plane.points.T @ first)
        planes[name] = Plane(plane.points @ left @ right, plane.share)
    return planes


def _project(embeddings: Float[np.ndarray, "images _"]) -> Plane:
    rows = normalize_rows(embeddings).double().numpy()
    centered = rows - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    # an embedding of one number lies on a line
    points = np.zeros((len(rows), 2))
    points[:, : len(directions[:2])] = centered @ directions[:2].T
    total = float(np.square(sizes).sum())
    return Plane(points, float(np.square(sizes[:2]).sum()) / total if total > 0 else 0.0)
