"""Measurement of exported files that output an embedding."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_app.measurement.exported_embedding import measure_embedding_file, recommend_embedding_file
from kd_app.metrics.record import Predictions
from kd_app.reporting.exports import Exports

RANDOM = np.random.default_rng(0)
IMAGES = {"train": 30, "validation": 8, "test": 12}
TEACHER = {
    split: Predictions(
        np.arange(n), RANDOM.integers(0, 2, n), RANDOM.normal(size=(n, 6)).astype(np.float32)
    )
    for split, n in IMAGES.items()
}
WORKSPACE: Any = SimpleNamespace(classes=("a", "b"))


def _build_exports(torch_overlap: float, **files: tuple[float, float, float]) -> Exports:
    """files: milliseconds, overlap with the teacher, and with the model in torch."""
    entries = {
        name: {
            "format": "onnx",
            "size_bytes": 1,
            "latency_ms": {"p50": p50, "p95": p50, "p99": p50},
            "test": {"overlap": overlap, "own_overlap": own},
        }
        for name, (p50, overlap, own) in files.items()
    }
    torch = {"student": {"name": "net", "test": {"overlap": torch_overlap}}}
    return Exports.model_validate({"schema_version": 1, "files": entries, "torch": torch})


def test_a_file_that_equals_the_teacher_has_all_of_its_neighbors() -> None:
    metrics = measure_embedding_file(
        WORKSPACE, TEACHER.__getitem__, TEACHER.__getitem__, ("test",), k=4, confidence=0.95
    )
    assert metrics["test"]["overlap"] == 1
    assert metrics["test"]["overlap_low"] is None, "no resample differs"
    assert metrics["test"]["num_images"] == 12
    assert 0 <= metrics["test"]["purity"] <= 1


def test_the_neighbors_of_the_model_in_torch_are_compared_too() -> None:
    load = TEACHER.__getitem__
    metrics = measure_embedding_file(
        WORKSPACE, load, load, ("test",), k=4, confidence=0.95, origin=load
    )
    assert metrics["test"]["own_overlap"] == 1


def test_the_fastest_file_that_keeps_the_overlap_is_recommended() -> None:
    exports = _build_exports(
        0.5, slow=(9.0, 0.5, 1.0), fast=(1.0, 0.495, 0.9), lossy=(0.1, 0.4, 0.9)
    )
    choice = recommend_embedding_file(exports, "test")
    assert choice.file == "fast"
    assert len(choice.sentences) == 4


def test_a_file_with_other_neighbors_than_torch_is_not_recommended() -> None:
    choice = recommend_embedding_file(_build_exports(0.3, other=(1.0, 0.3, 0.4)), "test")
    assert choice.file is None


@pytest.mark.parametrize(("torch_overlap", "overlap"), [(0.5, 0.4), (0.0, 0.0)])
def test_no_file_is_recommended_if_all_lose_neighbors(torch_overlap: float, overlap: float) -> None:
    exports = _build_exports(torch_overlap, lossy=(0.1, overlap, 0.9))
    choice = recommend_embedding_file(exports, "test")
    assert choice.file is None
    assert "No file" in choice.sentences[-1]


def test_the_teacher_is_no_file_to_recommend() -> None:
    exports = _build_exports(0.5, teacher=(0.1, 1.0, 1.0))
    exports.files["teacher"].role = "teacher"
    exports.torch["teacher"] = exports.torch["student"]
    assert recommend_embedding_file(exports, "test").file is None
