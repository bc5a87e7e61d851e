"""Loaders of the images of an `ImageIndex`, for models with any `InputSpec`."""

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
from kd_app.data.views import CenterCropView, View


@dataclass(frozen=True, kw_only=True)
class ImageLoaders:
    """Builds loaders. after_view, mix: what changes the images of a training after
    their view, in this order; None: no mixing.
    """

    index: ImageIndex
    view: View
    batch_size: int
    num_workers: int | Literal["auto"]
    mix: MixSettings | None
    after_view: tuple[PixelChange, ...]

    def check_view(self, pixels: InputSpec) -> None:
        """Make the view of one image. Raises `RequestError` where the view can't."""
        self._build_batch_builder(self.view, pixels)[
            BatchRequest(0, self.index.list_rows("train")[:1])
        ]

    def build_training_loader(
        self,
        pixels: InputSpec,
        *,
        order_seed: int,
        partners: Int64[np.ndarray, " images"] | None,
        labeled_only: bool,
        views: int | None,
        position: Position,
        rank: Rank,
        reshuffle: bool,
    ) -> TrainingLoader:
        """Shuffled batches to train on; see `TrainingLoader`. labeled_only: images with
        a label, in as many steps as all images take.
        """
        maker = replace(self._build_training_builder(pixels), partners=partners)
        all_rows = self.index.training_rows
        rows = self.index.labeled_rows if labeled_only else all_rows
        return TrainingLoader(
            maker,
            rows,
            batch_size=self.batch_size,
            num_workers=self._count_workers(maker, rank),
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
        pixels: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
        rank: Rank = SINGLE,
    ) -> EvaluationLoader:
        """The images of a split in order, corrupted where that is asked for."""
        view = CenterCropView() if corruption is None else Corrupted(corruption)
        maker = self._build_batch_builder(view, pixels)
        return EvaluationLoader(
            maker,
            self.index.list_rows(split),
            batch_size=batch_size or self.batch_size,
            num_workers=self._count_workers(maker, rank),
            rank=rank,
        )

    def sample(self, split: str, pixels: InputSpec, images: int) -> EvaluationLoader:
        """So many images of a split, drawn at random; of train only images whose label
        is used.
        """
        rows = self.index.labeled_rows if split == "train" else self.index.list_rows(split)
        rows = np.random.default_rng(self.index.seed).permutation(rows)[:images]
        return replace(
            self.build_evaluation_loader(split, pixels),
            rows=np.sort(rows),
            batch_size=min(self.batch_size, images),
        )

    def replay(self, pixels: InputSpec, view: int, start: int) -> EvaluationLoader:
        """The images to train on in order, from the row `start` on, in the view of that
        number as a training shows it.
        """
        maker = self._build_training_builder(pixels)
        return EvaluationLoader(
            maker,
            self.index.training_rows[start:],
            self.batch_size,
            num_workers=self._count_workers(maker, SINGLE),
            view=view,
        )

    def _build_training_builder(self, pixels: InputSpec) -> BatchBuilder:
        index, mixing = self.index, None
        if self.mix is not None:
            mixing = BatchMixer(self.mix, len(index.classes), index.training_rows, index.labeled)
        return replace(
            self._build_batch_builder(self.view, pixels),
            labeled=index.labeled,
            mixing=mixing,
            after_view=self.after_view,
        )

    def _build_batch_builder(self, view: View, pixels: InputSpec) -> BatchBuilder:
        index = self.index
        return BatchBuilder(index.store, index.listing.target, view, pixels, index.seed)

    def _count_workers(self, maker: BatchBuilder, rank: Rank) -> int:
        """No worker where a batch costs less than handing it over."""
        if not maker.is_slow():
            return 0
        return (
            max(1, count_cores() // rank.world) if self.num_workers == "auto" else self.num_workers
        )
