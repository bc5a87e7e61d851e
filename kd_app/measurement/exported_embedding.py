"""Measurement of exported files that output an embedding."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kd_app.metrics.embedding_report import (
    OF_QUERIES,
    STUDENT,
    TEACHER,
    EmbeddingComparison,
    Load,
    load_embeddings,
)
from kd_app.metrics.neighbors import compute_overlap
from kd_app.reporting.exports import Exports
from kd_app.reporting.sentences import format_percent
from kd_app.run.workspace import Workspace

KEPT: Final = 0.98
"""Share of the float model's overlap with the teacher that a recommended file has."""
OWN: Final = 0.8
"""Share of the float model's own neighbors that a recommended file has: a student with
few of the teacher's neighbors could lose all others.
"""


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
    origin: Load | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics by split of a file, or of a model in torch: gallery and queries are its
    own embeddings, and the neighbors are compared with the teacher's.

    origin: the model in torch that a file was written from, whose neighbors are
    compared, too (``own_overlap``).
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
        if origin is not None:
            models, _ = load_embeddings(
                {TEACHER: origin, STUDENT: own}, split, len(workspace.classes)
            )
            comparison = EmbeddingComparison(models, labels, k, confidence)
            near, far = (comparison.find_neighbors(each).rows for each in (TEACHER, STUDENT))
            values["own_overlap"] = float(compute_overlap(far, near).mean())
        metrics[split] = values
    return metrics


def recommend_embedding_file(exports: Exports, split: str) -> EmbeddingFiles:
    """The fastest file of the student that keeps `KEPT` of the overlap of the model in
    torch with the teacher, and `OWN` of that model's neighbors; all measured on
    `split`.
    """
    sentences = []
    kept = []
    for name, file in exports.files.items():
        ours, theirs = getattr(file, split), getattr(exports.torch[file.role], split)
        overlap, torch_overlap = ours.overlap or 0.0, theirs.overlap or 0.0
        own = 0.0 if ours.own_overlap is None else ours.own_overlap
        share = overlap / torch_overlap if torch_overlap else 0.0
        sentences.append(
            f"{name}: finds {format_percent(overlap)} of the teacher's neighbors, the model in"
            f" torch {format_percent(torch_overlap)}; {format_percent(share)} of that are kept, and"
            f" {format_percent(own)} of that model's own neighbors."
        )
        if file.role == STUDENT and share >= KEPT and own >= OWN:
            kept.append(name)
    if not kept:
        return EmbeddingFiles(None, [*sentences, "No file keeps enough to be recommended."])
    fastest = min(kept, key=lambda name: _read_latency(exports, name))
    return EmbeddingFiles(
        fastest,
        [
            *sentences,
            f"Recommended: {fastest}, the fastest file that keeps {format_percent(KEPT)} of the"
            f" overlap of the model in torch, and {format_percent(OWN)} of its own neighbors.",
        ],
    )


def _read_latency(exports: Exports, name: str) -> float:
    latency = exports.files[name].latency_ms
    return latency.p50 if latency is not None else float("inf")
