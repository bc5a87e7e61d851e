"""Division of images into train, validation and test.

Predefined splits are kept. Other images are drawn by class, with groups kept together;
the result depends only on the seed and on names.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from kd_app.config import RequestError
from kd_app.config.csv_cells import restore_cell, write_rows
from kd_app.config.errors import list_some
from kd_app.config.regular_file import open_regular_text
from kd_app.data.duplicates import Groups
from kd_app.data.source import SPLITS, Listing
from kd_app.stages import write_atomically


class ImageSplit(NamedTuple):
    """names: 'train', 'validation' or 'test' for each image.

    notes: messages for the user, one sentence each.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


class _Group(NamedTuple):
    """Images that must be in the same split: their numbers, and counts by class."""

    images: list[int]
    classes: dict[int, int]


def split(
    listing: Listing, *, seed: int, validation: float, test: float, copies: Groups | None = None
) -> ImageSplit:
    """Divide the images into train, validation and test.

    test: share of the images without a predefined split. validation: share of the
    images that are then left for training. Both are in (0, 1). copies: groups of
    identical or similar images, which are kept together like groups; None: all images
    differ.

    Predefined splits are kept. A missing test set is drawn from the images without a
    split, or from train if all have one. A missing validation set is then drawn from
    train and the images without a split. All other images are train. Of a class of n
    images, max(1, round(share * n)) are drawn, but at least one is left for each later
    set. If these counts add up to another share than was set (many classes of few
    images), the share is kept instead, and some classes have no image in the set.
    Groups are never divided: a group is drawn if this brings the class counts closer to
    their targets; for a class without a drawn image, the smallest suitable group is
    drawn. A group with a predefined split for some of its images has that split as a
    whole.

    Images with the smallest hashes of (seed, set, name) are drawn, where name is the
    group or the file. Without groups, images of other classes therefore have no effect,
    and adding or removing an image changes the set of few others of its class.

    Raises `RequestError`: a share out of range, a group in two predefined splits, a
    class without an image in train, an empty set.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise RequestError(
                f"The share of the {name} set is {share}. Expected: more than 0 and less than 1,"
                " for example 0.1."
            )
    together = _merge_groups(listing, copies)
    names = _extend_splits_to_copies(_extend_splits_to_groups(listing), copies)
    predefined = set(names)
    notes = []
    for part, share in (("test", test), ("validation", validation)):
        if part in predefined:
            continue
        pool = [""] if part == "test" and "" in predefined else ["", "train"]
        if part == "test" and "" not in predefined:
            notes.append("The predefined splits have no test set; it was drawn from train.")
        keep = 2 if part == "test" and "validation" not in predefined else 1
        allowed = [name in pool for name in names]
        images = list(
            _draw(
                listing,
                together,
                allowed,
                share=share,
                keep=keep,
                salt=f"{seed}/{part}",
            )
        )
        for image in images:
            names[image] = part
        if _is_far(len(images), share * sum(allowed), allowance=5):
            notes.append(_note_share(part, len(images), sum(allowed), share))
    names = [name or "train" for name in names]
    notes += _check(listing, names, predefined, len(set(together)))
    return ImageSplit(tuple(names), tuple(notes))


def write_split(path: Path, listing: Listing, names: Sequence[str]) -> None:
    """Write a CSV with the columns index, file, label ('' for none), split, group and
    digest (`shorten_digest`).

    There is one row per image, in the order of the listing.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "file", "label", "split", "group", "digest"))
    digests = map(shorten_digest, listing.digests or [b""] * len(names))
    rows = zip(
        range(len(names)),
        listing.files,
        list_labels(listing),
        names,
        listing.group,
        digests,
        strict=True,
    )
    write_rows(writer, rows)
    write_atomically(path, text.getvalue())


class SplitRow(NamedTuple):
    """An image in a file that `write_split` wrote; `digest` is '' if it is unknown."""

    label: str
    split: str
    group: str
    digest: str


def read_split(path: Path) -> dict[str, SplitRow] | None:
    """Read the rows of a split file by the name of the image; None if the file is
    missing or damaged.
    """
    try:
        with open_regular_text(path) as text:
            rows = csv.DictReader(text)
            return {
                restore_cell(row["file"]): SplitRow(
                    restore_cell(row["label"]),
                    restore_cell(row["split"]),
                    restore_cell(row["group"]),
                    row.get("digest") or "",
                )
                for row in rows
            }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, AttributeError):
        return None


