"""The LightningDataModule over every source: an `ImageIndex`, and loaders that serve its
images to the model that the data are bound to.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from lightning.pytorch import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.data.augment import Augment
from kd_app.data.base import Capability, Lack, ScanJob, ViewReplay, capabilities_without
from kd_app.data.corruptions import Corruption
from kd_app.data.index import ImageIndex, SplitRatios, build_source
from kd_app.data.loader import SINGLE, EvaluationLoader, Rank, TrainingLoader
from kd_app.data.loaders import ImageLoaders
from kd_app.data.mix import MixSettings
from kd_app.data.partners import draw_class_partners
from kd_app.data.pixel_store import Cache
from kd_app.data.unlabeled import UNLABELED
from kd_app.data.views import View

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "views": (),
    "label_fraction": (),
    "unlabeled": (),
    "mix": MixSettings.SWITCHES,
    "augment": Augment.SWITCHES,
}
"""Settings of `ImageData` that are off unless a user turns them on. Of a group: its keys
that do so.
"""


class ImageData(LightningDataModule, Typed):
    """Images with one label each, in three splits.

    The data of a run as `RunData` describes them. Batches are `Batch` with uint8 images.
    The trainer sets rank, world and position, so that a resumed run continues in the
    middle of an epoch.

    views: number of views of each image, one per epoch in turn; None: a fresh one every
    epoch. label_fraction: share of the images to train on whose label is used in training, see
    `select_labeled_images`; None: all. Metrics, those on train as well, use all labels.
    unlabeled: a folder of images without labels to train on as well, see
    `WithUnlabeled`. augment, mix: what changes each image to train on after its view,
    and how images are mixed with each other.
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
        split: SplitRatios,
        views: PositiveInt | None,
        label_fraction: Annotated[float, Field(gt=0, le=1)] | None,
        unlabeled: Path | None,
        mix: MixSettings | None,
        augment: Augment | None,
    ) -> None:
        super().__init__()
        self.index = ImageIndex(
            build_source(source, root),
            shares=split,
            seed=seed,
            cache=cache,
            on_error=on_error,
            image_size=image_size,
            label_fraction=label_fraction,
            unlabeled=unlabeled,
        )
        self.view_config = {"_target_": _name_class(view), **vars(view)}
        """The view in the identity of a training. What builds the data from a
        configuration sets its node here: a view may hold parts that are not JSON.
        """
        self.views = views
        self.mix = mix if mix is not None and mix.active else None
        self.augment = augment if augment is not None and augment.active else None
        self.batch_size = batch_size
        self.loaders = ImageLoaders(
            index=self.index,
            view=view,
            batch_size=batch_size,
            num_workers=num_workers,
            mix=self.mix,
            after_view=() if self.augment is None else (self.augment,),
        )
        self.name = None
        self.image_size = image_size
        self._bound: tuple[InputSpec, int] | None = None
        self._partners: Int64[np.ndarray, " images"] | None = None
        self._labeled_only = self._fresh_views = False

    # -- what the data can do, and what decides their batches

    @property
    def lacks(self) -> dict[Capability, Lack]:
        """See `RunData`."""
        lacks: dict[Capability, Lack] = {}
        if self.views is None:
            lacks["views"] = Lack(
                "data.views=null shows each image in a fresh view in every epoch",
                "Set data.views, for example data.views=4",
            )
        for key, value in (
            ("label_fraction", self.index.label_fraction),
            ("unlabeled", self.index.unlabeled),
        ):
            if value is not None:
                lacks["partners"] = Lack(
                    f"data.{key}={value} trains on images without a label", f"Use data.{key}=null"
                )
        return lacks

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `RunData`."""
        return capabilities_without(self.lacks)

    def identity(self, *, for_teacher: bool) -> dict[str, Any]:
        """See `RunData`."""
        options = {
            **self._describe_changes(),
            "views": None if for_teacher else self.views,
            "label_fraction": self.index.label_fraction,
        }
        return {
            "view": self.view_config,
            "batch_size": self.batch_size,
            **{key: value for key, value in options.items() if value is not None},
        }

    def _describe_changes(self) -> dict[str, Any]:
        """What changes the pixels after the view, where anything does."""
        changes = {"mix": self.mix, "augment": self.augment}
        return {key: vars(change) for key, change in changes.items() if change is not None}

    def describe_training(self) -> tuple[str, ...]:
        """See `RunData`."""
        phrases = []
        if self.num_labeled is not None:
            others = len(self.index.list_rows(UNLABELED))
            more = f" and {others:,} more beside them have none" if others else ""
            phrases.append(f"{self.num_labeled:,} of the images to train on have a label{more}")
        if self.views is not None:
            phrases.append(f"{self.views} views of each in turn")
        changes = [change for change in (self.augment, self.mix) if change is not None]
        return (*phrases, *(change.describe() for change in changes))

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        """See `RunData`."""
        share = math.ceil(self.sizes["validation"] / world_size)
        return (
            max(1, len(self.index.training_rows) // (self.batch_size * world_size)),
            math.ceil(share / self.batch_size),
        )

    # -- what the index holds

    @property
    def license(self) -> str | None:
        """See `RunData`."""
        return self.index.source.license

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""
        return self.index.classes

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images that can be read, by split."""
        return self.index.sizes

    @property
    def fingerprint(self) -> str:
        """See `ImageIndex`."""
        return self.index.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about these data."""
        return self.index.notes

    @property
    def channels(self) -> int:
        """1 or 3: what the images have."""
        return self.index.source.channels

    @property
    def size(self) -> int:
        """The side to make models for."""
        return self.index.size

    @property
    def files(self) -> tuple[str, ...]:
        """Names by image number."""
        return self.index.listing.files

    @property
    def groups(self) -> tuple[str, ...]:
        """Group by image number, '' for none; empty where no image has one."""
        groups = self.index.listing.group
        return groups if any(groups) else ()

    @property
    def num_labeled(self) -> int | None:
        """See `RunData`."""
        labeled, rows = len(self.index.labeled_rows), len(self.index.training_rows)
        return labeled if labeled < rows else None

    def list(self) -> None:
        """Find the images and divide them."""
        self.index.list()

    def scan_job(self, decode_size: int) -> ScanJob | None:
        """See `ImageIndex`."""
        return self.index.scan_job(decode_size)

    def load(self, folder: Path | None) -> None:
        """See `ImageIndex`."""
        self.index.load(folder)

    def list_rows(self, split: str) -> Int64[np.ndarray, " list_rows"]:
        """Image numbers of a split, ascending."""
        return self.index.list_rows(split)

    def list_targets(self, split: str) -> Int64[np.ndarray, " list_rows"]:
        """Class numbers of a split, in the order of `rows`."""
        return self.index.list_targets(split)

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """See `RunData`."""
        return self.index.iterate_images(split)

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Image `index` as it was decoded."""
        return self.index.store.read_image(index)

    def make_thumbnail(self, index: int) -> bytes | None:
        """See `ImageIndex`."""
        return self.index.make_thumbnail(index)

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """See `ImageIndex`."""
        return self.index.compute_pixel_statistics()

    def write_split(self, path: Path) -> None:
        """Write which image is in which split as CSV."""
        self.index.write_split(path)

    # -- loaders

    def bind(
        self,
        pixels: InputSpec,
        *,
        order_seed: int,
        partner_images: bool = False,
        labeled_only: bool = False,
        fresh_views: bool = False,
    ) -> None:
        """See `RunData`. Raises `RequestError` where the view can't serve `pixels`."""
        self._bound = (pixels, order_seed)
        self._labeled_only, self._fresh_views = labeled_only, fresh_views
        self._partners = (
            draw_class_partners(self.index.listing.target, self.list_rows("train"), seed=order_seed)
            if partner_images
            else None
        )
        self.loaders.check_view(pixels)

    def setup(self, stage: str) -> None:
        """Load what is in memory anyway, for a plain Trainer."""
        if not self.index.is_loaded:
            self.list()
            self.load(None)

    def train_dataloader(self) -> TrainingLoader:
        """Augmented, shuffled batches; with ``overfit_batches`` of the Trainer the same
        images in each epoch.
        """
        pixels, order_seed = self._require_binding()
        return self.loaders.build_training_loader(
            pixels,
            order_seed=order_seed,
            partners=self._partners,
            labeled_only=self._labeled_only,
            views=None if self._fresh_views else self.views,
            position=self._position,
            rank=self._rank(),
            reshuffle=self.trainer is None or not self.trainer.overfit_batches,  # type: ignore[attr-defined]
        )

    def val_dataloader(self) -> EvaluationLoader:
        """This rank's share of the validation images."""
        pixels, _ = self._require_binding()
        return self.loaders.build_evaluation_loader("validation", pixels, rank=self._rank())

    def build_evaluation_loader(
        self,
        split: str,
        pixels: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> EvaluationLoader:
        """See `RunData`. corruption: what is done to each image."""
        return self.loaders.build_evaluation_loader(
            split, pixels, batch_size=batch_size, corruption=corruption
        )

    def sample(self, split: str, pixels: InputSpec, images: int) -> EvaluationLoader:
        """So many images of a split, or all it has, drawn at random with the seed of
        the data, as `evaluation` shows them. Of train only images whose label is used.
        """
        return self.loaders.sample(split, pixels, images)

    def replay(self, pixels: InputSpec) -> ViewReplay | None:
        """See `RunData`."""
        if self.views is None:
            return None
        identity = {"view": self.view_config, "views": self.views, **self._describe_changes()}
        if self.mix is not None:  # an image with a label is mixed only with another of them
            identity["label_fraction"] = self.index.label_fraction
        return ViewReplay(
            self.views,
            self.index.training_rows,
            identity,
            partial(self.loaders.replay, pixels),
        )

    def _require_binding(self) -> tuple[InputSpec, int]:
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


def find_active_options(node: Mapping[str, Any]) -> dict[str, Any]:
    """The `OPTIONS` that a data group of a configuration turns on, with their values."""
    return {
        key: node[key]
        for key, switches in OPTIONS.items()
        if node.get(key) is not None
        and (not switches or any(node[key].get(switch) for switch in switches))
    }


def _name_class(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
