"""The LightningDataModule over every source: listed, scanned, loaded, bound to one
model's pixels, and served.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Int64
from lightning.pytorch import LightningDataModule
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from kd_app.config import Pixels, RequestError, Typed
from kd_app.data.augment import Augment
from kd_app.data.corruptions import Corrupted, Corruption
from kd_app.data.images import BadImageError
from kd_app.data.labels import labeled_images
from kd_app.data.loader import SINGLE, EvaluationLoader, Maker, Rank, Request, TrainingLoader
from kd_app.data.mix import Mix, Mixing
from kd_app.data.partners import class_partners
from kd_app.data.pixel_store import Cache, Store, channel_statistics, hold, open_store
from kd_app.data.scan import Progress, read_scan, scan, typical_size
from kd_app.data.source import SPLITS, Listing, Source
from kd_app.data.splits import split as divide
from kd_app.data.splits import write_split
from kd_app.data.thumbnail import thumbnail
from kd_app.data.unlabeled import UNLABELED, WithUnlabeled, labeled_part
from kd_app.data.views import Plain, View
from kd_app.stages import fingerprint

Share = Annotated[float, Field(gt=0, lt=1)]
Split = Literal["train", "validation", "test"]

_SAMPLE = 10_000
_NAMED = 5


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Shares:
    """Shares of the images that are drawn where there is no ready split."""

    validation: Share
    test: Share


class ImageData(LightningDataModule, Typed):
    """Images with one label each, in three splits.

    ``list()`` is cheap; where `needs_scan`, ``scan(folder, ...)`` decodes everything
    once; ``load(folder)`` makes the pixels readable; ``bind(pixels, order_seed=...)``
    says for which model `train_dataloader` and `val_dataloader` serve; `evaluation`
    needs no Trainer. Batches are `Batch` with uint8 images. The trainer says rank,
    world and position, so that a resumed run goes on in mid-epoch. views: so many views
    of each image, one an epoch in turn; None: a fresh one every epoch. labels: the
    share of the images to train on whose label is used in training, see
    `labeled_images`; None: all. What is measured, on train as well, is measured by all
    labels. unlabeled: a folder of images that have none and are trained on as well, see
    `WithUnlabeled`. augment, mix: what is done to each image to train on after its
    view, and how they are mixed with each other.
    """

    def __init__(
        self,
        *,
        source: Callable[..., Any],
        root: Path | None,
        view: View,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt | Literal["auto"],
        cache: Cache,
        on_error: Literal["raise", "skip"],
        seed: NonNegativeInt,
        image_size: PositiveInt | None,
        split: Shares,
        views: PositiveInt | None,
        labels: Annotated[float, Field(gt=0, le=1)] | None,
        unlabeled: Path | None,
        mix: Mix | None,
        augment: Augment | None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] | None = None
        self.source = _made(source, root)
        if unlabeled is not None:
            self.source = WithUnlabeled(self.source, unlabeled)
        self.unlabeled = unlabeled
        self.mix = mix if mix is not None and mix.active else None
        self.augment = augment if augment is not None and augment.active else None
        self.view = view
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache: Cache = cache
        self.on_error = on_error
        self.seed = seed
        self.image_size = image_size
        self.shares = split
        self.views = views
        self.labels = None if labels == 1 else labels
        self.notes: tuple[str, ...] = ()
        self._listing: Listing | None = None
        self._names: tuple[str, ...] = ()
        self._rows: dict[str, Int64[np.ndarray, " rows"]] = {}
        self._store: Store | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._bad: dict[str, str] = {}
        self._decode_size: int | None = None
        self._measured_size = self.source.size
        self._bound: tuple[Pixels, int] | None = None
        self._partners: Int64[np.ndarray, " images"] | None = None
        self._labeled: Bool[np.ndarray, " images"] | None = None
        self._on_labels = self._fresh = False

    def list(self) -> None:
        """Find the images and divide them. Raises `RequestError` where the source or
        the division does.
        """
        if self._listing is None:
            listing = self.source.listing()
            labeled = labeled_part(listing)
            found = divide(
                labeled, seed=self.seed, validation=self.shares.validation, test=self.shares.test
            )
            names = (*found.names, *(UNLABELED,) * (len(listing.files) - len(labeled.files)))
            self._listing, self._names, self.notes = listing, names, found.notes
            self._divide()

    def _divide(self) -> None:
        names = np.array(self._names)
        names[[int(number) for number in self._bad]] = ""
        self._rows = {name: np.flatnonzero(names == name) for name in (*SPLITS, UNLABELED)}
        few = self.labels is not None or len(self._rows[UNLABELED])
        self._labeled = (
            labeled_images(self.listing, self._rows["train"], self.labels or 1.0, seed=self.seed)
            if few
            else None
        )

    @property
    def listing(self) -> Listing:
        """What the source holds."""
        assert self._listing is not None, "list() comes first"
        return self._listing

    @property
    def needs_scan(self) -> bool:
        """Whether the images are files to be decoded."""
        return self.source.store() is None

    def scan_config(self, decode_size: int) -> dict[str, Any]:
        """What a scan depends on beside ``listing.fingerprint``: the configuration of
        its stage.
        """
        return {
            "decode_size": decode_size,
            "channels": self.source.channels,
            "keep": self.cache != "none",
        }

    def scan(self, folder: Path, *, decode_size: int, progress: Progress) -> None:
        """Decode every image once, shorter sides bounded by `decode_size`, and fill
        `folder`. Bad images are recorded; `load` raises or skips.
        """
        images = len(self.listing.files)
        scan(
            self.source,
            images,
            folder,
            decode_size=decode_size,
            keep=self.cache != "none",
            threads=_cores(),
            progress=progress,
        )

    def load(self, folder: Path | None) -> None:
        """Make the pixels readable; `folder` is what `scan` filled. Raises
        `RequestError`: bad images, or a split or class without any other.
        """
        if folder is None:
            pixels = self.source.store()
            if pixels is None:
                raise RequestError(
                    "These images are files: call data.scan(folder, decode_size=..., progress=...)"
                    " once, then data.load(folder)."
                )
            self._store = hold(pixels)
        else:
            self._load_scan(folder)
        self._statistics = None
        self._check_splits()
        self._note_labels()

    def _note_labels(self) -> None:
        kept, images, beside = (
            len(rows) for rows in (self.labeled_rows, self.rows("train"), self.rows(UNLABELED))
        )
        if self.labels is not None:
            self.notes += (
                (
                    f"{kept:,} of {images:,} images to train on keep their label"
                    f" (data.labels={self.labels:g}); the others are seen without"
                ),
            )
        if beside:
            self.notes += (
                (
                    f"{beside:,} images without a label (data.unlabeled={self.unlabeled}) are"
                    " trained on as well, by the terms that read none"
                ),
            )

    def _load_scan(self, folder: Path) -> None:
        found = read_scan(folder)
        self._bad = found.summary.bad
        if self._bad and self.on_error == "raise":
            raise RequestError(
                f"{len(self._bad)} of {len(self.listing.files)} images can't be read:"
                f" {self._named_bad()} Expected: every image can be read. Replace or remove the"
                " files, or set data.on_error=skip, which leaves them out and counts them."
            )
        self._store, notes = open_store(self.source, folder, self.cache)
        self._decode_size = found.summary.decode_size
        self._divide()
        self._measured_size = typical_size(found.sizes[self.listing.target >= 0])
        skipped = (
            (f"{len(self._bad)} image(s) can't be read and are left out: {self._named_bad()}",)
            if self._bad
            else ()
        )
        self.notes = (*self.notes, *notes, *skipped)

    def _named_bad(self) -> str:
        some = [self.listing.files[int(number)] for number in self._bad][:_NAMED]
        more = f" and {len(self._bad) - _NAMED} more" if len(self._bad) > _NAMED else ""
        return f"{', '.join(some)}{more}. The first: {next(iter(self._bad.values()))}"

    def _check_splits(self) -> None:
        """Raises `RequestError` where skipped images were all that a split, or a class
        in train, had.
        """
        for name in SPLITS:
            if not len(self.rows(name)):
                raise RequestError(
                    f"No image of the {name} set can be read. Replace the files:"
                    f" {self._named_bad()}"
                )
        missing = sorted(set(range(len(self.classes))) - set(self.targets("train").tolist()))
        if missing:
            raise RequestError(
                f"No image of the class {self.classes[missing[0]]!r} in train can be read. Replace"
                f" the files: {self._named_bad()}"
            )

    @property
    def store(self) -> Store:
        """The pixels of all images by number."""
        assert self._store is not None, "load() comes first"
        return self._store

    def thumbnail(self, index: int) -> bytes | None:
        """Image `index` as it was decoded, as a small PNG; None where its file can't be
        read any more.
        """
        try:
            return thumbnail(self.store.picture(index))
        except BadImageError:
            return None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""
        return self.listing.classes

    @property
    def channels(self) -> int:
        """1 or 3: what the images have."""
        return self.source.channels

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
    def files(self) -> tuple[str, ...]:
        """Names by image number."""
        return self.listing.files

    @property
    def groups(self) -> tuple[str, ...]:
        """Group by image number, '' for none; empty where no image has one."""
        return self.listing.group if any(self.listing.group) else ()

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images that can be read, by split; of those without a label where
        there are any.
        """
        return {
            name: len(self.rows(name))
            for name in (*SPLITS, UNLABELED)
            if name in SPLITS or len(self.rows(name))
        }

    @property
    def fingerprint(self) -> str:
        """sha256 of what determines the split and the pixels before the view: contents,
        division, bad images, decode size; and of the views' seed.
        """
        names = fingerprint(self._names)
        return fingerprint(
            {
                "data": self.listing.fingerprint,
                "split": names,
                "bad": sorted(self._bad),
                "decode_size": self._decode_size,
                "seed": self.seed,
            }
        )

    def rows(self, split: str) -> Int64[np.ndarray, " rows"]:
        """Image numbers of a split, ascending; once loaded without bad images."""
        return self._rows[split]

    def targets(self, split: str) -> Int64[np.ndarray, " rows"]:
        """Class numbers of a split, in the order of `rows`."""
        found: np.ndarray = self.listing.target[self.rows(split)]
        return found

    def write_split(self, path: Path) -> None:
        """Write which image is in which split as CSV."""
        write_split(path, self.listing, self._names)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the train split, in 0..1, to
        4 digits; from at most 10,000 images, evenly spread.
        """
        if self._statistics is None:
            rows = self.rows("train")
            sample = rows[
                np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(np.int64)
            ]
            self._statistics = channel_statistics(
                self.store.picture(number) for number in sample.tolist()
            )
        return self._statistics

    @property
    def training_rows(self) -> Int64[np.ndarray, " rows"]:
        """Numbers of the images of one epoch, ascending: with and without a label."""
        return np.concatenate((self.rows("train"), self.rows(UNLABELED)))

    @property
    def labeled_rows(self) -> Int64[np.ndarray, " rows"]:
        """Those of which the label is used."""
        rows = self.training_rows
        return rows if self._labeled is None else rows[self._labeled[rows]]

    def bind(
        self,
        pixels: Pixels,
        *,
        order_seed: int,
        shuffled: bool = False,
        on_labels: bool = False,
        fresh: bool = False,
    ) -> None:
        """Serve the model that expects `pixels` from now on; `order_seed` shuffles the
        images. Raises `RequestError` where the view can't.

        shuffled: a teacher is shown another image of the same class in the place of
        each, see `class_partners`. on_labels: the images with a label alone, in as many
        steps an epoch as all of them take. fresh: a fresh view in every pass, whatever
        `views` says.
        """
        self._bound, self._on_labels, self._fresh = (pixels, order_seed), on_labels, fresh
        self._partners = (
            class_partners(self.listing.target, self.rows("train"), seed=order_seed)
            if shuffled
            else None
        )
        self._maker(self.view, pixels)[Request(0, self.rows("train")[:1])]

    def setup(self, stage: str) -> None:
        """Load what is in memory anyway, for a plain Trainer."""
        if self._store is None:
            self.list()
            self.load(None)

    def train_dataloader(self) -> TrainingLoader:
        """Augmented, shuffled batches; with ``overfit_batches`` of the Trainer the same
        images in each epoch.
        """
        pixels, order_seed = self._binding()
        maker, rank = replace(self._training_maker(pixels), partners=self._partners), self._rank()
        reshuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        rows, all_rows = (
            (self.labeled_rows if self._on_labels else self.training_rows),
            self.training_rows,
        )
        return TrainingLoader(
            maker,
            rows,
            batch_size=self.batch_size,
            num_workers=self._workers(maker, rank),
            order_seed=order_seed,
            position=self._position,
            rank=rank,
            reshuffle=reshuffle,
            views=None if self._fresh else self.views,
            images_an_epoch=None if len(rows) == len(all_rows) else len(all_rows),
        )

    def seen_in(self, view: int, pixels: Pixels) -> EvaluationLoader:
        """The images of an epoch in order, in the view of that number, as the model
        that expects `pixels` is shown them in training.
        """
        maker = self._training_maker(pixels)
        return EvaluationLoader(
            maker,
            self.training_rows,
            self.batch_size,
            num_workers=self._workers(maker, SINGLE),
            view=view,
        )

    def val_dataloader(self) -> EvaluationLoader:
        """This rank's share of the validation images."""
        pixels, _ = self._binding()
        return self._evaluation("validation", Plain(), pixels, self.batch_size, self._rank())

    def evaluation(
        self,
        split: Split,
        pixels: Pixels,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> EvaluationLoader:
        """All images of a split in order, as the model that expects `pixels` sees them,
        in this process; corrupted, where that is asked for.
        """
        view = Plain() if corruption is None else Corrupted(corruption)
        return self._evaluation(split, view, pixels, batch_size or self.batch_size, SINGLE)

    def sample(self, split: Split, pixels: Pixels, images: int) -> EvaluationLoader:
        """So many images of a split, or all it has, drawn at random with `seed`; as
        `evaluation` gives them. Of train those whose label is used.
        """
        rows = np.random.default_rng(self.seed).permutation(
            self.labeled_rows if split == "train" else self.rows(split)
        )[:images]
        return replace(
            self.evaluation(split, pixels),
            rows=np.sort(rows),
            batch_size=min(self.batch_size, images),
        )

    def _evaluation(
        self, split: Split, view: View, pixels: Pixels, batch_size: int, rank: Rank
    ) -> EvaluationLoader:
        maker = self._maker(view, pixels)
        return EvaluationLoader(
            maker,
            self.rows(split),
            batch_size=batch_size,
            num_workers=self._workers(maker, rank),
            rank=rank,
        )

    def _training_maker(self, pixels: Pixels) -> Maker:
        mixing = (
            None
            if self.mix is None
            else Mixing(self.mix, len(self.classes), self.training_rows, self._labeled)
        )
        return replace(
            self._maker(self.view, pixels),
            labeled=self._labeled,
            mixing=mixing,
            augment=self.augment,
        )

    def _maker(self, view: View, pixels: Pixels) -> Maker:
        return Maker(self.store, self.listing.target, view, pixels, self.seed)

    def _binding(self) -> tuple[Pixels, int]:
        if self._bound is None:
            raise RequestError(
                "The data serves no model yet: call data.bind(pixels, order_seed=...) with what the"
                " student expects."
            )
        return self._bound

    def _rank(self) -> Rank:
        return (
            SINGLE
            if self.trainer is None
            else Rank(self.trainer.global_rank, self.trainer.world_size)
        )

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready  # type: ignore[attr-defined]

    def _workers(self, maker: Maker, rank: Rank) -> int:
        """No worker where a batch costs less than handing it over."""
        if not maker.is_slow():
            return 0
        return max(1, _cores() // rank.world) if self.num_workers == "auto" else self.num_workers


def _made(source: Callable[..., Any], root: Path | None) -> Source:
    takes_root = "root" in signature(source).parameters
    if root is not None and not takes_root:
        raise RequestError(
            f"data.root={root} does nothing here: this data is not read from a folder. Remove it,"
            " or choose data=folder."
        )
    try:
        made = source(root=root) if takes_root else source()
    except RequestError as error:
        raise RequestError(f"{error} Set data.root to where the images are.") from (
            None if root is None else error
        )
    assert isinstance(made, Source)
    return made


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
