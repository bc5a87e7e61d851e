"""Timing of a cascade and its stages image by image, and its part of results.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from kd_app.config import Decoding
from kd_app.deployment.cascade import ImageStage, ModelCascade, prepare_batch
from kd_app.deployment.cascade_choice import CascadeChoice
from kd_app.deployment.routing import OperatingPoint, RoutingChoice, measure_thresholds
from kd_app.deployment.timing import (
    Floats,
    limit_to_one_thread,
    select_nearest_rank,
    time_interleaved,
)
from kd_app.digest import hash_file
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.top1 import estimate_top1
from kd_app.run.open_model import OpenModel
from kd_app.run.workspace import Workspace

CASCADE = "cascade"
"""Name of the whole cascade among the timed calls."""
_WARMUP_IMAGES = 5
ImageCall = Callable[[Image.Image], object]
"""A timed call: classifies one image."""


def select_images(
    workspace: Workspace, predictions: Predictions, max_images: int
) -> list[Image.Image]:
    """Up to `max_images` of the predicted images, evenly spaced and decoded."""
    num_images = len(predictions.index)
    rows = np.linspace(0, num_images - 1, min(max_images, num_images)).round().astype(int)
    arrays = (workspace.data.read_image(int(predictions.index[row])) for row in rows)
    return [
        Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
        for array in arrays
        if array is not None
    ]


def infer_single(model: ImageStage, decoding: Decoding, image: Image.Image) -> object:
    """Prepare and classify one image with one stage."""
    return model.infer_logits(prepare_batch([image], np.zeros(1, dtype=np.int64), model, decoding))


def infer_cascade(cascade: ModelCascade, image: Image.Image) -> object:
    """Prepare and classify one image with the cascade."""
    return cascade.infer([image])


def time_calls(calls: Mapping[str, ImageCall], images: Sequence[Image.Image]) -> dict[str, Floats]:
    """Seconds per image of each call, ``[images]``, on one thread. All calls process an
    image before the next image starts.
    """
    with limit_to_one_thread():
        for image in images[:_WARMUP_IMAGES]:
            for call in calls.values():
                call(image)
        rounds = [
            time_interleaved(
                {name: partial(call, image) for name, call in calls.items()},
                rounds=1,
                repeats=dict.fromkeys(calls, 1),
            )
            for image in images
        ]
    return {name: np.array([each[name][0, 0] for each in rounds]) for name in calls}


def build_record(
    stages: Sequence[OpenModel],
    validation: Sequence[Predictions],
    test: Sequence[Predictions],
    choice: CascadeChoice,
    *,
    rule: VerdictRule,
    latency: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """The part ``cascade`` of results.json."""
    all_kept = (float("-inf"),) * (len(stages) - 1)
    thresholds = choice.routing.rung.thresholds if choice.uses_cascade else all_kept
    tested = measure_thresholds(
        thresholds,
        [each.logits for each in test],
        test[0].target,
        choice.costs,
        measure=choice.measure,
        temperatures=choice.temperatures,
    )
    return {
        "answer": choice.routing.answer,
        "margin": rule.margin,
        "confidence": rule.confidence,
        "num_images": len(validation[0].target),
        "measure": choice.measure,
        "thresholds": list(thresholds),
        "stages": [
            {
                "file": stage.name,
                "sha256": hash_file(stage.file),
                "temperature": choice.temperatures[number],
                "validation": estimate_top1(validation[number], rule.confidence),
                "test": estimate_top1(test[number], rule.confidence),
                "cost_ms": 1000 * choice.costs[number],
                "latency": latency[f"stage {number}"],
            }
            for number, stage in enumerate(stages)
        ],
        "curves": [build_curve(measure, choice) for measure, choice in choice.by_measure.items()],
        "test": _build_point(tested),
        "latency": latency.get(CASCADE),
    }


def build_curve(measure: str, choice: RoutingChoice) -> dict[str, Any]:
    """A routing curve for results.json."""
    chosen = None if choice.answer == "last" else choice.curve.index(choice.rung)
    rungs = [
        {**_build_point(rung), "proven": number < choice.proven}
        for number, rung in enumerate(choice.curve)
    ]
    return {"measure": measure, "rungs": rungs, "chosen": chosen}


def _build_point(rung: OperatingPoint) -> dict[str, Any]:
    record = asdict(rung)
    cost = record.pop("cost")
    return {**record, "cost_ms": 1000 * cost}


def summarize_latency(seconds: Floats) -> dict[str, float]:
    """Mean and percentiles of a latency, in milliseconds."""
    percentiles = {
        f"p{share}": 1000 * select_nearest_rank(seconds, share / 100) for share in (50, 95, 99)
    }
    return {"mean": 1000 * float(seconds.mean()), **percentiles, "num_images": len(seconds)}
