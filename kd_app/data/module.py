"""`ImageData`, the LightningDataModule for all sources of labeled images."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from lightning.pytorch import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.config.typed import Side
from kd_app.data.augment import Augment
from kd_app.data.base import Capability, Lack, ScanJob, ViewReplay, exclude_capabilities
from kd_app.data.corruptions import Corruption
from kd_app.data.crop_decoding import IDENTITY
from kd_app.data.division import SplitRatios
from kd_app.data.duplicates import PictureContents
from kd_app.data.evaluation import Evaluation
from kd_app.data.index import Decoder, ImageIndex
from kd_app.data.loader import SINGLE, EvaluationLoader, Rank, TrainingLoader, plan_views
from kd_app.data.loaders import ImageLoaders
from kd_app.data.mix import MixSettings
from kd_app.data.partners import PartnerKind, Partners, draw_partners
from kd_app.data.pixel_store import Cache
from kd_app.data.source import Listing, build_source
from kd_app.data.unlabeled import UNLABELED
from kd_app.data.views import View

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "views": (),
    "label_fraction": (),
    "unlabeled": (),
    "mix": MixSettings.SWITCHES,
    "augment": Augment.SWITCHES,
}
"""Settings of `ImageData` that are off by default -> the keys that turn a group on."""


class ImageData(LightningDataModule, Typed):
    """Images with one label each, in three splits; implements `RunData`.

    Batches are `Batch` with uint8 images. Rank, number of processes and position come
    from the trainer, so that a resumed run continues in the middle of an epoch.

    views: number of views per image, one per epoch in turn; None: a new view in every
    epoch. label_fraction: share of the training images whose label is used in training,
    see `select_labeled_images`; None: all. Metrics use all labels, on train too.
    unlabeled: a folder of additional training images without labels, see
    `WithUnlabeled`. augment: changes applied to each training image after its view.
    mix: mixing of training images. decoder: see `ImageIndex`.
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
        decoder: Decoder,
        on_error: Literal["raise", "skip"],
        seed: NonNegativeInt,
        image_size: Side | None,
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
            decoder=decoder,
            image_size=image_size,
            label_fraction=label_fraction,
            unlabeled=unlabeled,
        )
        self.view_config = {"_target_": _name_class(view), **vars(view)}
        """The view in `describe_identity`.

        Data built from a configuration have its view node here, because attributes of a
        view may not be JSON.
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
        self._partners: Partners | None = None
        self._labeled_only = self._fresh_views = self._with_validation = False
        self._pseudo_labels: Int64[np.ndarray, " images"] | None = None

    # -- capabilities and identity

    @property
    def lacks(self) -> dict[Capability, Lack]:
        lacks: dict[Capability, Lack] = {}
        if self.views is None:
            lacks["views"] = Lack(
                "data.views=null uses a new view of each image in every epoch",
                "Set data.views, for example data.views=4",
            )
        for key, value in (
            ("label_fraction", self.index.label_fraction),
            ("unlabeled", self.index.unlabeled),
        ):
            if value is not None:
                lacks["partners"] = Lack(
                    f"data.{key}={value} trains on images without labels", f"Set data.{key}=null"
                )
        if "partners" not in lacks:
            lacks["unlabeled"] = Lack(
                "every training image has a label",
                "Set data.label_fraction, for example data.label_fraction=0.1, or data.unlabeled to"
                " a folder of images",
            )
        return lacks

    @property
    def capabilities(self) -> frozenset[Capability]:
        return exclude_capabilities(self.lacks)

    def describe_identity(self, *, for_teacher: bool) -> dict[str, Any]:
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
        """Return the active settings, beside the view, that change pixels."""
        changes = {"mix": self.mix, "augment": self.augment}
        active = {key: vars(change) for key, change in changes.items() if change is not None}
        has_fast_crops = self.loaders.view.reads_crops and self.index.has_fast_crops
        return {**active, **({"decoder": IDENTITY} if has_fast_crops else {})}

    def describe_training(self) -> tuple[str, ...]:
        phrases = []
        if self.num_labeled is not None:
            unlabeled = len(self.index.list_rows(UNLABELED))
            more = f", plus {unlabeled:,} unlabeled images" if unlabeled else ""
            phrases.append(f"{self.num_labeled:,} of the training images have a label{more}")
        if self.views is not None:
            phrases.append(f"{self.views} views of each in turn")
        changes = [change for change in (self.augment, self.mix) if change is not None]
        return (*phrases, *(change.describe() for change in changes))

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        share = math.ceil(self.sizes["validation"] / world_size)
        return (
            max(1, len(self.index.training_rows) // (self.batch_size * world_size)),
            math.ceil(share / self.batch_size),
        )

    @property
    def smallest_batch(self) -> int:
        return min(self.batch_size, len(self.index.training_rows))

    # -- content of the index

    @property
    def license(self) -> str | None:
        return self.index.source.license

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @property
    def sizes(self) -> dict[str, int]:
        return self.index.sizes

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        return self.index.notes

    @property
    def channels(self) -> int:
        return self.index.source.channels

    @property
    def size(self) -> int:
        return self.index.size

    @property
    def width(self) -> int:
        return self.size

    @property
    def files(self) -> tuple[str, ...]:
        return self.index.listing.printable_files

    @property
    def contents(self) -> PictureContents:
        return self.index.contents

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names by image number, '' for none; empty if no image has a group."""
        groups = self.index.listing.group
        return groups if any(groups) else ()

    @property
    def num_labeled(self) -> int | None:
        labeled, rows = len(self.index.labeled_rows), len(self.index.training_rows)
        return labeled if labeled < rows else None

    @property
    def listing(self) -> Listing:
        return self.index.source.list_images()

    def evaluate_only(self, evaluation: Evaluation) -> None:
        self.index.evaluate_only(evaluation)

    def leave_out(self, numbers: Iterable[int]) -> None:
        self.index.leave_out(numbers)

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        return self.index.hash_images(whole=whole)

    def list(self) -> None:
        self.index.list()

    def scan_job(self, decode_size: int) -> ScanJob | None:
        return self.index.scan_job(decode_size)

    def load(self, folder: Path | None) -> None:
        self.index.load(folder)

    def list_rows(self, split: str) -> Int64[np.ndarray, " rows"]:
        return self.index.list_rows(split)

    def list_targets(self, split: str) -> Int64[np.ndarray, " rows"]:
        return self.index.list_targets(split)

    def list_unlabeled_rows(self) -> Int64[np.ndarray, " rows"]:
        return np.setdiff1d(self.index.training_rows, self.index.labeled_rows)

    def count_labels(self) -> Int64[np.ndarray, " classes"]:
        labels = self.index.listing.target[self.index.labeled_rows]
        return np.bincount(labels[labels >= 0], minlength=len(self.classes))

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        return self.index.iterate_images(split)

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        return self.index.store.read_image(index)

    def make_thumbnail(self, index: int) -> bytes | None:
        return self.index.make_thumbnail(index)

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.index.compute_pixel_statistics()

    def write_split(self, path: Path) -> None:
        self.index.write_split(path)

    # -- loaders

    def bind(
        self,
        input_spec: InputSpec,
        *,
        order_seed: int,
        partners: PartnerKind | None = None,
        pseudo_labels: Int64[np.ndarray, " images"] | None = None,
        labeled_only: bool = False,
        fresh_views: bool = False,
        with_validation: bool = False,
    ) -> None:
        """Serve a model from now on; see `RunData`.

        Raises `RequestError` if the view can't produce images for `input_spec`.
        """
        self._bound = (input_spec, order_seed)
        self._labeled_only, self._fresh_views = labeled_only, fresh_views
        self._with_validation = with_validation
        splits = ("train", "validation") if with_validation else ("train",)
        rows = np.concatenate([self.list_rows(split) for split in splits])
        if partners != "class":
            # those without a label, too
            rows = np.union1d(rows, self.index.training_rows)
        self._pseudo_labels = pseudo_labels
        self._partners = (
            None
            if partners is None
            else draw_partners(partners, self.index.listing.target, rows, seed=order_seed)
        )
        self.loaders.check_view(input_spec)

    def setup(self, stage: str) -> None:
        """Load data that need no scan, for use with a plain Lightning Trainer."""
        if not self.index.is_loaded:
            self.list()
            self.load(None)

    def train_dataloader(self) -> TrainingLoader:
        """Return augmented, shuffled batches.

        With the Trainer's ``overfit_batches``, all epochs have the same images.
        """
        input_spec, order_seed = self._require_binding()
        return self.loaders.build_training_loader(
            input_spec,
            order_seed=order_seed,
            partners=self._partners,
            pseudo_labels=self._pseudo_labels,
            labeled_only=self._labeled_only,
            with_validation=self._with_validation,
            views=None if self._fresh_views else self.views,
            position=self._position,
            rank=self._rank(),
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Return the validation batches of this process."""
        input_spec, _ = self._require_binding()
        return self.loaders.build_evaluation_loader("validation", input_spec, rank=self._rank())

    def build_evaluation_loader(
        self,
        split: str,
        input_spec: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> EvaluationLoader:
        return self.loaders.build_evaluation_loader(
            split, input_spec, batch_size=batch_size, corruption=corruption
        )

    def sample(self, split: str, input_spec: InputSpec, images: int) -> EvaluationLoader:
        """Return up to `images` images of a split, drawn with the data's seed.

        Pixels are those of `build_evaluation_loader`. Of train, only images whose label
        is used are drawn.
        """
        return self.loaders.sample(split, input_spec, images)

    def replay(self, input_spec: InputSpec) -> ViewReplay | None:
        if self.views is None:
            return None
        identity = {"view": self.view_config, **self._describe_changes()}
        if self.mix is not None:
            # Labels determine the mixed pixels: a labeled image has a labeled partner.
            identity["label_fraction"] = self.index.label_fraction
        return ViewReplay(
            self.views,
            self.index.training_rows,
            identity,
            partial(self.loaders.replay, input_spec),
            self._plan_views,
        )

    def limit_views(self, count: int) -> None:
        if self.views is not None:
            self.views = min(self.views, count)

    def _plan_views(
        self, order_seed: int, epochs: int, images_a_step: int, steps: int
    ) -> dict[int, Int64[np.ndarray, " some"]]:
        assert self.views is not None
        return plan_views(
            self.index.training_rows,
            order_seed=order_seed,
            views=self.views,
            images_a_step=images_a_step,
            epochs=epochs,
            steps=steps,
        )

    def _require_binding(self) -> tuple[InputSpec, int]:
        if self._bound is None:
            raise RequestError(
                "The data are not bound to a model. Call data.bind(input_spec, order_seed=...) with"
                " the input specification of the model to train."
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
        loop: Any = self.trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready


def find_active_options(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `OPTIONS` that a data group turns on, with their values."""
    return {
        key: node[key]
        for key, switches in OPTIONS.items()
        if node.get(key) is not None
        and (not switches or any(node[key].get(switch) for switch in switches))
    }


def _name_class(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
