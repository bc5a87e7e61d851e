"""Images that the models of a run know from their training, recognized by content."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kd_app.config import RequestError
from kd_app.config.recorded_files import check_recorded
from kd_app.data.base import RunData
from kd_app.data.splits import read_split, shorten_digest
from kd_app.run.inputs import InputRecord, describe_image_changes
from kd_app.run_files import SPLIT

USED: Final = {
    "train": "to learn from",
    "validation": "to choose the best epoch",
    "unlabeled": "to learn from without labels",
}
"""Splits of a training whose images are no test -> what they were used for."""


@dataclass(frozen=True)
class KnownImages:
    """The images of a run: the split by digest (`shorten_digest`), and the record of
    the run's inputs.
    """

    folder: Path
    splits: Mapping[str, str]
    record: InputRecord | None

    @staticmethod
    def read(folder: Path) -> "KnownImages":
        """Read the images of the run in `folder`; none if they are not recorded."""
        check_recorded(folder / SPLIT)
        rows = read_split(folder / SPLIT) or {}
        splits = {row.digest: row.split for row in rows.values() if row.digest}
        return KnownImages(folder, splits, InputRecord.read(folder))

    def describe_changes(self, data: RunData) -> str:
        """How the run's own images differ from its record; empty if they don't."""
        listing, rows = data.listing, read_split(self.folder / SPLIT)
        if self.record is None or listing is None or listing.fingerprint == self.record.listing:
            return ""
        same_hash = self.record.whole == listing.whole
        return (
            describe_image_changes(rows, listing, same_hash=same_hash) if rows else ""
        ) or "labels or splits are other ones"

    def find_used(self, data: RunData, split: str) -> dict[int, str]:
        """The numbers of images of a split that the training used -> how."""
        listing = data.listing
        if listing is None or not self.splits:
            return {}
        whole = listing.whole if self.record is None else self.record.whole
        digests = data.hash_images(whole=whole)
        measured = set(list_measured(data, split))
        return {
            number: self.splits[name]
            for number, name in enumerate(map(shorten_digest, digests))
            if self.splits.get(name) in USED and number in measured
        }


def list_measured(data: RunData, split: str) -> list[int]:
    """The numbers of the images of a split, or of all splits."""
    names = ("train", "validation", "test") if split == "all" else (split,)
    rows = (data.list_rows(name) for name in names)
    return [number for row in rows if row is not None for number in row.tolist()]


def leave_out_used(known: KnownImages, data: RunData, split: str, *, measure: bool) -> list[str]:
    """Leave out the images that the training of the run used, unless `measure`; notes
    about them.

    Raises `RequestError` if no image is left.
    """
    used, total = known.find_used(data, split), len(list_measured(data, split))
    if not used:
        return []
    uses = ", ".join(f"{count:,} {USED[name]}" for name, count in Counter(used.values()).items())
    start = (
        f"{len(used):,} of the {total:,} images were used to train the run's models ({uses}),"
        " recognized by their content"
    )
    if measure:
        return [f"{start}. They are measured, too, so the metrics are better than on new images."]
    if len(used) == total:
        raise RequestError(
            f"{start}, so there is no new image to measure. Name other images, or measure these"
            " with known_images=measure."
        )
    data.leave_out(used)
    return [f"{start}. They are left out; known_images=measure measures them, too."]
