"""The index of a data set: images, splits, labels, and pixels by image number.

The index is independent of models, views and batches.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kd_app.config import RequestError
from kd_app.data.base import ScanJob
from kd_app.data.duplicates import Groups, PictureContents, list_copies
from kd_app.data.evaluation import ALL, Evaluation
from kd_app.data.image_tree import write_reasons
from kd_app.data.images import BadImageError
from kd_app.data.label_subset import select_labeled_images
from kd_app.data.pixel_store import Cache, PixelStore, compute_channel_statistics, hold, open_store
from kd_app.data.scan import Progress, choose_typical_size, note_aspect_ratio, read_scan, scan
from kd_app.data.source import SPLITS, Listing, Source
from kd_app.data.splits import split as divide
from kd_app.data.splits import write_split
from kd_app.data.thumbnail import encode_thumbnail
from kd_app.data.unlabeled import UNLABELED, WithUnlabeled, select_labeled
from kd_app.stages import hash_value

Share = Annotated[float, Field(gt=0, lt=1)]

_SAMPLE = 10_000
"""Maximum number of images for the channel statistics."""
_LISTED = 5
_UNREADABLE = "unreadable.csv"
"""Table of the images that can't be read, in the output folder of the scan."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SplitRatios:
    """Shares of the images to draw for each split that is not predefined."""

    validation: Share
    test: Share


