"""Builds loaders of the images of an `ImageIndex` for a model's `InputSpec`."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from kd_app.config import InputSpec
from kd_app.data.corruptions import Corrupted, Corruption
from kd_app.data.index import ImageIndex, count_cores
from kd_app.data.loader import (
    SINGLE,
    BatchBuilder,
    BatchRequest,
    EvaluationLoader,
    PixelChange,
    Position,
    Rank,
    TrainingLoader,
)
from kd_app.data.mix import BatchMixer, MixSettings
from kd_app.data.partners import Partners
from kd_app.data.pseudo_labels import add_pseudo_labels
from kd_app.data.views import CenterCropView, View

_FEW = 64
"""Images that are read without worker processes."""


class _TrainingImages(NamedTuple):
    """The images of an epoch.

    rows: their numbers. target, labeled: by image number, the label, and whether it is
    used (None: all are).
    """

    rows: Int64[np.ndarray, " rows"]
    target: Int64[np.ndarray, " images"]
    labeled: Bool[np.ndarray, " images"] | None


@dataclass(frozen=True, kw_only=True)
class ImageLoaders:
    """Builds the loaders of a data module.

    after_view: changes applied to training images after their view. mix: mixing of
    training images, applied last; None: no mixing.
    """

    index: ImageIndex
    view: View
    batch_size: int
    num_workers: int | Literal["auto"]
    mix: MixSettings | None
    after_view: tuple[PixelChange, ...]

    def check_view(self, input_spec: InputSpec) -> None:
        """Apply the view to one image. Raises `RequestError` if the view fails."""
        self._build_batch_builder(self.view, input_spec)[
            BatchRequest(0, self.index.list_rows("train")[:1])
        ]

    def build_training_loader(
        self,
        input_spec: InputSpec,
        *,
        order_seed: int,
        partners: Partners | None,
        pseudo_labels: Int64[np.ndarray, " images"] | None,
        labeled_only: bool,
        with_validation: bool = False,
        views: int | None,
        position: Position,
        rank: Rank,
        reshuffle: bool,
    ) -> TrainingLoader:
        """Return the shuffled training batches; see `TrainingLoader`.

        pseudo_labels: by image number, labels of images whose own label is not used;
        -1: none. labeled_only: use only labeled images, with as many steps per epoch as
        all images take. with_validation: the images of validation, too, all with
        labels.
        """
        images = self._select_images(pseudo_labels, with_validation=with_validation)
        builder = replace(self._build_training_builder(input_spec, images), partners=partners)
        all_rows, labeled = images.rows, images.labeled
        rows = all_rows if labeled is None or not labeled_only else all_rows[labeled[all_rows]]
        return TrainingLoader(
            builder,
            rows,
            batch_size=self.batch_size,
            num_workers=self._count_workers(builder, rank),
            order_seed=order_seed,
            position=position,
            rank=rank,
            reshuffle=reshuffle,
            views=views,
            images_an_epoch=None if len(rows) == len(all_rows) else len(all_rows),
        )

    def build_evaluation_loader(
        self,
        split: str,
        input_spec: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
        rank: Rank = SINGLE,
    ) -> EvaluationLoader:
        """Return the images of a split in order, corrupted if `corruption` is set."""
        view = CenterCropView() if corruption is None else Corrupted(corruption)
        builder = self._build_batch_builder(view, input_spec)
        return EvaluationLoader(
            builder,
            self.index.list_rows(split),
            batch_size=batch_size or self.batch_size,
            num_workers=self._count_workers(builder, rank),
            rank=rank,
        )

    def sample(self, split: str, input_spec: InputSpec, images: int) -> EvaluationLoader:
        """Return `images` images of a split, drawn at random.

        Of train, only images whose label is used are drawn.
        """
        rows = self.index.labeled_rows if split == "train" else self.index.list_rows(split)
        rows = np.random.default_rng(self.index.seed).permutation(rows)[:images]
        return replace(
            self.build_evaluation_loader(split, input_spec),
            rows=np.sort(rows),
            batch_size=min(self.batch_size, images),
        )

    def replay(
        self, input_spec: InputSpec, view: int, rows: Int64[np.ndarray, " rows"]
    ) -> EvaluationLoader:
        """Return the training images `rows`, in this order, in view `view`.

        The pixels are those of the training loader.
        """
        builder = self._build_training_builder(input_spec, self._select_images())
        return EvaluationLoader(
            builder,
            rows,
            self.batch_size,
            # to start workers takes longer than to read a few images
            num_workers=0 if len(rows) < _FEW else self._count_workers(builder, SINGLE),
            view=view,
        )

    def _select_images(
        self,
        pseudo_labels: Int64[np.ndarray, " images"] | None = None,
        *,
        with_validation: bool = False,
    ) -> _TrainingImages:
        """Select the images of an epoch and their labels."""
        rows, labeled = self.index.training_rows, self.index.labeled
        target = self.index.listing.target
        if pseudo_labels is not None and labeled is not None:
            target, labeled = add_pseudo_labels(target, labeled, pseudo_labels)
        if with_validation:
            validation = self.index.list_rows("validation")
            rows = np.concatenate((rows, validation))
            if labeled is not None:
                labeled = labeled.copy()
                labeled[validation] = True
        return _TrainingImages(rows, target, labeled)

    def _build_training_builder(
        self, input_spec: InputSpec, images: _TrainingImages
    ) -> BatchBuilder:
        mixing = None
        if self.mix is not None:
            mixing = BatchMixer(self.mix, len(self.index.classes), images.rows, images.labeled)
        return replace(
            self._build_batch_builder(self.view, input_spec),
            store=self.index.training_store,
            target=images.target,
            labeled=images.labeled,
            mixing=mixing,
            after_view=self.after_view,
        )

    def _build_batch_builder(self, view: View, input_spec: InputSpec) -> BatchBuilder:
        index = self.index
        return BatchBuilder(index.store, index.listing.target, view, input_spec, index.seed)

    def _count_workers(self, builder: BatchBuilder, rank: Rank) -> int:
        """Return 0 if building a batch costs less than its transfer from a worker."""
        if not builder.is_slow():
            return 0
        if self.num_workers == "auto":
            return max(1, count_cores() // rank.world)
        return self.num_workers
