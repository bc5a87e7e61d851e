"""ViTKD: match the teacher's shallow tokens, and generate the teacher's deep tokens
from masked student tokens.
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

_ALTERNATIVES = "Terms that can compare this pair: soft_target, feature_hint, masked_generation."


class VitFeatures(LossTerm):
    """``shallow / B sum_l sum (r_l(X_s,l) - X_t,l)^2 + deep / (masked B) sum over
    masked tokens (g(m(r(X_s))) - X_t)^2`` for the patch tokens X [B, N, D] of two
    vision transformers with the same N = side x side.

    r = a linear map if the widths differ; m replaces a share `masked` of an image's
    tokens, drawn in every step, by a trained token; g = 3x3 convolution, ReLU, 3x3
    convolution on the grid. The shallow tokens are the first `layers` of the tapped
    ones (at the ends of four equal parts of the depth), the deep tokens the last,
    before the final norm; class tokens are not used. Yang et al., "ViTKD: Practical
    Guidelines for ViT Feature Knowledge Distillation", CVPR workshops 2024, arXiv
    2209.02432, which reads the first two blocks, and the last one after the norm.
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
        """Build the linear maps, the mask token and the generator. Raises
        `RequestError` for models without tokens, and for different or non-square grids.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.tokens:
                raise RequestError(
                    f"vit_features compares the tokens of two vision transformers, but the {name}"
                    f" has none. {_ALTERNATIVES}"
                )
        ours, theirs = student.tokens[-1].patch, teacher.tokens[-1].patch
        count = ours.shape[1]
        if theirs.shape[1] != count or round(count**0.5) ** 2 != count:
            raise RequestError(
                "vit_features compares patch by patch on a square grid, but the student has"
                f" {count} patches, and the teacher {theirs.shape[1]}. Expected the same square"
                " number: give both models the same square image size / patch size."
                f" {_ALTERNATIVES}"
            )
        (wide, out), device = (ours.shape[2], theirs.shape[2]), ours.device
        pairs = range(len(list(zip(student.tokens, teacher.tokens, strict=False))[: self.layers]))
        self.aligns = nn.ModuleList(_build_align(wide, out) for _ in pairs).to(device)
        self.align = _build_align(wide, out).to(device)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, out, device=device))
        self.generation = nn.Sequential(
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)
        ).to(device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sums of squares of both parts, averaged over the batch."""
        layers = zip(self.aligns, student.tokens, teacher.tokens, strict=False)
        shallow = torch.stack(
            [F.mse_loss(align(s.patch), t.patch, reduction="sum") for align, s, t in layers]
        ).sum()
        aligned, theirs = self.align(student.tokens[-1].patch), teacher.tokens[-1].patch
        images, count, _ = aligned.shape
        # The rank of every token in a random order; the last ranks are masked.
        order = self.draw(batch, count).argsort(dim=1).argsort(dim=1)
        hidden = (order >= int(count * (1 - self.masked)))[..., None]
        side = round(count**0.5)
        grid = (
            torch.where(hidden, self.mask_token.to(aligned.dtype), aligned)
            .transpose(1, 2)
            .unflatten(2, (side, side))
        )
        generated = self.generation(grid).flatten(2).transpose(1, 2)
        deep = ((generated - theirs).square() * hidden).sum()
        value: Tensor = self.shallow * shallow / images + self.deep * deep / (self.masked * images)
        return value


def _build_align(ours: int, theirs: int) -> nn.Module:
    return nn.Identity() if ours == theirs else nn.Linear(ours, theirs)
