"""Curriculum temperature: soft targets at a temperature learned to make them harder."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kd_app.data.batch import Batch
from kd_app.losses.logits import LogitTerm
from kd_app.models.outputs import Outputs
from kd_app.schedules import Ramp


class CTKD(LogitTerm):
    """``T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T))`` at a learned ``T = lowest
    + span sigmoid(theta)``, with theta = 1 at the start.

    theta is trained adversarially: its gradient is reversed, with a strength that rises
    with ``batch.progress`` from 0 to 1 along half a cosine over the share `rise` of the
    training. Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
    arXiv 2211.16231, with one temperature for all images.
    """

    def __init__(
        self,
        *,
        lowest: Annotated[float, Field(ge=0.01, le=1000)],
        span: PositiveFloat,
        rise: Annotated[float, Field(gt=0, le=1)],
        standardize: bool,
    ) -> None:
        super().__init__(standardize=standardize)
        self.lowest = lowest
        self.span = span
        self.strength = Ramp(first=0.0, last=1.0, begin=0.0, end=rise, curve="cosine")
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch; 0 if both models predict the same
        probabilities.
        """
        theta: Tensor = _GradientReversal.apply(
            self.theta, self.strength.compute_factor(batch.progress)
        )
        temperature = self.lowest + self.span * theta.sigmoid()
        ours, theirs = (
            F.log_softmax(z / temperature, dim=1) for z in self.prepare_logits(student, teacher)
        )
        return (
            F.kl_div(ours, theirs, reduction="sum", log_target=True)
            * temperature.square()
            / len(ours)
        ).sum()


class _GradientReversal(torch.autograd.Function):
    """The identity, with a gradient multiplied by minus `strength`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None
