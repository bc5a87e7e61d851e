"""The index of a data set: which images there are, which split and label each has, and
their pixels by number. It knows nothing about models, views or batches.
"""

import os
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kd_app.config import RequestError
from kd_app.data.base import ScanJob
from kd_app.data.images import BadImageError
from kd_app.data.label_subset import select_labeled_images
from kd_app.data.pixel_store import Cache, PixelStore, compute_channel_statistics, hold, open_store
from kd_app.data.scan import Progress, choose_typical_size, read_scan, scan
from kd_app.data.source import SPLITS, Listing, Source
from kd_app.data.splits import split as divide
from kd_app.data.splits import write_split
from kd_app.data.thumbnail import encode_thumbnail
from kd_app.data.unlabeled import UNLABELED, WithUnlabeled, select_labeled
from kd_app.stages import hash_value

Share = Annotated[float, Field(gt=0, lt=1)]

_SAMPLE = 10_000
"""Images that the statistics of the channels are computed from, at most."""
_NAMED = 5


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SplitRatios:
    """SplitRatios of the images that are drawn where there is no ready split."""

    validation: Share
    test: Share


class ImageIndex:
    """The images of a source by number, in three splits.

    ``list()`` is cheap. Where the images are files, ``scan_job`` decodes each once.
    ``load(folder)`` makes the pixels readable; nothing changes after it. label_fraction: share of
    the images to train on whose label is used, see `select_labeled_images`; None: all. unlabeled:
    a folder of images without a label, see `WithUnlabeled`.
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
        """By image number, whether its label is used in training; None: every one."""
        self._listing: Listing | None = None
        self._names: tuple[str, ...] = ()
        self._rows: dict[str, Int64[np.ndarray, " rows"]] = {}
        self._store: PixelStore | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._bad: dict[str, str] = {}
        self._decode_size: int | None = None
        self._measured_size = self.source.size

    # -- list, scan, load

    def list(self) -> None:
        """Find the images and divide them. Raises `RequestError` where the source or
        the division does.
        """
        if self._listing is None:
            listing = self.source.list_images()
            labeled = select_labeled(listing)
            division = divide(
                labeled, seed=self.seed, validation=self.shares.validation, test=self.shares.test
            )
            names = (*division.names, *(UNLABELED,) * (len(listing.files) - len(labeled.files)))
            self._listing, self._names, self.notes = listing, names, division.notes
            self._divide()

    def _divide(self) -> None:
        names = np.array(self._names)
        names[[int(number) for number in self._bad]] = ""
        self._rows = {name: np.flatnonzero(names == name) for name in (*SPLITS, UNLABELED)}
        if self.label_fraction is not None or len(self._rows[UNLABELED]):
            self.labeled = select_labeled_images(
                self.listing, self._rows["train"], self.label_fraction or 1.0, seed=self.seed
            )

    @property
    def listing(self) -> Listing:
        """What the source holds."""
        assert self._listing is not None, "list() comes first"
        return self._listing

    def scan_job(self, decode_size: int) -> ScanJob | None:
        """How to decode every image once, shorter sides bounded by `decode_size`; None
        where the pixels are in memory. Bad images are recorded; `load` raises or skips.
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
        """Make the pixels readable; `folder` is what the scan filled. Raises
        `RequestError`: bad images, or a split or class without any other.
        """
        if folder is None:
            pixels = self.source.store()
            if pixels is None:
                raise RequestError(
                    "These images are files: run data.scan_job(decode_size).run(folder, progress)"
                    " once, then call data.load(folder)."
                )
            self._store = hold(pixels)
        else:
            self._load_scan(folder)
        self._statistics = None
        self._check_splits()
        self._note_labels()

    def _load_scan(self, folder: Path) -> None:
        result = read_scan(folder)
        self._bad = result.summary.bad
        if self._bad and self.on_error == "raise":
            raise RequestError(
                f"{len(self._bad)} of {len(self.listing.files)} images can't be read:"
                f" {self._name_bad()} Expected: every image can be read. Replace or remove"
                " the files, or set data.on_error=skip, which leaves them out and counts them."
            )
        self._store, notes = open_store(self.source, folder, self.cache)
        self._decode_size = result.summary.decode_size
        self._divide()
        self._measured_size = choose_typical_size(result.sizes[self.listing.target >= 0])
        skipped = (
            (f"{len(self._bad)} image(s) can't be read and are left out: {self._name_bad()}",)
            if self._bad
            else ()
        )
        self.notes = (*self.notes, *notes, *skipped)

    def _name_bad(self) -> str:
        some = [self.listing.files[int(number)] for number in self._bad][:_NAMED]
        more = f" and {len(self._bad) - _NAMED} more" if len(self._bad) > _NAMED else ""
        return f"{', '.join(some)}{more}. The first: {next(iter(self._bad.values()))}"

    def _check_splits(self) -> None:
        """Raises `RequestError` where skipped images were all that a split, or a class
        in train, had.
        """
        for name in SPLITS:
            if not len(self.list_rows(name)):
                raise RequestError(
                    f"No image of the {name} set can be read. Replace the files: {self._name_bad()}"
                )
        missing = sorted(set(range(len(self.classes))) - set(self.list_targets("train").tolist()))
        if missing:
            raise RequestError(
                f"No image of the class {self.classes[missing[0]]!r} in train can be read. Replace"
                f" the files: {self._name_bad()}"
            )

    def _note_labels(self) -> None:
        kept, images, without = (
            len(rows)
            for rows in (self.labeled_rows, self.list_rows("train"), self.list_rows(UNLABELED))
        )
        if self.label_fraction is not None:
            self.notes += (
                (
                    f"{kept:,} of {images:,} images to train on keep their label"
                    f" (data.label_fraction={self.label_fraction:g}); the others are seen without"
                ),
            )
        if without:
            self.notes += (
                (
                    f"{without:,} images without a label (data.unlabeled={self.unlabeled}) are"
                    " trained on as well, by the terms that read none"
                ),
            )

    # -- what it holds

    @property
    def store(self) -> PixelStore:
        """The pixels of all images by number."""
        assert self._store is not None, "load() comes first"
        return self._store

    @property
    def is_loaded(self) -> bool:
        """Whether the pixels can be read."""
        return self._store is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""
        return self.listing.classes

    @property
    def size(self) -> int:
        """The side to make models for: `image_size`; else that of the images where all
        are equal squares of up to 224 pixels; else a typical one.

        Typical is the median of the shorter sides, rounded to a multiple of 32, from 32
        to 224.
        """
        size = self.image_size or self._measured_size
        assert size is not None, "load() comes first"
        return size

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images that can be read, by split; of those without a label where
        there are any.
        """
        return {
            name: len(self.list_rows(name))
            for name in (*SPLITS, UNLABELED)
            if name in SPLITS or len(self.list_rows(name))
        }

    @property
    def fingerprint(self) -> str:
        """sha256 of what determines the split and the pixels before the view: contents,
        division, bad images, decode size; and of the views' seed.
        """
        return hash_value(
            {
                "data": self.listing.fingerprint,
                "split": hash_value(self._names),
                "bad": sorted(self._bad),
                "decode_size": self._decode_size,
                "seed": self.seed,
            }
        )

    def list_rows(self, split: str) -> Int64[np.ndarray, " list_rows"]:
        """Image numbers of a split, ascending; once loaded without bad images."""
        return self._rows[split]

    def list_targets(self, split: str) -> Int64[np.ndarray, " list_rows"]:
        """Class numbers of a split, in the order of `rows`."""
        targets: np.ndarray = self.listing.target[self.list_rows(split)]
        return targets

    @property
    def training_rows(self) -> Int64[np.ndarray, " list_rows"]:
        """Numbers of the images of one epoch, ascending: with and without a label."""
        return np.concatenate((self.list_rows("train"), self.list_rows(UNLABELED)))

    @property
    def labeled_rows(self) -> Int64[np.ndarray, " list_rows"]:
        """The `training_rows` whose label is used."""
        rows = self.training_rows
        return rows if self.labeled is None else rows[self.labeled[rows]]

    def iterate_images(
        self, split: str
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "height width channels"]]]:
        """Number and pixels of each image of a split, shuffled by `seed`."""
        for index in np.random.default_rng(self.seed).permutation(self.list_rows(split)).tolist():
            yield index, self.store.read_image(index)

    def make_thumbnail(self, index: int) -> bytes | None:
        """Image `index` as it was decoded, as a small PNG; None where its file can't be
        read any more.
        """
        try:
            return encode_thumbnail(self.store.read_image(index))
        except BadImageError:
            return None

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the train split, in 0..1, to
        4 digits; from at most 10,000 images, evenly spread.
        """
        if self._statistics is None:
            rows = self.list_rows("train")
            sample = rows[
                np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(np.int64)
            ]
            self._statistics = compute_channel_statistics(
                self.store.read_image(number) for number in sample.tolist()
            )
        return self._statistics

    def write_split(self, path: Path) -> None:
        """Write which image is in which split as CSV."""
        write_split(path, self.listing, self._names)


def build_source(source: Callable[..., Any], root: Path | None) -> Source:
    """The source of the images, which reads the folder `root` where it reads one.
    Raises `RequestError` for a `root` too many or too few.
    """
    takes_root = "root" in signature(source).parameters
    if root is not None and not takes_root:
        raise RequestError(
            f"data.root={root} does nothing here: this data is not read from a folder. Remove it,"
            " or choose data=folder."
        )
    try:
        built = source(root=root) if takes_root else source()
    except RequestError as error:
        raise RequestError(f"{error} Set data.root to where the images are.") from (
            None if root is None else error
        )
    assert isinstance(built, Source)
    return built


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
