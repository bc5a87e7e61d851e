"""What is measured of a file: its answers beside the teacher's and beside torch's, its
speed beside the other files' and the models'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import CascadeStage
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
from kd_app.run.workspace import RunModel, Workspace

TIMED = 128
"""Images with which files and models are timed."""


class BenchmarkRequest(Protocol):
    """How speed and cost are measured."""

    benchmark: Benchmark
    price: Price


@dataclass(frozen=True)
class FileTimings:
    """Speed and cost of each file and of each model in torch, as a manifest tells of
    them, and what is to be said of all.
    """

    files: dict[str, dict[str, Any]]
    torch: dict[str, dict[str, Any]]
    says: list[str]


def measure_accuracy(
    given: Predictions,
    teacher: Predictions | None,
    origin: Predictions | None,
    verdict: VerdictRule,
) -> dict[str, Any]:
    """Figures of what answered, by the names of ``results.json``; with a `teacher`
    those of the pair and the verdict; and what being written as a file changed:
    `origin` are the answers of the model in torch on the same images.
    """
    records = {"student": given, **({"teacher": teacher} if teacher else {})}
    found = measure_split(records, seed=0, confidence=verdict.confidence)
    told = {
        "num_images": found["num_images"],
        "confidence": found["confidence"],
        **found["student"],
        **found.get("pair", {}),
    }
    if teacher is not None:
        told["verdict"] = {**vars(verdict.judge(given, teacher)), "split": "the same images"}
    if origin is not None:
        told["beside_torch"] = _judge_change(given, origin, verdict)
    return told


def _judge_change(given: Predictions, origin: Predictions, verdict: VerdictRule) -> dict[str, Any]:
    """The paired verdict of a file on the model that it was written from; `lost` is
    accuracy (verdict.metric) of that model minus its own.
    """
    judged = verdict.judge(given, origin)
    worse, better = find_flips(given, origin)
    told: dict[str, Any] = {
        "lost": -judged.difference,
        "lost_low": -judged.high,
        "lost_high": -judged.low,
    }
    told |= {
        "outcome": judged.outcome,
        "metric": judged.metric,
        "margin": judged.margin,
        "mcnemar_p": judged.mcnemar_p,
    }
    for name, hits in (
        ("agreement", given.scores.predicted == origin.scores.predicted),
        ("negative_flips", worse),
        ("positive_flips", better),
    ):
        share, (low, high) = estimate_rate(hits, verdict.confidence)
        told |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return told


def time_files(
    asked: BenchmarkRequest,
    shop: Workspace,
    before: Results,
    members: Mapping[str, RunModel],
    files: Mapping[str, ExportedFile],
) -> FileTimings:
    """Time all files and the models in torch, in turns and with one thread each; each
    file's start and memory in a process of its own.
    """
    shop.console.print_transient("  measuring speed ...")
    cpu = torch.device("cpu")
    models: dict[str, CascadeStage] = {
        role: TorchModel(each.loaded.model, shop.classes, each.loaded.pixels, cpu)
        for role, each in members.items()
    }
    models |= {name: open_artifact(file.path, threads=1) for name, file in files.items()}
    images = {
        role: np.concatenate(sample_images(shop, "validation", each.loaded.pixels, TIMED))
        for role, each in members.items()
    }
    images |= {name: images[file.role] for name, file in files.items()}
    timed = asked.benchmark.measure(models, images)
    start = {
        name: measure_cold_start(file.path, (1, *images[name].shape[1:]), open_artifact)
        for name, file in files.items()
        if file.found_again
    }
    fastest = max(files, key=lambda name: timed[name].images_per_second)
    return FileTimings(
        {
            name: {
                **_price(timed[name], asked.price),
                **start.get(name, {}),
                **_compute_ratios(timed, name),
            }
            for name in files
        },
        {
            role: {
                "name": before.models[role].name,
                "license": before.models[role].license,
                **_price(timed[role], asked.price),
            }
            for role in members
        },
        [
            f"Measured on {describe_machine()}, one thread each, in turns.",
            (
                f"Cost of {fastest}:"
                f" {asked.price.describe_formula(timed[fastest].images_per_second, cores=timed[fastest].cores)}."
            ),
        ],
    )


def _price(timing: Timing, price: Price) -> dict[str, Any]:
    speed, cores = timing.images_per_second, timing.cores
    return {
        "device": describe_machine(),
        **timing.to_record(),
        "cost_per_million": price.compute_per_million(speed, cores=cores),
        "cost_formula": price.describe_formula(speed, cores=cores),
        "currency": price.currency,
    }


def _compute_ratios(timed: Mapping[str, Timing], name: str) -> dict[str, Any]:
    """How many times faster and cheaper a file is than each other file and model, with
    95 % intervals over the rounds.
    """
    own, others = timed[name], {other: each for other, each in timed.items() if other != name}
    return {
        "times_faster": {
            other: vars(own.compute_speedup(each, 0.95)) for other, each in others.items()
        },
        "times_cheaper": {
            other: vars(own.compute_throughput_ratio(each, 0.95)) for other, each in others.items()
        },
    }
