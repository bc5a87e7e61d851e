"""The index of a data set: its divided images, and pixels by image number.

The index is independent of models, views and batches.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from kd_app.config import RequestError, RunError
from kd_app.config.errors import list_some
from kd_app.data.base import ScanJob
from kd_app.data.division import ImageDivision, SplitRatios
from kd_app.data.duplicates import PictureContents, list_copies
from kd_app.data.evaluation import ALL
from kd_app.data.image_tree import write_reasons
from kd_app.data.images import BadImageError
from kd_app.data.pixel_store import (
    Cache,
    DecodingStore,
    PixelStore,
    compute_channel_statistics,
    hold,
    open_store,
)
from kd_app.data.scan import Progress, choose_typical_size, note_aspect_ratio, read_scan, scan
from kd_app.data.source import SPLITS, Source
from kd_app.data.thumbnail import encode_thumbnail
from kd_app.data.unlabeled import count_main
from kd_app.digest import hash_value

Share = Annotated[float, Field(gt=0, lt=1)]
Decoder = Literal["fast", "exact"]

_SAMPLE = 10_000
"""Maximum number of images for the channel statistics."""
_LISTED = 5
_UNREADABLE = "unreadable.csv"
"""Table of the images that can't be read, in the output folder of the scan."""


class ImageIndex(ImageDivision):
    """The images of a source by number, in three splits, with their pixels.

    ``list()`` is cheap. For image files, ``scan_job`` decodes each image once.
    ``load(folder)`` makes the pixels readable; the index does not change afterwards.
    decoder: how training images are decoded if ``cache="none"``: fast, only the crop at
    the scale that is needed, or exact, with the pixels of the evaluation.
    Other settings: see `ImageDivision`.
    """

    def __init__(
        self,
        source: Source,
        *,
        shares: SplitRatios,
        seed: int,
        cache: Cache,
        on_error: Literal["raise", "skip"],
        decoder: Decoder = "exact",
        image_size: int | None = None,
        label_fraction: float | None = None,
        unlabeled: Path | None = None,
    ) -> None:
        super().__init__(
            source, shares=shares, seed=seed, label_fraction=label_fraction, unlabeled=unlabeled
        )
        self.cache: Cache = cache
        self.on_error = on_error
        self.decoder: Decoder = decoder
        self.image_size = image_size
        self._store: PixelStore | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._decode_size: int | None = None
        self._measured_size = self.source.size
        self._contents: PictureContents | None = None

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
        self._measured_size = choose_typical_size(result.sizes[: count_main(self.listing)])
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
        files = [self.listing.files[int(number)] for number in self._bad]
        table = folder / _UNREADABLE if folder else None
        listed = f" All are listed in {str(table)!r}." if table and table.is_file() else ""
        return f"{list_some(files, _LISTED)}. The first: {next(iter(self._bad.values()))}.{listed}"

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

    @property
    def store(self) -> PixelStore:
        """The pixels of all images, by image number."""
        assert self._store is not None, "load() comes first"
        return self._store

    @property
    def has_fast_crops(self) -> bool:
        """Whether crops of training images have other pixels than those of the `store`.

        That depends on settings alone: a cache that doesn't fit on this machine must
        not change the training.
        """
        is_decoded = isinstance(self.store, DecodingStore)
        return is_decoded and self.cache == "none" and self.decoder == "fast"

    @property
    def training_store(self) -> PixelStore:
        """The `store` for training views, whose crops may be decoded faster."""
        store = self.store
        if isinstance(store, DecodingStore) and self.has_fast_crops:
            return store.make_fast()
        return store

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
        except (BadImageError, RunError):
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


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
