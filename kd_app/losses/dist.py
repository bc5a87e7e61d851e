"""DIST: correlate the student's probabilities with the teacher's, over classes and over
images.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import TermPart
from kd_app.losses.logits import LogitTerm
from kd_app.models.outputs import Outputs

_EPSILON = 1e-8


class DIST(LogitTerm):
    """``T^2 [beta (1 - mean_b r(P_b, Q_b)) + gamma (1 - mean_c r(P_.c, Q_.c))]`` for P,
    Q [B, K] = softmax(z / T) of student and teacher.

    r is Pearson's correlation with 1e-8 added to the product of the norms, as in the
    authors' code. The second part compares the images of a batch, and carries no
    information for a batch of one. Huang et al., "Knowledge Distillation from A
    Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.
    """

    needs_global_batch: bool = True

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(ge=0.01, le=1000)],
        beta: NonNegativeFloat,
        gamma: NonNegativeFloat,
        standardize: bool,
    ) -> None:
        super().__init__(standardize=standardize)
        self.temperature = temperature
        self.label_temperature = temperature
        self.beta = beta
        self.gamma = gamma

    def list_parts(self) -> tuple[TermPart, ...]:
        classes = self.build_part(
            "beta", min_classes=3, why="a correlation over two classes is always +1 or -1"
        )
        images = self.build_part("gamma", min_images=2)
        weights = ((self.beta, classes), (self.gamma, images))
        return tuple(part for weight, part in weights if weight > 0)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        p, q = (
            F.softmax(z / self.temperature, dim=1) for z in self.prepare_logits(student, teacher)
        )
        classes, images = (1 - _correlate(p, q, dim).mean() for dim in (1, 0))
        return self.temperature**2 * (self.beta * classes + self.gamma * images)


def _correlate(
    a: Float[Tensor, "batch classes"], b: Float[Tensor, "batch classes"], dim: int
) -> Float[Tensor, " others"]:
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    norms: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim=dim) / (norms + _EPSILON)
