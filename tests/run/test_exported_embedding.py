"""Measurement of exported files that output an embedding."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_app.metrics.record import Predictions
from kd_app.reporting.exports import Exports
from kd_app.run.exported_embedding import measure_embedding_file, recommend_embedding_file

RANDOM = np.random.default_rng(0)
IMAGES = {"train": 30, "validation": 8, "test": 12}
TEACHER = {
    split: Predictions(
        np.arange(n), RANDOM.integers(0, 2, n), RANDOM.normal(size=(n, 6)).astype(np.float32)
    )
    for split, n in IMAGES.items()
}
WORKSPACE: Any = SimpleNamespace(classes=("a", "b"))


def _build_exports(**latencies: float) -> Exports:
    files = {
        name: {
            "format": "onnx",
            "size_bytes": 1,
            "latency_ms": {"p50": p50, "p95": p50, "p99": p50},
        }
        for name, p50 in latencies.items()
    }
    return Exports.model_validate({"schema_version": 1, "files": files, "torch": {}})


def test_a_file_that_equals_the_teacher_has_all_of_its_neighbors() -> None:
    metrics = measure_embedding_file(
        WORKSPACE, TEACHER.__getitem__, TEACHER.__getitem__, ("test",), k=4, confidence=0.95
    )
    assert metrics["test"]["overlap"] == 1
    assert metrics["test"]["overlap_low"] is None, "no resample differs"
    assert metrics["test"]["num_images"] == 12
    assert 0 <= metrics["test"]["purity"] <= 1


def test_the_fastest_file_that_keeps_the_overlap_is_recommended() -> None:
    exports = _build_exports(slow=9.0, fast=1.0, lossy=0.1)
    overlaps = {"slow": 0.5, "fast": 0.495, "lossy": 0.4}
    choice = recommend_embedding_file(exports, overlaps, 0.5)
    assert choice.file == "fast"
    assert len(choice.sentences) == 4


def test_no_file_is_recommended_if_all_lose_neighbors() -> None:
    choice = recommend_embedding_file(_build_exports(lossy=0.1), {"lossy": 0.4}, 0.5)
    assert choice.file is None
    assert "No file" in choice.sentences[-1]


@pytest.mark.parametrize("torch_overlap", [0.0])
def test_a_model_without_overlap_recommends_nothing(torch_overlap: float) -> None:
    choice = recommend_embedding_file(_build_exports(one=0.1), {"one": 0.0}, torch_overlap)
    assert choice.file is None
