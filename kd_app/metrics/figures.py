"""All figures of one split, with their intervals: the part of ``results.json`` that
stands under 'validation' and 'test'.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64

from kd_app.metrics.cka import CKA
from kd_app.metrics.classification import BINS, calibration_bins, measures
from kd_app.metrics.intervals import (
    Interval,
    bootstrap,
    class_starts,
    f1s,
    percentile,
    recalls,
    reflected,
    wilson,
)
from kd_app.metrics.pair import pair_measures
from kd_app.metrics.per_class import class_flips, class_measures
from kd_app.metrics.per_image import PerImage, blocks, per_image
from kd_app.metrics.scores import pair_scores
from kd_app.metrics.soft_labels import rank_correlations, reverse_divergences

Logits = Mapping[str, Float[np.ndarray, "images classes"]]
Target = Int64[np.ndarray, " images"]
Embedding = Float[np.ndarray, "kept _"]
Figures = dict[str, float | None]
Resampled = dict[str, Float[np.ndarray, " resamples"]]
GROUPS = 100
"""So many groups are listed, those with the most images."""
_UNKNOWN: Interval = (math.nan, math.nan)
_DIGITS = 6


def figures(
    logits: Logits,
    target: Target,
    *,
    seed: int,
    confidence: float,
    group: Sequence[str] | None = None,
    embeddings: tuple[Embedding, Embedding] | None = None,
) -> dict[str, Any]:
    """Figures of each model, of the 'pair', by control, by class and by group. Keys of
    `logits`: 'student', which must be there, 'teacher', and any number of controls, of
    which 'labels_only' is one.

    A model has top1, top5 (the min(5, K) best), balanced_accuracy, f1 (macro), nll,
    brier, ece and classwise_ece. The pair has, with a teacher, retention, agreement,
    negative_flips, positive_flips, kl_to_teacher, reverse_kl, rank_correlation and,
    with `embeddings` (the student's, the teacher's, of equal images), cka; with
    labels_only, gain; with both, gap_closed. Each comes with ``<name>_low`` and
    ``<name>_high``, the interval at `confidence` over the images: Wilson's for rates,
    the bootstrap (1,000 resamples from `seed`, the same images for all models) for the
    rest; none for classwise_ece, whose bias at few images is larger than its spread,
    and for cka. A ratio is None where the interval of what it is divided by is not
    above 0: gap_closed where the teacher is not measurably better than the labels-only
    student. So is a figure that is not finite.

    gains: the student's top1 minus each control's. groups: top1 and agreement of the
    images of each `group` (one name an image, '' for none), those with the most images
    first, of which 100 are listed.
    """
    images = {name: per_image(each, target) for name, each in logits.items()}
    order = np.argsort(target, kind="stable")
    soft = _soft(logits["student"], logits["teacher"], target) if "teacher" in logits else {}
    resampled = _resample(
        {name: each.taken(order) for name, each in images.items()},
        {name: column[order] for name, column in soft.items()},
        target[order],
        seed,
    )
    accuracy = {
        name: np.append(resampled[f"{name}.top1"], each.hits.mean())
        for name, each in images.items()
    }
    found: dict[str, Any] = {"num_images": len(target), "confidence": confidence}
    points = {name: _points(each, target) for name, each in logits.items()}
    for name in logits:
        of_model = {
            key.removeprefix(f"{name}."): column
            for key, column in resampled.items()
            if key.startswith(f"{name}.")
        }
        found[name] = _model(points[name], len(target), of_model, confidence)
    if len(logits) > 1:
        found["pair"] = _accuracies(accuracy, confidence)
    if "teacher" in logits:
        found["pair"] |= _answers(logits, target, soft, resampled, confidence) | _with(
            "cka", _cka(embeddings), _UNKNOWN
        )
    found["gains"] = {
        name: _gain(accuracy["student"], accuracy[name], confidence)
        for name in logits
        if name not in ("teacher", "student")
    }
    found["per_class"] = _per_class(logits, target, points)
    found["groups"] = _groups(images, group, confidence) if group is not None else {}
    return found


def _soft(
    student: Float[np.ndarray, "images classes"],
    teacher: Float[np.ndarray, "images classes"],
    target: Target,
) -> dict[str, Float[np.ndarray, " images"]]:
    """What the soft labels of each image say of the two models."""
    columns: dict[str, list[torch.Tensor]] = {
        "kl_to_teacher": [],
        "reverse_kl": [],
        "rank_correlation": [],
    }
    for ours, theirs, label in blocks(student, teacher, target):
        columns["kl_to_teacher"].append(pair_scores(ours, theirs, label).kl)
        columns["reverse_kl"].append(reverse_divergences(ours, theirs))
        columns["rank_correlation"].append(rank_correlations(ours, theirs))
    return {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}


def _summands(images: PerImage) -> Float[np.ndarray, "images columns"]:
    """Columns whose sums over the drawn images give top1, nll, brier and, from the
    rest, ece: confidence minus hit, in the column of its bin.
    """
    excess = np.zeros((len(images.hits), BINS))
    excess[
        np.arange(len(excess)), calibration_bins(torch.from_numpy(images.confidence)).numpy()
    ] = images.confidence - images.hits
    return np.column_stack([images.hits, images.nll, images.brier, excess])


def _resample(
    images: Mapping[str, PerImage],
    soft: Mapping[str, Float[np.ndarray, " images"]],
    target: Target,
    seed: int,
) -> Resampled:
    """Every figure that has no formula for its interval, over the same resamples;
    images and `target` sorted by class.
    """
    summands, starts, n = (
        {name: _summands(each) for name, each in images.items()},
        class_starts(target),
        len(target),
    )
    known = {
        name: np.column_stack([np.isfinite(column), np.nan_to_num(column, nan=0.0, posinf=0.0)])
        for name, column in soft.items()
    }

    def statistics(weights: Float[np.ndarray, "resamples images"]) -> Resampled:
        found: Resampled = {}
        for name, each in images.items():
            sums = weights @ summands[name] / n
            excess, noise = sums[:, 3:], sums[:, 3:] - summands[name][:, 3:].mean(axis=0)
            found |= {
                f"{name}.top1": sums[:, 0],
                f"{name}.nll": sums[:, 1],
                f"{name}.brier": sums[:, 2],
            }
            found |= {
                f"{name}.ece": np.abs(excess).sum(axis=1),
                f"{name}.no_ece": np.abs(noise).sum(axis=1),
            }
            found[f"{name}.balanced_accuracy"] = np.nanmean(
                recalls(weights, each.hits, starts), axis=1
            )
            found[f"{name}.f1"] = np.nanmean(
                f1s(weights, each.hits, each.predicted, target), axis=1
            )
        with np.errstate(invalid="ignore"):
            for name, columns in known.items():
                count, total = (weights @ columns).T
                found[name] = total / count
        return found

    return bootstrap(statistics, n, seed=seed)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with(name: str, point: float, interval: Interval) -> Figures:
    return {
        name: _finite(point),
        f"{name}_low": _finite(interval[0]),
        f"{name}_high": _finite(interval[1]),
    }


def _estimate(point: float, interval: Interval) -> Figures:
    return {"value": _finite(point), "low": _finite(interval[0]), "high": _finite(interval[1])}


def _points(logits: Float[np.ndarray, "images classes"], target: Target) -> dict[str, torch.Tensor]:
    whole, by_class = measures(logits.shape[1]), class_measures(logits.shape[1])
    for block in blocks(logits, target):
        whole.update(*block)
        by_class.update(*block)
    return {**whole.compute(), **by_class.compute()}


def _model(
    points: Mapping[str, torch.Tensor], n: int, resampled: Resampled, confidence: float
) -> Figures:
    point = {key: float(value) for key, value in points.items() if value.dim() == 0}
    found: Figures = {}
    for rate in ("top1", "top5"):
        found |= _with(rate, point[rate], wilson(round(point[rate] * n), n, confidence))
    for mean in ("balanced_accuracy", "f1", "nll", "brier"):
        found |= _with(mean, point[mean], percentile(point[mean], resampled[mean], confidence))
    found |= _with(
        "ece",
        point["ece"],
        reflected(point["ece"], resampled["ece"], resampled["no_ece"], confidence),
    )
    return found | _with("classwise_ece", point["classwise_ece"], _UNKNOWN)


def _accuracies(accuracy: Mapping[str, Float[np.ndarray, " draws"]], confidence: float) -> Figures:
    """retention = student / teacher, gain = student - labels_only, gap_closed =
    (student - labels_only) / (teacher - labels_only), all of top1.
    """
    student, teacher, control = (
        accuracy["student"],
        accuracy.get("teacher"),
        accuracy.get("labels_only"),
    )
    found: Figures = {}
    if teacher is not None:
        found |= _ratio("retention", student, teacher, confidence)
    if control is not None:
        gain = _gain(student, control, confidence)
        found |= {"gain": gain["value"], "gain_low": gain["low"], "gain_high": gain["high"]}
        if teacher is not None:
            found |= _ratio("gap_closed", student - control, teacher - control, confidence)
    return found


def _gain(
    student: Float[np.ndarray, " draws"], control: Float[np.ndarray, " draws"], confidence: float
) -> Figures:
    gain = student - control
    return _estimate(float(gain[-1]), percentile(float(gain[-1]), gain[:-1], confidence))


def _ratio(
    name: str,
    part: Float[np.ndarray, " draws"],
    whole: Float[np.ndarray, " draws"],
    confidence: float,
) -> Figures:
    """`part` over `whole`; of both, the last entry is the point, the others are
    resamples.
    """
    if percentile(float(whole[-1]), whole[:-1], confidence)[0] <= 0:
        return _with(name, math.nan, _UNKNOWN)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = part / whole
    return _with(name, float(ratio[-1]), percentile(float(ratio[-1]), ratio[:-1], confidence))


def _answers(
    logits: Logits,
    target: Target,
    soft: Mapping[str, Float[np.ndarray, " images"]],
    resampled: Resampled,
    confidence: float,
) -> Figures:
    metric, n = pair_measures(), len(target)
    for block in blocks(logits["student"], logits["teacher"], target):
        metric.update(*block)
    points = {key: float(value) for key, value in metric.compute().items()}
    points["reverse_kl"] = float(soft["reverse_kl"].mean())
    defined = soft["rank_correlation"][np.isfinite(soft["rank_correlation"])]
    points["rank_correlation"] = float(defined.mean()) if len(defined) else math.nan
    found: Figures = {}
    for rate in ("agreement", "negative_flips", "positive_flips"):
        found |= _with(rate, points[rate], wilson(round(points[rate] * n), n, confidence))
    for mean in ("kl_to_teacher", "reverse_kl", "rank_correlation"):
        interval = (
            percentile(points[mean], resampled[mean], confidence)
            if math.isfinite(points[mean])
            else _UNKNOWN
        )
        found |= _with(mean, points[mean], interval)
    return found


def _cka(embeddings: tuple[Embedding, Embedding] | None) -> float:
    if embeddings is None:
        return math.nan
    metric = CKA(embeddings[0].shape[1], embeddings[1].shape[1])
    for block in blocks(*embeddings):
        metric.update(*block)
    return float(metric.compute())


def _per_class(
    logits: Logits, target: Target, points: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "support": points["student"]["support"].tolist(),
        "accuracy": {name: _rounded(each["class_accuracy"]) for name, each in points.items()},
        "f1": {name: _rounded(each["class_f1"]) for name, each in points.items()},
        "negative_flips": [],
        "positive_flips": [],
    }
    if "teacher" in logits:
        metric = class_flips(logits["student"].shape[1])
        for block in blocks(logits["student"], logits["teacher"], target):
            metric.update(*block)
        found |= {name: _rounded(each) for name, each in metric.compute().items()}
    return found


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [_finite(round(value, _DIGITS)) for value in values.tolist()]


def _groups(
    images: Mapping[str, PerImage], group: Sequence[str], confidence: float
) -> dict[str, Any]:
    names, number = np.unique(np.asarray(group, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(number, minlength=len(names))
    agree = (
        images["student"].predicted == images["teacher"].predicted if "teacher" in images else None
    )
    largest = [int(place) for place in np.argsort(-sizes, kind="stable") if names[place]][:GROUPS]
    return {
        str(names[place]): _group(images, agree, np.flatnonzero(number == place), confidence)
        for place in largest
    }


def _group(
    images: Mapping[str, PerImage],
    agree: Bool[np.ndarray, " images"] | None,
    rows: Int[np.ndarray, " rows"],
    confidence: float,
) -> dict[str, Any]:
    n, hits = len(rows), {name: int(each.hits[rows].sum()) for name, each in images.items()}
    accuracy = {
        name: _estimate(right / n, wilson(right, n, confidence)) for name, right in hits.items()
    }
    return {
        "num_images": n,
        "accuracy": accuracy,
        "agreement": None if agree is None else float(agree[rows].mean()),
    }
