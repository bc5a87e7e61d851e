"""Attention transfer: compare where in the image the activation is."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import match_sizes, pair_spatial_stages
from kd_app.models.outputs import Outputs


class AttentionTransfer(LossTerm):
    """``sum over stages of mean (A(F_s) - A(F_t))^2`` over batch and cells. A(F) is the
    energy ``sum_c F_c^2`` of every cell, normalized to L2 norm 1.

    Stages are paired from the deepest upward. The larger of two maps is average-pooled
    to the size of the smaller before squaring, so widths, sizes and families (CNN, ViT)
    may differ. Pairs that share a single cell are skipped: they have only one attention
    map. Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv
    1612.03928, as in the authors' code (the paper's formula has an un-squared norm and
    half the weight).
    """

    level: ClassVar[Level] = "attention"
    reads: frozenset[str] = frozenset({"features"})

    def __init__(self, *, stages: PositiveInt) -> None:
        super().__init__()
        self.stages = stages

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if a model provides no feature maps, or none that share
        more than one cell.
        """
        self._pair_maps(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the stages; 0 if both models have the same attention
        maps.
        """
        pairs = (match_sizes(*pair) for pair in self._pair_maps(student, teacher))
        return torch.stack(
            [
                F.mse_loss(compute_attention_map(ours), compute_attention_map(theirs))
                for ours, theirs in pairs
            ]
        ).sum()

    def _pair_maps(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        return pair_spatial_stages(
            "attention_transfer",
            "the places of activation in the image",
            student,
            teacher,
            self.stages,
        )


def compute_attention_map(
    feature: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch cells"]:
    """Return the energy of every cell, summed over channels, with L2 norm 1 over the
    cells of an image (0 for an all-zero map).
    """
    # The squared norm reads the map once; a sum of squares would allocate a second map.
    return F.normalize(torch.linalg.vector_norm(feature, dim=1).square().flatten(1), dim=1)
