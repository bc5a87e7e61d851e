"""Weighted transformed teacher matching: higher weight for images on which the teacher
is uncertain.
"""

from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.logits import LogitTerm
from kd_app.losses.ttm import Power, compute_ttm_divergence
from kd_app.models.outputs import Outputs


class WTTM(LogitTerm):
    """``mean_b U KL(q || softmax(z_s))`` with ``q = p_t^power / U`` and ``U = sum_c
    p_t,c^power``.

    U is 1 for a teacher with probability 1 on one class, and K^(1 - power) for a
    uniform one.

    Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR
    2024, arXiv 2402.11148.
    """

    def __init__(self, *, power: Power, standardize: bool) -> None:
        super().__init__(standardize=standardize)
        self.power = power
        self.label_temperature = 1 / power

    @property
    def teacher_temperature(self) -> float | None:
        # U compares the probabilities at two temperatures
        return super().teacher_temperature if self.power == 1 else None

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        z_s, z_t = self.prepare_logits(student, teacher)
        # With logsumexp: powers of underflowed probabilities would drop classes.
        uncertainty = (
            (self.power * z_t).logsumexp(dim=1) - self.power * z_t.logsumexp(dim=1)
        ).exp()
        return (uncertainty * compute_ttm_divergence(z_s, z_t, self.power)).mean()
