"""A results.json in which no part is missing, read in milliseconds."""

import json
from functools import cache
from typing import Any

from kd_app.config.compose import compose_config
from kd_app.metrics.model_pair import CASCADE
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.results import Results
from tests.metrics.records import to_records
from tests.reporting.html.folders import build_knowledge, build_logits
from tests.reporting.run_folders import THREE, build_model

NAMES = ("ant", "bee", "cat")


@cache
def _build_json() -> str:
    logits, target = build_logits(THREE, images=40, classes=3)
    records = to_records(logits, target)
    split = measure_split(records, seed=0, confidence=0.95, group=["a", "b"] * 20)
    pair = {"candidate": records["student"], "reference": records["teacher"]}
    judgment = VerdictRule(metric="top1", margin=0.01, confidence=0.95).judge(
        records["student"], records["teacher"]
    )
    corrupted = {
        "corruption": "fog",
        "severity": 3,
        "num_images": 40,
        "accuracy": {"student": 0.5, "teacher": 0.6},
        "agreement": 0.7,
    }
    estimate = {"value": 0.9, "low": 0.8, "high": 0.95}
    latency = {"mean": 2.0, "p50": 2.0, "p95": 3.0, "p99": 3.0, "num_images": 8}
    stage = {
        "file": "a.onnx",
        "sha256": "ab",
        "temperature": 1.0,
        "validation": estimate,
        "test": estimate,
        "cost_ms": 2.0,
        "latency": latency,
    }
    rung = {
        "thresholds": [0.5],
        "shares": [1.0, 0.4],
        "accuracy": 0.9,
        "better": 1,
        "worse": 2,
        "cost_ms": 2.0,
        "proven": True,
    }
    cascade = {
        "answer": "cascade",
        "margin": 0.01,
        "confidence": 0.95,
        "num_images": 40,
        "measure": "margin",
        "thresholds": [0.5],
        "stages": [stage, {**stage, "file": "b.onnx"}],
        "curves": [{"measure": "margin", "rungs": [rung, rung], "chosen": 0}],
        "test": rung,
        "latency": latency,
        "splits": {"test": measure_split(pair, seed=0, confidence=0.95, pair=CASCADE)},
    }
    training = {"epochs": 3, "max_epochs": 5, "best_epoch": 2, "exported": "average"}
    step = {
        "name": "prune",
        "top1": estimate,
        "lost": estimate,
        "macs": 1000,
        "params": 100,
        "size_bytes": 400,
        "latency_ms": 0.5,
        "details": {"left": 0.5, "sensitivity": {"a": 0.1}},
    }
    results = Results.model_validate(
        {
            "status": "finished",
            "reason": "ended",
            "seed": 3,
            "config": compose_config(
                "distill",
                [
                    "teacher.name=resnet8",
                    "student.name=resnet8",
                    "loss=[cross_entropy,soft_target]",
                ],
            ),
            "environment": {
                "torch": "2.14.1",
                "kd_app": "0.1.0",
                "timm": "1.0",
                "lightning": "2.6",
                "python": "3.11",
                "commit": "abc",
                "threads": 2,
                "device": "cpu",
                "precision": "32-true",
            },
            "data": {
                "name": "insects",
                "classes": NAMES,
                "sizes": {"train": 100, "validation": 40, "test": 40},
                "fingerprint": "f00d",
            },
            "image_stats": {
                "channels": 1,
                "height": 8,
                "width": 8,
                "mean": [0.3],
                "std": [0.4],
            },
            "license": {
                "teacher": "mit",
                "student_start": "none",
                "data": "mit",
                "ships": "mit",
                "forbidden": ["a."],
                "unknown": ["b."],
                "accepted": ["c."],
                "notices": ["d."],
            },
            "models": {
                role: {**build_model(role, 1000, 5000), "training": training} for role in THREE
            },
            "validation": split,
            "test": {**split, "robustness": [corrupted]},
            "verdict": {**vars(judgment), "split": "test"},
            "knowledge": build_knowledge(logits["teacher"], target, NAMES, "test"),
            "speed": {
                **{role: {"images_per_second": 41.6} for role in ("teacher", "student")},
                "training_images_per_second": 820.0,
            },
            "steps": [{**step, "name": "start", "lost": None}, step],
            "stages": [{"name": "student", "path": "s/x", "seconds": 6.5, "status": "computed"}],
            "files": [{"name": "split.csv", "sha256": "5b117"}],
            "cautions": ["Look."],
            "notes": ["A note."],
            "cascade": cascade,
        }
    )
    return results.model_dump_json()


def build_full_results(**changes: Any) -> dict[str, Any]:
    """The content of a results.json with all parts; `changes` replace keys."""
    content: dict[str, Any] = json.loads(_build_json())
    return {**content, **changes}
