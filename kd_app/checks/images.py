"""Are the three sets what they should be: whole, apart from each other, and large
enough?
"""

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
"""Sides of the thumbnails: all are compared in the first, the nearest again in the
second.
"""
_MEASURED = 1000
"""At most so many images of validation, and of test, are compared with those to train
on.
"""
_BUDGET = 5
"""Images are looked at for so many times the limits' seconds."""
_RARE = 0.001
_TRAINED = ("train", UNLABELED)
"""Splits that may have images in common."""
_NAMED = 3


class Place(NamedTuple):
    """An image: its split and its number."""

    split: str
    number: int


@dataclass
class ScannedImages:
    """What one look at the images gave: how many were seen of each split, which are in
    two, and thumbnails of some.
    """

    seen: dict[str, int]
    same: list[tuple[Place, Place]] = field(default_factory=list)
    places: dict[str, list[Place]] = field(
        default_factory=lambda: {split: [] for split in (*SPLITS, UNLABELED)}
    )
    thumbnails: dict[str, list[Tensor]] = field(
        default_factory=lambda: {split: [] for split in (*SPLITS, UNLABELED)}
    )


def check_missing_classes(subject: CheckContext) -> Iterator[Finding]:
    """A class of which a split has no image."""
    classes = subject.shop.classes
    for split in SPLITS:
        targets = subject.shop.data.list_targets(split)
        missing = (
            [
                repr(name)
                for number, name in enumerate(classes)
                if number not in set(targets.tolist())
            ]
            if targets is not None
            else []
        )
        if missing:
            some = ", ".join(missing[:8]) + (
                f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            )
            yield refuse(
                "class-missing",
                f"There is no image of {some} in {split}. Add images of each class, or give ready"
                " splits that hold all of them.",
            )


def check_same_image(subject: CheckContext) -> Iterator[Finding]:
    """An image that is in two splits, pixel by pixel; and, with less weight, one that
    is nearly so.
    """
    data = subject.shop.data
    looked = _look(subject)
    few = [
        f"{count:,} of {data.sizes[split]:,} of {split}"
        for split, count in looked.seen.items()
        if count < data.sizes[split]
    ]
    if few:
        yield note(
            "same-image",
            f"Not all images were compared, that would take too long: {', '.join(few)} were.",
        )
    if looked.same:
        yield refuse(
            "same-image",
            f"{len(looked.same)} image(s) are in two splits: {_describe_pairs(data, looked.same)}. A test"
            " would meet what training has seen. Remove them, or give such images one name in the"
            " column group of data=csv.",
        )
    same = {frozenset(pair) for pair in looked.same}
    near = [pair for pair in _find_near_duplicates(subject, looked) if frozenset(pair) not in same]
    if near:
        compared = sum(len(looked.places[split]) for split in ("validation", "test"))
        say = warn if len(near) >= _RARE * compared else note
        yield say(
            "near-duplicates",
            f"{len(near)} of {compared:,} images of validation and test are nearly in another"
            f" split, too: {_describe_pairs(data, near)} (compared with {len(looked.places['train']):,} of"
            " train). What is measured on them is flattered.",
        )


def _describe_pairs(data: RunData, pairs: list[tuple[Place, Place]]) -> str:
    named = [
        f"{data.files[a.number]} ({a.split}) and {data.files[b.number]} ({b.split})"
        for a, b in pairs[:_NAMED]
    ]
    return "; ".join(named) + (f"; and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else "")


def _look(subject: CheckContext) -> ScannedImages:
    """Test and validation whole, then train, as far as the time allows."""
    data = subject.shop.data
    looked = ScannedImages(
        dict.fromkeys(
            ("test", "validation", *(split for split in data.sizes if split in _TRAINED)), 0
        )
    )
    first: dict[bytes, Place] = {}
    end = time.monotonic() + _BUDGET * subject.limits.seconds
    for split in looked.seen:
        wanted = subject.limits.max_compared if split in _TRAINED else _MEASURED
        for index, picture in data.iterate_images(split):
            place = Place(split, index)
            key = blake2b(repr(picture.shape).encode() + picture.tobytes()).digest()
            before = first.setdefault(key, place)
            if before.split != split and not {before.split, split} <= set(_TRAINED):
                looked.same.append((before, place))
            if looked.seen[split] < wanted:
                looked.places[split].append(place)
                looked.thumbnails[split].append(_make_thumbnail(picture))
            looked.seen[split] += 1
            if looked.seen[split] % 256 == 0 and time.monotonic() > end:
                break
    return looked


def _make_thumbnail(picture: np.ndarray) -> Tensor:
    """``[1, 32, 32]``: the mean over the channels in each field of a grid."""
    fields: Tensor = adaptive_avg_pool2d(
        torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1), _FINE
    )
    return fields.mean(dim=0, keepdim=True)


def _normalize_contrasts(thumbnails: Tensor) -> Tensor:
    """Rows less their mean, of length 1, so that their products are correlations; zero
    for an image of one color.
    """
    rows = thumbnails.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-3)


def _find_near_duplicates(
    subject: CheckContext, looked: ScannedImages
) -> Iterator[tuple[Place, Place]]:
    """Pairs over two splits whose thumbnails differ in less than `limits.near_duplicate` of their
    contrast: ``1 - correlation``.
    """
    for split, others in (("test", (*_TRAINED, "validation")), ("validation", _TRAINED)):
        places = [place for other in others for place in looked.places[other]]
        if not places or not looked.places[split]:
            continue
        known = torch.stack(
            [thumbnail for other in others for thumbnail in looked.thumbnails[other]]
        )
        asked = torch.stack(looked.thumbnails[split])
        likeness, nearest = (
            _normalize_contrasts(adaptive_avg_pool2d(asked, _COARSE))
            @ _normalize_contrasts(adaptive_avg_pool2d(known, _COARSE)).T
        ).max(dim=1)
        for row in torch.argsort(-likeness).tolist():
            if 1 - likeness[row] > 3 * subject.limits.near_duplicate:
                break
            near = int(nearest[row])
            if (
                1
                - float(_normalize_contrasts(asked[[row]]) @ _normalize_contrasts(known[[near]]).T)
                < subject.limits.near_duplicate
            ):
                yield places[near], looked.places[split][row]


def test_too_small(subject: CheckContext) -> Iterator[Finding]:
    """A test set on which even a student that is as good as its teacher would rarely be
    shown to be.
    """
    judge, targets, assumed = (
        subject.judge,
        subject.shop.data.list_targets("test"),
        subject.limits.discordance,
    )
    if subject.shop.spec.teacher is None or subject.unmeasured:
        return
    assert targets is not None, "every module knows the labels of test"
    needed = judge.estimate_images_needed(targets, discordance=assumed)
    if needed is None or needed > len(targets):
        many = "more than a million" if needed is None else f"{needed:,}"
        yield warn(
            "test-too-small",
            f"{len(targets):,} images to test on are few for a margin of {judge.margin:g} of"
            f" {judge.metric}: if teacher and student differ in {assumed:.0%} of the images"
            f" (assumed: check.discordance) and are equally good, {many} are needed to show it with"
            " probability 0.8. Expect 'not shown', add images, or state a larger verdict.margin.",
        )
