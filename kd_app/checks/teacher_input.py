"""Checks that the teacher's class order, normalization, channel order and crop are
those of its training.
"""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from timm.data import constants

from kd_app.checks.alternative import InputAlternative, compute_p_value
from kd_app.checks.class_order import (
    FEWEST_IMAGES,
    fit_class_order,
    is_order_testable,
    try_known_orders,
    write_class_map,
)
from kd_app.checks.context import CheckContext, swap_channels
from kd_app.checks.finding import Finding, note, refuse
from kd_app.config import InputSpec
from kd_app.metrics.record import Predictions

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


def check_teacher_input(context: CheckContext) -> Iterator[Finding]:
    """Refuse a teacher that is significantly better with another class order,
    normalization, channel order or crop; crops are not tried before a training.

    If several alternatives are better, the best one and those within ``check.min_gain``
    of it are reported.
    """
    if context.teacher is None:
        return
    better: dict[str, InputAlternative] = {}
    classes = context.workspace.classes
    # A known order is not fitted, so images of train can test it, too.
    most = max(context.judged, context.predictions, key=lambda each: len(each.target))
    orders = (*fit_class_order(context.judged, classes), *try_known_orders(most, classes))
    for alternative in (*orders, *_try_inputs(context)):
        known = better.get(alternative.name)
        if alternative.is_better(context.limits) and (
            known is None or alternative.hits.mean() >= known.hits.mean()
        ):
            better[alternative.name] = alternative
    best = max((each.hits.mean() for each in better.values()), default=0.0)
    for each in better.values():
        if each.hits.mean() > best - context.limits.min_gain:
            yield refuse(each.name, _describe(each, context))
    if not is_order_testable(context.judged, context.workspace.classes):
        yield note(
            "teacher-class-order",
            f"Whether the teacher's classes have another order is not testable:"
            f" {len(context.judged.target):,} images of {len(context.workspace.classes):,} classes"
            f" are less than {FEWEST_IMAGES} a class.",
        )


def _describe(alternative: InputAlternative, context: CheckContext) -> str:
    before, after = alternative.before, alternative.hits
    fix = alternative.fix
    if alternative.outputs is not None:
        path = write_class_map(context, alternative.outputs)
        if path is not None:
            setting = shlex.quote(f"teacher.classes={path}")
            fix = f"To use its classes in that order, add {setting}, a map that is ready. {fix}"
    return (
        f"The teacher is right on {before.mean():.1%} of {len(before):,} images with its"
        f" configured input, and on {after.mean():.1%} with {alternative.change} (p ="
        f" {compute_p_value(before, after):.1g}, exact McNemar test), so it was trained like"
        f" that. {fix}"
    )


def _try_inputs(context: CheckContext) -> Iterator[InputAlternative]:
    """Other pixels for the teacher, unless it is right on nearly all images."""
    if 1 - context.hits.mean() < context.limits.min_gain:
        return
    for each in iterate_pixel_changes(context):
        hits = each.predictions.hits
        yield InputAlternative(each.name, each.change, each.fix, context.hits, hits)


class PixelChange(NamedTuple):
    """The teacher's outputs for the sample with other pixels. name, change, fix: as of
    `InputAlternative`.
    """

    name: str
    change: str
    fix: str
    predictions: Predictions


def iterate_pixel_changes(context: CheckContext) -> Iterator[PixelChange]:
    """Run the teacher on the sample with other normalizations and channel orders, and,
    unless a training follows, with other crops.
    """
    yield from _change_normalization(context)
    yield from _change_channel_order(context)
    if not context.is_quick:
        yield from _change_crop(context)


def _change_normalization(context: CheckContext) -> Iterator[PixelChange]:
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
        predictions = context.predict(context.sample, input_spec)
        change = f"another normalization: {name}"
        yield PixelChange("teacher-normalization", change, fix, predictions)


def _has_same_normalization(first: InputSpec, second: InputSpec) -> bool:
    return np.allclose(
        [*first.mean, *first.std], [*second.mean, *second.std], atol=_CLOSE / 5, rtol=_CLOSE
    )


def _match_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _format_values(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _change_channel_order(context: CheckContext) -> Iterator[PixelChange]:
    assert context.teacher is not None
    configured = context.teacher.loaded.pixels
    if configured.channels != 3 or context.workspace.data.channels != 3:
        return
    batches = [swap_channels(batch) for batch in context.sample]
    fix = (
        "Swap the input channels of its first layer, or wrap it: it expects BGR, but the images"
        " are RGB."
    )
    change = "the channels in reverse order (BGR)"
    yield PixelChange("teacher-channel-order", change, fix, context.predict(batches, configured))


def _change_crop(context: CheckContext) -> Iterator[PixelChange]:
    assert context.teacher is not None
    if "uint8" not in context.workspace.data.capabilities:
        return
    configured = context.teacher.loaded.pixels
    for crop in CROPS:
        if abs(crop - configured.crop) <= _CLOSE:
            continue
        input_spec = replace(configured, crop=crop)
        batches = context.load_batches(input_spec, context.num_images)
        fix = f"Set crop_pct {crop:g} in the config.json of its weights (name=local-dir:<folder>)."
        change = f"a crop of {crop:g} instead of {configured.crop:g}"
        yield PixelChange("teacher-crop", change, fix, context.predict(batches, input_spec))
