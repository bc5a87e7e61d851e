"""Images that the models of a run know from their training, recognized by content."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from kd_app.config import RequestError
from kd_app.config.recorded_files import check_recorded
from kd_app.data.base import RunData
from kd_app.data.duplicates import match_similar
from kd_app.data.scan import read_thumbnails
from kd_app.data.splits import read_split, shorten_digest
from kd_app.reporting.results import Results
from kd_app.run.inputs import InputRecord, describe_image_changes
from kd_app.run_files import SPLIT
from kd_app.specs.schema import KnownImagesRule

USED: Final = {
    "train": "to learn from",
    "validation": "to choose the best epoch",
    "unlabeled": "to learn from without labels",
}
"""Splits of a training whose images are no test -> what they were used for."""


@dataclass(frozen=True)
class KnownImages:
    """The images of a run: the split by digest (`shorten_digest`), the record of the
    run's inputs, and the split by image number with the thumbnails of the same images,
    if they are still there.
    """

    folder: Path
    splits: Mapping[str, str]
    record: InputRecord | None
    numbered: Sequence[str] = ()
    thumbnails: Tensor | None = None

    @staticmethod
    def read(folder: Path, results: Results | None = None) -> "KnownImages":
        """Read the images of the run in `folder`; none if they are not recorded.

        results: of the run, which name the stage with the thumbnails.
        """
        check_recorded(folder / SPLIT)
        rows = read_split(folder / SPLIT) or {}
        splits = {row.digest: row.split for row in rows.values() if row.digest}
        numbered = [row.split for row in rows.values()]
        stages = results.stages if results else []
        scans = [Path(stage.path) for stage in stages if stage.name == "data"]
        thumbnails = read_thumbnails(scans[0], len(numbered)) if scans else None
        return KnownImages(folder, splits, InputRecord.read(folder), numbered, thumbnails)

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

    def find_similar(self, data: RunData, split: str, scan: Path | None) -> dict[int, str]:
        """The numbers of images of a split that are nearly identical to images that the
        training used -> how; without the images of `find_used`.

        scan: the folder of the scan of `data`. Empty if the images can't be compared:
        not from files, too many (`MAX_COMPARED`), or the stage of the run was deleted.
        """
        thumbnails = read_thumbnails(scan, len(data.files)) if scan else None
        if thumbnails is None or self.thumbnails is None:
            return {}
        used = [number for number, name in enumerate(self.numbered) if name in USED]
        measured = sorted({*list_measured(data, split)} - self.find_used(data, split).keys())
        similar: dict[int, str] = {}
        for rows, columns in match_similar(thumbnails[measured], self.thumbnails[used]):
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                similar.setdefault(measured[row], self.numbered[used[column]])
        return similar


def list_measured(data: RunData, split: str) -> list[int]:
    """The numbers of the images of a split, or of all splits."""
    names = ("train", "validation", "test") if split == "all" else (split,)
    rows = (data.list_rows(name) for name in names)
    return [number for row in rows if row is not None for number in row.tolist()]


def leave_out_used(
    known: KnownImages, data: RunData, split: str, rule: KnownImagesRule, scan: Path | None = None
) -> list[str]:
    """Leave out the images that the training of the run used, as `rule` says; notes
    about them, and about nearly identical ones.

    scan: see `find_similar`. Raises `RequestError` if no image is left.
    """
    used, total = known.find_used(data, split), len(list_measured(data, split))
    similar = known.find_similar(data, split, scan)
    exact = (
        f"{len(used):,} of the {total:,} images were used to train the run's models"
        f" ({_count_uses(used)}), recognized by their content"
    )
    near = (
        f"{len(similar):,} of the {total:,} images are nearly identical to images that trained the"
        f" run's models ({_count_uses(similar)}): copies that were resized or saved again, or"
        " pictures of one scene"
    )
    choices = {"measure": {}, "leave_out": used, "leave_out_similar": used | similar}
    left_out = choices[rule]
    if left_out and len(left_out) == total:
        raise RequestError(
            f"{'. '.join(text for text, group in ((exact, used), (near, similar)) if group)}."
            " There is no new image to measure. Name other images, or measure these with"
            " known_images=measure."
        )
    if left_out:
        data.leave_out(left_out)
    notes = []
    if used and rule == "measure":
        notes.append(f"{exact}. They are measured, too: metrics are better than on new images.")
    elif used:
        notes.append(f"{exact}. They are left out; known_images=measure measures them, too.")
    if similar and rule == "leave_out_similar":
        notes.append(f"{near}. They are left out; known_images=leave_out measures them.")
    elif similar:
        notes.append(
            f"{near}. They are measured: if they are copies, metrics are better than on new images."
            " known_images=leave_out_similar leaves them out."
        )
    return notes


def _count_uses(images: Mapping[int, str]) -> str:
    counts = Counter(images.values())
    return ", ".join(f"{count:,} {USED[name]}" for name, count in counts.items())
