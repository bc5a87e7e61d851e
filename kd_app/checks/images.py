"""Checks that the splits are complete, do not share images, and are large enough."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.data.base import RunData
from kd_app.data.source import SPLITS
from kd_app.data.unlabeled import UNLABELED

_COARSE, _FINE = 8, 32
"""Sides of the thumbnails: all images are compared at the first size, the most similar
ones again at the second.
"""
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
    """Warn of splits that have no image of some class; without one in train, refuse."""
    for split in SPLITS:
        targets = context.workspace.data.list_targets(split)
        if targets is None:
            continue
        present = set(targets.tolist())
        missing = [
            repr(name)
            for number, name in enumerate(context.workspace.classes)
            if number not in present
        ]
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            build = refuse if split == "train" else warn
            yield build(
                "class-missing",
                f"There is no image of {', '.join(missing[:8])}{more} in {split}. Add images of"
                " each class, or provide ready splits that contain all classes.",
            )


def check_same_image(context: CheckContext) -> Iterator[Finding]:
    """Refuse images that are in two splits, pixel by pixel; warn of near-duplicates."""
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
    if images.duplicates:
        yield refuse(
            "same-image",
            f"{len(images.duplicates)} image(s) are in two splits:"
            f" {_describe_pairs(data, images.duplicates)}. A test would contain training images."
            " Remove them, or give such images the same value in the column group of data=csv.",
        )
    duplicates = {frozenset(pair) for pair in images.duplicates}
    near = [
        pair for pair in _find_near_duplicates(context, images) if frozenset(pair) not in duplicates
    ]
    if near:
        num_compared = sum(len(images.keys[split]) for split in ("validation", "test"))
        build = warn if len(near) >= _RARE * num_compared else note
        yield build(
            "near-duplicates",
            f"{len(near)} of {num_compared:,} images of validation and test have a near-duplicate"
            f" in another split: {_describe_pairs(data, near)} (compared with"
            f" {len(images.keys['train']):,} of train). Metrics on these images are too"
            " optimistic.",
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
    first: dict[bytes, ImageKey] = {}
    end = time.monotonic() + _BUDGET * context.limits.seconds
    for split in images.counts:
        limit = context.limits.max_compared if split in _TRAINING_SPLITS else _MAX_HELD_OUT
        for index, picture in data.iterate_images(split):
            key = ImageKey(split, index)
            digest = blake2b(repr(picture.shape).encode() + picture.tobytes()).digest()
            before = first.setdefault(digest, key)
            if before.split != split and not {before.split, split} <= set(_TRAINING_SPLITS):
                images.duplicates.append((before, key))
            if images.counts[split] < limit:
                images.keys[split].append(key)
                images.thumbnails[split].append(_make_thumbnail(picture))
            images.counts[split] += 1
            if images.counts[split] % 256 == 0 and time.monotonic() > end:
                break
    return images


def _make_thumbnail(picture: np.ndarray) -> Tensor:
    """``[1, 32, 32]``: the mean over the channels in each cell of a grid."""
    cells: Tensor = adaptive_avg_pool2d(
        torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1), _FINE
    )
    return cells.mean(dim=0, keepdim=True)


def _normalize_contrast(thumbnails: Tensor) -> Tensor:
    """Rows of mean 0 and length 1, whose products are correlations; zeros for an image
    of one color.
    """
    rows = thumbnails.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-3)


def _correlate(first: Tensor, second: Tensor) -> Tensor:
    """``[M, N]``: correlations of the thumbnails ``[M, ...]`` and ``[N, ...]``."""
    return _normalize_contrast(first) @ _normalize_contrast(second).T


def _find_near_duplicates(
    context: CheckContext, images: ScannedImages
) -> Iterator[tuple[ImageKey, ImageKey]]:
    """Pairs of images in two splits whose thumbnails have ``1 - correlation`` below
    ``check.near_duplicate``.
    """
    threshold = context.limits.near_duplicate
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
        similarity, nearest = _correlate(
            adaptive_avg_pool2d(queries, _COARSE), adaptive_avg_pool2d(references, _COARSE)
        ).max(dim=1)
        for row in torch.argsort(-similarity).tolist():
            # Coarse thumbnails only preselect, so their threshold is wider.
            if 1 - similarity[row] > 3 * threshold:
                break
            near = int(nearest[row])
            if 1 - float(_correlate(queries[[row]], references[[near]])) < threshold:
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
