"""Match the similarities between the patches of one image."""

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


class PatchRelation(LossTerm):
    """``mean_bij (a_s(b, i, j) - a_t(b, i, j))^2`` with the cosine ``a(b, i, j)`` of
    the cells i and j of image b in a map [B, C, H, W].

    The mean over the `stages` deepest pairs with more than one common cell, of any
    widths; the larger map of a pair is average-pooled to the size of the smaller. For
    dense features: the term does not see how images differ from each other. Memory: B
    (H W)^2 numbers per model.
    Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic
    Segmentation", CVPR 2019, arXiv 1903.04197 (the pair-wise part).
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"features"})

    def __init__(self, *, stages: PositiveInt) -> None:
        super().__init__()
        self.stages = stages

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if no pair of maps has more than one common cell."""
        self._pair(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over images and pairs of cells; 0 for equal similarities."""
        losses = []
        for pair in self._pair(student, teacher):
            ours, theirs = (_compare_cells(each) for each in match_sizes(*pair))
            losses.append(F.mse_loss(ours, theirs))
        return torch.stack(losses).mean()

    def _pair(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        compares = "similarities of patches"
        return pair_spatial_stages("patch_relation", compares, student, teacher, self.stages)


def _compare_cells(
    maps: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch cells cells"]:
    cells = F.normalize(maps.flatten(2), dim=1)
    return cells.transpose(1, 2) @ cells
