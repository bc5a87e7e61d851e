"""Attention transfer: where in the image the activation is."""

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
    """``sum over stages of mean (A(F_s) - A(F_t))^2`` over batch and cells, where A(F)
    = the energy ``sum_c F_c^2`` of every cell, with L2 norm 1.

    Stages are paired from the deepest upward; the larger of two maps is averaged down
    to the size of the smaller before it is squared, so widths, sizes and families (CNN,
    ViT) are free. Pairs that share a single cell are left out: they have one attention
    map only. Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017,
    arXiv 1612.03928, in the form of its code (the paper's formula has the norm
    un-squared, and half the weight).
    """

    level: ClassVar[Level] = "attention"
    reads: frozenset[str] = frozenset({"features"})

    def __init__(self, *, stages: PositiveInt) -> None:
        super().__init__()
        self.stages = stages

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when a model gives no feature maps, or none that share
        more than one cell.
        """
        self._pair_maps(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The sum over the stages; 0 when both look at the same places."""
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
            "where in the image the activation is",
            student,
            teacher,
            self.stages,
        )


def compute_attention_map(
    feature: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch cells"]:
    """The energy of every cell, summed over channels, with L2 norm 1 over the cells of
    an image (0 where the map is 0).
    """
    # the squared norm reads the map once; the square of it, summed, would write a second map
    # of the same size
    return F.normalize(torch.linalg.vector_norm(feature, dim=1).square().flatten(1), dim=1)
