"""VkD: match the student's features, after an orthogonal map, to the teacher's
normalized ones.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import pair_stages
from kd_app.models.outputs import Outputs


class OrthogonalProjection(LossTerm):
    """``smooth_l1(V f_s, LN(f_t))``, mean over batch and features, for the deepest maps
    averaged over their cells, f [B, D]; V [D_t, D_s] has orthonormal columns (rows if
    D_t < D_s), LN = layer norm without affine parameters.

    V is the orthonormal factor of a trained matrix, computed in every step. An
    orthogonal map can't change the relations between the student's features, so the
    student must learn them, not the map. The authors combine it with ``soft_target`` at
    temperature 1. Miles, Elezi, Deng, "VkD: Improving Knowledge Distillation using
    Orthogonal Projections", CVPR 2024, arXiv 2403.06213.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    adapter: "Orthogonal"

    def __init__(self, *, beta: PositiveFloat) -> None:
        super().__init__()
        self.beta = beta

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the map. Raises `RequestError` if one of the models provides no feature
        maps.
        """
        (ours, theirs), *_ = pair_stages("orthogonal_projection", student, teacher)
        self.adapter = Orthogonal(ours.shape[1], theirs.shape[1]).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        ours, theirs = (
            x.mean((2, 3)) for x in pair_stages("orthogonal_projection", student, teacher)[0]
        )
        return F.smooth_l1_loss(
            self.adapter(ours), F.layer_norm(theirs, theirs.shape[1:]), beta=self.beta
        )


class Orthogonal(nn.Module):
    """A linear map. Its matrix is the orthonormal factor Q in the QR decomposition of
    the weight [out, in], with a positive diagonal of R.
    """

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(theirs, ours)))

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        wide = self.weight.shape[0] < self.weight.shape[1]
        q, r = torch.linalg.qr(self.weight.T if wide else self.weight)
        v: Tensor = q * r.diagonal().sign()
        return v.T if wide else v

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        return x @ self.matrix.T
