"""Correlation congruence: match the student's kernel matrix of a batch to the
teacher's.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class CorrelationCongruence(LossTerm):
    """``|K_s - K_t|^2 / B^2`` with ``K_ij = e^(-2 gamma) sum_{p <= order} (2 gamma
    <x_i, x_j>)^p / p!``, x [B, D] = pooled features with L2 norm 1.

    K is the series of the Gaussian kernel ``exp(-gamma |x_i - x_j|^2)``, which is valid
    for norm 1 only. No projection to a common width is needed, so none can collapse.
    Other losses are also called CC: products of neighbors in batch order, and the norm
    without the square. Peng et al., "Correlation Congruence for Knowledge
    Distillation", ICCV 2019, arXiv 1904.01802.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"embedding"})
    needs_global_batch: bool = True

    def __init__(self, *, gamma: PositiveFloat, order: PositiveInt) -> None:
        super().__init__()
        self.gamma = gamma
        self.order = order

    def list_parts(self) -> tuple[TermPart, ...]:
        return (TermPart(min_images=2),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if one of the models provides no pooled features."""
        require_embeddings("cc", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the pairs of images; 0 for equal kernel matrices, and
        for a batch of one.
        """
        ours, theirs = (self._compute_kernel(x) for x in require_embeddings("cc", student, teacher))
        return F.mse_loss(ours, theirs)

    def _compute_kernel(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch batch"]:
        x = F.normalize(x, dim=1)
        scaled = 2 * self.gamma * (x @ x.T)
        series = torch.stack([scaled**p / math.factorial(p) for p in range(self.order + 1)])
        return math.exp(-2 * self.gamma) * series.sum(dim=0)
