"""All figures of one split, with their intervals: the part of ``results.json`` that stands under 'validation' and 'test'."""

import math
from collections.abc import Mapping
from typing import Final, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, Int64

from kd_app.metrics.classification import BINS, calibration_bins, measures
from kd_app.metrics.intervals import Interval, bootstrap, class_starts, percentile, recalls, reflected, wilson
from kd_app.metrics.pair import pair_measures
from kd_app.metrics.per_image import PerImage, blocks, per_image
from kd_app.metrics.scores import pair_scores

Logits = Mapping[str, Float[np.ndarray, "images classes"]]
Target = Int64[np.ndarray, " images"]
Figures = dict[str, float | None]
MODELS: Final[tuple[Literal["teacher"], Literal["labels_only"], Literal["student"]]] = ("teacher", "labels_only", "student")
Resampled = dict[str, Float[np.ndarray, " resamples"]]


class SplitFigures(TypedDict, total=False):
    """What is measured on one split; figures of what is not there are left out."""

    num_images: int
    confidence: float
    teacher: Figures
    labels_only: Figures
    student: Figures
    pair: Figures


def figures(logits: Logits, target: Target, *, seed: int, confidence: float) -> SplitFigures:
    """Figures of each model (keys 'teacher', 'labels_only', 'student', of which only the last must be there) and of the 'pair'.

    A model has top1, top5 (the min(5, K) best), balanced_accuracy, nll and ece. The pair has, with a teacher, retention, agreement, negative_flips,
    positive_flips and kl_to_teacher; with a control, gain; with both, gap_closed. Each comes with ``<name>_low`` and ``<name>_high``,
    the interval at `confidence` over the images: Wilson's for rates, the bootstrap (1,000 resamples from `seed`, the same images for all models)
    for the rest. A ratio is None where the interval of what it is divided by is not above 0: gap_closed where the teacher is not measurably better
    than the labels-only student. So is a figure that is not finite.
    """
    order = np.argsort(target, kind="stable")
    images = {name: _in_order(per_image(each, target), order) for name, each in logits.items()}
    kl = _divergences(logits["student"], logits["teacher"], target)[order] if "teacher" in logits else None
    resampled = _resample(images, kl, target[order], seed)
    found: SplitFigures = {"num_images": len(target), "confidence": confidence}
    for name in MODELS:
        if name in logits:
            found[name] = _model(logits[name], target, resampled, name, confidence)
    if len(logits) > 1:
        found["pair"] = _accuracies(images, resampled, confidence)
    if "teacher" in logits:
        found["pair"] |= _answers(logits, target, resampled, confidence)
    return found


def _in_order(images: PerImage, order: Int[np.ndarray, " images"]) -> PerImage:
    return PerImage(images.hits[order], images.nll[order], images.confidence[order])


def _divergences(
    student: Float[np.ndarray, "images classes"], teacher: Float[np.ndarray, "images classes"], target: Target
) -> Float[np.ndarray, " images"]:
    return torch.cat([pair_scores(*block).kl for block in blocks(student, teacher, target)]).double().numpy()


def _summands(images: PerImage) -> Float[np.ndarray, "images columns"]:
    """Columns whose sums over the drawn images give top1, nll and, from the rest, ece: confidence minus hit, in the column of its bin."""
    excess = np.zeros((len(images.hits), BINS))
    excess[np.arange(len(excess)), calibration_bins(torch.from_numpy(images.confidence)).numpy()] = images.confidence - images.hits
    return np.column_stack([images.hits, images.nll, excess])


def _resample(images: Mapping[str, PerImage], kl: Float[np.ndarray, " images"] | None, target: Target, seed: int) -> Resampled:
    """Every figure that has no formula for its interval, over the same resamples; images and `target` sorted by class."""
    summands, starts, n = {name: _summands(each) for name, each in images.items()}, class_starts(target), len(target)

    def statistics(weights: Float[np.ndarray, "resamples images"]) -> Resampled:
        found: Resampled = {}
        for name, each in images.items():
            sums = weights @ summands[name] / n
            excess, noise = sums[:, 2:], sums[:, 2:] - summands[name][:, 2:].mean(axis=0)
            found |= {f"{name}.top1": sums[:, 0], f"{name}.nll": sums[:, 1]}
            found |= {f"{name}.ece": np.abs(excess).sum(axis=1), f"{name}.no_ece": np.abs(noise).sum(axis=1)}
            found[f"{name}.balanced_accuracy"] = np.nanmean(recalls(weights, each.hits, starts), axis=1)
        return found if kl is None else {**found, "kl_to_teacher": weights @ kl / n}

    return bootstrap(statistics, n, seed=seed)


def _with(name: str, point: float, interval: Interval) -> Figures:
    values = {name: point, f"{name}_low": interval[0], f"{name}_high": interval[1]}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _model(logits: Float[np.ndarray, "images classes"], target: Target, resampled: Resampled, name: str, confidence: float) -> Figures:
    n, metric = len(target), measures(logits.shape[1])
    for block in blocks(logits, target):
        metric.update(*block)
    points = {key: float(value) for key, value in metric.compute().items()}
    found: Figures = {}
    for rate in ("top1", "top5"):
        found |= _with(rate, points[rate], wilson(round(points[rate] * n), n, confidence))
    for mean in ("balanced_accuracy", "nll"):
        found |= _with(mean, points[mean], percentile(points[mean], resampled[f"{name}.{mean}"], confidence))
    return found | _with("ece", points["ece"], reflected(points["ece"], resampled[f"{name}.ece"], resampled[f"{name}.no_ece"], confidence))


def _accuracies(images: Mapping[str, PerImage], resampled: Resampled, confidence: float) -> Figures:
    """retention = student / teacher, gain = student - labels_only, gap_closed = (student - labels_only) / (teacher - labels_only), all of top1."""
    accuracy = {name: np.append(resampled[f"{name}.top1"], each.hits.mean()) for name, each in images.items()}
    student, teacher, control = (accuracy.get(name) for name in ("student", "teacher", "labels_only"))
    assert student is not None
    found: Figures = {}
    if teacher is not None:
        found |= _ratio("retention", student, teacher, confidence)
    if control is not None:
        gain = student - control
        found |= _with("gain", float(gain[-1]), percentile(float(gain[-1]), gain[:-1], confidence))
        if teacher is not None:
            found |= _ratio("gap_closed", gain, teacher - control, confidence)
    return found


def _ratio(name: str, part: Float[np.ndarray, " draws"], whole: Float[np.ndarray, " draws"], confidence: float) -> Figures:
    """`part` over `whole`; of both, the last entry is the point, the others are resamples."""
    if percentile(float(whole[-1]), whole[:-1], confidence)[0] <= 0:
        return _with(name, math.nan, (math.nan, math.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = part / whole
    return _with(name, float(ratio[-1]), percentile(float(ratio[-1]), ratio[:-1], confidence))


def _answers(logits: Logits, target: Target, resampled: Resampled, confidence: float) -> Figures:
    metric, n = pair_measures(), len(target)
    for block in blocks(logits["student"], logits["teacher"], target):
        metric.update(*block)
    points = {key: float(value) for key, value in metric.compute().items()}
    found: Figures = {}
    for rate in ("agreement", "negative_flips", "positive_flips"):
        found |= _with(rate, points[rate], wilson(round(points[rate] * n), n, confidence))
    return found | _with("kl_to_teacher", points["kl_to_teacher"], percentile(points["kl_to_teacher"], resampled["kl_to_teacher"], confidence))
