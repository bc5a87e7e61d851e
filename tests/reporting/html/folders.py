"""Run folders as kd-distill writes them, from synthetic logits and curves."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kd_app.metrics.class_similarity import measure_soft_labels
from kd_app.metrics.examples import ExampleRow, Reason
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.examples import write_examples
from kd_app.reporting.results import Results, write
from kd_app.reporting.runs import write_curves, write_predictions
from tests.metrics.records import to_records
from tests.reporting.run_folders import THREE, build_model, build_results

CLASSES = (
    "T-shirt/top",
    "<script>alert(1)</script>",
    "Ålesund & 'Sons' \"x\"",
    "a | b",
    "a class of very many words, more than fit a line of a drawing",
)
FILES = (
    "a/ü ñ 日本.png",
    "new\nline.png",
    "<img src=x onerror=alert(2)>.png",
    "`b`|c.png",
    "x" * 120 + ".png",
)


def build_logits(
    skill: Mapping[str, float], *, images: int, classes: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return logits of models that find the same images hard, and the labels."""
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=images)
    hard, logits = random.standard_normal((images, classes)).astype(np.float32), {}
    for role, lift in skill.items():
        z = hard + 0.7 * random.standard_normal((images, classes)).astype(np.float32)
        z[np.arange(images), target] += np.float32(lift)
        logits[role] = z
    return logits, target


def run_folder(
    folder: Path,
    *,
    skill: Mapping[str, float] = THREE,
    images: int = 300,
    seed: int = 3,
    names: tuple[str, ...] = CLASSES,
    test: bool = True,
    examples: bool = False,
    **changes: Any,
) -> Results:
    """Write a finished run to `folder`."""
    folder.mkdir(parents=True)
    logits, target = build_logits(skill, images=images, classes=len(names), seed=seed)
    records = to_records(logits, target)
    measured = measure_split(records, seed=0, confidence=0.95)
    split = "test" if test else "validation"
    judgment = (
        {
            **vars(
                VerdictRule(metric="top1", margin=0.01, confidence=0.95).judge(
                    records["student"], records["teacher"]
                )
            ),
            "split": split,
        }
        if "teacher" in skill
        else None
    )
    data = {
        "classes": names,
        "sizes": {"train": 1000, "validation": images, "test": images},
        "fingerprint": f"f00d{len(names)}",
    }
    content = {
        "validation": measured,
        "test": measured if test else None,
        "verdict": judgment,
        "data": data,
        "seed": seed,
        "files": [{"name": "split.csv", "sha256": "5b117"}],
    }
    config = {
        "seed": seed,
        "loss": {"soft_target": {"temperature": 4.0, "weight": 1.0}},
        "tags": [],
        "teacher": {"name": "resnet50"} if len(skill) > 1 else None,
    }
    if "teacher" in skill:
        content["knowledge"] = build_knowledge(logits["teacher"], target, names, split)
    models = {
        role: build_model(
            "a net" if role == "teacher" else "small",
            25_557_032 if role == "teacher" else 2_542_856,
            4_089_184_256,
        )
        for role in skill
    }
    results = Results.model_validate(
        {**build_results().model_dump(), "config": config, "models": models, **content, **changes}
    )
    write(folder / "results.json", results)
    files = [FILES[number % len(FILES)] for number in range(images)]
    write_predictions(
        folder / "predictions.parquet",
        index=np.arange(images),
        file=files,
        target=target,
        logits=logits,
    )
    if examples:
        some = list(range(0, min(images, 60), 2))
        whys: tuple[Reason, ...] = (
            "negative_flip",
            "positive_flip",
            "most_different",
            "similar_pair",
            "typical",
        )
        chosen = [
            ExampleRow(row, whys[row % 5], tuple(range(min(len(names), 5))), 0.1) for row in some
        ]
        write_examples(
            folder / "examples.parquet",
            chosen,
            index=np.arange(images),
            file=[files[row] for row in some],
            target=target,
            logits=logits,
            png=[build_png(row) for row in some],
        )
    curves = {role: build_curve(number) for number, role in enumerate(skill)}
    write_curves(folder / "metrics.csv", curves)
    return results


def build_knowledge(
    logits: np.ndarray, target: np.ndarray, names: tuple[str, ...], split: str
) -> dict[str, Any]:
    """Build the soft-label statistics of the teacher, as in results.json."""
    statistics = measure_soft_labels(logits, target, training_temperatures=[4.0])
    plain, *softened = (
        {
            **alike,
            "similar": [
                {**pair, "first": names[pair["first"]], "second": names[pair["second"]]}
                for pair in alike["similar"]
            ],
        }
        for alike in statistics["alike"]
    )
    return {
        "split": split,
        "num_images": statistics["num_images"],
        "entropy": statistics["entropy"],
        "similar": plain["similar"],
        "matrix": plain["matrix"],
        "softened": softened,
    }


def build_png(number: int) -> bytes:
    """Build a small PNG."""
    file = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    ).save(file, "PNG")
    return file.getvalue()


def build_curve(number: int, epochs: int = 4) -> list[dict[str, float]]:
    """Build the logged values of a training."""
    points = []
    for epoch in range(epochs):
        points += [
            {
                "epoch": epoch,
                "step": 10 * epoch + step,
                "train/loss": 3.0 / (epoch + 1) + step / 100,
                "train/lr": 0.1,
            }
            for step in (3, 9)
        ]
        points.append(
            {
                "epoch": epoch,
                "step": 10 * epoch + 9,
                "validation/top1": 0.5 + 0.1 * epoch + number / 50,
                "validation/nll": 1.0 / (epoch + 1),
            }
        )
    return points
