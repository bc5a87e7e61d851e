"""OFA: classify every stage of the student with a branch of its own, for any pair of
architectures.
"""

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Outputs

_HEADS = 4
_GRID = 7
"""Token grids with more cells per side are merged two by two before the blocks."""


class OFA(LossTerm):
    """``l(z_s) + sum_k l(branch_k(F_k))`` with ``l(z) = -mean_b sum_c ((p_t +
    y)^exponent - y) log softmax(z)_c``, p_t = softmax(z_t), y one-hot.

    A branch maps one stage of the student to the classes. For maps of several strides:
    a 1x1 convolution on the deepest map, k separable blocks of stride 2 on a map k
    stages further up, then the average over the cells and a linear layer. For maps of
    one size (the tokens of a ViT or a Mixer): k transformer blocks, at least one, then
    the same; with `class_token` the student's class token passes these blocks together
    with the patches, and the linear layer reads the class token instead of the average,
    as in the authors' code. Exponent 1 is plain soft cross-entropy. The branches are
    trained and not shipped. For mixed labels the class with the largest share counts;
    without a label y = 0. Hao et al., "One-for-All: Bridge the Gap Between
    Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023, arXiv
    2310.19444.
    """

    level: ClassVar[Level] = "output"
    reads: frozenset[str] = frozenset({"logits", "features"})

    branches: nn.ModuleList

    def __init__(
        self,
        *,
        exponent: Annotated[float, Field(ge=0.5, le=4)],
        stages: PositiveInt,
        width: PositiveInt,
        class_token: bool,
    ) -> None:
        super().__init__()
        self.exponent = exponent
        self.class_token = class_token
        if class_token:
            self.reads = self.reads | {"tokens"}
        self.stages = stages
        self.width = width

    @property
    def teacher_reads(self) -> frozenset[str]:
        return frozenset({"logits"})

    @property
    def teacher_temperature(self) -> float:
        return 1.0

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the branches. Raises `RequestError` if the student provides no feature
        maps, or lacks the class token that `class_token` needs.
        """
        assert student.logits is not None
        maps = self._select_maps(student)
        if not maps:
            raise RequestError(
                "ofa builds a classifier on every stage of the student, but the student provides"
                " no feature maps. Choose another student, or another term: soft_target, dist or"
                " nkd."
            )
        tokens = self._select_class_tokens(student)
        if self.class_token and not (tokens and tokens[0].shape[1]):
            raise RequestError(
                "ofa.class_token=true classifies the student's class token, but the student has"
                " none. Set loss.ofa.class_token=false (classifies the average over the cells), or"
                " choose another term: soft_target, dist or nkd."
            )
        on_tokens = self.class_token or len({x.shape for x in maps}) < len(maps)
        classes, width = student.logits.shape[1], max(self.width, maps[0].shape[1])
        branches = (
            GridBranch(x, k, classes)
            if on_tokens
            else build_map_branch(x.shape[1], k, width, classes)
            for k, x in enumerate(maps)
        )
        self.branches = nn.ModuleList(branches).to(student.logits.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the student's logits and the branches."""
        assert student.logits is not None
        assert teacher.logits is not None
        inputs = [self._select_maps(student)]
        if self.class_token:
            inputs.append(self._select_class_tokens(student))
        logits = [
            student.logits,
            *(branch(*x) for branch, *x in zip(self.branches, *inputs, strict=True)),
        ]
        p = teacher.logits.softmax(dim=1)
        label = F.one_hot(batch.to_hard_target().clamp(min=0), p.shape[1]).to(p.dtype)
        if batch.labeled is not None:
            label = label * batch.labeled[:, None]
        target = (p + label).pow(self.exponent) - label
        return -(target * torch.stack(logits).log_softmax(dim=2)).sum() / len(p)

    def _select_maps(self, student: Outputs) -> list[Tensor]:
        """Return the maps from the deepest upward."""
        return student.features[::-1][: self.stages]

    def _select_class_tokens(self, student: Outputs) -> list[Tensor]:
        """Return the class tokens [B, 1, D] of the same stages, [B, 0, D] for a student
        without one.
        """
        return [tokens.prefix[:, :1] for tokens in student.tokens[::-1][: self.stages]]


def build_map_branch(channels: int, blocks: int, width: int, classes: int) -> nn.Sequential:
    """Build a branch from a map [B, C, H, W] to logits: separable blocks that halve the
    sides and double the channels, the last one to `width`; a 1x1 convolution if
    `blocks` is 0.
    """
    widths = [*(channels * 2**k for k in range(blocks)), width]
    down: list[nn.Module] = [build_separable_conv(*pair) for pair in pairwise(widths)] or [
        nn.Conv2d(channels, width, 1)
    ]
    return nn.Sequential(*down, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def build_separable_conv(ours: int, theirs: int) -> nn.Sequential:
    """Build depthwise 3x3 of stride 2, pointwise, depthwise 3x3, pointwise; each pair
    with batch norm and ReLU.
    """
    pairs = ((ours, ours, 2), (ours, theirs, 1))
    layers = [
        (
            nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False),
            nn.Conv2d(a, b, 1, bias=False),
            BatchNorm(b),
            nn.ReLU(),
        )
        for a, b, stride in pairs
    ]
    return nn.Sequential(*(layer for some in layers for layer in some))


class GridBranch(nn.Module):
    """A branch from tokens on their grid [B, D, H, W], and optionally a class token [B,
    1, D], to logits: `blocks` transformer blocks (at least one) and a linear layer.
    """

    def __init__(self, x: Tensor, blocks: int, classes: int) -> None:
        super().__init__()
        width = x.shape[1]
        heads = _HEADS if width % _HEADS == 0 else 1
        self.merging = PatchMerging(width, width) if max(x.shape[2:]) > _GRID else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, num_heads=heads) for _ in range(max(blocks, 1))))
        self.classifier = nn.Linear(width, classes)

    def forward(
        self,
        grid: Float[Tensor, "batch width height columns"],
        token: Float[Tensor, "batch 1 width"] | None = None,
    ) -> Tensor:
        patches = self.merging(grid).flatten(2).transpose(1, 2)
        rows = self.blocks(patches if token is None else torch.cat((token, patches), dim=1))
        logits: Tensor = self.classifier(rows.mean(dim=1) if token is None else rows[:, 0])
        return logits


class PatchMerging(nn.Module):
    """Concatenate each two by two cells of [B, D, H, W], normalize, and map to [B, D',
    H / 2, W / 2]. Odd sides are zero-padded. As in Swin.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out, bias=False)
        self.act = nn.GELU()

    def forward(
        self, x: Float[Tensor, "batch width height columns"]
    ) -> Float[Tensor, "batch out half_height half_columns"]:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.act(
            self.reduction(self.norm(torch.cat(corners, dim=1).permute(0, 2, 3, 1)))
        )
        return merged.permute(0, 3, 1, 2)
