"""Relational knowledge distillation: match distances and angles between images of a
batch.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class RKD(LossTerm):
    """``distance mean_ij h(d_s - d_t) + angle mean_ijk h(a_s - a_t)``, h = Huber loss
    with delta 1, for pooled features f [B, D] of any widths.

    ``d_ij = |f_i - f_j|``, divided by the mean of the positive distances; ``a_ijk =
    <e_ij, e_ik>`` with ``e_ij = (f_i - f_j) / |f_i - f_j|``. Differences are computed
    before the norm, because inner products cancel (in half precision the value is off
    by 80 %). Memory: B^2 D + B^3 numbers per model. Park et al., "Relational Knowledge
    Distillation", CVPR 2019, arXiv 1904.05068.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"embedding"})
    needs_global_batch: bool = True

    def __init__(self, *, distance: NonNegativeFloat, angle: NonNegativeFloat) -> None:
        super().__init__()
        self.distance = distance
        self.angle = angle

    def list_parts(self) -> tuple[TermPart, ...]:
        # Of two images, each distance is the mean, and there is no angle.
        weights = {"distance": self.distance, "angle": self.angle}
        return tuple(TermPart(name, min_images=3) for name, weight in weights.items() if weight > 0)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if one of the models provides no pooled features."""
        require_embeddings("rkd", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of both parts; 0 if the features of both models
        differ only in scale, shift and rotation.
        """
        ours, theirs = (x[:, None] - x[None] for x in require_embeddings("rkd", student, teacher))
        distances = F.smooth_l1_loss(_compute_distances(ours), _compute_distances(theirs))
        return self.distance * distances + self.angle * F.smooth_l1_loss(
            _compute_angles(ours), _compute_angles(theirs)
        )


def _compute_distances(gaps: Float[Tensor, "batch batch features"]) -> Float[Tensor, "batch batch"]:
    distances: Tensor = torch.linalg.vector_norm(gaps, dim=2)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(distances.dtype).tiny)


def _compute_angles(
    gaps: Float[Tensor, "batch batch features"],
) -> Float[Tensor, "batch batch batch"]:
    directions = F.normalize(gaps, dim=2)
    return directions @ directions.transpose(1, 2)
