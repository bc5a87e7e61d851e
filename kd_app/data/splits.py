"""Who is in which of the three sets: ready splits kept, the rest drawn by class, groups
whole, the same for ever.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from kd_app.config import RequestError
from kd_app.data.source import SPLITS, Listing
from kd_app.stages import write_atomically


class ImageSplit(NamedTuple):
    """names: 'train', 'validation' or 'test' for each image. notes: what a user should
    know, one sentence each.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


class _Group(NamedTuple):
    """What stays together: numbers of images, and how many of each class."""

    images: list[int]
    classes: dict[int, int]


def split(listing: Listing, *, seed: int, validation: float, test: float) -> ImageSplit:
    """Divide the images. `test`: share of the images without a ready split;
    `validation`: share of what is then left for training; in (0, 1).

    Ready splits stay. Where there is no ready test set it is drawn from the images
    without a split (from train where all have one); where there is no ready validation
    set it is drawn from train and the images without a split. The rest is train. Of a
    class of n images max(1, round(share * n)) are drawn, as long as one is left for
    each set that is still to come. Groups stay whole: groups are taken while they bring
    the numbers closer to those, and for a class that gets none so the smallest that
    fits; a group in part ready follows that part. Drawn are the least hashes of (seed,
    set, name), name being the group's or the file's. So without groups images of other
    classes change nothing, and an image more or less changes the set of at most a few
    others of its class. Raises `RequestError`: a share out of range, a group in two
    ready splits, a class without an image in train, an empty set.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise RequestError(
                f"The share of the {name} set is {share}. Expected: more than 0 and less than 1,"
                " for example 0.1."
            )
    names = _with_their_group(listing)
    ready = set(names)
    notes = []
    for part, share in (("test", test), ("validation", validation)):
        if part in ready:
            continue
        pool = [""] if part == "test" and "" in ready else ["", "train"]
        if part == "test" and "" not in ready:
            notes.append("There are ready splits and no test set: it was drawn from train.")
        keep = 2 if part == "test" and "validation" not in ready else 1
        for image in _draw(
            listing, [name in pool for name in names], share, keep, f"{seed}/{part}"
        ):
            names[image] = part
    names = [name or "train" for name in names]
    notes += _check(listing, names)
    return ImageSplit(tuple(names), tuple(notes))


def write_split(path: Path, listing: Listing, names: Sequence[str]) -> None:
    """Write a CSV with the columns index, file, label ('' for none), split, group: one
    row an image, in the listing's order.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "file", "label", "split", "group"))
    labels = (listing.classes[number] if number >= 0 else "" for number in listing.target.tolist())
    writer.writerows(
        zip(range(len(names)), listing.files, labels, names, listing.group, strict=True)
    )
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace").decode())


def _with_their_group(listing: Listing) -> list[str]:
    """The ready splits; an image without one gets that of its group. Raises
    `RequestError` where a group is in two.
    """
    of_group: dict[str, tuple[str, str]] = {}
    for file, name, group in zip(listing.files, listing.split, listing.group, strict=True):
        if group and name:
            first, where = of_group.setdefault(group, (file, name))
            if where != name:
                raise RequestError(
                    f"The group {group!r} is torn apart: {first!r} is in {where} and {file!r} in"
                    f" {name}. Expected: a group lies in one split, or the test would meet what"
                    " training has seen. Correct the splits, or empty the group of images that"
                    " don't belong together."
                )
    return [
        name or (of_group[group][1] if group in of_group else "")
        for name, group in zip(listing.split, listing.group, strict=True)
    ]


def _draw(
    listing: Listing, allowed: Sequence[bool], share: float, keep: int, salt: str
) -> Iterable[int]:
    """Numbers of the images to take out of those that are allowed; of each class at
    least one group is left, and `keep` where it has more.
    """
    groups = _build_groups(listing, allowed)
    images = Counter(
        number for number, free in zip(listing.target.tolist(), allowed, strict=True) if free
    )
    want = {
        number: min(count - 1, max(1, min(count - keep, round(share * count))))
        for number, count in images.items()
    }
    left = Counter(number for group in groups.values() for number in group.classes)
    taken: list[_Group] = []
    rest: list[_Group] = []
    for name in sorted(groups, key=lambda name: _hash(salt, name)):
        group = groups[name]
        closer = sum(
            abs(want[number]) - abs(want[number] - count) for number, count in group.classes.items()
        )
        if closer <= 0 or not _can_spare(left, group, keep):
            rest.append(group)
            continue
        taken.append(group)
        for number, count in group.classes.items():
            left[number] -= 1
            want[number] -= count
    taken += _cover(taken, rest, left, keep)
    return (image for group in taken for image in group.images)


def _cover(
    taken: Iterable[_Group], rest: Iterable[_Group], left: Counter[int], keep: int
) -> list[_Group]:
    """For each class of which nothing is taken, its groups being large or few: the
    smallest that leaves each class one, better `keep` groups.
    """
    covered = {number for group in taken for number in group.classes}
    choices: dict[int, list[_Group]] = defaultdict(list)
    for group in rest:
        for number in group.classes.keys() - covered:
            choices[number].append(group)
    more: list[_Group] = []
    for number in sorted(choices):
        fitting = [group for group in choices[number] if _can_spare(left, group, 1)]
        if fitting and number not in covered:
            more.append(
                min(
                    fitting,
                    key=lambda group: (not _can_spare(left, group, keep), len(group.images)),
                )
            )
            left.subtract(more[-1].classes.keys())
            covered |= more[-1].classes.keys()
    return more


def _can_spare(left: Counter[int], group: _Group, keep: int) -> bool:
    """Whether each class in the group has `keep` other groups among those that are
    left.
    """
    return all(left[number] > keep for number in group.classes)


def _build_groups(listing: Listing, allowed: Sequence[bool]) -> dict[tuple[str, str], _Group]:
    """(kind, name) -> group; an image without a group is one of its own, and goes by
    its file's name.
    """
    found: dict[tuple[str, str], _Group] = {}
    for image, (number, file, group, free) in enumerate(
        zip(listing.target.tolist(), listing.files, listing.group, allowed, strict=True)
    ):
        if free:
            own = found.setdefault(("group", group) if group else ("file", file), _Group([], {}))
            own.images.append(image)
            own.classes[number] = own.classes.get(number, 0) + 1
    return found


def _hash(salt: str, name: tuple[str, str]) -> bytes:
    return blake2b(
        "/".join((salt, *name)).encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


def _check(listing: Listing, names: Sequence[str]) -> list[str]:
    """Notes about classes that validation or test lack. Raises `RequestError` for an
    empty set, or a class that train lacks.
    """
    there = {part: set[int]() for part in SPLITS}
    for number, name in zip(listing.target.tolist(), names, strict=True):
        there[name].add(number)
    notes = []
    for part in SPLITS:
        missing = [
            repr(listing.classes[number])
            for number in range(len(listing.classes))
            if number not in there[part]
        ]
        some = ", ".join(missing[:8]) + (
            f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        )
        if not there[part]:
            raise RequestError(
                f"The {part} set would be empty: {len(names)} image(s) of {len(listing.classes)}"
                " classes are too few to divide. Expected: at least 3 images (or 3 groups) of a"
                " class, one for each of train, validation and test. Add images, or give ready"
                " splits."
            )
        if missing and part == "train":
            raise RequestError(
                f"No image of {some} is in train. Expected: every class is there. Correct the ready"
                " splits, or add images."
            )
        if missing:
            notes.append(
                f"{len(missing)} class(es) have no image in {part}, too few to divide: {some}."
                " Nothing is measured about them there."
            )
    return notes
