"""Transformed teacher matching: a temperature for the teacher only."""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.logits import LogitTerm
from kd_app.models.outputs import Outputs

Power = Annotated[float, Field(ge=0.001, le=1)]


class TTM(LogitTerm):
    """``mean_b KL(q || softmax(z_s))`` with ``q = p_t^power / U``, ``U = sum_c
    p_t,c^power``, that is ``q = softmax(power z_t)``.

    The student has no temperature, and there is no factor T^2. In contrast to
    `soft_target` this rewards an uncertain student. Zheng & Yang, "Knowledge
    Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv 2402.11148.
    """

    def __init__(self, *, power: Power, standardize: bool) -> None:
        super().__init__(standardize=standardize)
        self.power = power
        self.label_temperature = 1 / power

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        return compute_ttm_divergence(*self.prepare_logits(student, teacher), self.power).mean()


def compute_ttm_divergence(
    z_s: Float[Tensor, "batch classes"], z_t: Float[Tensor, "batch classes"], power: float
) -> Float[Tensor, " batch"]:
    """Return ``KL(softmax(power z_t) || softmax(z_s))`` of every image."""
    ours, theirs = F.log_softmax(z_s, dim=1), F.log_softmax(power * z_t, dim=1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
