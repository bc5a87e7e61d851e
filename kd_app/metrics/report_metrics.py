"""All metrics of one split with their intervals.

These are the sections 'validation' and 'test' of ``results.json``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from kd_app.metrics.measure import Draws, Estimate, Measure, estimate_rate, resample
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.model_pair import DISTILLATION, ModelPair
from kd_app.metrics.pair_metrics import (
    PAIR_METRICS,
    ModelComparison,
    find_flips,
    measure_difference,
)
from kd_app.metrics.per_class import compute_f1_by_class, compute_share_by_class, count_classes
from kd_app.metrics.record import Predictions, sort_by_class

Metrics = dict[str, float | None]
Records = Mapping[str, Predictions]
GROUPS: Final = 100
"""Maximum number of groups in the results, largest groups first."""
CONTROL: Final = "labels_only"
_DIGITS = 6


def measure_split(
    records: Records,
    *,
    seed: int,
    confidence: float,
    group: Sequence[str] | None = None,
    pair: ModelPair = DISTILLATION,
) -> dict[str, Any]:
    """Measure each model, the pair, the gains over controls, classes and groups.

    records: by model name, all of the same images: the candidate of `pair` ('student',
    required), the reference of `pair` ('teacher'), and any number of controls, such as
    'labels_only' · group: the group of each image, '' for none.

    Each model has the `MODEL_METRICS`; the pair has those of the `PAIR_METRICS` whose
    models are present. Each metric has an interval at `confidence` over the images,
    ``<name>_low`` and ``<name>_high``: exact intervals for accuracies, shares, their
    differences and retention, otherwise bootstrap intervals (1,000 resamples from
    `seed`, the same images for all models). Undefined and non-finite values are None,
    and so are the bounds where the images contain no information about the spread.

    The section 'gains' holds the top1 of the candidate minus that of each control. The
    section 'groups' holds top1 and agreement of the 100 groups with the most images,
    largest first.
    """
    candidate, reference = records[pair.candidate], records.get(pair.reference)
    control = records.get(CONTROL)
    models = {"teacher": reference, CONTROL: control}
    comparison = ModelComparison(candidate, reference, control)
    measures: dict[str, dict[str, Measure]] = {
        name: {spec.name: spec.compute(record) for spec in MODEL_METRICS}
        for name, record in records.items()
    }
    measures["pair"] = {
        spec.name: spec.compute(comparison)
        for spec in PAIR_METRICS
        if all(models[role] is not None for role in spec.needs)
    }
    measures["gains"] = {
        name: measure_difference(candidate, record)
        for name, record in records.items()
        if name not in pair
    }
    draws = dict(
        zip(measures, resample(measures.values(), sort_by_class(candidate), seed=seed), strict=True)
    )
    section: dict[str, Any] = {"num_images": len(candidate.target), "confidence": confidence}
    section |= {name: _estimate(measures[name], draws[name], confidence) for name in records}
    if len(records) > 1:
        section["pair"] = _estimate(measures["pair"], draws["pair"], confidence)
    section["gains"] = {
        name: _to_record(measure.estimate(draws["gains"][name], confidence))
        for name, measure in measures["gains"].items()
    }
    section["per_class"] = _measure_classes(records, pair)
    section["groups"] = {} if group is None else _measure_groups(records, group, pair, confidence)
    return section


def _estimate(
    measures: Mapping[str, Measure], draws: Mapping[str, Draws], confidence: float
) -> Metrics:
    metrics: Metrics = {}
    for name, measure in measures.items():
        value, (low, high) = measure.estimate(draws[name], confidence)
        metrics |= {
            name: _to_finite(value),
            f"{name}_low": _to_finite(low),
            f"{name}_high": _to_finite(high),
        }
    return metrics


def _to_record(estimate: Estimate) -> Metrics:
    value, (low, high) = estimate
    return {"value": _to_finite(value), "low": _to_finite(low), "high": _to_finite(high)}


def _to_finite(value: float) -> float | None:
    """Replace a non-finite value by None."""
    return value if math.isfinite(value) else None


def _measure_classes(records: Records, pair: ModelPair) -> dict[str, Any]:
    candidate = records[pair.candidate]
    target, classes = candidate.target, candidate.num_classes
    flips: dict[str, Any] = {"negative_flips": [], "positive_flips": []}
    if pair.reference in records:
        both = find_flips(candidate, records[pair.reference])
        flips = {
            name: _round(compute_share_by_class(each, target, classes))
            for name, each in zip(flips, both, strict=True)
        }
    return {
        "support": count_classes(target, classes).tolist(),
        "accuracy": {
            name: _round(compute_share_by_class(each.hits, target, classes))
            for name, each in records.items()
        },
        "f1": {
            name: _round(compute_f1_by_class(each.hits, each.scores.predicted, target, classes))
            for name, each in records.items()
        },
        **flips,
    }


def _round(values: Float[np.ndarray, " classes"]) -> list[float | None]:
    return [_to_finite(round(value, _DIGITS)) for value in values.tolist()]


def _measure_groups(
    records: Records, group: Sequence[str], pair: ModelPair, confidence: float
) -> dict[str, Any]:
    names, number = np.unique(np.asarray(group, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(number, minlength=len(names))
    largest = [int(place) for place in np.argsort(-sizes, kind="stable") if names[place]][:GROUPS]
    return {
        str(names[place]): _measure_group(
            records, pair, np.flatnonzero(number == place), confidence
        )
        for place in largest
    }


def _measure_group(
    records: Records, pair: ModelPair, rows: Int[np.ndarray, " rows"], confidence: float
) -> dict[str, Any]:
    predicted = [records[name].scores.predicted[rows] for name in pair if name in records]
    agreement = float((predicted[0] == predicted[1]).mean()) if len(predicted) == 2 else None
    return {
        "num_images": len(rows),
        "accuracy": {
            name: _to_record(estimate_rate(each.hits[rows], confidence))
            for name, each in records.items()
        },
        "agreement": agreement,
    }
