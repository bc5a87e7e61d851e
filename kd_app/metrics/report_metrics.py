"""All metrics of one split, with their intervals: the part of ``results.json`` that
stands under 'validation' and 'test'.
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
    Comparison,
    find_flips,
    measure_difference,
)
from kd_app.metrics.per_class import compute_f1_by_class, count_classes, share_by_class
from kd_app.metrics.record import Predictions, sort_by_class

Metrics = dict[str, float | None]
Records = Mapping[str, Predictions]
GROUPS: Final = 100
"""So many groups are listed, those with the most images."""
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
    """Metrics of each model, of the 'pair', by control, by class and by group. Keys of
    `records`, all of the same images: the candidate of `pair` ('student'), which must
    be there; its reference ('teacher'); and any number of controls, of which
    'labels_only' is one.

    A model has the `MODEL_METRICS`, the pair those of the `PAIR_METRICS` whose models
    are there. Each comes with ``<name>_low`` and ``<name>_high``, the interval at
    `confidence` over the images: Wilson's for rates, the bootstrap (1,000 resamples
    from `seed`, the same images for all models) for the rest. A value or bound that is
    undefined, or not finite, is None.

    gains: the candidate's top1 minus each control's. groups: top1 and agreement of the
    images of each `group` (one name an image, '' for none), those with the most images
    first, of which 100 are listed.
    """
    candidate, reference = records[pair.candidate], records.get(pair.reference)
    control = records.get(CONTROL)
    known = {"teacher": reference, CONTROL: control}
    comparison = Comparison(candidate, reference, control)
    measures: dict[str, dict[str, Measure]] = {
        name: {spec.name: spec.compute(record) for spec in MODEL_METRICS}
        for name, record in records.items()
    }
    measures["pair"] = {
        spec.name: spec.compute(comparison)
        for spec in PAIR_METRICS
        if all(known[role] is not None for role in spec.needs)
    }
    measures["gains"] = {
        name: measure_difference(candidate, record)
        for name, record in records.items()
        if name not in pair
    }
    draws = dict(
        zip(measures, resample(measures.values(), sort_by_class(candidate), seed=seed), strict=True)
    )
    found: dict[str, Any] = {"num_images": len(candidate.target), "confidence": confidence}
    found |= {name: _estimate(measures[name], draws[name], confidence) for name in records}
    if len(records) > 1:
        found["pair"] = _estimate(measures["pair"], draws["pair"], confidence)
    found["gains"] = {
        name: _name_ends(measure.estimate(draws["gains"][name], confidence))
        for name, measure in measures["gains"].items()
    }
    found["per_class"] = _measure_classes(records, pair)
    found["groups"] = {} if group is None else _measure_groups(records, group, pair, confidence)
    return found


def _estimate(
    measures: Mapping[str, Measure], draws: Mapping[str, Draws], confidence: float
) -> Metrics:
    found: Metrics = {}
    for name, measure in measures.items():
        value, (low, high) = measure.estimate(draws[name], confidence)
        found |= {name: _drop(value), f"{name}_low": _drop(low), f"{name}_high": _drop(high)}
    return found


def _name_ends(estimate: Estimate) -> Metrics:
    value, (low, high) = estimate
    return {"value": _drop(value), "low": _drop(low), "high": _drop(high)}


def _drop(value: float) -> float | None:
    """None in the place of what is not finite."""
    return value if math.isfinite(value) else None


def _measure_classes(records: Records, pair: ModelPair) -> dict[str, Any]:
    candidate = records[pair.candidate]
    target, classes = candidate.target, candidate.num_classes
    flips: dict[str, Any] = {"negative_flips": [], "positive_flips": []}
    if pair.reference in records:
        both = find_flips(candidate, records[pair.reference])
        flips = {
            name: _round(share_by_class(each, target, classes))
            for name, each in zip(flips, both, strict=True)
        }
    return {
        "support": count_classes(target, classes).tolist(),
        "accuracy": {
            name: _round(share_by_class(each.hits, target, classes))
            for name, each in records.items()
        },
        "f1": {
            name: _round(compute_f1_by_class(each.hits, each.scores.predicted, target, classes))
            for name, each in records.items()
        },
        **flips,
    }


def _round(values: Float[np.ndarray, " classes"]) -> list[float | None]:
    return [_drop(round(value, _DIGITS)) for value in values.tolist()]


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
    return {
        "num_images": len(rows),
        "accuracy": {
            name: _name_ends(estimate_rate(each.hits[rows], confidence))
            for name, each in records.items()
        },
        "agreement": (
            float((predicted[0] == predicted[1]).mean()) if len(predicted) == 2 else None
        ),
    }