def shorten_digest(digest: bytes) -> str:
    """The first 128 bits of an image's digest as text."""
    return digest[:16].hex()


def list_labels(listing: Listing) -> list[str]:
    """The class name of each image, '' for none."""
    return [listing.classes[number] if number >= 0 else "" for number in listing.target.tolist()]


def _extend_splits_to_groups(listing: Listing) -> list[str]:
    """The predefined splits, extended to all images of a group.

    Raises `RequestError` for a group in two predefined splits.
    """
    of_group: dict[str, tuple[str, str]] = {}
    for file, name, group in zip(listing.files, listing.split, listing.group, strict=True):
        if group and name:
            first, where = of_group.setdefault(group, (file, name))
            if where != name:
                raise RequestError(
                    f"The group {group!r} is in two splits: {first!r} is in {where} and {file!r} in"
                    f" {name}. Expected: all images of a group are in one split, so that training"
                    " and test images are independent. Correct the splits, or clear the group of"
                    " images that don't belong together."
                )
    return [
        name or (of_group[group][1] if group in of_group else "")
        for name, group in zip(listing.split, listing.group, strict=True)
    ]


def _extend_splits_to_copies(names: list[str], copies: Groups | None) -> list[str]:
    """Give images without a split that of their first copy with one."""
    if copies is None:
        return names
    of_group: dict[int, str] = {}
    for name, group in zip(names, copies.tolist(), strict=True):
        if name:
            of_group.setdefault(group, name)
    return [
        name or of_group.get(group, "") for name, group in zip(names, copies.tolist(), strict=True)
    ]


def _merge_groups(listing: Listing, copies: Groups | None) -> list[tuple[str, str]]:
    """Return (kind, name) of each image's group; an image without a group forms one of
    its own. Groups with copies of the same image are one group.
    """
    keys = [
        ("group", group) if group else ("file", file)
        for file, group in zip(listing.files, listing.group, strict=True)
    ]
    if copies is None:
        return keys
    parent = {key: key for key in keys}

    def find(key: tuple[str, str]) -> tuple[str, str]:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: dict[int, tuple[str, str]] = {}
    for key, number in zip(keys, copies.tolist(), strict=True):
        one, other = sorted((find(first.setdefault(number, key)), find(key)))
        parent[other] = one
    return [find(key) for key in keys]


def _draw(
    listing: Listing,
    together: Sequence[tuple[str, str]],
    allowed: Sequence[bool],
    *,
    share: float,
    keep: int,
    salt: str,
) -> Iterable[int]:
    """The numbers of images to draw from those that are allowed.

    together: the group of each image. Of each class, at least one group is left, and
    `keep` groups if there are more.
    """
    groups = _build_groups(listing.target, together, allowed)
    images = Counter(
        number for number, free in zip(listing.target.tolist(), allowed, strict=True) if free
    )
    want = _count_wanted(images, listing.classes, share, keep, salt)
    wanted = {number for number, count in want.items() if count}
    left = Counter(number for group in groups.values() for number in group.classes)
    chosen: list[_Group] = []
    rest: list[_Group] = []
    for name in sorted(groups, key=lambda name: _hash(salt, name)):
        group = groups[name]
        closer = sum(
            abs(want[number]) - abs(want[number] - count) for number, count in group.classes.items()
        )
        if closer <= 0 or not _can_spare(left, group, keep):
            rest.append(group)
            continue
        chosen.append(group)
        for number, count in group.classes.items():
            left[number] -= 1
            want[number] -= count
    chosen += _cover(wanted, chosen, rest, left, keep)
    return (image for group in chosen for image in group.images)