class ImageIndex:
    """The images of a source by number, in three splits.

    ``list()`` is cheap. For image files, ``scan_job`` decodes each image once.
    ``load(folder)`` makes the pixels readable; the index does not change afterwards.

    label_fraction: share of the training images whose label is used, see
    `select_labeled_images`; None: all. unlabeled: a folder of images without labels,
    see `WithUnlabeled`.
    """

    def __init__(
        self,
        source: Source,
        *,
        shares: SplitRatios,
        seed: int,
        cache: Cache,
        on_error: Literal["raise", "skip"],
        image_size: int | None = None,
        label_fraction: float | None = None,
        unlabeled: Path | None = None,
    ) -> None:
        self.source = source if unlabeled is None else WithUnlabeled(source, unlabeled)
        self.shares = shares
        self.seed = seed
        self.cache: Cache = cache
        self.on_error = on_error
        self.image_size = image_size
        self.label_fraction = None if label_fraction == 1 else label_fraction
        self.unlabeled = unlabeled
        self.notes: tuple[str, ...] = ()
        self.labeled: Bool[np.ndarray, " images"] | None = None
        """By image number, whether the label is used in training; None: all."""
        self._listing: Listing | None = None
        self._names: tuple[str, ...] = ()
        self._rows: dict[str, Int64[np.ndarray, " rows"]] = {}
        self._store: PixelStore | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._bad: dict[str, str] = {}
        self._decode_size: int | None = None
        self._evaluation: Evaluation | None = None
        self._left_out: tuple[int, ...] = ()
        self._measured_size = self.source.size
        self._contents: PictureContents | None = None
        self._notes: tuple[str, ...] = ()
        self._is_divided = True

    # -- list, scan, load

    def list(self) -> None:
        """List the images and divide them into splits.

        `load` divides again if there are copies of images. Raises `RequestError` for an
        invalid source or an impossible division.
        """
        if self._listing is None:
            listing = self.source.list_images()
            self._notes = listing.notes
            if self._evaluation is not None:
                listing, notes = self._evaluation.match_classes(listing)
                self._notes += notes
                chosen = self._evaluation.choose_splits(listing)
                if chosen is not None:
                    self._listing, self._names, self.notes = listing, chosen, self._notes
                    self._is_divided = False
                    self._set_rows()
                    return
            self._listing = listing
            self._divide(None)

    def evaluate_only(self, evaluation: Evaluation) -> None:
        """Use the images only to measure models; before ``list()``."""
        self._evaluation = evaluation
        self.source.is_only_measured = True

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Leave out images; after ``load()``."""
        self._left_out = tuple(sorted(numbers))
        self._set_rows()

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        """Return the digests of the images, see `Listing`."""
        is_known = self.listing.whole == whole
        return self.listing.digests if is_known else self.source.hash_images(whole=whole)

    def _divide(self, copies: Groups | None) -> None:
        """Divide the images; `copies` are kept in one split.

        Copies of validation and test images among the unlabeled images are left out.
        """
        labeled = select_labeled(self.listing)
        count, others = len(labeled.files), len(self.listing.files) - len(labeled.files)
        division = divide(
            labeled,
            seed=self.seed,
            validation=self.shares.validation,
            test=self.shares.test,
            copies=None if copies is None else copies[:count],
        )
        self.notes = (*self._notes, *division.notes)
        names = np.array((*division.names, *(UNLABELED,) * others))
        if copies is not None:
            held_out = np.isin(copies, copies[np.isin(names, ("validation", "test"))])
            leaks = held_out & (names == UNLABELED)
            names[leaks] = ""
            if leaks.any():
                self.notes += (
                    f"{leaks.sum():,} unlabeled image(s) are copies of images of validation or"
                    " test, and are left out",
                )
        self._names = tuple(names.tolist())
        self._set_rows()

    def _set_rows(self) -> None:
        names = np.array(self._names)
        names[[int(number) for number in self._bad]] = ""
        names[list(self._left_out)] = ""
        self._rows = {name: np.flatnonzero(names == name) for name in (*SPLITS, UNLABELED)}
        if self.label_fraction is not None or len(self._rows[UNLABELED]):
            self.labeled = select_labeled_images(
                self.listing, self._rows["train"], self.label_fraction or 1.0, seed=self.seed
            )

    @property
    def listing(self) -> Listing:
        """The listing of the source."""
        assert self._listing is not None, "list() comes first"
        return self._listing

    def scan_job(self, decode_size: int) -> ScanJob | None:
        """Return the job that decodes every image once; None if pixels are in memory.

        decode_size: the shorter side, in pixels, to which larger images are reduced.
        Bad images are recorded; `load` raises an error or skips them.
        """
        if self.source.store() is not None:
            return None
        keep = self.cache != "none"

        def run(folder: Path, progress: Progress) -> None:
            scan(
                self.source,
                len(self.listing.files),
                folder,
                decode_size=decode_size,
                keep=keep,
                threads=count_cores(),
                progress=progress,
            )
            bad = read_scan(folder).summary.bad
            if bad:
                rows = [(self.listing.files[int(key)], reason) for key, reason in bad.items()]
                write_reasons(folder / _UNREADABLE, rows)

        return ScanJob(
            config={
                "decode_size": decode_size,
                "channels": self.source.channels,
                "keep": keep,
            },
            inputs={"listing": self.listing.fingerprint},
            run=run,
        )

    def load(self, folder: Path | None) -> None:
        """Make the pixels readable; `folder` is the output folder of the `scan_job`.

        Raises `RequestError` for bad images, unless they are skipped, and for a split
        or class without a readable image.
        """
        if folder is None:
            pixels = self.source.store()
            if pixels is None:
                raise RequestError(
                    "These images are files, but no folder was passed. Run"
                    " data.scan_job(decode_size).run(folder, progress) once, then call"
                    " data.load(folder)."
                )
            self._store = hold(pixels)
            self._contents = PictureContents.read(pixels)
            self._keep_together()
        else:
            self._load_scan(folder)
        self._statistics = None
        self._check_splits(folder)
        self._note_labels()

    def _load_scan(self, folder: Path) -> None:
        result = read_scan(folder)
        self._bad = result.summary.bad
        if self._bad and self.on_error == "raise":
            raise RequestError(
                f"{len(self._bad)} of {len(self.listing.files)} images can't be read:"
                f" {self._name_bad(folder)} Replace or remove the files, or set"
                " data.on_error=skip, which leaves them out and counts them."
            )
        self._store, notes = open_store(self.source, folder, self.cache)
        self._decode_size = result.summary.decode_size
        self._contents = result.contents
        self._keep_together()
        self._set_rows()
        self._measured_size = choose_typical_size(result.sizes[self.listing.target >= 0])
        skipped = (
            (f"{len(self._bad)} image(s) can't be read and are left out: {self._name_bad(folder)}",)
            if self._bad
            else ()
        )
        self.notes = (*self.notes, *notes, *skipped, *note_aspect_ratio(result.sizes))

    def _keep_together(self) -> None:
        """Divide again if there are copies, so that no copy is in another split."""
        copies = self.contents.find_copies(self.listing.target)
        if not self._is_divided or not list_copies(copies):
            return
        before = self._names
        self._divide(copies)
        if self._names == before:
            return
        exact, similar = (
            sum(len(group) - 1 for group in list_copies(groups))
            for groups in (self.contents.same, copies)
        )
        self.notes += (
            f"{similar:,} image(s) are copies of others, {exact:,} of them exact: copies are kept"
            " in one split",
        )

    def _name_bad(self, folder: Path | None) -> str:
        some = [self.listing.files[int(number)] for number in self._bad][:_LISTED]
        more = f" and {len(self._bad) - _LISTED} more" if len(self._bad) > _LISTED else ""
        table = folder / _UNREADABLE if folder else None
        listed = f" All are listed in {str(table)!r}." if table and table.is_file() else ""
        return f"{', '.join(some)}{more}. The first: {next(iter(self._bad.values()))}.{listed}"

    def _check_splits(self, folder: Path | None) -> None:
        """Raise `RequestError` for a split, or a class of train, without images. Images
        that only measure models may lack splits and classes.
        """
        if self._evaluation is not None:
            self._check_measured(self._evaluation.split)
            return
        for name in SPLITS:
            if not len(self.list_rows(name)):
                raise RequestError(
                    f"No image of the {name} set can be read. Replace the files:"
                    f" {self._name_bad(folder)}"
                )
        missing = sorted(set(range(len(self.classes))) - set(self.list_targets("train").tolist()))
        if missing:
            raise RequestError(
                f"No image of the class {self.classes[missing[0]]!r} in train can be read. Replace"
                f" the files: {self._name_bad(folder)}"
            )

    def _check_measured(self, split: str) -> None:
        names = SPLITS if split == ALL else (split,)
        if not sum(len(self.list_rows(name)) for name in names):
            raise RequestError(
                f"The data have no readable image to measure (split={split}). Name a split with"
                " images, or split=all."
            )

    def _note_labels(self) -> None:
        labeled, images = len(self.labeled_rows), len(self.list_rows("train"))
        unlabeled = len(self.list_rows(UNLABELED))
        if self.label_fraction is not None:
            note = (
                f"{labeled:,} of {images:,} training images keep their label"
                f" (data.label_fraction={self.label_fraction:g}); the others are used without"
            )
            self.notes += (note,)
        if unlabeled:
            note = (
                f"{unlabeled:,} images without labels (data.unlabeled={self.unlabeled}) are"
                " also used for training, by loss terms that read no label"
            )
            self.notes += (note,)

    # -- content

    @property
    def store(self) -> PixelStore:
        """The pixels of all images, by image number."""
        assert self._store is not None, "load() comes first"
        return self._store

    @property
    def contents(self) -> PictureContents:
        """Which images are copies of others, by image number."""
        assert self._contents is not None, "load() comes first"
        return self._contents

    @property
    def is_loaded(self) -> bool:
        """Whether the pixels can be read."""
        return self._store is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by class number."""
        return self.listing.classes

    @property
    def size(self) -> int:
        """Side length in pixels to build models for.

        `image_size` if set; else the side of the images if all are equal squares of up
        to 224 pixels; else the median of the shorter sides, rounded to a multiple of 32
        between 32 and 224.
        """
        size = self.image_size or self._measured_size
        assert size is not None, "load() comes first"
        return size

    @property
    def sizes(self) -> dict[str, int]:
        """Number of readable images by split, including "unlabeled" if present."""
        return {
            name: len(self.list_rows(name))
            for name in (*SPLITS, UNLABELED)
            if name in SPLITS or len(self.list_rows(name))
        }

    @property
    def fingerprint(self) -> str:
        """sha256 of contents, splits, bad images, decode size, seed, and gray files.

        These determine the splits and the pixels of each image.
        """
        has_gray_files = self.source.size is None and self.source.channels == 1
        return hash_value(
            {
                "data": self.listing.fingerprint,
                "split": hash_value(self._names),
                "bad": sorted(self._bad),
                "decode_size": self._decode_size,
                "seed": self.seed,
                **({"channels": 1} if has_gray_files else {}),
                **({"left_out": self._left_out} if self._left_out else {}),
            }
        )

    def list_rows(self, split: str) -> Int64[np.ndarray, " rows"]:
        """Return the image numbers of a split, ascending; bad images are left out."""
        return self._rows[split]

    def list_targets(self, split: str) -> Int64[np.ndarray, " rows"]:
        """Return the class numbers of a split, in the order of `list_rows`."""
        targets: np.ndarray = self.listing.target[self.list_rows(split)]
        return targets

    @property
    def training_rows(self) -> Int64[np.ndarray, " rows"]:
        """Image numbers of one epoch, ascending: train, then unlabeled images."""
        return np.concatenate((self.list_rows("train"), self.list_rows(UNLABELED)))

    @property
    def labeled_rows(self) -> Int64[np.ndarray, " rows"]:
        """The `training_rows` whose label is used."""
        rows = self.training_rows
        return rows if self.labeled is None else rows[self.labeled[rows]]

    def iterate_images(
        self, split: str
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "height width channels"]]]:
        """Yield number and pixels of each image of a split, shuffled with `seed`."""
        for index in np.random.default_rng(self.seed).permutation(self.list_rows(split)).tolist():
            yield index, self.store.read_image(index)

    def make_thumbnail(self, index: int) -> bytes | None:
        """Return the decoded image `index` as a small PNG; None if it can't be read."""
        try:
            return encode_thumbnail(self.store.read_image(index))
        except BadImageError:
            return None

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel of train, in 0..1.

        Rounded to 4 digits; computed from at most 10,000 evenly spaced images.
        """
        if self._statistics is None:
            rows = self.list_rows("train")
            if not len(rows):
                rows = np.concatenate([self.list_rows(name) for name in SPLITS])
            sample = rows[
                np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(np.int64)
            ]
            self._statistics = compute_channel_statistics(
                self.store.read_image(number) for number in sample.tolist()
            )
        return self._statistics

    def write_split(self, path: Path) -> None:
        """Write a CSV with the split of each image."""
        write_split(path, self.listing, self._names)


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
