"""Results of an embedding with all parts."""

from typing import Any

from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.reporting.results import Results
from tests.reporting.run_folders import build_results


def _bound(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def build_embedding_results(
    outcome: str = "kept", labeled: int = 0, gains: dict[str, float] | None = None
) -> Results:
    labels: dict[str, Any] = {"purity": _bound(0.5)} if labeled else {}
    models = {
        role: {"width": width, "overlap": _bound(value), "cka": 0.5, **labels}
        for role, width, value in (
            ("teacher", 1280, 0.97),
            ("pca", 512, 0.9),
            ("random", 512, 0.1),
            ("untouched", 512, 0.2),
            *((role, 512, 0.3) for role in gains or {}),
            ("student", 1280, 0.6),
        )
    }
    split = {
        "num_queries": 100,
        "num_gallery": 400,
        "num_labeled": labeled,
        "k": 10,
        "confidence": 0.95,
        "models": models,
        "gap_closed": {"overlap": _bound(0.5), **({"purity": {"value": None}} if labeled else {})},
        "gains": {
            role: dict.fromkeys(("overlap", *labels), _bound(gain))
            for role, gain in (gains or {}).items()
        },
    }
    verdict = {
        "outcome": outcome,
        "margin": 0.5,
        "confidence": 0.95,
        "overlap": 0.6,
        "low": 0.58,
        "high": 0.62,
        "num_images": 100,
        "split": "test",
    }
    record = EmbeddingRecord.model_validate(
        {
            "teacher_embedding": "pooled",
            "ships": "projector",
            "candidates": {"projector": 0.6, "backbone": 0.4},
            "untouched": "random",
            "test": split,
            "verdict": verdict,
        }
    )
    return build_results().model_copy(
        update={"embedding": record, "validation": None, "test": None, "verdict": None}
    )
