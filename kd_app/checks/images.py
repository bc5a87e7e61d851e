"""Checks that the splits are complete, do not share images, and are large enough."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.config.errors import list_some
from kd_app.data.base import RunData
from kd_app.data.duplicates import (
    MAX_COMPARED,
    NEAR,
    Groups,
    correlate,
    correlate_coarsely,
    hash_picture,
    is_candidate,
    list_copies,
    make_thumbnail,
)
from kd_app.data.source import SPLITS
from kd_app.data.unlabeled import UNLABELED

_MAX_HELD_OUT = 1000
"""At most this many images of validation, and of test, are compared with training
images.
"""
_BUDGET = 5
"""The images are read for at most this many times ``check.seconds``."""
_RARE = 0.001
_TRAINING_SPLITS = ("train", UNLABELED)
"""Splits that may share images."""
_MAX_NAMES = 3
_DOMINANT = 3
"""A class dominates if it has more than half of the images, and this many times as many
as the next one.
"""


class ImageKey(NamedTuple):
    """Identifies an image by split and number."""

    split: str
    number: int


@dataclass
class ScannedImages:
    """Result of one pass over the images.

    counts: images read, by split. duplicates: pairs of equal images in two splits.
    keys, thumbnails: of the images that are compared for near-duplicates, by split.
    """

    counts: dict[str, int]
    duplicates: list[tuple[ImageKey, ImageKey]] = field(default_factory=list)
    keys: dict[str, list[ImageKey]] = field(
        default_factory=lambda: {split: [] for split in (*SPLITS, UNLABELED)}
    )
    thumbnails: dict[str, list[Tensor]] = field(
        default_factory=lambda: {split: [] for split in (*SPLITS, UNLABELED)}
    )


def check_missing_classes(context: CheckContext) -> Iterator[Finding]:
    """Warn of splits that have no image of some class; without one in train, refuse.

    Before a training, only for data whose own notes do not name such classes.
    """
    data = context.workspace.data
    has_notes = context.is_quick and data.contents is not None
    for split in SPLITS:
        targets = data.list_targets(split)
        if targets is None or has_notes:
            continue
        present = set(targets.tolist())
        missing = [
            repr(name)
            for number, name in enumerate(context.workspace.classes)
            if number not in present
        ]
        if missing:
            build = refuse if split == "train" else warn
            yield build(
                "class-missing",
                f"There is no image of {list_some(missing)} in {split}, so metrics on"
                f" {split} do not include these classes.",
            )


def check_dominant_class(context: CheckContext) -> Iterator[Finding]:
    """Warn of a class so frequent that always predicting it is often right."""
    if context.verdict_rule.metric != "top1":
        return
    data, classes = context.workspace.data, context.workspace.classes
    for split in reversed(SPLITS):
        targets = data.list_targets(split)
        if targets is None:
            continue
        (largest, count), *others = Counter(targets.tolist()).most_common(2)
        if 2 * count <= len(targets) or any(_DOMINANT * n > count for _, n in others):
            continue
        yield warn(
            "class-dominates",
            f"{count / len(targets):.1%} of the {len(targets):,} images of {split} are"
            f" {classes[largest]!r}: a model that always predicts this class is right as often,"
            " so top-1 accuracy says little. Set verdict.metric=balanced_accuracy;"
            " loss.cross_entropy.class_weights (auto) makes rare classes count more in training.",
        )
        return


def check_labels(context: CheckContext) -> Iterator[Finding]:
    """Warn of identical images with different labels."""
    data = context.workspace.data
    if data.contents is None:
        return
    rows, targets = _list_rows(data, SPLITS), dict[int, int]()
    for split, numbers in rows.items():
        labels = data.list_targets(split)
        assert labels is not None
        targets |= dict(zip(numbers, labels.tolist(), strict=True))
    contradictions = []
    for group in list_copies(data.contents.same):
        labeled = [number for number in group if number in targets]
        if len({targets[number] for number in labeled}) > 1:
            contradictions.append(labeled)
    if contradictions:
        classes = context.workspace.classes
        examples = [
            " and ".join(f"{data.files[number]} ({classes[targets[number]]})" for number in group)
            for group in contradictions[:_MAX_NAMES]
        ]
        more = len(contradictions) - len(examples)
        yield warn(
            "two-labels",
            f"{len(contradictions)} image(s) have copies with another label:"
            f" {'; '.join(examples)}{f'; and {more} more' if more else ''}. At most one of the"
            " labels is right. Correct or remove them.",
        )


def _list_rows(data: RunData, splits: Iterable[str]) -> dict[str, list[int]]:
    rows = {split: data.list_rows(split) for split in splits}
    return {split: [] if numbers is None else numbers.tolist() for split, numbers in rows.items()}


def check_same_image(context: CheckContext) -> Iterator[Finding]:
    """Refuse images that are in two splits, pixel by pixel; warn of near-duplicates.

    Before a training, only what the scan of the images has found is reported.
    """
    data, contents = context.workspace.data, context.workspace.data.contents
    if contents is not None and len(contents.hashes) <= MAX_COMPARED:
        duplicates, near = (
            _find_shared(data, groups) for groups in (contents.same, contents.similar)
        )
        yield from _report_pairs(context, duplicates, near, data.sizes)
    elif contents is not None and context.is_quick:
        yield from _report_pairs(context, _find_shared(data, contents.same), [], data.sizes)
    elif not context.is_quick:
        yield from _compare_images(context)


def _find_shared(data: RunData, groups: Groups) -> list[tuple[ImageKey, ImageKey]]:
    """One pair of images for each group that is in two splits."""
    splits = {
        number: split
        for split, numbers in _list_rows(data, data.sizes).items()
        for number in numbers
    }
    pairs = []
    for group in list_copies(groups):
        keys = [ImageKey(splits[number], number) for number in group if number in splits]
        held_out = next((key for key in keys if key.split not in _TRAINING_SPLITS), None)
        other = next((key for key in keys if held_out and key.split != held_out.split), None)
        if held_out is not None and other is not None:
            pairs.append((held_out, other))
    return pairs


def _compare_images(context: CheckContext) -> Iterator[Finding]:
    data = context.workspace.data
    images = _scan_images(context)
    incomplete = [
        f"{count:,} of {data.sizes[split]:,} of {split}"
        for split, count in images.counts.items()
        if count < data.sizes[split]
    ]
    if incomplete:
        yield note(
            "same-image",
            f"Only a part of the images was compared, to save time: {', '.join(incomplete)}.",
        )
    near = list(_find_near_duplicates(images))
    yield from _report_pairs(
        context,
        images.duplicates,
        near,
        {split: len(keys) for split, keys in images.keys.items()},
    )


def _report_pairs(
    context: CheckContext,
    duplicates: list[tuple[ImageKey, ImageKey]],
    near: list[tuple[ImageKey, ImageKey]],
    compared: Mapping[str, int],
) -> Iterator[Finding]:
    """compared: number of images by split that were compared for near-duplicates."""
    data = context.workspace.data
    if duplicates:
        yield refuse(
            "same-image",
            f"{len(duplicates)} image(s) are in two splits: {_describe_pairs(data, duplicates)}. A"
            " test would contain training images. Remove them, or give such images the same value"
            " in the column group of data=csv.",
        )
    identical = {frozenset(pair) for pair in duplicates}
    near = [pair for pair in near if frozenset(pair) not in identical]
    if near:
        num_compared = sum(compared[split] for split in ("validation", "test"))
        build = warn if len(near) >= _RARE * num_compared else note
        yield build(
            "near-duplicates",
            f"{len(near)} of {num_compared:,} images of validation and test have a near-duplicate"
            f" in another split: {_describe_pairs(data, near)} (compared with"
            f" {compared['train']:,} of train). Metrics on these images are too optimistic.",
        )


def _describe_pairs(data: RunData, pairs: list[tuple[ImageKey, ImageKey]]) -> str:
    named = [
        f"{data.files[a.number]} ({a.split}) and {data.files[b.number]} ({b.split})"
        for a, b in pairs[:_MAX_NAMES]
    ]
    more = f"; and {len(pairs) - _MAX_NAMES} more" if len(pairs) > _MAX_NAMES else ""
    return "; ".join(named) + more


def _scan_images(context: CheckContext) -> ScannedImages:
    """Read all images of test and validation, then those of train until time is up."""
    data = context.workspace.data
    training = [split for split in data.sizes if split in _TRAINING_SPLITS]
    images = ScannedImages(dict.fromkeys(("test", "validation", *training), 0))
    first: dict[int, ImageKey] = {}
    end = time.monotonic() + _BUDGET * context.limits.seconds
    for split in images.counts:
        limit = MAX_COMPARED if split in _TRAINING_SPLITS else _MAX_HELD_OUT
        for index, picture in data.iterate_images(split):
            key = ImageKey(split, index)
            before = first.setdefault(hash_picture(picture), key)
            if before.split != split and not {before.split, split} <= set(_TRAINING_SPLITS):
                images.duplicates.append((before, key))
            if images.counts[split] < limit:
                images.keys[split].append(key)
                images.thumbnails[split].append(make_thumbnail(picture))
            images.counts[split] += 1
            if images.counts[split] % 256 == 0 and time.monotonic() > end:
                break
    return images


def _find_near_duplicates(images: ScannedImages) -> Iterator[tuple[ImageKey, ImageKey]]:
    """Pairs of images in two splits whose thumbnails are nearly equal."""
    for split, others in (
        ("test", (*_TRAINING_SPLITS, "validation")),
        ("validation", _TRAINING_SPLITS),
    ):
        other_keys = [key for other in others for key in images.keys[other]]
        if not other_keys or not images.keys[split]:
            continue
        references = torch.stack(
            [thumbnail for other in others for thumbnail in images.thumbnails[other]]
        )
        queries = torch.stack(images.thumbnails[split])
        similarity, nearest = correlate_coarsely(queries, references).max(dim=1)
        for row in torch.argsort(-similarity).tolist():
            if not is_candidate(similarity[row]):
                break
            near = int(nearest[row])
            if 1 - float(correlate(queries[[row]], references[[near]])) < NEAR:
                yield other_keys[near], images.keys[split][row]


def check_test_size(context: CheckContext) -> Iterator[Finding]:
    """Warn of a test set on which the verdict would rarely be 'kept', even for a
    student that is as good as the teacher.
    """
    if context.workspace.spec.teacher is None or context.is_unmeasured:
        return
    rule, discordance = context.verdict_rule, context.limits.discordance
    targets = context.workspace.data.list_targets("test")
    assert targets is not None, "every data module has labels for test"
    needed = rule.estimate_images_needed(targets, discordance=discordance)
    if needed is None or needed > len(targets):
        many = "more than a million" if needed is None else f"{needed:,}"
        yield warn(
            "test-too-small",
            f"{len(targets):,} test images are few for a margin of {rule.margin:g} in"
            f" {rule.metric}: if teacher and student differ on {discordance:.0%} of the images"
            f" (assumed: check.discordance) and are equally good, {many} are needed to show it with"
            " probability 0.8. Expect 'not shown', add images, or set a larger verdict.margin.",
        )
