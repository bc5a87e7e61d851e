"""Images that only measure trained models: their classes are those of the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.data.source import Listing
from kd_app.data.spelling import normalize_spelling
from kd_app.data.splits import shorten_digest
from kd_app.digest import hash_value

ALL = "all"
_SHOWN = 5


@dataclass(frozen=True)
class Evaluation:
    """How images measure models of `classes`; None: of no class, so that the labels are
    those of the images.

    split: the split to measure, or 'all'. splits: the split of images that the models
    know, by digest (`shorten_digest`).
    """

    classes: tuple[str, ...] | None
    split: str = ALL
    splits: Mapping[str, str] = field(default_factory=dict)

    def match_classes(self, listing: Listing) -> tuple[Listing, tuple[str, ...]]:
        """Number the labels as the models do; return the listing and notes.

        Classes are matched by name, without regard to case, outer spaces and the form
        of accents if that is unambiguous. Raises `RequestError` for a class that the
        models don't have.
        """
        if self.classes is None:
            return listing, ()
        by_case: dict[str, list[str]] = {}
        for name in self.classes:
            by_case.setdefault(normalize_spelling(name), []).append(name)
        matches = {
            name: [name] if name in self.classes else by_case.get(normalize_spelling(name), [])
            for name in listing.classes
        }
        unknown = [name for name, match in matches.items() if len(match) != 1]
        if unknown:
            raise RequestError(
                f"The run's models have {len(self.classes)} classes, these data have"
                f" {len(listing.classes)}; the models do not have"
                f" {quote_some(unknown, _SHOWN)}. Expected: classes of the models, such as"
                f" {quote_some(self.classes, _SHOWN)}; not all of them are needed. Rename or"
                " remove the other classes."
            )
        number = {name: position for position, name in enumerate(self.classes)}
        numbers = np.array([number[matches[name][0]] for name in listing.classes], dtype=np.int64)
        target = np.where(listing.target >= 0, numbers[listing.target], -1)
        notes = (*_note_case(matches), *_note_missing(self.classes, target))
        if listing.classes == self.classes:
            return listing, notes
        fingerprint = hash_value([listing.fingerprint, *self.classes])
        renamed = replace(listing, classes=self.classes, target=target, fingerprint=fingerprint)
        return renamed, notes

    def choose_splits(self, listing: Listing) -> tuple[str, ...] | None:
        """The split of each image; None if the splits must be drawn.

        Nothing is drawn to measure all images, a predefined split, or images that the
        models know; images without a split are then test images.
        """
        if self.split != ALL and not self.splits and self.split not in listing.split:
            return None
        digests = map(shorten_digest, listing.digests or [b""] * len(listing.files))
        known = (self.splits.get(digest) for digest in digests)
        return tuple(
            before or name or "test" for before, name in zip(known, listing.split, strict=True)
        )


def _note_case(matches: Mapping[str, Sequence[str]]) -> list[str]:
    pairs = [f"{name!r} as {match[0]!r}" for name, match in matches.items() if name != match[0]]
    if not pairs:
        return []
    return [f"Class names that differ only in spelling are read as equal: {', '.join(pairs)}."]


def _note_missing(classes: Sequence[str], target: np.ndarray) -> list[str]:
    present = set(target.tolist())
    missing = [name for number, name in enumerate(classes) if number not in present]
    if not missing:
        return []
    return [
        f"{len(missing)} of the {len(classes)} classes have no image here"
        f" ({quote_some(missing, _SHOWN)}); means over classes leave them out."
    ]
