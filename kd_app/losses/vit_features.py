"""ViTKD: the student's shallow tokens are to be the teacher's, and the teacher's deep
ones are made of a part of the student's.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.noise import draw_noise
from kd_app.models.outputs import Outputs

_INSTEAD = "Terms that can compare this pair: soft_target, feature_hint, masked_generation."


class VitFeatures(LossTerm):
    """``shallow / B sum_l sum (r_l(X_s,l) - X_t,l)^2 + deep / (masked B) sum over
    hidden tokens (g(m(r(X_s))) - X_t)^2`` for the patch tokens X [B, N, D] of two
    vision transformers with the same N = side x side.

    r = a linear map where the widths differ; m puts a trained token in the place of a
    share `masked` of an image's tokens, drawn anew in every step; g = 3x3 convolution,
    ReLU, 3x3 convolution on the grid. The shallow tokens are the first `layers` of
    those that are read (at the ends of four equal parts of the depth), the deep ones
    the last, before the final norm; class tokens take no part. Yang et al., "ViTKD:
    Practical Guidelines for ViT Feature Knowledge Distillation", CVPR workshops 2024,
    arXiv 2209.02432, which reads the first two blocks and the last one behind the norm.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"tokens"})

    aligns: nn.ModuleList
    align: nn.Module
    mask_token: nn.Parameter
    generation: nn.Sequential

    def __init__(
        self,
        *,
        layers: PositiveInt,
        shallow: NonNegativeFloat,
        deep: NonNegativeFloat,
        masked: Annotated[float, Field(gt=0, lt=1)],
    ) -> None:
        super().__init__()
        self.layers = layers
        self.shallow, self.deep = shallow, deep
        self.masked = masked
        self.draw = draw_noise

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the linear maps, the mask token and the generator. Raises `RequestError`
        for models without tokens, or with other or oblong grids.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.tokens:
                raise RequestError(
                    f"vit_features compares the tokens of two vision transformers, and the {name}"
                    f" has none. {_INSTEAD}"
                )
        ours, theirs = student.tokens[-1].patch, teacher.tokens[-1].patch
        count = ours.shape[1]
        if theirs.shape[1] != count or round(count**0.5) ** 2 != count:
            raise RequestError(
                "vit_features compares patch with patch on a square grid, and the student has"
                f" {count} patches, the teacher {theirs.shape[1]}. Expected the same square number:"
                f" give both models the same square image size / patch size. {_INSTEAD}"
            )
        (wide, out), device = (ours.shape[2], theirs.shape[2]), ours.device
        pairs = range(len(list(zip(student.tokens, teacher.tokens, strict=False))[: self.layers]))
        self.aligns = nn.ModuleList(_align(wide, out) for _ in pairs).to(device)
        self.align = _align(wide, out).to(device)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, out, device=device))
        self.generation = nn.Sequential(
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)
        ).to(device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The sums of squares of both parts, as means over the batch; needs `build`
        first.
        """
        layers = zip(self.aligns, student.tokens, teacher.tokens, strict=False)
        shallow = torch.stack(
            [F.mse_loss(align(s.patch), t.patch, reduction="sum") for align, s, t in layers]
        ).sum()
        aligned, theirs = self.align(student.tokens[-1].patch), teacher.tokens[-1].patch
        images, count, _ = aligned.shape
        order = self.draw(batch, count).argsort(dim=1).argsort(dim=1)
        hidden = (order >= int(count * (1 - self.masked)))[..., None]
        side = round(count**0.5)
        grid = (
            torch.where(hidden, self.mask_token.to(aligned.dtype), aligned)
            .transpose(1, 2)
            .unflatten(2, (side, side))
        )
        made = self.generation(grid).flatten(2).transpose(1, 2)
        deep = ((made - theirs).square() * hidden).sum()
        value: Tensor = self.shallow * shallow / images + self.deep * deep / (self.masked * images)
        return value


def _align(ours: int, theirs: int) -> nn.Module:
    return nn.Identity() if ours == theirs else nn.Linear(ours, theirs)
