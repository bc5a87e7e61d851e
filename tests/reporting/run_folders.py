"""Results in the layout of kd-distill: real metrics of invented logits."""

from typing import Any

import numpy as np

from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.results import Results
from tests.metrics.records import to_records

THREE = {"teacher": 3.0, "labels_only": 1.0, "student": 2.0}


def draw_logits(skill: dict[str, float], n: int = 300) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(10, size=n)
    difficulty, logits = rng.standard_normal((n, 10)), {}
    for name, lift in skill.items():
        z = (difficulty + 0.7 * rng.standard_normal((n, 10))).astype(np.float32)
        z[np.arange(n), target] += np.float32(lift)
        logits[name] = z
    return logits, target


def build_model(name: str, params: int, macs: int) -> dict[str, Any]:
    weights = {"source": "timm", "sha256": "ab", "matched": 10, "missing": [], "unexpected": []}
    size = 4 * params + 2_000
    return {
        "name": name,
        "params": params,
        "macs": macs,
        "size_bytes": size,
        "license": "apache-2.0",
        "source": "timm",
        "sha256": "ab",
        "weights": weights,
    }


def build_results(
    skill: dict[str, float] | None = None, *, test: bool = True, **changes: Any
) -> Results:
    skill = THREE if skill is None else skill
    records = to_records(*draw_logits(skill))
    metrics = measure_split(records, seed=0, confidence=0.95)
    splits = ("validation", "test") if test else ("validation",)
    models = {
        "teacher": build_model("resnet50.a1_in1k", 25_557_032, 4_089_184_256),
        "student": build_model("mobilenetv3_small_100.lamb_in1k", 2_542_856, 56_510_000),
        "labels_only": build_model("mobilenetv3_small_100.lamb_in1k", 2_542_856, 56_510_000),
    }
    content: dict[str, Any] = {
        "status": "finished",
        "seed": 3,
        "config": {"seed": 3, "loss": {"soft_target": {"temperature": 4.0}}, "tags": []},
        "environment": {"torch": "2.14.1", "threads": 2},
        "data": {
            "classes": [f"c{k}" for k in range(10)],
            "sizes": {"train": 1000, "validation": 300, "test": 300},
            "fingerprint": "f00d",
        },
        "models": {role: models[role] for role in skill if role in models},
        "speed": {
            "teacher": {"images_per_second": 41.6},
            "student": {"images_per_second": 1234.4},
            "training_images_per_second": 820.0,
        },
        "stages": [
            {
                "name": "student",
                "path": "runs/.stages/student-12",
                "seconds": 61.5,
                "status": "computed",
            }
        ],
        **dict.fromkeys(splits, metrics),
    }
    if "teacher" in skill:
        judgment = VerdictRule(metric="top1", margin=0.01, confidence=0.95).judge(
            records["student"], records["teacher"]
        )
        content["verdict"] = {**vars(judgment), "split": splits[-1]}
    return Results.model_validate({**content, **changes})
