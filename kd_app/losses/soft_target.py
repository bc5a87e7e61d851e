"""Soft targets: match the teacher's probabilities at a temperature."""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.logits import LogitTerm
from kd_app.models.outputs import Outputs


class SoftTarget(LogitTerm):
    """``T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T))`` for logits z [B, K] of
    student and teacher and temperature T.

    The sum over classes is averaged over the batch only, not over batch and classes;
    T^2 keeps the size of the gradient independent of T. Hinton, Vinyals, Dean, NIPS
    workshop 2014, arXiv 1503.02531. At T=1 without a label term: FunMatch (Beyer et
    al., CVPR 2022, arXiv 2106.05237).
    """

    def __init__(
        self, *, temperature: Annotated[float, Field(ge=0.01, le=1000)], standardize: bool
    ) -> None:
        super().__init__(standardize=standardize)
        self.temperature = temperature
        self.label_temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch; 0 if both models predict the same
        probabilities.
        """
        ours, theirs = (
            F.log_softmax(z / self.temperature, dim=1)
            for z in self.prepare_logits(student, teacher)
        )
        # log_target stays finite if a probability underflows to 0. Scaling the sum is
        # faster than reduction="batchmean".
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) * (
            self.temperature**2 / len(ours)
        )
