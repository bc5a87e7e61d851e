"""ReviewKD: match each stage of the teacher with all student stages that are as deep or
deeper.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import pair_stages, require_embeddings
from kd_app.models.outputs import Outputs

_POOLED_SIZES = (4, 2, 1)


class Review(LossTerm):
    """``sum over levels of H(out_k, F_t,k)``, from the deepest upward: first the
    embedding as a map of one cell, then the stages.

    ``x = BN(conv1x1(F_s,k))``; from the second level on, x is fused with the upsampled
    map y of the deeper level: ``a_1 x + a_2 y`` with ``a = sigmoid(conv1x1([x, y]))``;
    ``out_k = BN(conv3x3(x))`` at the size of the teacher's map. H is a weighted mean of
    mean squared differences: at full size with weight 1, and at 4, 2 and 1 cells per
    side with half of the previous weight each (sizes not smaller than the map are
    skipped). Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv
    2104.09044. The paper reads the teacher's maps before the last activation; here they
    are read after it, because every net has those. On CIFAR the paper warms the term up
    over 20 epochs.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features", "embedding"})

    adapters: nn.ModuleList

    def __init__(self, *, stages: PositiveInt, width: PositiveInt) -> None:
        super().__init__()
        self.stages = stages
        self.width = width

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build one fusion per level. Raises `RequestError` if a model provides no
        feature maps or no embedding.
        """
        levels = self._pair_levels(student, teacher)
        width = min(self.width, levels[0][0].shape[1])
        fusions = (
            Fusion(s.shape[1], width, t.shape[1], mixes=k > 0) for k, (s, t) in enumerate(levels)
        )
        self.adapters = nn.ModuleList(fusions).to(levels[0][0].device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the levels."""
        values: list[Tensor] = []
        residual = None
        for fusion, (ours, theirs) in zip(
            self.adapters, self._pair_levels(student, teacher), strict=True
        ):
            out, residual = fusion(ours, residual, theirs.shape[2:])
            values.append(compute_hierarchical_loss(out, theirs))
        return torch.stack(values).sum()

    def _pair_levels(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        ours, theirs = require_embeddings("review", student, teacher)
        return [
            (ours[:, :, None, None], theirs[:, :, None, None]),
            *pair_stages("review", student, teacher)[: self.stages],
        ]


class Fusion(nn.Module):
    """Fuse a student's map with the result of deeper levels. Returns a map for the
    teacher's stage and the residual for the next level.
    """

    def __init__(self, ours: int, width: int, theirs: int, *, mixes: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(ours, width, 1, bias=False), BatchNorm(width))
        self.conv2 = nn.Sequential(
            nn.Conv2d(width, theirs, 3, padding=1, bias=False), BatchNorm(theirs)
        )
        self.att_conv = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if mixes else None

    def forward(
        self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return ``[B, C_t, *size]`` and ``[B, width, h, w]`` at the student's own
        size.
        """
        x = self.conv1(x)
        if self.att_conv is not None:
            assert deeper is not None
            y = F.interpolate(deeper, x.shape[2:], mode="nearest")
            attention = self.att_conv(torch.cat((x, y), dim=1))
            x = x * attention[:, :1] + y * attention[:, 1:]
        resized = x
        if x.shape[2:] != size:
            smaller = all(a >= b for a, b in zip(x.shape[2:], size, strict=True))
            resized = (
                F.adaptive_avg_pool2d(x, size)
                if smaller
                else F.interpolate(x, size, mode="nearest")
            )
        return self.conv2(resized), x


def compute_hierarchical_loss(
    ours: Float[Tensor, "batch channels height width"],
    theirs: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Return the weighted mean of the mean squared differences at full size and at 4, 2
    and 1 cells per side.
    """
    sizes = [size for size in _POOLED_SIZES if size < min(ours.shape[2:])]
    values = [F.mse_loss(ours, theirs)]
    values += [
        F.mse_loss(F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size))
        for size in sizes
    ]
    weights = ours.new_tensor([0.5**k for k in range(len(values))])
    return (torch.stack(values) * weights).sum() / weights.sum()
