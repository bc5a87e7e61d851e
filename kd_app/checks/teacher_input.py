"""Checks that the teacher's class order, normalization, channel order and crop are
those of its training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from timm.data import constants

from kd_app.checks.context import PASSES, CheckContext, swap_channels
from kd_app.checks.finding import Finding, refuse
from kd_app.config import InputSpec

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


@dataclass(frozen=True)
class InputAlternative:
    """Where the teacher is right with another input or class order, and how to fix the
    teacher. name: of the finding. change: what differs from the configured input.
    """

    name: str
    change: str
    fix: str
    hits: Bool[np.ndarray, " images"]


def check_teacher_input(context: CheckContext) -> Iterator[Finding]:
    """Refuse a teacher that is significantly better with another class order,
    normalization, channel order or crop.

    If several alternatives are better, the best one and those within ``check.min_gain``
    of it are reported.
    """
    if context.teacher is None:
        return
    better: dict[str, tuple[float, Finding]] = {}
    for alternative in (
        _try_class_order(context),
        *_try_normalizations(context),
        *_try_channel_order(context),
        *_try_crops(context),
    ):
        before, after = context.hits, alternative.hits
        share, p = float(after.mean()), _compute_p_value(before, after)
        # Bonferroni: up to PASSES alternatives are tested.
        if (
            p * PASSES >= context.limits.significance
            or share - before.mean() < context.limits.min_gain
            or share < better.get(alternative.name, (0.0,))[0]
        ):
            continue
        text = (
            f"The teacher is right on {before.mean():.1%} of {len(before):,} images with its"
            f" configured input, and on {share:.1%} with {alternative.change} (p = {p:.1g}, exact"
            f" McNemar test), so it was trained like that. {alternative.fix}"
        )
        better[alternative.name] = share, refuse(alternative.name, text)
    best = max((share for share, _ in better.values()), default=0.0)
    yield from (
        finding for share, finding in better.values() if share > best - context.limits.min_gain
    )


def _compute_p_value(
    before: Bool[np.ndarray, " images"], after: Bool[np.ndarray, " images"]
) -> float:
    """One-sided exact McNemar test: that no more images become right than wrong."""
    from scipy.stats import binomtest

    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, alternative="greater").pvalue)


def _try_class_order(context: CheckContext) -> InputAlternative:
    """The class permutation that fits one half of the images best, tested on the other
    half, and the other way round.
    """
    target, names = context.predictions.target, context.workspace.classes
    predicted, hits = context.predictions.logits.argmax(axis=1), np.zeros(len(target), dtype=bool)
    fold = np.random.default_rng(0).permutation(len(hits)) % _FOLDS
    for number in range(_FOLDS):
        fit, test = fold != number, fold == number
        meaning = _find_permutation(predicted[fit], target[fit], len(names))
        hits[test] = meaning[predicted[test]] == target[test]
    meaning = _find_permutation(predicted, target, len(names))
    moved = [f"its {names[a]!r} is {names[b]!r}" for a, b in enumerate(meaning) if a != b][:3]
    fix = (
        "Correct its label_names, or sort its classifier's rows by the data's classes:"
        f" {', '.join(moved)} ..."
        if moved
        else ""
    )
    return InputAlternative("teacher-class-order", "its classes in another order", fix, hits)


def _find_permutation(predicted: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """``meaning[k]``: the true class of a predicted class k, so that most images are
    right; k itself where the images do not decide.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (predicted, target), 1.0)
    meaning: np.ndarray = linear_sum_assignment(counts + 0.5 * np.eye(num_classes), maximize=True)[
        1
    ]
    return meaning


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
        yield InputAlternative("teacher-normalization", f"another normalization: {name}", fix, hits)


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
        "teacher-channel-order", "the channels in reverse order (BGR)", fix, hits
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
            "teacher-crop", f"a crop of {crop:g} instead of {configured.crop:g}", fix, hits
        )
