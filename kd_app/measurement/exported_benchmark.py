"""Measurements of exported files: accuracy compared with the teacher and with the model
in torch, speed compared with the other files and models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from kd_app.deployment.artifact import open_artifact, open_foreign
from kd_app.deployment.cascade import LogitsModel
from kd_app.deployment.cold_start import measure_cold_start
from kd_app.deployment.hardware import describe_machine
from kd_app.deployment.price import Price
from kd_app.deployment.timing import Benchmark, Timing
from kd_app.deployment.torch_model import TorchModel
from kd_app.metrics.measure import estimate_rate
from kd_app.metrics.pair_metrics import find_flips
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.results import Results
from kd_app.run.exported_files import ExportedFile, sample_images
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace

TIMED = 128
"""Number of images on which files and models are timed."""


class BenchmarkRequest(Protocol):
    """How speed and cost are measured."""

    benchmark: Benchmark
    price: Price


@dataclass(frozen=True)
class FileTimings:
    """Speed and cost of each file and of each model in torch, as entries of a manifest;
    notes: sentences about the measurement.
    """

    files: dict[str, dict[str, Any]]
    torch: dict[str, dict[str, Any]]
    notes: list[str]


def measure_accuracy(
    predictions: Predictions,
    teacher: Predictions | None,
    origin: Predictions | None,
    verdict: VerdictRule,
) -> dict[str, Any]:
    """Metrics of `predictions` under the keys of ``results.json``.

    With a `teacher` also the metrics of the pair and the verdict. With `origin`, the
    predictions of the model in torch on the same images, also the change by the export.
    """
    roles = {"student": predictions, **({"teacher": teacher} if teacher else {})}
    split = measure_split(roles, seed=0, confidence=verdict.confidence)
    metrics = {
        "num_images": split["num_images"],
        "confidence": split["confidence"],
        **split["student"],
        **split.get("pair", {}),
    }
    if teacher is not None:
        judgment = verdict.judge(predictions, teacher)
        metrics["verdict"] = {**vars(judgment), "split": "the same images"}
    if origin is not None:
        metrics["beside_torch"] = _compare_with_origin(predictions, origin, verdict)
    return metrics


def _compare_with_origin(
    predictions: Predictions, origin: Predictions, verdict: VerdictRule
) -> dict[str, Any]:
    """The paired verdict of an exported file against the model in torch.

    lost: accuracy (``verdict.metric``) of the model minus accuracy of the file.
    """
    judgment = verdict.judge(predictions, origin)
    negative, positive = find_flips(predictions, origin)
    comparison: dict[str, Any] = {
        "lost": -judgment.difference,
        "lost_low": -judgment.high,
        "lost_high": -judgment.low,
        "outcome": judgment.outcome,
        "metric": judgment.metric,
        "margin": judgment.margin,
        "mcnemar_p": judgment.mcnemar_p,
    }
    agreement = predictions.scores.predicted == origin.scores.predicted
    for name, hits in (
        ("agreement", agreement),
        ("negative_flips", negative),
        ("positive_flips", positive),
    ):
        share, (low, high) = estimate_rate(hits, verdict.confidence)
        comparison |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return comparison


def time_files(
    settings: BenchmarkRequest,
    workspace: Workspace,
    before: Results,
    models: Mapping[str, RunModel],
    files: Mapping[str, ExportedFile],
) -> FileTimings:
    """Time all files and the models in torch, in turns and with one thread each.

    The cold start and the memory of each file are measured in a separate process.
    """
    workspace.console.print_transient("  measuring speed ...")
    cpu = torch.device("cpu")
    stages: dict[str, LogitsModel] = {
        role: TorchModel(
            model.loaded.model,
            workspace.classes,
            model.loaded.pixels,
            workspace.decoding,
            cpu,
            f"The {role}",
        )
        for role, model in models.items()
    }
    stages |= {name: open_foreign(file.path, threads=1) for name, file in files.items()}
    images = {
        role: np.concatenate(sample_images(workspace, "validation", model.loaded.pixels, TIMED))
        for role, model in models.items()
    }
    images |= {name: images[file.role] for name, file in files.items()}
    timings = settings.benchmark.measure(stages, images)
    cold_starts = {
        name: measure_cold_start(file.path, (1, *images[name].shape[1:]), open_artifact)
        for name, file in files.items()
        if file.found_again
    }
    file_records = {
        name: {
            **_record_timing(timings[name], settings.price),
            **cold_starts.get(name, {}),
            **_compute_ratios(timings, name),
        }
        for name in files
    }
    torch_records = {
        role: {
            "name": before.models[role].name,
            "license": before.models[role].license,
            **_record_timing(timings[role], settings.price),
        }
        for role in models
    }
    fastest = max(files, key=lambda name: timings[name].images_per_second)
    formula = settings.price.describe_formula(
        timings[fastest].images_per_second, cores=timings[fastest].cores
    )
    notes = [
        f"Measured on {describe_machine()}, one thread each, in turns.",
        f"Cost of {fastest}: {formula}.",
    ]
    return FileTimings(file_records, torch_records, notes)


def _record_timing(timing: Timing, price: Price) -> dict[str, Any]:
    """Speed and cost of one file or model, as entries of a manifest."""
    speed, cores = timing.images_per_second, timing.cores
    return {
        "device": describe_machine(),
        **timing.to_record(),
        "cost_per_million": price.compute_per_million(speed, cores=cores),
        "cost_formula": price.describe_formula(speed, cores=cores),
        "currency": price.currency,
    }


def _compute_ratios(timings: Mapping[str, Timing], name: str) -> dict[str, Any]:
    """How many times faster and cheaper the file `name` is than each other file and
    model, with 95 % intervals over the rounds.
    """
    file = timings[name]
    others = {other: timing for other, timing in timings.items() if other != name}
    return {
        "times_faster": {
            other: vars(file.compute_speedup(timing, 0.95)) for other, timing in others.items()
        },
        "times_cheaper": {
            other: vars(file.compute_throughput_ratio(timing, 0.95))
            for other, timing in others.items()
        },
    }
