"""Builds loaders of the images of an `ImageIndex` for a model's `InputSpec`."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int64

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
from kd_app.data.pseudo_labels import add_pseudo_labels
from kd_app.data.views import CenterCropView, View


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
        partners: Int64[np.ndarray, " images"] | None,
        pseudo_labels: Int64[np.ndarray, " images"] | None,
        labeled_only: bool,
        views: int | None,
        position: Position,
        rank: Rank,
        reshuffle: bool,
    ) -> TrainingLoader:
        """Return the shuffled training batches; see `TrainingLoader`.

        pseudo_labels: by image number, labels of images whose own label is not used;
        -1: none. labeled_only: use only labeled images, with as many steps per epoch as
        all images take.
        """
        builder = self._build_training_builder(input_spec, pseudo_labels)
        builder = replace(builder, partners=partners)
        all_rows = self.index.training_rows
        rows = all_rows
        if labeled_only and builder.labeled is not None:
            rows = all_rows[builder.labeled[all_rows]]
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

    def replay(self, input_spec: InputSpec, view: int, start: int) -> EvaluationLoader:
        """Return the training images in order, from row `start` on, in view `view`.

        The pixels are those of the training loader.
        """
        builder = self._build_training_builder(input_spec)
        return EvaluationLoader(
            builder,
            self.index.training_rows[start:],
            self.batch_size,
            num_workers=self._count_workers(builder, SINGLE),
            view=view,
        )

    def _build_training_builder(
        self, input_spec: InputSpec, pseudo_labels: Int64[np.ndarray, " images"] | None = None
    ) -> BatchBuilder:
        index, mixing = self.index, None
        target, labeled = index.listing.target, index.labeled
        if pseudo_labels is not None and labeled is not None:
            target, labeled = add_pseudo_labels(target, labeled, pseudo_labels)
        if self.mix is not None:
            mixing = BatchMixer(self.mix, len(index.classes), index.training_rows, labeled)
        return replace(
            self._build_batch_builder(self.view, input_spec),
            target=target,
            labeled=labeled,
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