def _count_wanted(
    images: Counter[int], classes: Sequence[str], share: float, keep: int, salt: str
) -> dict[int, int]:
    """Return how many images of each class to draw.

    Of n images max(1, round(share * n)), if the sum is near the share of all images;
    else the counts with the right sum that are nearest to share * n.
    """
    total = share * images.total()
    want = {
        number: min(count - 1, max(1, min(count - keep, round(share * count))))
        for number, count in images.items()
    }
    if not _is_far(sum(want.values()), total, allowance=20):
        return want
    room = {number: max(0, count - keep) for number, count in images.items()}
    if sum(room.values()) < total:
        room = {number: count - 1 for number, count in images.items()}
        # Half of what can be drawn is left for the next set.
        total = min(total, max(1, sum(room.values()) // 2))
    quota = {number: share * count for number, count in images.items()}
    want = {number: min(room[number], int(quota[number])) for number in images}
    order = sorted(
        images,
        key=lambda number: (
            want[number] - quota[number],
            _hash(salt, ("class", classes[number] if number >= 0 else "")),
        ),
    )
    missing = max(1, round(total)) - sum(want.values())
    while missing > 0 and (room_left := [each for each in order if want[each] < room[each]]):
        for number in room_left[:missing]:
            want[number] += 1
        missing -= len(room_left)
    return want


def _is_far(count: int, expected: float, *, allowance: int) -> bool:
    """Whether `count` is not near what was asked for: by a tenth and `allowance`."""
    return abs(count - expected) > max(allowance, 0.1 * expected)


def _note_share(part: str, count: int, pool: int, share: float) -> str:
    return (
        f"The {part} set has {count:,} of {pool:,} images ({100 * count / pool:.0f} %) instead of"
        f" {100 * share:.0f} % (data.split.{part}={share:g}), because classes and groups of images"
        " can't be divided further."
    )


def _cover(
    wanted: Iterable[int],
    chosen: Iterable[_Group],
    rest: Iterable[_Group],
    left: Counter[int],
    keep: int,
) -> list[_Group]:
    """Choose a group for each of the classes `wanted` that has no chosen one.

    The smallest group is chosen that leaves one group of each class, if possible one
    that leaves `keep` groups.
    """
    covered = {number for group in chosen for number in group.classes}
    missing = set(wanted) - covered
    choices: dict[int, list[_Group]] = defaultdict(list)
    for group in rest:
        for number in group.classes.keys() & missing:
            choices[number].append(group)
    more: list[_Group] = []
    for number in sorted(choices):
        fitting = [group for group in choices[number] if _can_spare(left, group, 1)]
        if fitting and number not in covered:
            best = min(
                fitting, key=lambda group: (not _can_spare(left, group, keep), len(group.images))
            )
            more.append(best)
            left.subtract(best.classes.keys())
            covered |= best.classes.keys()
    return more


def _can_spare(left: Counter[int], group: _Group, keep: int) -> bool:
    """Return whether `keep` other groups are left for each class of the group."""
    return all(left[number] > keep for number in group.classes)


def _build_groups(
    target: Int64[np.ndarray, " images"],
    together: Sequence[tuple[str, str]],
    allowed: Sequence[bool],
) -> dict[tuple[str, str], _Group]:
    """The groups with the images that are allowed."""
    groups: dict[tuple[str, str], _Group] = {}
    for image, (number, key, free) in enumerate(
        zip(target.tolist(), together, allowed, strict=True)
    ):
        if free:
            own = groups.setdefault(key, _Group([], {}))
            own.images.append(image)
            own.classes[number] = own.classes.get(number, 0) + 1
    return groups


def _hash(salt: str, name: tuple[str, str]) -> bytes:
    return blake2b(
        "/".join((salt, *name)).encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


def _check(
    listing: Listing, names: Sequence[str], predefined: Collection[str], num_groups: int
) -> list[str]:
    """Return notes about classes that are missing in validation or test.

    predefined: the splits that were not drawn.

    Raises `RequestError` for an empty set, and for a class that is missing in train.
    """
    present = {part: set[int]() for part in SPLITS}
    for number, name in zip(listing.target.tolist(), names, strict=True):
        present[name].add(number)
    notes = []
    for part in SPLITS:
        missing = [
            repr(listing.classes[number])
            for number in range(len(listing.classes))
            if number not in present[part]
        ]
        some = list_some(missing)
        if not present[part]:
            groups = f" in {num_groups} group(s) (copies, or the same value of group)"
            grouped = groups if num_groups < len(names) else ""
            classes = f" of {len(listing.classes)} classes" if listing.classes else ""
            of_class = " of a class" if listing.classes else ""
            raise RequestError(
                f"The {part} set would be empty: {len(names)} image(s){grouped}{classes} are too"
                f" few to divide. Expected: at least 3 images (or 3 groups){of_class}, one for each"
                " of train, validation and test. Add images, or define the splits."
            )
        if missing and part == "train":
            raise RequestError(
                f"No image of {some} is in train. Expected: images of every class. Correct the"
                " predefined splits, or add images."
            )
        if missing:
            cause = "" if part in predefined else " too few images to divide, and"
            notes.append(
                f"{len(missing)} class(es) have{cause} no image in {part}: {some}. Metrics on"
                f" {part} do not include these classes."
            )
    return notes
