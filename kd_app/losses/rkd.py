"""Relational knowledge distillation: distances and angles among the images of a batch."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class RKD(LossTerm):
    """``distance mean_ij h(d_s - d_t) + angle mean_ijk h(a_s - a_t)``, h = Huber's loss
    with delta 1, for pooled features f [B, D] of any widths.

    ``d_ij = |f_i - f_j|`` divided by the mean of those above 0; ``a_ijk = <e_ij,
    e_ik>`` with ``e_ij = (f_i - f_j) / |f_i - f_j|``. The differences are taken before
    the norm: from inner products they cancel (in half precision the value is 80 % off).
    Memory: B^2 D + B^3 numbers a model. Park et al., "Relational Knowledge
    Distillation", CVPR 2019, arXiv 1904.05068.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"embedding"})
    needs_global_batch: ClassVar[bool] = True

    def __init__(self, *, distance: NonNegativeFloat, angle: NonNegativeFloat) -> None:
        super().__init__()
        self.distance = distance
        self.angle = angle

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when one of the models gives no pooled features."""
        require_embeddings("rkd", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of both parts; 0 where the features of one model are those
        of the other but for size, shift and rotation.
        """
        ours, theirs = (x[:, None] - x[None] for x in require_embeddings("rkd", student, teacher))
        distances = F.smooth_l1_loss(_compute_distances(ours), _compute_distances(theirs))
        return self.distance * distances + self.angle * F.smooth_l1_loss(
            _compute_angles(ours), _compute_angles(theirs)
        )


def _compute_distances(gaps: Float[Tensor, "batch batch features"]) -> Float[Tensor, "batch batch"]:
    found: Tensor = torch.linalg.vector_norm(gaps, dim=2)
    mean = found.sum() / (found > 0).sum().clamp(min=1)
    return found / mean.clamp(min=torch.finfo(found.dtype).tiny)


def _compute_angles(
    gaps: Float[Tensor, "batch batch features"],
) -> Float[Tensor, "batch batch batch"]:
    directions = F.normalize(gaps, dim=2)
    return directions @ directions.transpose(1, 2)
