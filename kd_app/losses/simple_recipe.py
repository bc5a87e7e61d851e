"""SRD: match the student's normalized embedding, after a linear map, to the teacher's,
with emphasis on large differences.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs

_EPS = 1e-4


class SimpleRecipe(LossTerm):
    """``2 log sum_bd |BN(W f_s + a) - BN(f_t)|^p`` for the embeddings f [B, D], p =
    `exponent`; batch norm without affine parameters, with batch statistics, for student
    and teacher.

    The authors combine it with ``soft_target`` at temperature 1. For equal embeddings
    the logarithm stays finite (that of the smallest number). One image has no variance,
    so the running statistics are used. Miles & Mikolajczyk, "Understanding the Role of
    the Projector in Knowledge Distillation", AAAI 2024, arXiv 2303.11098.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"embedding"})

    embed: nn.Linear
    norms: nn.ModuleList

    def __init__(self, *, exponent: PositiveFloat) -> None:
        super().__init__()
        self.exponent = exponent

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear map and the norms. Raises `RequestError` if one of the
        models provides no embedding.
        """
        ours, theirs = require_embeddings("simple_recipe", student, teacher)
        self.embed = nn.Linear(ours.shape[1], theirs.shape[1]).to(ours.device)
        self.norms = nn.ModuleList(
            BatchNorm(theirs.shape[1], eps=_EPS, affine=False) for _ in range(2)
        ).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the logarithm of the sum over batch and features."""
        ours, theirs = require_embeddings("simple_recipe", student, teacher)
        s, t = (
            norm(x[:, :, None, None])
            for norm, x in zip(self.norms, (self.embed(ours), theirs), strict=True)
        )
        total: Tensor = (s - t).abs().pow(self.exponent).sum()
        return 2 * total.clamp(min=torch.finfo(total.dtype).tiny).log()
