"""Measurement of exported files that output an embedding."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kd_app.metrics.embedding_report import (
    OF_QUERIES,
    STUDENT,
    TEACHER,
    EmbeddingComparison,
    Load,
    load_embeddings,
)
from kd_app.reporting.exports import Exports
from kd_app.reporting.sentences import format_percent
from kd_app.run.workspace import Workspace

KEPT: Final = 0.98
"""Share of the float model's overlap with the teacher that a recommended file has."""


class EmbeddingFiles(NamedTuple):
    """The recommended file, and sentences about all files."""

    file: str | None
    sentences: list[str]


def measure_embedding_file(
    workspace: Workspace,
    teacher: Load,
    own: Load,
    splits: Sequence[str],
    *,
    k: int,
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Metrics by split of a file, or of a model in torch: gallery and queries are its
    own embeddings, and the neighbors are compared with the teacher's.
    """
    metrics = {}
    for split in splits:
        models, labels = load_embeddings(
            {TEACHER: teacher, STUDENT: own}, split, len(workspace.classes)
        )
        comparison = EmbeddingComparison(models, labels, k, confidence)
        values: dict[str, Any] = {
            "num_images": len(labels.queries),
            "confidence": confidence,
            "k": k,
        }
        for name in OF_QUERIES:
            if name in comparison.scores[STUDENT].columns:
                value, interval = comparison.estimate(STUDENT, name)
                # a manifest holds no NaN
                low, high = (each if math.isfinite(each) else None for each in interval)
                values |= {name: value, f"{name}_low": low, f"{name}_high": high}
        metrics[split] = values
    return metrics


def recommend_embedding_file(
    exports: Exports, overlaps: Mapping[str, float], torch_overlap: float
) -> EmbeddingFiles:
    """The fastest file that keeps `KEPT` of the overlap of the model in torch.

    overlaps: of each file on the last split, with the teacher's neighbors.
    """
    sentences = []
    kept = []
    for name, overlap in overlaps.items():
        share = overlap / torch_overlap if torch_overlap else 0.0
        sentences.append(
            f"{name}: finds {format_percent(overlap)} of the teacher's neighbors, the model in"
            f" torch {format_percent(torch_overlap)}; {format_percent(share)} of that are kept."
        )
        if share >= KEPT:
            kept.append(name)
    if not kept:
        return EmbeddingFiles(None, [*sentences, "No file keeps enough to be recommended."])
    fastest = min(kept, key=lambda name: _read_latency(exports, name))
    return EmbeddingFiles(
        fastest,
        [
            *sentences,
            f"Recommended: {fastest}, the fastest file that keeps {format_percent(KEPT)} of the"
            " overlap of the model in torch.",
        ],
    )


def _read_latency(exports: Exports, name: str) -> float:
    latency = exports.files[name].latency_ms
    return latency.p50 if latency is not None else float("inf")
