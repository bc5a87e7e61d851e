"""Manifests of exported files in the layout of kd-export, with invented metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEVICE = "A Processor, x86_64"


def build_entry(
    top1: float,
    cost: float,
    p95: float,
    *,
    outcome: str | None = "kept",
    test: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A manifest's entry for one file. The default test accuracy is one point below the
    validation accuracy.
    """

    def build_metrics(value: float, split: str) -> dict[str, Any]:
        rule = {
            "metric": "top1",
            "margin": 0.01,
            "confidence": 0.95,
            "difference": 0.0,
            "low": -0.005,
            "high": 0.005,
        }
        verdict = (
            {
                "outcome": outcome,
                **rule,
                "num_images": 300,
                "n_needed": None,
                "mcnemar_p": 0.5,
                "split": split,
            }
            if outcome
            else None
        )
        return {
            "top1": value,
            "top1_low": value - 0.02,
            "top1_high": value + 0.02,
            "negative_flips": 0.0123,
            "top5": 1.0,
            "verdict": verdict,
        }

    return {
        "format": "onnx",
        "license": "apache-2.0",
        "sha256": "ab" * 32,
        "size_bytes": 312_345,
        "runtime": {"name": "onnxruntime", "version": "1.32"},
        "device": DEVICE,
        "validation": build_metrics(top1, "validation"),
        "test": build_metrics(top1 - 0.01 if test is None else test, "test"),
        "latency_ms": {"p50": 0.8 * p95, "p95": p95, "p99": 1.5 * p95, "calls": 400},
        "images_per_second": 1e6 / 3600 * 0.04 / cost,
        "batch_size": 32,
        "cores": 1.0,
        "cost_per_million": cost,
        "currency": "USD",
        "start_seconds": 0.0123,
        "peak_memory_bytes": 61_000_000,
        **changes,
    }


def write_manifest(
    run: Path,
    files: Mapping[str, Mapping[str, Any]],
    *,
    ship: str | None = None,
    **torch: Mapping[str, Any],
) -> None:
    """Write the manifest of the run in `run`; `torch`: PyTorch models by role."""
    manifest = {
        "schema_version": 1,
        "kd_app": "0.1.0",
        "files": files,
        "torch": {role: {"name": "a net", **model} for role, model in torch.items()},
        "ship": ship,
    }
    (run / "export").mkdir()
    (run / "export" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
