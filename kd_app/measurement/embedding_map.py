"""Held-out images on a plane by each model, for the page."""

from pathlib import Path
from typing import Final

import numpy as np

from kd_app.metrics.embedding_report import STUDENT, TEACHER, UNTOUCHED, EmbeddingComparison
from kd_app.metrics.plane import project_embeddings
from kd_app.reporting.embedding_map import MapRow, write_map
from kd_app.run.known_images import list_measured
from kd_app.run.workspace import Workspace

MOST: Final = 600
"""Images on a map: more would hide each other."""
_ROLES: Final = (TEACHER, UNTOUCHED, STUDENT)


def write_embedding_map(
    path: Path, workspace: Workspace, comparison: EmbeddingComparison, split: str
) -> None:
    """Write the places of at most `MOST` held-out images, drawn at random; none for
    data whose images have no numbers, and in a limited run.
    """
    queries = np.array(list_measured(workspace.data, split), dtype=np.int64)
    if not len(queries) or workspace.limit is not None:
        return
    places = np.sort(np.random.default_rng(0).permutation(len(queries))[:MOST])
    planes = project_embeddings({role: comparison.models[role].queries[places] for role in _ROLES})
    files, labels = workspace.data.files, comparison.labels.queries[places].tolist()
    rows = [
        MapRow(
            role,
            index,
            files[index],
            workspace.classes[label] if label >= 0 else None,
            float(x),
            float(y),
            plane.share,
        )
        for role, plane in planes.items()
        for index, label, (x, y) in zip(queries[places].tolist(), labels, plane.points, strict=True)
    ]
    write_map(path, rows)
