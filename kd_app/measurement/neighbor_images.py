"""Held-out images and their nearest images by each model, for the page."""

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from kd_app.metrics.embedding_report import STUDENT, TEACHER, UNTOUCHED, EmbeddingComparison
from kd_app.reporting.neighbor_examples import NeighborRow, write_neighbors
from kd_app.run.known_images import list_measured
from kd_app.run.workspace import Workspace

SHOWN: Final = 5
"""Nearest images that are shown of each model."""
_IMAGES_PER_QUERY: Final = 16
"""The query, and five images of each of three models."""
_ROLES: Final = (TEACHER, UNTOUCHED, STUDENT)


def write_neighbor_images(
    path: Path,
    workspace: Workspace,
    comparison: EmbeddingComparison,
    gallery_split: str,
    split: str,
) -> None:
    """Write the nearest images of some queries; none with ``examples=0``."""
    number = int(workspace.spec.config["examples"]) // _IMAGES_PER_QUERY
    gallery, queries = (
        np.array(list_measured(workspace.data, name), dtype=np.int64)
        for name in (gallery_split, split)
    )
    if number == 0 or not len(gallery) or not len(queries) or workspace.limit is not None:
        return
    files = workspace.data.files
    thumbnail = cache(workspace.data.make_thumbnail)
    overlap = comparison.scores[STUDENT].columns["overlap"]
    table = []
    for place in select_queries(overlap, number):
        query = int(queries[place])
        for role in _ROLES:
            near = gallery[comparison.find_neighbors(role).rows[place][:SHOWN]].tolist()
            table.append(
                NeighborRow(
                    query,
                    files[query],
                    float(overlap[place]),
                    role,
                    thumbnail(query),
                    near,
                    [files[image] for image in near],
                    [thumbnail(image) for image in near],
                )
            )
    write_neighbors(path, table)


def select_queries(overlap: np.ndarray, number: int) -> list[int]:
    """Return queries on which student and teacher disagree most, and, for the other
    half, typical ones: evenly spread over the order by overlap.
    """
    # ties in any order but that of the files, which are often sorted by class
    ties = np.random.default_rng(0).permutation(len(overlap))
    order = np.lexsort((ties, overlap))
    worst = order[: max(1, number // 2)].tolist()
    rest = order[len(worst) :]
    places = np.linspace(0, len(rest) - 1, min(number - len(worst), len(rest))).astype(int)
    return [*worst, *dict.fromkeys(rest[places].tolist())]
