"""Checks that the teacher's class order, normalization, channel order and crop are
those of its training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from timm.data import constants

from kd_app.checks.context import PASSES, CheckContext, Limits, swap_channels
from kd_app.checks.finding import Finding, note, refuse
from kd_app.config import InputSpec
from kd_app.metrics.record import Predictions
from kd_app.models.class_names import list_candidate_orders

NORMALIZATIONS = {
    "ImageNet's": (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
    "that to -1..1 (Inception's)": (
        constants.IMAGENET_INCEPTION_MEAN,
        constants.IMAGENET_INCEPTION_STD,
    ),
    "CLIP's": (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD),
    "none, 0..1": ((0.0,) * 3, (1.0,) * 3),
    "none, 0..255": ((0.0,) * 3, (1 / 255,) * 3),
}
"""Mean and standard deviation of common normalizations; the data's own is tried, too.
"""
CROPS = (1.0, 0.875, 0.75, 0.5)
"""Center crops to try, as shares of the shorter side."""
_CLOSE = 0.05
_FOLDS = 2
_FEWEST_IMAGES = 3
"""Images per class below which no permutation of the classes is fitted."""


@dataclass(frozen=True)
class InputAlternative:
    """Where the teacher is right with another input or class order, and how to fix the
    teacher. name: of the finding. change: what differs from the configured input.
    before, hits: whether it is right for each image with the configured input, and with
    this one. chance: the accuracy that the alternative reaches without any knowledge.
    """

    name: str
    change: str
    fix: str
    before: Bool[np.ndarray, " images"]
    hits: Bool[np.ndarray, " images"]
    chance: float = 0.0

    def is_better(self, limits: Limits) -> bool:
        """Whether the teacher is significantly and clearly better with it."""
        share = float(self.hits.mean())
        return (
            # Bonferroni: up to PASSES alternatives are tested.
            _compute_p_value(self.before, self.hits) * PASSES < limits.significance
            and share - self.before.mean() >= limits.min_gain
            and share - self.chance >= limits.min_gain
        )


def check_teacher_input(context: CheckContext) -> Iterator[Finding]:
    """Refuse a teacher that is significantly better with another class order,
    normalization, channel order or crop; crops are not tried before a training.

    If several alternatives are better, the best one and those within ``check.min_gain``
    of it are reported.
    """
    if context.teacher is None:
        return
    better: dict[str, InputAlternative] = {}
    orders = try_class_orders(context.judged, context.workspace.classes)
    for alternative in (*orders, *_try_inputs(context)):
        known = better.get(alternative.name)
        if alternative.is_better(context.limits) and (
            known is None or alternative.hits.mean() >= known.hits.mean()
        ):
            better[alternative.name] = alternative
    best = max((each.hits.mean() for each in better.values()), default=0.0)
    for each in better.values():
        if each.hits.mean() > best - context.limits.min_gain:
            yield refuse(each.name, _describe(each))
    if not _is_order_testable(context.judged, context.workspace.classes):
        yield note(
            "teacher-class-order",
            f"Whether the teacher's classes have another order is not testable:"
            f" {len(context.judged.target):,} images of {len(context.workspace.classes):,} classes"
            f" are less than {_FEWEST_IMAGES} a class.",
        )


def _describe(alternative: InputAlternative) -> str:
    before, after = alternative.before, alternative.hits
    return (
        f"The teacher is right on {before.mean():.1%} of {len(before):,} images with its"
        f" configured input, and on {after.mean():.1%} with {alternative.change} (p ="
        f" {_compute_p_value(before, after):.1g}, exact McNemar test), so it was trained like"
        f" that. {alternative.fix}"
    )


def _try_inputs(context: CheckContext) -> Iterator[InputAlternative]:
    """Other pixels for the teacher, unless it is right on nearly all images."""
    if 1 - context.hits.mean() < context.limits.min_gain:
        return
    yield from _try_normalizations(context)
    yield from _try_channel_order(context)
    if not context.is_quick:
        yield from _try_crops(context)


def _compute_p_value(
    before: Bool[np.ndarray, " images"], after: Bool[np.ndarray, " images"]
) -> float:
    """One-sided exact McNemar test: that no more images become right than wrong."""
    from scipy.stats import binomtest

    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, alternative="greater").pvalue)


def _is_order_testable(predictions: Predictions, names: Sequence[str]) -> bool:
    return len(predictions.target) >= _FEWEST_IMAGES * len(names)


def try_class_orders(
    predictions: Predictions, names: tuple[str, ...]
) -> Iterator[InputAlternative]:
    """Orders of the class names in which tools list classes; and, with enough images,
    the order that fits the predictions best.
    """
    target, before = predictions.target, predictions.hits
    predicted = predictions.logits.argmax(axis=1)
    chance = float(np.bincount(target).max() / len(target))
    if _is_order_testable(predictions, names):
        hits = _fit_permutation(predicted, target)
        meaning = _find_permutation(predicted, target)
        moved = [f"its {names[a]!r} is {names[b]!r}" for a, b in meaning.items() if a != b][:3]
        yield InputAlternative(
            "teacher-class-order",
            "its classes in another order",
            "Correct its label_names, or sort its classifier's rows by the data's classes:"
            f" {', '.join(moved)} ...",
            before,
            hits,
            chance,
        )
    for order, outputs in list_candidate_orders(names).items():
        meaning = {output: number for number, output in enumerate(outputs)}
        ordered = [names[meaning[output]] for output in range(min(4, len(names)))]
        hits = np.array([meaning[a] == b for a, b in zip(predicted, target, strict=True)])
        yield InputAlternative(
            "teacher-class-order",
            f"its classes in {order} order ({', '.join(ordered)}, ...), where the data have"
            f" {', '.join(names[:4])}, ...",
            "Name its classes in its own order: as label_names in the config.json of a model"
            " folder, as `classes` in the checkpoint, or with teacher.classes=<a CSV file>.",
            before,
            hits,
            chance,
        )


def _fit_permutation(predicted: np.ndarray, target: np.ndarray) -> Bool[np.ndarray, " images"]:
    """Where a teacher is right with permuted classes: the permutation that fits one
    half of the images best, tested on the other half, and the other way round.
    """
    hits = np.zeros(len(target), dtype=bool)
    fold = np.random.default_rng(0).permutation(len(hits)) % _FOLDS
    for number in range(_FOLDS):
        fit, test = fold != number, np.flatnonzero(fold == number)
        meaning = _find_permutation(predicted[fit], target[fit])
        hits[test] = [meaning.get(predicted[image], -1) == target[image] for image in test]
    return hits


def _find_permutation(predicted: np.ndarray, target: np.ndarray) -> dict[int, int]:
    """Map each predicted class to a true class, no two of them to the same one, so that
    most images are right; to itself where the images do not decide.

    Only pairs that occur are stored, never a matrix of all pairs.
    """
    from scipy.sparse import coo_array, eye_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, a = np.unique(predicted, return_inverse=True)
    columns, b = np.unique(target, return_inverse=True)
    counts = coo_array((np.ones(len(a)) + (predicted == target) * 1e-3, (a, b)))
    # A column of its own for each class that no true class is left for.
    weights = hstack([counts, 1e-3 * eye_array(len(rows))]).tocsr()
    matching = zip(*min_weight_full_bipartite_matching(weights, maximize=True), strict=True)
    return {
        int(rows[row]): int(columns[column] if column < len(columns) else rows[row])
        for row, column in matching
    }


def _try_normalizations(context: CheckContext) -> Iterator[InputAlternative]:
    assert context.teacher is not None
    if "uint8" not in context.workspace.data.capabilities:
        return  # the images come normalized, in an unknown way
    configured, stats = context.teacher.loaded.pixels, context.workspace.compute_image_stats()
    normalizations = {**NORMALIZATIONS, "that of these images": (stats.mean, stats.std)}
    for name, (mean, std) in normalizations.items():
        channels = configured.channels
        input_spec = replace(
            configured, mean=_match_channels(mean, channels), std=_match_channels(std, channels)
        )
        if _has_same_normalization(input_spec, configured):
            continue
        fix = (
            f"Set mean {_format_values(input_spec.mean)} and std {_format_values(input_spec.std)}"
            " in the config.json of its weights (name=local-dir:<folder>)."
        )
        hits = context.predict(context.sample, input_spec).hits
        yield InputAlternative(
            "teacher-normalization", f"another normalization: {name}", fix, context.hits, hits
        )


def _has_same_normalization(first: InputSpec, second: InputSpec) -> bool:
    return np.allclose(
        [*first.mean, *first.std], [*second.mean, *second.std], atol=_CLOSE / 5, rtol=_CLOSE
    )


def _match_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _format_values(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _try_channel_order(context: CheckContext) -> Iterator[InputAlternative]:
    assert context.teacher is not None
    configured = context.teacher.loaded.pixels
    if configured.channels != 3 or context.workspace.data.channels != 3:
        return
    batches = [swap_channels(batch) for batch in context.sample]
    hits = context.predict(batches, configured).hits
    fix = (
        "Swap the input channels of its first layer, or wrap it: it expects BGR, but the images"
        " are RGB."
    )
    yield InputAlternative(
        "teacher-channel-order",
        "the channels in reverse order (BGR)",
        fix,
        context.hits,
        hits,
    )


def _try_crops(context: CheckContext) -> Iterator[InputAlternative]:
    assert context.teacher is not None
    if "uint8" not in context.workspace.data.capabilities:
        return
    configured = context.teacher.loaded.pixels
    for crop in CROPS:
        if abs(crop - configured.crop) <= _CLOSE:
            continue
        input_spec = replace(configured, crop=crop)
        batches = context.load_batches(input_spec, context.num_images)
        hits = context.predict(batches, input_spec).hits
        fix = f"Set crop_pct {crop:g} in the config.json of its weights (name=local-dir:<folder>)."
        yield InputAlternative(
            "teacher-crop",
            f"a crop of {crop:g} instead of {configured.crop:g}",
            fix,
            context.hits,
            hits,
        )
