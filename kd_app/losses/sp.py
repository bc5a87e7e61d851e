"""Similarity preserving: match the similarities of the images in a batch."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NegativeInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.pairing import pair_stage
from kd_app.models.outputs import Outputs


class SimilarityPreserving(LossTerm):
    """``|G_s - G_t|^2 / B^2`` with ``G [B, B] = F F'``, each row with L2 norm 1, for
    the flattened maps F of one stage; sizes and widths may differ.

    Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv
    1907.09682.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"features"})
    needs_global_batch: bool = True

    def __init__(self, *, stage: NegativeInt) -> None:
        super().__init__()
        self.stage = stage

    def list_parts(self) -> tuple[TermPart, ...]:
        return (TermPart(min_images=2),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if one of the models provides no feature maps."""
        pair_stage("sp", student, teacher, self.stage)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the pairs of images; 0 for equal similarities, and for a
        batch of one.
        """
        ours, theirs = (
            F.normalize(compute_gram(x), dim=1)
            for x in pair_stage("sp", student, teacher, self.stage)
        )
        return F.mse_loss(ours, theirs)


def compute_gram(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch batch"]:
    """Return the inner products of the images' maps."""
    return x.flatten(1) @ x.flatten(1).T
