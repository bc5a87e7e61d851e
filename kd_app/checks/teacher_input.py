"""Is the teacher fed as it was trained: with these classes in this order, this
normalization, this order of channels, this crop?
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
"""What weights are usually trained with; and the mean and standard deviation of these
images.
"""
CROPS = (1.0, 0.875, 0.75, 0.5)
"""Shares of the shorter side that the center crop keeps."""
_CLOSE = 0.05
_FOLDS = 2


@dataclass(frozen=True)
class InputAlternative:
    """Where the teacher is right when it is read or fed in another way, and how to mend
    that.
    """

    name: str
    way: str
    mend: str
    hits: Bool[np.ndarray, " images"]


def check_teacher_input(subject: CheckContext) -> Iterator[Finding]:
    """A teacher that is significantly better with its classes in another order, or with
    another normalization, channel order or crop.

    Of several explanations those that are as good as the best are told.
    """
    if subject.teacher is None:
        return
    better: dict[str, tuple[float, Finding]] = {}
    for other in (
        _try_class_order(subject),
        *_try_normalizations(subject),
        *_try_channel_order(subject),
        *_try_crops(subject),
    ):
        before, after = subject.hits, other.hits
        share, p = float(after.mean()), _compute_chance(before, after)
        if (
            p * PASSES >= subject.limits.significance
            or share - before.mean() < subject.limits.min_gain
            or share < better.get(other.name, (0.0,))[0]
        ):
            continue
        text = (
            f"The teacher has {before.mean():.1%} of {len(before):,} images right as it is fed, and"
            f" {share:.1%} with {other.way} (p = {p:.1g}, exact McNemar test): so it was trained."
            f" {other.mend}"
        )
        better[other.name] = share, refuse(other.name, text)
    best = max((share for share, _ in better.values()), default=0.0)
    yield from (
        finding for share, finding in better.values() if share > best - subject.limits.min_gain
    )


def _compute_chance(
    before: Bool[np.ndarray, " images"], after: Bool[np.ndarray, " images"]
) -> float:
    """How likely so many more images would turn right than wrong, if neither were more
    likely than the other.
    """
    from scipy.stats import binomtest

    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    return (
        float(binomtest(better, better + worse, alternative="greater").pvalue)
        if better + worse
        else 1.0
    )


def _try_class_order(subject: CheckContext) -> InputAlternative:
    """The permutation of classes that fits one half of the images best, judged on the
    other half, and the other way round.
    """
    answers, names = subject.answers, subject.shop.classes
    said, hits = answers.logits.argmax(axis=1), np.zeros(len(answers.target), dtype=bool)
    fold = np.random.default_rng(0).permutation(len(hits)) % _FOLDS
    for number in range(_FOLDS):
        means = _find_permutation(said[fold != number], answers.target[fold != number], len(names))
        hits[fold == number] = means[said[fold == number]] == answers.target[fold == number]
    means = _find_permutation(said, answers.target, len(names))
    moved = [f"by {names[a]!r} it means {names[b]!r}" for a, b in enumerate(means) if a != b][:3]
    mend = (
        "Correct its label_names, or sort its classifier's rows by the data's classes:"
        f" {', '.join(moved)} ..."
        if moved
        else ""
    )
    return InputAlternative("teacher-class-order", "its classes in another order", mend, hits)


def _find_permutation(said: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """``means[k]``: the class that an answer k stands for, so that most images are
    right; k itself where the images do not say.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes))
    np.add.at(counts, (said, target), 1.0)
    means: np.ndarray = linear_sum_assignment(counts + 0.5 * np.eye(classes), maximize=True)[1]
    return means


def _try_normalizations(subject: CheckContext) -> Iterator[InputAlternative]:
    assert subject.teacher is not None
    if "uint8" not in subject.shop.data.capabilities:
        return  # they come normalized, nobody knows how
    given, seen = subject.teacher.loaded.pixels, subject.shop.compute_image_stats()
    for name, (mean, std) in {
        **NORMALIZATIONS,
        "that of these images": (seen.mean, seen.std),
    }.items():
        pixels = replace(given, mean=_match_channels(given, mean), std=_match_channels(given, std))
        if not np.allclose(
            [*pixels.mean, *pixels.std], [*given.mean, *given.std], atol=_CLOSE / 5, rtol=_CLOSE
        ):
            mend = (
                f"Say mean {_format_values(pixels.mean)} and std {_format_values(pixels.std)} in the config.json of"
                " its weights (name=local-dir:<folder>)."
            )
            hits = subject.predict(subject.sample, pixels).hits
            yield InputAlternative(
                "teacher-normalization", f"another normalization: {name}", mend, hits
            )


def _match_channels(given: InputSpec, values: tuple[float, ...]) -> tuple[float, ...]:
    return (
        values if len(values) == given.channels else (sum(values) / len(values),) * given.channels
    )


def _format_values(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _try_channel_order(subject: CheckContext) -> Iterator[InputAlternative]:
    assert subject.teacher is not None
    if subject.teacher.loaded.pixels.channels == 3 and subject.shop.data.channels == 3:
        batches = [swap_channels(batch) for batch in subject.sample]
        hits = subject.predict(batches, subject.teacher.loaded.pixels).hits
        mend = (
            "Swap the input channels of its first layer, or wrap it: it expects BGR where images"
            " are RGB."
        )
        yield InputAlternative(
            "teacher-channel-order", "the channels the other way round (BGR)", mend, hits
        )


def _try_crops(subject: CheckContext) -> Iterator[InputAlternative]:
    assert subject.teacher is not None
    if "uint8" not in subject.shop.data.capabilities:
        return
    given = subject.teacher.loaded.pixels
    for crop in CROPS:
        if abs(crop - given.crop) > _CLOSE:
            pixels = replace(given, crop=crop)
            hits = subject.predict(subject.load_batches(pixels, subject.images), pixels).hits
            mend = (
                f"Say crop_pct {crop:g} in the config.json of its weights"
                " (name=local-dir:<folder>)."
            )
            yield InputAlternative(
                "teacher-crop", f"a crop of {crop:g} in place of {given.crop:g}", mend, hits
            )
