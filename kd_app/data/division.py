"""The images of a source by number, divided into train, validation and test."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Int64
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kd_app.data.duplicates import Groups
from kd_app.data.evaluation import Evaluation
from kd_app.data.label_subset import select_labeled_images
from kd_app.data.source import SPLITS, Listing, Source
from kd_app.data.splits import split as divide
from kd_app.data.splits import write_split
from kd_app.data.unlabeled import UNLABELED, WithUnlabeled, select_main

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SplitRatios:
    """Shares of the images to draw for each split that is not predefined."""

    validation: Share
    test: Share


class ImageDivision:
    """The images of a source, listed and divided; without their pixels.

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
        label_fraction: float | None = None,
        unlabeled: Path | None = None,
    ) -> None:
        self.source = source if unlabeled is None else WithUnlabeled(source, unlabeled)
        self.shares = shares
        self.seed = seed
        self.label_fraction = None if label_fraction == 1 else label_fraction
        self.unlabeled = unlabeled
        self.notes: tuple[str, ...] = ()
        self.labeled: Bool[np.ndarray, " images"] | None = None
        """By image number, whether the label is used in training; None: all."""
        self._listing: Listing | None = None
        self._names: tuple[str, ...] = ()
        self._rows: dict[str, Int64[np.ndarray, " rows"]] = {}
        self._bad: dict[str, str] = {}
        """Number of an image that can't be read -> reason."""
        self._evaluation: Evaluation | None = None
        self._left_out: tuple[int, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._is_divided = True

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
        main = select_main(self.listing)
        count, others = len(main.files), len(self.listing.files) - len(main.files)
        division = divide(
            main,
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

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by class number."""
        return self.listing.classes

    @property
    def sizes(self) -> dict[str, int]:
        """Number of readable images by split, including "unlabeled" if present."""
        return {
            name: len(self.list_rows(name))
            for name in (*SPLITS, UNLABELED)
            if name in SPLITS or len(self.list_rows(name))
        }

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

    def _note_labels(self) -> None:
        labeled, images = len(self.labeled_rows), len(self.list_rows("train"))
        unlabeled = len(self.list_rows(UNLABELED))
        if self._evaluation is not None:
            return
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

    def write_split(self, path: Path) -> None:
        """Write a CSV with the split of each image."""
        write_split(path, self.listing, self._names)
